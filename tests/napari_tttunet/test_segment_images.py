"""Images of all kinds in the Segment dock: stacks seen in 3D, films, lazy arrays, odd shapes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

import dask.array as da
import zarr

from films import write_video
from napari_tttunet import sample_data
from segmenting import Dock, same_place
from tttunet.engine.messages import Log

pytestmark = pytest.mark.usefixtures("_spare_references", "one_engine", "own_settings")

NAMES = ("z", "y", "x")


def plane(size: int = 96) -> np.ndarray:
    return sample_data.fluorescence()[0][0][:size, :size]


def stack() -> np.ndarray:
    """Three slices; the second one is empty."""
    return np.stack([plane(), np.zeros_like(plane()), plane()[::-1]])


def numbers(labels: np.ndarray) -> set[int]:
    return set(np.unique(labels)) - {0}


def test_a_stack_in_3d(viewer: Any, dock: Dock) -> None:
    image = viewer.add_image(stack(), scale=(3, 1, 1), axis_labels=NAMES)
    dock.ready()
    viewer.dims.ndisplay = 3
    labels = dock.segment()
    assert dock.message() == ""
    same_place(labels, image)
    assert viewer.dims.ndisplay == 3
    assert numbers(labels.data[0])
    assert numbers(labels.data[2])
    before = labels.data.copy()

    # There is no slice that the viewer shows.
    dock.choose("planes", "current")
    dock.until(lambda: "several slices at once" in dock.find("need").text())
    dock.click("segment")
    assert "several slices at once" in dock.message()
    assert "2D" in dock.message()
    assert not dock.widget.run.running
    np.testing.assert_array_equal(labels.data, before)
    viewer.dims.ndisplay = 2
    dock.until(lambda: "Needs about" in dock.find("need").text())
    dock.segment()
    assert dock.labels().metadata["tttunet"]["region"][0] == [1, 2]

    # The same from the side: rows are hidden, slices are not.
    viewer.dims.order = (1, 0, 2)
    dock.click("segment")
    assert "several slices at once" in dock.message()


def test_what_is_seen_in_3d_is_everything_and_that_is_said(viewer: Any, dock: Dock) -> None:
    image = viewer.add_image(stack(), axis_labels=NAMES)
    dock.ready()
    dock.choose("where", "view")
    assert "3D" not in dock.find("dimensions").text()
    viewer.dims.ndisplay = 3
    assert "all of the image counts as seen" in dock.find("dimensions").text()
    labels = dock.segment()
    assert labels.metadata["tttunet"]["region"] == [[0, 3], [0, 96], [0, 96]]
    assert numbers(labels.data[2])
    viewer.dims.ndisplay = 2
    assert "3D" not in dock.find("dimensions").text()
    viewer.dims.ndisplay = 3
    dock.widget.segment_view()
    assert "all of the image" in dock.message()
    dock.until(lambda: not dock.widget.run.running)
    dock.widget.next_object()
    dock.until(lambda: "to check" in dock.find("result").text())
    camera = getattr(viewer, "scene", viewer).camera
    where = np.argwhere(labels.data == labels.selected_label).mean(0)
    np.testing.assert_allclose(camera.center, image.data_to_world(where), atol=0.01)


def test_a_preview_is_drawn_in_3d_and_a_run_can_be_cancelled(viewer: Any, dock: Dock) -> None:
    viewer.add_image(np.tile(stack(), (4, 3, 3)), axis_labels=NAMES)
    dock.find("tile").setValue(64)
    viewer.dims.ndisplay = 3
    dock.start()
    dock.until(lambda: any("preview" in name for name in dock.names()))
    shown = next(layer for layer in viewer.layers if "preview" in layer.name)
    dock.until(lambda: shown.data.any())
    dock.click("cancel")
    dock.until(lambda: not dock.widget.run.running)
    assert len(viewer.layers) == 1


def test_a_film_frame_by_frame(viewer: Any, dock: Dock) -> None:
    image = viewer.add_image(stack(), axis_labels=("t", "y", "x"), rgb=False)
    dock.ready()
    assert dock.find("axes").text() == "TYX"
    assert "3 time points, one by one" in dock.find("dimensions").text()
    labels = dock.segment()
    assert labels.data.shape == image.data.shape
    assert tuple(labels.axis_labels) == ("t", "y", "x")
    assert not numbers(labels.data[1])
    assert numbers(labels.data[0])
    assert not numbers(labels.data[0]) & numbers(labels.data[2])
    first = labels.data[0].copy()
    viewer.dims.set_current_step(0, 2)
    dock.choose("planes", "current")
    dock.segment()
    assert dock.labels().metadata["tttunet"]["region"][0] == [2, 3]
    np.testing.assert_array_equal(dock.labels().data[0], first)


def test_only_the_slice_that_is_asked_for_is_computed(viewer: Any, dock: Dock) -> None:
    computed: list[int] = []

    def slice_of(block_info: Any = None) -> np.ndarray:
        computed.append(block_info[None]["chunk-location"][0])
        return plane()[None]

    lazy = da.map_blocks(slice_of, chunks=((1,) * 40, (96,), (96,)), dtype=np.uint8)
    viewer.add_image(lazy, axis_labels=NAMES, contrast_limits=(0, 255), cache=False)
    dock.ready()
    viewer.dims.set_current_step(0, 7)
    dock.choose("planes", "current")
    dock.until(lambda: "Needs about" in dock.find("need").text())
    computed.clear()
    labels = dock.segment()
    assert set(computed) == {7}
    assert labels.data.shape == lazy.shape
    assert {int(z) for z in np.nonzero(labels.data)[0]} == {7}


def test_a_zarr_array_gives_the_same_as_its_numbers(
    viewer: Any, dock: Dock, tmp_path: Path
) -> None:
    stored = zarr.create_array(
        tmp_path / "a.zarr", shape=(3, 96, 96), chunks=(1, 48, 48), dtype="u1"
    )
    stored[:] = stack()
    viewer.add_image(stored, axis_labels=NAMES)
    dock.ready()
    lazy = dock.segment().data.copy()
    viewer.add_image(stack(), axis_labels=NAMES)
    np.testing.assert_array_equal(dock.segment().data, lazy)
    assert lazy.any()


def test_a_pyramid_of_lazy_arrays_with_time(viewer: Any, dock: Dock) -> None:
    film = np.stack([plane(192), plane(192)[::-1]])
    levels = [da.from_array(film[:, ::n, ::n], chunks=(1, 64, 64)) for n in (1, 2)]
    viewer.add_image(levels, multiscale=True, axis_labels=("t", "y", "x"))
    dock.ready()
    dock.choose("level", 1)
    labels = dock.segment()
    assert labels.data.shape == (2, 96, 96)
    assert all(numbers(frame) for frame in labels.data)
    np.testing.assert_allclose(labels.scale, (1, 2, 2))


def test_rgb_frames(viewer: Any, dock: Dock) -> None:
    frame = sample_data.histology_white()[0][0][:96, :96, :3]
    viewer.add_image(np.stack([frame, frame]), rgb=True, axis_labels=("t", "y", "x"))
    dock.ready()
    assert dock.find("axes").text() == "TYXS"
    labels = dock.segment()
    assert labels.data.shape == (2, 96, 96)
    assert numbers(labels.data[0])


def test_a_frame_of_a_video(viewer: Any, dock: Dock, tmp_path: Path) -> None:
    pictures = [np.repeat(plane()[..., None], 3, -1), np.zeros((96, 96, 3), np.uint8)]
    path = write_video(tmp_path / "film.mp4", pictures * 20)
    (image,) = viewer.open(path, plugin="napari-tttunet")
    assert image.rgb
    dock.ready()
    assert dock.find("axes").text() == "TYXS"
    assert "40 time points" in dock.find("dimensions").text()
    viewer.dims.set_current_step(0, 22)
    dock.choose("planes", "current")
    labels = dock.segment()
    same_place(labels, image)
    assert labels.data.shape == (40, 96, 96)
    assert {int(t) for t in np.nonzero(labels.data)[0]} == {22}


@pytest.mark.parametrize("shape", [(96, 1), (1, 96), (6, 1, 64)])
def test_one_pixel_wide(viewer: Any, dock: Dock, shape: tuple[int, ...]) -> None:
    image = viewer.add_image(np.resize(plane(), shape), rgb=False)
    labels = dock.segment()
    assert labels.data.shape == image.data.shape
    assert dock.message() == "" or "No objects were found" in dock.message()
    same_place(labels, image)


def test_a_single_pixel_is_told(viewer: Any, dock: Dock) -> None:
    viewer.add_image(np.ones((1, 1), np.uint8))
    assert dock.segment() is None
    assert "single pixel" in dock.message()


def test_an_empty_image_is_told(viewer: Any, dock: Dock) -> None:
    viewer.add_image(np.zeros((0, 40, 40), np.uint8), contrast_limits=(0, 255), rgb=False)
    dock.ready()
    dock.click("segment")
    assert "is empty" in dock.message()
    assert not dock.widget.run.running
    assert len(viewer.layers) == 1


def test_numbers_that_are_none(viewer: Any, dock: Dock) -> None:
    data = plane().astype(np.float32)
    data[:20, :20] = np.nan
    viewer.add_image(data)
    labels = dock.segment()
    assert numbers(labels.data[30:])
    viewer.add_image(np.full((64, 64), np.nan, np.float32), contrast_limits=(0, 1))
    dock.start()
    dock.until(lambda: not dock.widget.run.running)
    assert dock.message() != ""
    assert dock.find("segment").isVisible()


def test_what_is_done_for_lack_of_memory_stays_told(viewer: Any, dock: Dock) -> None:
    """The event is one of `tests/engine/test_ladder.py`: memory does not run out on request."""
    viewer.add_image(plane())
    dock.until(lambda: "Needs about" in dock.find("need").text())
    assert "on the CPU" in dock.find("need").text()
    dock.start()
    run, warning = dock.widget.run, "Memory ran out; trying tiles of 64 x 64."
    for _ in range(2):
        run._hear(run._token, None, Log("warning", warning))
    assert dock.message() == warning
    dock.until(lambda: not run.running)
    assert dock.message() == warning
    assert dock.widget.view.message.kind == "warning"
    assert numbers(dock.labels().data)
    dock.segment()
    assert dock.message() == "", "it was another run"


def test_the_copied_command_gives_the_same_labels(
    viewer: Any, dock: Dock, tmp_path: Path, qapp: Any
) -> None:
    from PIL import Image

    from tttunet.imaging import load_labels

    Image.fromarray(plane()).save(tmp_path / "my cells.png")
    viewer.open(tmp_path / "my cells.png", plugin="napari")
    dock.ready()
    dock.find("min_size_box").setValue(60)
    labels = dock.segment()
    assert dock.find("copy_command").isEnabled()
    dock.click("copy_command")
    assert "on the clipboard" in dock.message()
    command = qapp.clipboard().text()
    program = f"{sys.executable} -m {command}"
    ran = subprocess.run(program, shell=True, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    (made,) = tmp_path.glob("*_labels*")
    np.testing.assert_array_equal(load_labels(made).array, labels.data)


def test_no_command_for_what_it_cannot_read(viewer: Any, dock: Dock, tmp_path: Path) -> None:
    np.save(tmp_path / "cells.npy", plane())
    viewer.open(tmp_path / "cells.npy", plugin="napari")
    dock.ready()
    dock.click("copy_command")
    assert "of a type that cannot be read" in dock.message()
