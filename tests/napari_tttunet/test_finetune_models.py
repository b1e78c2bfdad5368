"""Names of the models that the Fine-tune dock keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("napari")

from napari_tttunet.finetune_models import version_name
from tttunet.projects import Project


@pytest.mark.parametrize("reference", ["organs", "models/organs-v7", "/slicer/models/organs"])
def test_a_model_is_named_after_the_one_that_it_began_with(tmp_path: Path, reference: str) -> None:
    with Project.create(tmp_path / "livers") as project:
        assert version_name(project, reference) == "organs-v2"
        assert version_name(project, "") == "livers-v2"
