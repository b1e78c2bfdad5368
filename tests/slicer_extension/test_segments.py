"""Corrections are copied from the scene and stored while it changes; nothing is lost on the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed: make test-slicer")

import vtk  # noqa: E402

import slicer_nodes as nodes  # noqa: E402
from slicer_nodes import add_volume, labels_of, noise  # noqa: E402
from TTTUNetLib import Projects, Results, Segments  # noqa: E402
from TTTUNetLib.Volumes import RequestError  # noqa: E402

NUMBERS = {"liver": 1, "spleen": 2}
SHAPE = (7, 30, 28)


@pytest.fixture
def project(scene: Any, logic: Any, tmp_path: Path) -> Iterator[Any]:
    with logic.client.open_project(tmp_path / "organs", [*NUMBERS]) as found:
        yield found


def add_segmentation() -> Any:
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "corrected")
    node.CreateDefaultDisplayNodes()
    node.GetSegmentation().SetSourceRepresentationName(Results.binary_labelmap())
    return node


def add_segment(node: Any, image: Any, name: str, value: int = 1) -> None:
    segment = slicer.vtkSegment()
    segment.SetName(name)
    segment.SetLabelValue(value)
    segment.AddRepresentation(Results.binary_labelmap(), image)
    node.GetSegmentation().AddSegment(segment)


def layer(volume: Any, voxels: np.ndarray, first: tuple[int, int, int] = (0, 0, 0)) -> Any:
    """As Segment Editor keeps it: cropped, so that it begins somewhere on the volume's grid."""
    image = Results.oriented_image(volume, np.ascontiguousarray(voxels))
    ends = (np.array(first) + voxels.shape - 1)[::-1]
    extent = np.stack([first[::-1], ends], axis=1).ravel()
    image.SetExtent(*extent.tolist())
    return image


@pytest.mark.parametrize("grid", nodes.GRIDS)
@pytest.mark.parametrize("first", [(0, 0, 0), (2, 5, 9), (-3, -4, 20), (6, 25, 22)])
def test_cropped_layer_lies_where_slicer_has_it(grid: str, first: tuple[int, int, int], scene: Any):
    volume, node = add_volume(noise(SHAPE), grid), add_segmentation()
    voxels = np.random.default_rng(4).integers(0, 3, (5, 12, 13)).astype(np.uint8)
    image = layer(volume, voxels, first)
    for name, value in NUMBERS.items():
        add_segment(node, image, name, value)
    found = Segments.copy_segments(volume, node, NUMBERS).labels()
    np.testing.assert_array_equal(found, labels_of(node, volume))
    assert found.any()


@pytest.mark.parametrize("grid", ["plain", "sagittal", "oblique"])
def test_layer_on_another_grid_is_resampled_as_slicer_does(
    grid: str, scene: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Segments, "_AT_ONCE", 2 * SHAPE[1] * SHAPE[2])  # two slices at once
    volume, other = add_volume(noise(SHAPE), grid), add_volume(noise((20, 40, 50)), "flipped")
    other.SetOrigin(-10, 30, 75)
    node = add_segmentation()
    voxels = np.random.default_rng(4).integers(0, 3, (20, 40, 50)).astype(np.uint8)
    image = layer(other, voxels)
    for name, value in NUMBERS.items():
        add_segment(node, image, name, value)
    found = Segments.copy_segments(volume, node, NUMBERS).labels()
    assert found.any()
    np.testing.assert_array_equal(found, labels_of(node, volume))


def test_last_segment_wins_where_layers_overlap(scene: Any):
    volume, node = add_volume(noise(SHAPE)), add_segmentation()
    below, above = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    below[:5], above[3:, 4:9] = 7, 1
    add_segment(node, layer(volume, below), "liver", 7)
    add_segment(node, layer(volume, above), "spleen")
    node.GetSegmentation().AddEmptySegment("", "liver")
    found = Segments.copy_segments(volume, node, NUMBERS).labels()
    np.testing.assert_array_equal(found, np.where(above > 0, 2, below > 0))


def test_surface_from_a_file_becomes_voxels(scene: Any):
    volume = add_volume(noise((40, 50, 50)))
    ball = vtk.vtkSphereSource()
    ball.SetRadius(8)
    ball.SetThetaResolution(32)
    ball.SetPhiResolution(32)
    ball.SetCenter(-31.5 + 25, 12.25 + 25, 87 + 20)
    ball.Update()
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "ball")
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    segment = slicer.vtkSegment()
    segment.SetName("liver")
    segment.AddRepresentation("Closed surface", ball.GetOutput())
    node.GetSegmentation().SetSourceRepresentationName("Closed surface")
    node.GetSegmentation().AddSegment(segment)
    found = Segments.copy_segments(volume, node, NUMBERS).labels()
    assert np.count_nonzero(found) == pytest.approx(4 / 3 * np.pi * 8**3, rel=0.15)
    assert found[20, 25, 25] == 1


def test_what_is_copied_is_stored_though_the_scene_has_changed(project: Any, logic: Any):
    array = noise(SHAPE)
    volume, node = add_volume(array, "oblique", "CT"), add_segmentation()
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[2:5, 4:9, 6:20] = 1
    add_segment(node, layer(volume, voxels.copy()), "liver")
    found = Projects.read_corrections(project, volume, node, checked=["liver"])
    assert not (project.folder / "volumes").exists(), "nothing is written while Slicer waits"
    slicer.util.arrayFromVolume(volume)[:] = 0
    image = node.GetSegmentation().GetNthSegment(0).GetRepresentation(Results.binary_labelmap())
    image.GetPointData().GetScalars().Fill(0)
    slicer.mrmlScene.Clear(0)
    reference = found.store(project)
    labels, vouched = project.corrections(reference).read(reference.bounds)
    np.testing.assert_array_equal(labels, voxels)
    assert vouched[voxels > 0].all()
    task = logic.openCorrections(project, reference, waitForCompletion=True)
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(task.volumeNode), array)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("grid", nodes.GRIDS)
def test_file_is_the_one_that_slicer_writes_and_is_not_written_twice(
    grid: str, dtype: str, project: Any
):
    array = noise(SHAPE).astype(dtype)
    array[0, 0, 0] = np.nan if dtype.startswith("float") else 0
    volume, node = add_volume(array, grid, "CT 1"), add_segmentation()
    add_segment(node, layer(volume, np.ones(SHAPE, np.uint8)), "liver")
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetUseCompression(False)
    (project.folder / "volumes").mkdir()
    written = project.folder / "volumes" / "CT-1-7.nrrd"  # by an older version
    storage.SetFileName(str(written))
    assert storage.WriteData(volume)

    reference = Projects.save_corrections(project, volume, node, checked=["liver"])
    assert Path(reference.absolute) == written.resolve()
    assert [*written.parent.iterdir()] == [written]
    slicer.util.arrayFromVolume(volume)[3, 3, 3] += 1
    other = Projects.save_corrections(project, volume, node, checked=["liver"])
    assert Path(other.absolute).name == "CT-1.nrrd"
    storage.SetFileName(str(project.folder / "again.nrrd"))
    assert storage.WriteData(volume)
    assert Path(other.absolute).read_bytes() == (project.folder / "again.nrrd").read_bytes()


def test_type_that_slicer_cannot_save_is_named(project: Any):
    volume, node = add_volume(noise(SHAPE).astype(np.int8), name="CT"), add_segmentation()
    add_segment(node, layer(volume, np.ones(SHAPE, np.uint8)), "liver")
    with pytest.raises(RequestError, match=r"the type of 'CT', signed char.*Cast Scalar Volume"):
        Projects.save_corrections(project, volume, node, checked=["liver"])
    assert project.images == ()


def test_disk_that_cannot_be_written_is_told(project: Any):
    volume, node = add_volume(noise(SHAPE)), add_segmentation()
    add_segment(node, layer(volume, np.ones(SHAPE, np.uint8)), "liver")
    (project.folder / "volumes").write_text("no folder")
    with pytest.raises(RequestError, match="a part of its path is a file"):
        Projects.save_corrections(project, volume, node, checked=["liver"])


def test_segments_of_another_place_are_not_taken_for_an_empty_volume(project: Any):
    volume, node = add_volume(noise(SHAPE)), add_segmentation()
    image = layer(volume, np.ones((2, 3, 3), np.uint8), (40, 0, 0))
    add_segment(node, image, "liver")
    with pytest.raises(RequestError, match=r"lie outside of the volume\. Choose the volume"):
        Projects.save_corrections(project, volume, node, checked=["liver"])
    assert project.images == ()
    image.GetPointData().GetScalars().Fill(0)  # all of it was erased
    Projects.save_corrections(project, volume, node, checked=["liver"])
