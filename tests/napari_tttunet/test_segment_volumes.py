"""Volumes in the Segment dock: any spacing and direction, organs with names, colours and sizes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

import SimpleITK as sitk
import torch
from qtpy.QtCore import Qt

from napari_tttunet.class_labels import count_labels, pixel_size
from napari_tttunet.session import session
from segmenting import Dock, same_place
from tiny import blobs, make_config
from tttunet.models.labels import labels_of
from tttunet.models.model import Model
from tttunet.networks.config import TTTConfig, uniform_config

pytestmark = pytest.mark.usefixtures(
    "_spare_references", "one_engine", "own_settings", "own_library"
)

TABLE = "abdomen-amos"
SPACING = (0.8, 0.9, 3.3)


def turned(degrees: float, axis: int) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix = np.eye(3)
    i, j = (k for k in range(3) if k != axis)
    matrix[[i, j], [i, j]], matrix[i, j], matrix[j, i] = c, -s, s
    return matrix


#: x, y, z in LPS: as stored, oblique, and sagittal slices that are tilted too.
DIRECTIONS = {
    "plain": np.eye(3),
    "oblique": turned(12, 0) @ turned(-9, 2),
    "sagittal": turned(7, 1) @ np.array([[0, 0, 1], [1, 0, 0], [0, -1, 0]], float),
}


@pytest.fixture
def organs() -> str:
    """A 3D model of the 13 organs that knows nothing, on a grid and in an order of its own."""
    folder = Path(os.environ["TTTUNET_MODELS"], "organs")
    if not folder.exists():
        labels = labels_of(TABLE)
        network = uniform_config(
            3, 1, len(labels) + 1, (8, 16), blocks=1, ttt=TTTConfig(heads=2, residual=True)
        )
        tiny = make_config(3, "semantic")
        plan = tiny.plan.model_copy(
            update={
                "patch_size": (8, 16, 16),
                "spacing": (4.0, 1.2, 1.2),
                "unit": "millimeter",
                "orientation": "RAS",
            }
        )
        changes = {"name": "organs", "network": network, "labels": labels, "label_table": TABLE}
        config = tiny.model_copy(update={**changes, "plan": plan})
        with torch.random.fork_rng():
            torch.manual_seed(3)
            Model.create(config).save(folder)
    return folder.name


def write_volume(
    path: Path, direction: str = "oblique", shape: tuple[int, ...] = (12, 40, 36)
) -> Path:
    values = np.round(blobs(0, shape)[0][0] * 200).astype(np.int16)
    picture = sitk.GetImageFromArray(values)
    picture.SetSpacing(SPACING)
    picture.SetOrigin((-31.5, 12.25, 100.0))
    picture.SetDirection(DIRECTIONS[direction].ravel().tolist())
    sitk.WriteImage(picture, str(path))
    return path


def opened(dock: Dock, path: Path, model: str) -> Any:
    session().models_changed.emit()  # the model may be newer than the dock
    (image,) = dock.viewer.open(path, plugin="napari-tttunet")
    dock.until(lambda: dock.find("model").findData(model) >= 0)
    dock.choose("model", model)
    dock.ready()
    return image


def by_command(path: Path, model: str) -> np.ndarray:
    """Labels of the command line, which has a process of its own."""
    output = path.parent / "by-command.nii.gz"
    words = ["segment", str(path), "-o", str(output), "-m", model]
    subprocess.run([sys.executable, "-m", "tttunet", *words], check=True, timeout=120)
    return sitk.GetArrayFromImage(sitk.ReadImage(str(output)))


def shown_sizes(dock: Dock) -> dict[str, str]:
    rows = dock.find("legend")
    items = [rows.topLevelItem(i) for i in range(rows.topLevelItemCount())]
    return {item.text(0): item.text(1) for item in items}


def counted(dock: Dock) -> dict[int, int]:
    """What the legend has counted, when it has counted what the labels are now."""
    labels = dock.labels()

    def truth() -> dict[int, int]:
        values, counts = np.unique(labels.data[labels.data > 0], return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))

    dock.until(lambda: dock.widget.view.legend.counts == truth())
    return truth()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_organs_lie_on_the_grid_of_the_volume(
    dock: Dock, organs: str, tmp_path: Path, direction: str
) -> None:
    path = write_volume(tmp_path / "case.nii.gz", direction)
    image = opened(dock, path, organs)
    dock.until(lambda: "Needs about" in dock.find("need").text())
    labels = dock.segment()
    assert dock.message() == ""
    same_place(labels, image)
    assert labels.data.shape == image.data.shape
    expected = by_command(path, organs)
    assert len(np.unique(expected)) > 2
    np.testing.assert_array_equal(labels.data, expected)
    # Saved, it has the grid of the file that was opened, to the last bit.
    (written,) = labels.save(str(tmp_path / "labels.nii.gz"), plugin="napari-tttunet")
    ours, theirs = sitk.ReadImage(written), sitk.ReadImage(str(path))
    assert ours.GetDirection() == theirs.GetDirection()
    assert ours.GetOrigin() == theirs.GetOrigin()
    assert ours.GetSpacing() == theirs.GetSpacing()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(ours), expected)


def test_slices_of_an_oblique_volume_one_by_one(dock: Dock, tmp_path: Path) -> None:
    path = write_volume(tmp_path / "case.nrrd", shape=(8, 40, 36))
    image = opened(dock, path, "nuclei")
    assert "the 8 slices on its own" in dock.find("dimensions").text()
    labels = dock.segment()
    same_place(labels, image)
    found = [set(np.unique(plane)) - {0} for plane in labels.data]
    assert sum(map(len, found)) >= 3
    assert len(set.union(*found)) == sum(map(len, found)), "every slice has its own objects"
    assert not dock.find("legend").isVisible(), "objects have no names"


def test_organs_have_names_colours_and_sizes(dock: Dock, organs: str, tmp_path: Path) -> None:
    image = opened(dock, write_volume(tmp_path / "case.nii.gz"), organs)
    labels = dock.segment()
    table = {label.value: label for label in labels_of(TABLE)}
    for value, label in table.items():
        np.testing.assert_allclose(labels.colormap.map(value)[:3] * 255, label.color, atol=0.5)
    assert labels.colormap.map(0)[3] == 0
    found = counted(dock)
    voxel = float(np.prod(SPACING)) / 1000
    size, unit = pixel_size(labels, "ZYX")
    assert (size, unit) == (pytest.approx(voxel, rel=1e-6), "ml")
    sizes = shown_sizes(dock)
    assert dock.find("legend").isVisible()
    assert list(sizes) == [label.name for label in table.values()]
    for value, label in table.items():
        text = sizes[label.name]
        if value in found:
            number, unit = text.split()
            assert unit == "ml"
            assert float(number) == pytest.approx(found[value] * voxel, rel=6e-3)
        else:
            assert text == "\N{EN DASH}"
    # napari tells the name under the mouse.
    place = tuple(np.argwhere(labels.data == max(found))[0])
    world = image.data_to_world(place)
    status = labels.get_status(world, world=True)
    assert table[max(found)].name in " ".join(map(str, status.values()))


def test_the_legend_follows_what_is_painted(dock: Dock, organs: str, tmp_path: Path) -> None:
    opened(dock, write_volume(tmp_path / "case.nii.gz"), organs)
    labels = dock.segment()
    before = counted(dock)
    rows, legend = dock.find("legend"), dock.widget.view.legend
    row = rows.topLevelItem(5)
    rows.scrollToItem(row)
    dock.qtbot.mouseClick(
        rows.viewport(), Qt.MouseButton.LeftButton, pos=rows.visualItemRect(row).center()
    )
    assert labels.selected_label == 6, "a click on a name paints with its label"
    labels.brush_size = 9
    labels.paint((6, 20, 18), 6)
    assert counted(dock) != before
    labels.undo()
    assert counted(dock) == before
    labels.paint((6, 20, 18), 77)
    counted(dock)
    assert "label 77" in shown_sizes(dock)
    assert labels.colormap.map(77)[3] == 1, "what is painted with another number can be seen"
    # Another slice is no other labels.
    count, timer = legend.counts, legend._timer
    dock.qtbot.wait(500)
    dock.viewer.dims.set_current_step(0, 3)
    dock.qtbot.wait(100)
    assert not timer.isActive()
    assert legend.counts is count
    dock.viewer.layers.remove(labels)
    assert not rows.isVisible()


def test_a_box_of_the_volume(dock: Dock, organs: str, tmp_path: Path) -> None:
    image = opened(dock, write_volume(tmp_path / "case.nii.gz", "plain"), organs)
    dock.until(lambda: "Needs about" in dock.find("need").text())
    assert not dock.find("first_slice").isVisible()
    assert dock.find("planes").findData("current") < 0, "a 3D model takes no single slice"
    dock.choose("planes", "range")
    assert (dock.find("first_slice").value(), dock.find("last_slice").value()) == (0, 11)
    dock.find("first_slice").setValue(3)
    dock.find("last_slice").setValue(8)
    corners = np.array([[5, 10, 6], [5, 10, 29], [5, 33, 29], [5, 33, 6]], float)
    drawn = np.array([image.data_to_world(corner) for corner in corners])
    box = dock.viewer.add_shapes(drawn, shape_type="rectangle")
    assert len(box.data) == 1
    dock.choose("where", "shapes")
    labels = dock.segment()
    assert dock.message() == ""
    same_place(labels, image)
    assert labels.metadata["tttunet"]["region"] == [[3, 9], [10, 34], [6, 30]]
    inside = np.zeros(image.data.shape, bool)
    inside[3:9, 10:34, 6:30] = True
    assert labels.data[inside].any()
    assert not labels.data[~inside].any()
    whole = sitk.ReadImage(str(tmp_path / "case.nii.gz"))
    sitk.WriteImage(whole[6:30, 10:34, 3:9], str(tmp_path / "part.nii.gz"))
    expected = by_command(tmp_path / "part.nii.gz", organs)
    np.testing.assert_array_equal(labels.data[3:9, 10:34, 6:30], expected)


def test_some_slices_with_a_2d_model(dock: Dock, tmp_path: Path) -> None:
    opened(dock, write_volume(tmp_path / "case.nii.gz"), "nuclei")
    dock.choose("planes", "range")
    dock.find("first_slice").setValue(8)
    dock.find("last_slice").setValue(7)  # the wrong way round
    labels = dock.segment()
    assert labels.metadata["tttunet"]["region"] == [[7, 9], [0, 40], [0, 36]]
    assert set(np.nonzero(labels.data)[0].tolist()) <= {7, 8}


def test_finished_parts_of_a_volume_are_shown_while_the_rest_runs(
    dock: Dock, organs: str, tmp_path: Path
) -> None:
    image = opened(dock, write_volume(tmp_path / "case.nii.gz", shape=(80, 96, 96)), organs)
    dock.find("tile").setValue(16)
    dock.start()
    dock.until(lambda: any("preview" in name for name in dock.names()))
    shown = next(layer for layer in dock.viewer.layers if "preview" in layer.name)
    same_place(shown, image)
    dock.until(lambda: shown.data.any())
    assert not shown.data.any((1, 2)).all(), "not all slices at once"
    dock.click("cancel")
    dock.until(lambda: not dock.widget.run.running)
    assert dock.names() == [image.name]


def test_counts_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    for dtype, top in ((np.uint8, 5), (np.int32, 2**20), (np.int64, 3)):
        data = rng.integers(0, top, (3, 40, 50)).astype(dtype)
        steps = count_labels(data, ((1, 3), (5, 40), (0, 50)))
        try:
            while True:
                next(steps)
        except StopIteration as stop:
            found = stop.value
        values, counts = np.unique(data[1:3, 5:40], return_counts=True)
        expected = dict(zip(values.tolist(), counts.tolist(), strict=True))
        expected.pop(0, None)
        assert found == expected


def test_the_model_fits_the_scale(viewer: Any, qtbot: Any) -> None:
    """A volume of a head gets the model of heads, a stack of cells that of cells."""
    from napari.layers import Layer

    from napari_tttunet.sample_data import hippocampus, ovule_nuclei

    for sample, model in ((hippocampus, "hippocampus-mr"), (ovule_nuclei, "nuclei")):
        viewer.layers.clear()
        viewer.add_layer(Layer.create(*sample()[0]))
        dock = Dock(viewer, qtbot)
        dock.until(lambda dock=dock, model=model: dock.find("model").currentData() == model)
        viewer.window.remove_dock_widget(dock.widget.parent())


def test_the_shipped_model_of_the_hippocampus(viewer: Any, qtbot: Any) -> None:
    from napari.layers import Layer

    from napari_tttunet.sample_data import hippocampus

    image, truth = (Layer.create(*one) for one in hippocampus())
    viewer.add_layer(image)
    dock = Dock(viewer, qtbot)
    dock.until(lambda: dock.find("model").currentData() == "hippocampus-mr")
    found = dock.segment()
    for value in (1, 2):
        one, other = found.data == value, truth.data == value
        assert 2 * (one & other).sum() / (one.sum() + other.sum()) > 0.8
    np.testing.assert_array_equal(found.extent.world, image.extent.world)
