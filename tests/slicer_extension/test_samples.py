"""The volume that ships with the module, from Slicer's Sample Data to named segments."""

from __future__ import annotations

import hashlib
import sys
import urllib.request
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed: make test-slicer")

from slicer_nodes import array_on_grid, labels_of, load_volume  # noqa: E402
from TTTUNetLib import Samples  # noqa: E402

SAMPLES = Path(__file__).resolve().parents[2] / "resources" / "samples"


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What Slicer's module Sample Data, which is not in slicer-core, is told."""
    told: dict[str, Any] = {}

    class SampleDataLogic:
        @staticmethod
        def registerCustomSampleDataSource(
            category: str,
            sampleName: str,
            uris: str,
            fileNames: str,
            nodeNames: str,
            thumbnailFileName: str,
            checksums: str,
        ) -> None:
            told.update(locals())

    module = ModuleType("SampleData")
    module.SampleDataLogic = SampleDataLogic  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "SampleData", module)
    Samples.register()
    return told


def test_sample_is_registered_with_its_checksum(source: dict[str, Any]):
    assert source["category"] == "TTT-UNet"
    assert Path(source["thumbnailFileName"]).is_file()
    algorithm, _, digest = source["checksums"].partition(":")
    content = (SAMPLES / "hippocampus.nii.gz").read_bytes()
    assert (algorithm, digest) == ("SHA256", hashlib.sha256(content).hexdigest())


def test_sample_becomes_the_segments_that_an_expert_drew(
    source: dict[str, Any], scene: Any, logic: Any, tmp_path: Path
):
    path = tmp_path / source["fileNames"]
    urllib.request.urlretrieve(source["uris"], path)  # as Slicer does
    assert path.read_bytes() == (SAMPLES / "hippocampus.nii.gz").read_bytes()
    volume = load_volume(path)
    task = logic.segment(volume, waitForCompletion=True)
    content = task.segmentationNode.GetSegmentation()
    names = [content.GetNthSegment(number).GetName() for number in range(2)]
    assert names == ["anterior hippocampus", "posterior hippocampus"]
    found = labels_of(task.segmentationNode, volume)
    drawn = array_on_grid(load_volume(SAMPLES / "hippocampus_labels.nii.gz"), volume)
    for value in (1, 2):
        a, b = found == value, drawn == value
        assert 2 * np.count_nonzero(a & b) / (a.sum() + b.sum()) > 0.8
