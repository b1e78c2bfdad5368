"""Segmentation of real volume nodes by the real engine in another interpreter."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed: make test-slicer")

import vtk  # noqa: E402

import slicer_nodes as nodes  # noqa: E402
from slicer_nodes import (  # noqa: E402
    add_volume,
    array_on_grid,
    discs,
    labels_of,
    load_volume,
    noise,
    save,
)
from TTTUNetLib import Results  # noqa: E402
from TTTUNetLib.Logic import RequestError, TTTUNetLogic  # noqa: E402
from TTTUNetLib.Volumes import box_of, matrix_of  # noqa: E402

SEGMENTATIONS = "vtkMRMLSegmentationNode"


def segment(logic: Any, volume: Any, model: str, **options: Any) -> Any:
    return logic.segment(volume, model=model, waitForCompletion=True, **options)


def same_grid(segmentation: Any, volume: Any) -> None:
    found, shape = nodes.grid_of(segmentation)
    np.testing.assert_array_equal(found, matrix_of(volume.GetIJKToRASMatrix))
    assert shape == slicer.util.arrayFromVolume(volume).shape[:3]


def transform(matrix: np.ndarray) -> Any:
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
    node.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    return node


REAL = {
    "hippocampus": "mr_hippocampus_msd/images/hippocampus_001.nii.gz",
    "heart": "mr_cardiac_acdc/images/acdc_patient006_frame01.nii.gz",
    "abdomen in MR": "ctmr_totalseg_demo/images/ts_mr.nii.gz",
    "abdomen in CT": "ctmr_totalseg_demo/images/ts_ct.nii.gz",
}


@pytest.fixture(scope="module")
def expected(
    tiny_3d: str, by_command_line: Any, data_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Path]]:
    """Image and label file of all volumes: the command line takes a while to start."""
    folder = tmp_path_factory.mktemp("volumes")
    sources = {}
    for grid in nodes.GRIDS:
        volume = add_volume(noise((9, 40, 31)), grid)
        sources[grid] = save(volume, folder / f"{grid}.nrrd")
        slicer.mrmlScene.RemoveNode(volume)
    for name, path in REAL.items():
        sources[name] = folder / f"{name}.nii.gz"
        sources[name].symlink_to(data_dir / path)
    written = by_command_line([*sources.values()], tiny_3d)
    return {name: (sources[name], written[name]) for name in sources}


@pytest.mark.slow
@pytest.mark.parametrize("grid", nodes.GRIDS)
def test_labels_are_those_of_the_command_line_on_the_exact_grid(
    grid: str, scene: Any, logic: Any, tiny_3d: str, expected: dict[str, tuple[Path, Path]]
):
    volume = add_volume(noise((9, 40, 31)), grid)
    task = segment(logic, volume, tiny_3d)
    same_grid(task.segmentationNode, volume)
    labels = labels_of(task.segmentationNode, volume)
    written = load_volume(expected[grid][1])
    np.testing.assert_array_equal(labels, array_on_grid(written, volume))
    assert 0 < np.count_nonzero(labels) < labels.size


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_volumes_get_the_labels_of_the_command_line(
    name: str, scene: Any, logic: Any, tiny_3d: str, expected: dict[str, tuple[Path, Path]]
):
    source, written = expected[name]
    volume = load_volume(source)
    task = segment(logic, volume, tiny_3d)
    same_grid(task.segmentationNode, volume)
    labels = labels_of(task.segmentationNode, volume)
    np.testing.assert_array_equal(labels, array_on_grid(load_volume(written), volume))
    assert labels.any()


def test_segments_have_name_colour_code_and_place(scene: Any, logic: Any, tiny_3d: str):
    volume = add_volume(noise((6, 33, 32)), "oblique", "CT")
    hierarchy = scene.GetSubjectHierarchyNode()
    folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), "patient")
    hierarchy.CreateItem(folder, volume)
    task = segment(logic, volume, tiny_3d)

    node = task.segmentationNode
    assert node.GetName() == "CT segmentation"
    found = node.GetSegmentation().GetNthSegment(0)
    assert found.GetName() == "liver"
    np.testing.assert_allclose(found.GetColor(), np.array([221, 130, 101]) / 255, atol=1e-6)
    kind, modifier = _terminology(found).split("~")[2:4]
    assert (kind, modifier) == ("SCT^10200004^Liver", "SCT^24028007^Right")
    assert node.GetNodeReference("referenceImageGeometryRef") is volume
    for made in (node, task.tableNode):
        assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(made)) == folder


def test_table_has_millilitres(scene: Any, logic: Any, tiny_3d: str):
    volume = add_volume(noise((6, 33, 32)), "oblique")
    task = segment(logic, volume, tiny_3d)
    table = task.tableNode
    assert table.GetNumberOfRows() == 1
    count = np.count_nonzero(labels_of(task.segmentationNode, volume))
    assert table.GetCellText(0, 0) == "liver"
    assert int(table.GetCellText(0, 1)) == count
    millilitres = count * np.prod(volume.GetSpacing()) / 1000
    assert float(table.GetCellText(0, 2)) == pytest.approx(millilitres)


def test_provenance_is_in_the_node(scene: Any, logic: Any, tiny_3d: str):
    node = segment(logic, add_volume(noise((6, 33, 32)), name="CT"), tiny_3d).segmentationNode
    card = json.loads((Path(tiny_3d) / "model.json").read_text())
    assert node.GetAttribute("TTTUNet.Input") == "CT"
    assert node.GetAttribute("TTTUNet.Model") == "tiny"
    assert node.GetAttribute("TTTUNet.ModelSha256") == card["weights"]["sha256"]
    record = json.loads(node.GetAttribute("TTTUNet.Record"))
    assert record["device"] == "cpu"
    assert record["shape"] == [6, 33, 32]


def test_segments_survive_a_file_and_a_scene(scene: Any, logic: Any, tiny_3d: str, tmp_path: Path):
    volume = add_volume(noise((6, 33, 32)), "oblique", "CT")
    node = segment(logic, volume, tiny_3d).segmentationNode
    labels = labels_of(node, volume)
    path = save(node, tmp_path / "labels.seg.nrrd", "vtkMRMLSegmentationStorageNode")
    again = scene.AddNewNodeByClass(SEGMENTATIONS, "again")
    storage = slicer.vtkMRMLSegmentationStorageNode()
    storage.SetFileName(str(path))
    assert storage.ReadData(again)
    _same_segments(again, node)
    np.testing.assert_array_equal(labels_of(again, volume) > 0, labels > 0)

    attributes = {name: node.GetAttribute(name) for name in node.GetAttributeNames()}
    assert scene.WriteToMRB(str(tmp_path / "scene.mrb"), None)
    names = node.GetName(), volume.GetName()
    reference = node.GetSegmentation().GetNthSegment(0)
    colour, code = reference.GetColor(), _terminology(reference)
    scene.Clear(0)
    assert scene.ReadFromMRB(str(tmp_path / "scene.mrb"), True)
    node, volume = (scene.GetFirstNodeByName(name) for name in names)
    loaded = node.GetSegmentation().GetNthSegment(0)
    np.testing.assert_allclose(loaded.GetColor(), colour, atol=1e-4)
    assert _terminology(loaded) == code
    assert {name: node.GetAttribute(name) for name in attributes} == attributes
    np.testing.assert_array_equal(labels_of(node, volume) > 0, labels > 0)


def _same_segments(one: Any, other: Any) -> None:
    mine, theirs = one.GetSegmentation(), other.GetSegmentation()
    assert mine.GetNumberOfSegments() == theirs.GetNumberOfSegments() > 0
    for number in range(mine.GetNumberOfSegments()):
        a, b = mine.GetNthSegment(number), theirs.GetNthSegment(number)
        assert a.GetName() == b.GetName()
        np.testing.assert_allclose(a.GetColor(), b.GetColor(), atol=1e-4)
        assert _terminology(a) == _terminology(b)


def _terminology(segment: Any) -> str:
    text = vtk.reference("")
    assert segment.GetTag(segment.GetTerminologyEntryTagName(), text)
    return str(text)


def test_linear_transform_counts_and_the_result_comes_under_it(
    scene: Any, logic: Any, tiny_3d: str
):
    array = noise((6, 33, 32))
    plain = segment(logic, add_volume(array), tiny_3d)
    volume = add_volume(array)
    moved = transform(np.array([[0, -2, 0, 5], [2, 0, 0, 6], [0, 0, 2, 7], [0, 0, 0, 1.0]]))
    volume.SetAndObserveTransformNodeID(moved.GetID())
    task = segment(logic, volume, tiny_3d)
    assert task.segmentationNode.GetParentTransformNode() is moved
    same_grid(task.segmentationNode, volume)
    for node in (volume, task.segmentationNode):  # Slicer's export looks at one transform only
        node.SetAndObserveTransformNodeID(None)
    np.testing.assert_array_equal(
        labels_of(task.segmentationNode, volume), labels_of(plain.segmentationNode, volume)
    )
    small, large = (float(t.tableNode.GetCellText(0, 2)) for t in (plain, task))
    assert large == pytest.approx(8 * small)


def test_region_of_interest_is_segmented_as_a_volume_of_its_own(
    scene: Any, logic: Any, tiny_3d: str
):
    volume = add_volume(noise((10, 40, 36)), "oblique")
    box = (slice(2, 9), slice(4, 37), slice(1, 34))
    ijk_to_ras = matrix_of(volume.GetIJKToRASMatrix)
    first, last = ([getattr(along, end) for along in box[::-1]] for end in ("start", "stop"))
    centre = ijk_to_ras @ [*((np.array(first) + np.array(last) - 1) / 2), 1]
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "region")
    directions = ijk_to_ras.copy()
    directions[:3, :3] /= volume.GetSpacing()
    directions[:3, 3] = centre[:3]
    roi.SetSize((np.array(last) - first - 1) * volume.GetSpacing())
    roi.SetAndObserveObjectToNodeMatrix(slicer.util.vtkMatrixFromArray(directions))
    np.testing.assert_allclose(roi.GetCenterWorld(), centre[:3])

    task = segment(logic, volume, tiny_3d, roiNode=roi)
    same_grid(task.segmentationNode, volume)
    labels = labels_of(task.segmentationNode, volume)
    part = slicer.util.arrayFromVolume(volume)[box]
    alone = add_volume(np.ascontiguousarray(part), "oblique")
    expected = np.zeros_like(labels)
    expected[box] = labels_of(segment(logic, alone, tiny_3d).segmentationNode, alone)
    np.testing.assert_array_equal(labels, expected)
    assert labels.any()

    segments = scene.AddNewNodeByClass(SEGMENTATIONS, "around")
    segments.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    for number, part in enumerate((box, np.s_[0:2, 0:3, 0:3])):
        mask = np.zeros(labels.shape, np.uint8)
        mask[part] = 1
        added = segments.GetSegmentation().AddEmptySegment("", f"part {number}")
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask, segments, added, volume)
    around = segment(logic, volume, tiny_3d, roiNode=segments, roiSegment="part 0")
    np.testing.assert_array_equal(labels_of(around.segmentationNode, volume), expected)
    assert box_of(segments, volume) == np.s_[0:9, 0:37, 0:34]
    segments.GetSegmentation().AddEmptySegment("", "empty")
    with pytest.raises(RequestError, match="no segment 'empty' with voxels"):
        logic.segment(volume, model=tiny_3d, roiNode=segments, roiSegment="empty")

    roi.SetCenter(1000, 0, 0)
    with pytest.raises(RequestError, match="does not touch"):
        logic.segment(volume, model=tiny_3d, roiNode=roi)
    with pytest.raises(RequestError, match="no ROI"):
        logic.segment(volume, model=tiny_3d, roiNode=volume)


def test_sequence_becomes_a_sequence_that_plays_with_it(scene: Any, logic: Any, tiny_3d: str):
    source = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "heart")
    source.SetIndexName("time")
    source.SetIndexUnit("ms")
    with pytest.raises(RequestError, match="is empty"):
        logic.segment(source, model=tiny_3d)
    frames = [add_volume(noise((6, 33, 32), seed), "oblique") for seed in range(3)]
    for number, frame in enumerate(frames):
        source.SetDataNodeAtValue(frame, str(10 * number))
    browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "browser")
    browser.AddSynchronizedSequenceNode(source)

    task = segment(logic, source, tiny_3d)
    result, table = task.sequenceNode, task.tableNode
    assert [table.GetColumnName(column) for column in range(2)] == ["time [ms]", "liver [ml]"]
    assert [table.GetCellText(row, 0) for row in range(3)] == ["0", "10", "20"]
    assert [result.GetNthIndexValue(i) for i in range(3)] == ["0", "10", "20"]
    assert (result.GetIndexName(), result.GetIndexUnit()) == ("time", "ms")
    assert browser.IsSynchronizedSequenceNode(result, True)
    assert result.GetAttribute("TTTUNet.Input") == "heart"
    assert slicer.util.getNodesByClass(SEGMENTATIONS) == [browser.GetProxyNode(result)]
    seen = []
    for number, frame in enumerate(frames):
        one = result.GetNthDataNode(number)
        same_grid(one, frame)
        seen.append(labels_of(one, frame))
        millilitres = np.count_nonzero(seen[-1]) * np.prod(frame.GetSpacing()) / 1000
        assert float(table.GetCellText(number, 1)) == pytest.approx(millilitres)
        alone = labels_of(segment(logic, frame, tiny_3d).segmentationNode, frame)
        np.testing.assert_array_equal(seen[-1], alone)
    assert not np.array_equal(seen[0], seen[1])

    with pytest.raises(RequestError, match="labels only"):
        logic.segment(source, model=tiny_3d, maps=["probability"])
    source.SetDataNodeAtValue(add_volume(noise((6, 33, 32)), "plain"), "30")
    with pytest.raises(RequestError, match="not on one grid"):
        logic.segment(source, model=tiny_3d)


def test_what_cannot_be_segmented_is_refused_with_a_reason(scene: Any, logic: Any, tiny_3d: str):
    def refused(volume: Any, words: str) -> None:
        with pytest.raises(RequestError, match=words):
            logic.segment(volume, model=tiny_3d)

    refused(None, "No volume")
    refused(scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty"), "no voxels")
    sheared = add_volume(noise((4, 20, 20)))
    shear = np.eye(4)
    shear[0, 2] = 0.3
    sheared.SetAndObserveTransformNodeID(transform(shear).GetID())
    refused(sheared, "right angles")
    bent = add_volume(noise((4, 20, 20)))
    grid = scene.AddNewNodeByClass("vtkMRMLBSplineTransformNode", "bent")
    bent.SetAndObserveTransformNodeID(grid.GetID())
    refused(bent, "non-linear")
    assert scene.GetNumberOfNodesByClass(SEGMENTATIONS) == 0


def test_a_request_that_fails_says_why_and_adds_nothing(scene: Any, logic: Any):
    before = scene.GetNumberOfNodes()
    volume = add_volume(noise((4, 20, 20)))
    with pytest.raises(RequestError, match="No model is called 'no-such-model'"):
        segment(logic, volume, "no-such-model")
    scene.RemoveNode(volume)
    assert scene.GetNumberOfNodes() <= before + 1  # the subject hierarchy


@pytest.mark.slow
def test_shipped_model_numbers_nuclei_slice_by_slice_and_knows_colours(
    scene: Any, logic: Any, by_command_line: Any, tmp_path: Path
):
    colours = np.repeat(discs((1, 96, 90))[..., None], 3, -1) * np.uint8([1, 0, 1])
    volumes = {"grey": add_volume(discs((2, 96, 90))), "colour": add_volume(colours)}
    sources = [save(volume, tmp_path / f"{name}.nrrd") for name, volume in volumes.items()]
    written = by_command_line(sources, "nuclei")
    for name, volume in volumes.items():
        task = segment(logic, volume, "nuclei")
        labels = labels_of(task.segmentationNode, volume)
        np.testing.assert_array_equal(labels, array_on_grid(load_volume(written[name]), volume))
        segments = task.segmentationNode.GetSegmentation()
        assert 1 < segments.GetNumberOfSegments() == len(task.voxels)
        assert segments.GetNthSegment(0).GetName() == "nucleus 1"


@pytest.mark.slow
def test_many_objects_become_one_segment_and_a_label_map(
    scene: Any, logic: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Results, "MOST_SEGMENTS", 2)
    volume = add_volume(discs((1, 96, 90)))
    task = segment(logic, volume, "nuclei")
    assert task.segmentationNode.GetSegmentation().GetNumberOfSegments() == 1
    objects = slicer.util.arrayFromVolume(task.labelmapNode)
    assert set(np.unique(objects)) == {0, *task.voxels}
    np.testing.assert_array_equal(labels_of(task.segmentationNode, volume) > 0, objects > 0)


def test_progress_comes_while_the_main_thread_is_free(scene: Any, logic: Any, tiny_3d: str):
    told: list[float] = []
    finished: list[Any] = []
    task = logic.segment(
        add_volume(noise((12, 64, 64))),
        model=tiny_3d,
        onProgress=lambda fraction, stage, eta: told.append(fraction),
        onFinished=finished.append,
    )
    assert task.state == "running"
    assert not told
    logic.mailbox.wait(lambda: task.finished)
    assert task.state == "done"
    assert finished == [task]
    assert max(told) == 1.0


def test_several_volumes_are_done_one_after_the_other(scene: Any, logic: Any, tiny_3d: str):
    ended: list[Any] = []
    volumes = [add_volume(noise((4, 32, 32), seed), name=f"CT{seed}") for seed in range(3)]
    tasks = [logic.segment(v, model=tiny_3d, onFinished=ended.append) for v in volumes]
    logic.mailbox.wait(lambda: len(ended) == 3)
    assert ended == tasks
    assert [t.segmentationNode.GetName() for t in tasks] == [
        f"CT{i} segmentation" for i in range(3)
    ]


def test_cancel_adds_nothing_and_the_next_run_works(scene: Any, logic: Any, tiny_3d: str):
    volume = add_volume(noise((40, 128, 128)))
    task = logic.segment(volume, model=tiny_3d)
    logic.mailbox.wait(lambda: logic.client.engine.worker_pid is not None)
    task.cancel()
    assert task.state == "cancelled"
    small = segment(logic, add_volume(noise((4, 32, 32))), tiny_3d)
    assert small.state == "done"
    assert scene.GetNumberOfNodesByClass(SEGMENTATIONS) == 1


@pytest.mark.slow
def test_killed_worker_is_told_and_replaced(scene: Any, logic: Any, tiny_3d: str):
    volume = add_volume(noise((4, 32, 32)))
    segment(logic, volume, tiny_3d)
    seen: list[str] = []

    def kill(fraction: float, stage: str, eta: float | None) -> None:
        if not seen:
            seen.append(stage)
            os.kill(logic.client.engine.worker_pid, signal.SIGKILL)

    task = logic.segment(add_volume(noise((60, 160, 160))), model=tiny_3d, onProgress=kill)
    logic.mailbox.wait(lambda: task.finished)
    assert (task.state, task.segmentationNode) == ("failed", None)
    assert "killed" in task.error
    assert segment(logic, volume, tiny_3d).state == "done"
    assert scene.GetNumberOfNodesByClass(SEGMENTATIONS) == 2


def test_engine_that_is_closed_meanwhile_cancels(scene: Any, application: Any):
    own = TTTUNetLogic()
    task = own.segment(add_volume(noise((4, 32, 32))))
    own.close()
    own.mailbox.wait(lambda: task.finished)
    assert task.state == "cancelled"
    assert not own.connected


def test_models_asked_of_an_engine_that_is_closed_are_none(scene: Any, application: Any):
    own, heard = TTTUNetLogic(), []
    own.models(heard.append)
    first = own.client
    own.connect(first.environment)
    own.mailbox.wait(lambda: bool(heard))
    assert heard == [[]]
    own.models(heard.append)
    own.mailbox.wait(lambda: len(heard) > 1)
    assert heard[1], "those of the engine that is connected now"
    assert own.client is not first
    own.close()


def test_result_that_cannot_be_shown_ends_the_task_and_adds_nothing(
    scene: Any, logic: Any, tiny_3d: str, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_args: Any) -> None:
        raise MemoryError("no room for the table")

    monkeypatch.setattr(Results, "create_table", fail)
    task = logic.segment(add_volume(noise((4, 32, 32))), model=tiny_3d)
    with pytest.raises(RequestError, match="no room for the table"):
        logic._wait(task)
    assert task.state == "failed"
    assert "create_table" in task.details
    assert scene.GetNumberOfNodesByClass(SEGMENTATIONS) == 0


def test_volume_that_is_deleted_meanwhile_gets_no_labels(scene: Any, logic: Any, tiny_3d: str):
    volume = add_volume(noise((6, 33, 32)))
    task = logic.segment(volume, model=tiny_3d)
    scene.RemoveNode(volume)
    logic.mailbox.wait(lambda: task.finished)
    assert task.state == "cancelled"
    assert scene.GetNumberOfNodesByClass(SEGMENTATIONS) == 0


def test_without_an_environment_it_says_what_to_do(
    scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("TTTUNET_PYTHON")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with pytest.raises(RequestError, match="not installed yet"):
        TTTUNetLogic().segment(add_volume(noise((4, 20, 20))))
