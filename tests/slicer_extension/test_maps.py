"""Volumes of what the network computed beside the labels."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed: make test-slicer")

from slicer_nodes import add_volume, discs, labels_of, noise  # noqa: E402
from TTTUNetLib.Logic import RequestError  # noqa: E402
from TTTUNetLib.Volumes import matrix_of  # noqa: E402

ENDS = ("Min", "Max")


def segment(logic: Any, volume: Any, model: str, **options: Any) -> Any:
    return logic.segment(volume, model=model, waitForCompletion=True, **options)


def test_maps_are_volumes_on_the_exact_grid(scene: Any, logic: Any, tiny_3d: str):
    volume = add_volume(noise((8, 40, 36)), "oblique", "CT")
    task = segment(logic, volume, tiny_3d, maps=["probability", "uncertainty", "adaptation"])
    names = [node.GetName() for node in task.mapNodes]
    assert names == ["CT liver probability", "CT uncertainty", "CT adaptation"]
    for node in task.mapNodes:
        np.testing.assert_array_equal(
            matrix_of(node.GetIJKToRASMatrix), matrix_of(volume.GetIJKToRASMatrix)
        )
        assert node.GetAttribute("TTTUNet.Input") == "CT"
        assert "maps" not in json.loads(node.GetAttribute("TTTUNet.Record"))
    probability, uncertainty, adaptation = map(slicer.util.arrayFromVolume, task.mapNodes)
    labels = labels_of(task.segmentationNode, volume)
    np.testing.assert_array_equal(probability > 0.5, labels > 0)
    p = np.clip(probability.astype(float), 1e-12, 1 - 1e-7)
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p)) / np.log(2)
    np.testing.assert_allclose(uncertainty, entropy, atol=1e-3)
    assert np.isfinite(adaptation).all()
    assert adaptation.std() > 0
    low, high = (getattr(task.mapNodes[2].GetDisplayNode(), f"GetWindowLevel{x}")() for x in ENDS)
    assert adaptation.min() <= low < high <= adaptation.max()

    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "region")
    roi.SetCenter(*(matrix_of(volume.GetIJKToRASMatrix) @ [18, 20, 4, 1])[:3])
    roi.SetSize(10, 10, 8)
    part = segment(logic, volume, tiny_3d, maps=["probability"], roiNode=roi)
    found = slicer.util.arrayFromVolume(part.mapNodes[0])
    assert found.shape == labels.shape
    assert found[4, 20, 18] > 0
    assert not found[:, :5].any()
    with pytest.raises(RequestError, match="no map 'certainty'"):
        logic.segment(volume, model=tiny_3d, maps=["certainty"])


@pytest.mark.slow
def test_maps_of_the_shipped_model(scene: Any, logic: Any):
    task = segment(logic, add_volume(discs((1, 96, 90))), "nuclei", maps=["probability"])
    (node,) = task.mapNodes
    assert node.GetName() == "volume object probability"
    inside = labels_of(task.segmentationNode, task.volumeNode) > 0
    probability = slicer.util.arrayFromVolume(node)
    assert probability[inside].mean() > 0.8 > 0.2 > probability[~inside].mean()
