"""Projects between Slicer and the other faces, which have the worker's interpreter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed: make test-slicer")

import slicer_nodes as nodes  # noqa: E402
from slicer_nodes import add_volume, labels_of, load_volume, noise  # noqa: E402
from TTTUNetLib import Projects, Results  # noqa: E402
from TTTUNetLib.Volumes import RequestError, matrix_of, read_volume  # noqa: E402

CLASSES = ("liver", "spleen")
#: What napari's side sees of a project with one image.
_LOOK = """
import sys, numpy as np
from tttunet.projects import Project
with Project.open(sys.argv[1], read_only=True) as project:
    (reference,) = project.images
    image = project.load(reference)
    labels, vouched = project.corrections(reference).read(reference.bounds)
    np.savez(sys.argv[2], array=image.array, spacing=image.spacing, origin=image.origin,
             direction=image.direction, told=reference.direction, labels=labels, vouched=vouched,
             origin_told=reference.origin, spacing_told=reference.spacing,
             problems=len(project.problems), regions=len(project.corrections(reference).regions))
"""
#: A project as napari begins it: an image by reference or as a copy, labels, a complete region.
_BEGIN = """
import sys, numpy as np
from tttunet.imaging import load_image
from tttunet.projects import Project, Region
with Project.create(sys.argv[1], task="semantic", dim=3, classes={1: "liver", 2: "spleen"}) as p:
    image = p.add_image(load_image(sys.argv[2]), copy=sys.argv[3] == "copy")
    labels = np.random.default_rng(3).integers(0, 3, image.shape)
    p.corrections(image).complete(Region(image.bounds), labels)
"""


#: The same, but only the first three slices are complete.
_BEGIN_PARTLY = _BEGIN.replace(
    "complete(Region(image.bounds), labels)",
    "complete(Region(((0, 3), *image.bounds[1:])), labels[:3])",
)


def segmentation(volume: Any, labels: np.ndarray, names: tuple[str, ...] = CLASSES) -> Any:
    classes = [{"value": value, "name": name} for value, name in enumerate(names, 1)]
    wanted = Results.segment_labels(range(1, len(names) + 1), classes, "semantic")
    return Results.create_segmentation(volume, labels, wanted, "corrected")


def opened(logic: Any, project: Any, reference: Any) -> Any:
    return logic.openCorrections(project, reference, waitForCompletion=True)


@pytest.fixture
def project(scene: Any, logic: Any, tmp_path: Path) -> Any:
    with logic.client.open_project(tmp_path / "organs", CLASSES) as found:
        yield found


@pytest.mark.parametrize("grid", nodes.GRIDS)
def test_what_slicer_saves_lies_at_the_same_place_in_napari(
    grid: str, project: Any, run_python: Any, tmp_path: Path
):
    volume = add_volume(noise((7, 30, 28)), grid, "CT 1")
    labels = np.random.default_rng(2).integers(0, 3, (7, 30, 28)).astype(np.uint8)
    Projects.save_corrections(project, volume, segmentation(volume, labels), checked=["liver"])
    project.close()
    run_python("-c", _LOOK, project.folder, tmp_path / "seen.npz")
    seen = np.load(tmp_path / "seen.npz")
    assert seen["problems"] == 0
    np.testing.assert_array_equal(seen["array"], slicer.util.arrayFromVolume(volume))
    np.testing.assert_array_equal(seen["labels"], labels)
    expected = read_volume(volume)
    for told in ("spacing", "origin", "direction"):
        np.testing.assert_allclose(seen[told], getattr(expected, told), atol=1e-6)
    np.testing.assert_allclose(seen["told"], seen["direction"], atol=1e-12)
    vouched = seen["vouched"].astype(bool)
    assert vouched[labels == 1].all()
    assert not vouched[labels == 2].any()


def test_region_is_vouched_for_and_edits_are_saved_again(
    project: Any, run_python: Any, tmp_path: Path
):
    volume = add_volume(noise((8, 30, 28)))
    labels = np.zeros((8, 30, 28), np.uint8)
    labels[2:5, 5:15, 5:15] = 2
    region = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "complete")
    region.SetSize(9, 9, 3)
    region.SetCenter(-31.5 + 10, 12.25 + 10, 87 + 3)
    node = segmentation(volume, labels)
    first = Projects.save_corrections(project, volume, node, region)
    labels[6] = 1
    again = Projects.save_corrections(project, volume, segmentation(volume, labels), region)
    assert again.id == first.id
    assert len(project.images) == 1
    project.close()
    run_python("-c", _LOOK, project.folder, tmp_path / "seen.npz")
    seen = np.load(tmp_path / "seen.npz")
    np.testing.assert_array_equal(seen["labels"], labels)
    vouched = np.zeros(labels.shape, bool)
    vouched[2:5, 6:15, 6:15] = True
    np.testing.assert_array_equal(seen["vouched"] > 0, vouched)
    assert seen["regions"] == 1, "the same region is not saved twice"


def test_checked_segment_stays_right_when_a_region_around_it_is_taken_back(project: Any):
    volume = add_volume(noise((8, 30, 28)))
    labels = np.zeros((8, 30, 28), np.uint8)
    labels[2:5, 5:15, 5:15] = 1
    box = np.zeros(labels.shape, np.uint8)
    box[1:6, 2:20, 2:20] = 1
    region = segmentation(volume, box, ("complete",))
    node = segmentation(volume, labels)
    reference = Projects.save_corrections(project, volume, node, region, checked=["liver"])
    corrections = project.corrections(reference)
    corrections.remove_region(0)
    _, vouched = corrections.read(reference.bounds)
    assert vouched[labels == 1].all()
    assert 0 < vouched[labels == 0].sum() < (box > labels).sum(), "a rim, and no more"


def test_two_volumes_of_one_name_are_two_images(project: Any, logic: Any):
    labels = np.ones((4, 20, 20), np.uint8)
    for seed in range(2):
        volume = add_volume(noise((4, 20, 20), seed), name="CT")
        Projects.save_corrections(project, volume, segmentation(volume, labels), checked=["liver"])
    assert len(project.images) == len({image.path for image in project.images}) == 2
    for reference, seed in zip(project.images, range(2), strict=True):
        volume = opened(logic, project, reference).volumeNode
        np.testing.assert_array_equal(slicer.util.arrayFromVolume(volume), noise((4, 20, 20), seed))
    assert project.problems == []


def test_image_whose_reading_was_cancelled_never_appears(scene: Any, project: Any, logic: Any):
    volume = add_volume(noise((4, 20, 20)), name="CT")
    node = segmentation(volume, np.ones((4, 20, 20), np.uint8))
    reference = Projects.save_corrections(project, volume, node, checked=["liver"])
    before = scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")
    task = logic.openCorrections(project, reference)
    task.cancel()
    opened(logic, project, reference)  # is read after it
    assert task.volumeNode is None
    assert scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == before + 1


@pytest.mark.slow
@pytest.mark.parametrize("how", ["copy", "reference"])
@pytest.mark.parametrize("name", ["hippocampus", "oblique", "left-handed"])
def test_what_napari_began_opens_in_slicer(
    name: str, how: str, scene: Any, logic: Any, run_python: Any, data_dir: Path, tmp_path: Path
):
    source = data_dir / "mr_hippocampus_msd" / "images" / "hippocampus_001.nii.gz"
    if name != "hippocampus":
        source = nodes.save(add_volume(noise((7, 30, 28)), name), tmp_path / "volume.nrrd")
    run_python("-c", _BEGIN, tmp_path / "begun", source, how)
    with logic.client.open_project(tmp_path / "begun") as project:
        (reference,) = project.images
        task = opened(logic, project, reference)
        volume, node = task.volumeNode, task.segmentationNode
    as_slicer_has_it = load_volume(source)
    there = matrix_of(volume.GetIJKToRASMatrix)
    expected = matrix_of(as_slicer_has_it.GetIJKToRASMatrix)
    if how == "reference":
        np.testing.assert_array_equal(there, expected)
    np.testing.assert_allclose(there, expected, rtol=1e-14)
    labels = np.random.default_rng(3).integers(0, 3, reference.shape)
    turned = name == "left-handed"
    np.testing.assert_array_equal(labels_of(node, volume), labels[::-1] if turned else labels)
    array = nodes.array_on_grid(as_slicer_has_it, volume)
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(volume), array)
    segments = node.GetSegmentation()
    assert [segments.GetNthSegment(i).GetName() for i in range(2)] == [*CLASSES]


@pytest.mark.parametrize("how", ["copy", "reference"])
@pytest.mark.parametrize("grid", ["oblique", "left-handed"])
def test_what_napari_began_and_slicer_corrected_is_one_image(
    grid: str, how: str, scene: Any, logic: Any, run_python: Any, tmp_path: Path
):
    shape = (8, 30, 28)
    source = nodes.save(add_volume(noise(shape), grid), tmp_path / "volume.nii.gz")
    run_python("-c", _BEGIN_PARTLY, tmp_path / "begun", source, how)
    turned = grid == "left-handed"
    new = np.ones(shape, np.uint8)  # the segments come from a model in the meantime
    new[4, 3:20, 5:9] = 2
    complete = np.zeros(shape, np.uint8)
    complete[4:6, 2:25] = 1
    with logic.client.open_project(tmp_path / "begun") as project:
        (reference,) = project.images
        volume = opened(logic, project, reference).volumeNode
        labels, box = (array[::-1] if turned else array for array in (new, complete))
        region = segmentation(volume, box, ("complete",))
        saved = Projects.save_corrections(project, volume, segmentation(volume, labels), region)
        assert saved.id == reference.id
    run_python("-c", _LOOK, tmp_path / "begun", tmp_path / "seen.npz")  # of the only image
    seen = np.load(tmp_path / "seen.npz")
    assert (seen["problems"], seen["regions"]) == (0, 2)
    new[:3] = np.random.default_rng(3).integers(0, 3, shape)[:3]
    np.testing.assert_array_equal(seen["labels"], new)
    complete[:3] = 1
    np.testing.assert_array_equal(seen["vouched"] > 0, complete > 0)


def test_volume_that_was_changed_in_slicer_is_another_image(project: Any, logic: Any):
    volume = add_volume(noise((6, 20, 20)))
    labels = np.ones((6, 20, 20), np.uint8)
    first = Projects.save_corrections(
        project, volume, segmentation(volume, labels), checked=["liver"]
    )
    again = opened(logic, project, first).volumeNode
    slicer.util.updateVolumeFromArray(again, noise((3, 20, 20)))
    part = segmentation(again, labels[:3])
    assert Projects.save_corrections(project, again, part, checked=["liver"]).id != first.id


def test_file_that_lies_elsewhere_now_leaves_nothing_in_the_scene(
    scene: Any, logic: Any, run_python: Any, tmp_path: Path
):
    volume = add_volume(noise((4, 20, 20)))
    source = nodes.save(volume, tmp_path / "volume.nrrd")
    run_python("-c", _BEGIN, tmp_path / "begun", source, "reference")
    volume.SetOrigin(0, 0, 0)
    nodes.save(volume, source)
    count = scene.GetNumberOfNodes()
    with (
        logic.client.open_project(tmp_path / "begun") as project,
        pytest.raises(RequestError, match="lies elsewhere"),
    ):
        opened(logic, project, project.images[0])
    assert scene.GetNumberOfNodes() == count


def test_what_was_right_on_another_day_stays_when_the_segments_are_new(
    project: Any, run_python: Any, tmp_path: Path
):
    volume = add_volume(noise((8, 30, 28)))
    days = np.random.default_rng(7).integers(0, 3, (2, 8, 30, 28)).astype(np.uint8)
    boxes = np.zeros(days.shape, np.uint8)
    boxes[0, 1:3, 5:15, 5:15] = 1
    boxes[1, 2:6, 10:20, 10:20] = 1
    for labels, box in zip(days, boxes, strict=True):
        region = segmentation(volume, box, ("complete",))
        Projects.save_corrections(project, volume, segmentation(volume, labels), region)
    project.close()
    run_python("-c", _LOOK, project.folder, tmp_path / "seen.npz")
    seen = np.load(tmp_path / "seen.npz")
    first_only = (boxes[0] > 0) & (boxes[1] == 0)
    np.testing.assert_array_equal(seen["labels"], np.where(first_only, days[0], days[1]))
    np.testing.assert_array_equal(seen["vouched"] > 0, boxes.any(axis=0))


def test_what_does_not_fit_is_refused_with_a_reason(project: Any, logic: Any, tmp_path: Path):
    volume = add_volume(noise((4, 20, 20)))
    labels = np.ones((4, 20, 20), np.uint8)

    def refused(words: str, node: Any, **what: Any) -> None:
        with pytest.raises(RequestError, match=words):
            Projects.save_corrections(project, volume, node, **what)

    good = segmentation(volume, labels)
    refused("Nothing is said to be right", good)
    refused("no class of the project", segmentation(volume, labels, ("heart",)), checked=["liver"])
    refused("no class 'heart'", good, checked=["heart"])
    moved = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
    volume.SetAndObserveTransformNodeID(moved.GetID())
    refused("same transform", good, checked=["liver"])
    with pytest.raises(RequestError, match="does not exist"):
        logic.client.open_project(tmp_path / "nothing")


@pytest.mark.slow
def test_corrections_are_learnt_and_the_new_model_is_kept_and_used(
    scene: Any, logic: Any, tiny_3d: str, tmp_path: Path
):
    before = {path.name: path.read_bytes() for path in Path(tiny_3d).iterdir()}
    project = logic.client.open_project(tmp_path / "livers", ("liver",))
    volumes = []
    for seed in range(3):
        array = noise((20, 36, 36), seed) // 4
        array[6:14, 10:26, 10:26] += 400
        volumes.append(add_volume(array, "oblique", f"CT{seed}"))
        labels = (array > 200).astype(np.uint8)
        region = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "everything")
        region.SetSize(500, 500, 500)
        corrected = segmentation(volumes[-1], labels, ("liver",))
        Projects.save_corrections(project, volumes[-1], corrected, region)
    options = {"precision": "32-true", "batch_size": 2, "validate_every": 2}
    task = logic.finetune(
        project, tiny_3d, options={"steps": 4, "options": options}, waitForCompletion=True
    )
    assert task.state == "done"
    assert {"before", "after", "improved"} <= set(task.result)
    table = task.tableNode.GetTable()
    assert table.GetNumberOfRows() > 1
    assert table.GetColumnByName("Loss").GetValue(0) > 0
    assert task.chartNode.GetNumberOfPlotSeriesNodes() == 2
    version = task.keep()
    assert project.model == f"models/{version.name}"
    project.close()
    used = logic.segment(volumes[0], model=str(version.folder), waitForCompletion=True)
    digest = used.segmentationNode.GetAttribute("TTTUNet.ModelSha256")
    assert digest != digest_of(tiny_3d)
    after = {path.name: path.read_bytes() for path in Path(tiny_3d).iterdir()}
    assert after == before, "the model it began with is untouched"


def digest_of(folder: str) -> str:
    return str(json.loads((Path(folder) / "model.json").read_text())["weights"]["sha256"])
