"""Models that the Fine-tune dock proposes, and names of those that it keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from skimage.io import imsave

pytest.importorskip("napari")

from napari_tttunet.dock_work import read_library
from napari_tttunet.finetune_models import startable, version_name
from tttunet.projects import Project


@pytest.mark.parametrize("reference", ["organs", "models/organs-v7", "/slicer/models/organs"])
def test_a_model_is_named_after_the_one_that_it_began_with(tmp_path: Path, reference: str) -> None:
    with Project.create(tmp_path / "livers") as project:
        assert version_name(project, reference) == "organs-v2"
        assert version_name(project, "") == "livers-v2"


@pytest.mark.usefixtures("own_library")
@pytest.mark.parametrize(
    ("task", "rgb", "first", "last"),
    [
        ("semantic", True, {"polyp"}, "nuclei"),
        ("semantic", False, {"kidney-mr", "liver-ct"}, "nuclei"),
        ("instance", False, {"nuclei"}, "polyp"),
    ],
)
def test_models_of_the_same_task_and_colours_come_first(
    tmp_path: Path, task: str, rgb: bool, first: set[str], last: str
) -> None:
    picture = tmp_path / "picture.png"
    imsave(picture, np.zeros((8, 8, 3) if rgb else (8, 8), np.uint8), check_contrast=False)
    classes = {1: "lesion"} if task == "semantic" else None
    with Project.create(tmp_path / "own", task=task, classes=classes) as project:
        assert project.add_image(picture).rgb == rgb
        names = [reference for _, reference in startable(read_library(), project)]
    assert names[0] in first
    assert names[-1] == last
