"""Arrays are wrapped, not read; the engine learns what a layer knows; labels find their place."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from napari.layers import Image, Labels

from napari_tttunet.axes import guess_axes
from napari_tttunet.layers import (
    Window,
    image_fields,
    label_grid,
    layer_array,
    levels,
    suggest_level,
)
from tttunet.engine.exchange import open_array, write_array
from tttunet.engine.messages import ImageRef, from_dict
from tttunet.errors import ImageError


class Recorder:
    """An array that remembers what was read of it."""

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.reads = data, []
        self.shape, self.dtype, self.ndim = data.shape, data.dtype, data.ndim

    def __getitem__(self, key: Any) -> np.ndarray:
        part = self.data[key]
        self.reads.append(part.shape)
        return part


def counting(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)


@pytest.mark.parametrize("kind", ["numpy", "dask", "zarr"])
def test_a_part_reaches_the_engine(kind: str, tmp_path) -> None:
    data = counting((6, 8, 10))
    array: Any = {
        "numpy": lambda: data,
        "dask": lambda: da.from_array(data, chunks=(2, 3, 4)),
        "zarr": lambda: zarr.array(data, chunks=(2, 3, 4)),
    }[kind]()
    layer = Image(array, rgb=False, axis_labels="zyx")
    whole = layer_array(layer)
    assert (whole.shape, whole.dtype, whole.nbytes) == ((6, 8, 10), np.uint16, 960)
    part = layer_array(layer, bounds=((1, 5), (0, 8), (7, 10)))
    write_array(tmp_path / "a.npy", part)
    np.testing.assert_array_equal(open_array(tmp_path / "a.npy"), data[1:5, :, 7:10])
    np.testing.assert_array_equal(np.asarray(part), data[1:5, :, 7:10])
    np.testing.assert_array_equal(np.asarray(part[1:3]), data[2:4, :, 7:10])


def test_nothing_is_read_before_it_is_sliced() -> None:
    array = Recorder(counting((20, 8, 10)))
    window = Window(array, ((4, 16), (0, 8), (2, 9)))
    assert (window.shape, window.ndim, len(window), window.size) == ((12, 8, 7), 3, 12, 672)
    assert array.reads == []
    np.testing.assert_array_equal(window[3:5, 1:2], array.data[7:9, 1:2, 2:9])
    assert array.reads == [(2, 1, 7)]
    with pytest.raises(IndexError):
        window[::2]


def test_a_huge_image_costs_nothing() -> None:
    """1 TB: reading it, or allocating its labels page by page, would end the test."""
    data = da.zeros((1000, 32000, 32000), chunks=(1, 4000, 4000), dtype=np.uint8)
    layer = Image(data, multiscale=False, contrast_limits=(0, 1), scale=(5, 1, 1))
    assert layer_array(layer).nbytes == 1000 * 32000**2
    grid = label_grid(layer, "ZYX", bounds=((3, 4), (0, 100), (31000, 32000)))
    assert grid.shape == (1, 100, 1000)
    assert image_fields(layer, "ZYX")["spacing"] == (5.0, 1.0, 1.0)


@pytest.mark.parametrize("channels", [3, 4])
def test_alpha_is_left_out(channels: int) -> None:
    data = np.random.default_rng(0).integers(0, 255, (5, 6, channels), np.uint8)
    layer = Image(data, rgb=True)
    np.testing.assert_array_equal(np.asarray(layer_array(layer)), data[..., :3])
    part = layer_array(layer, bounds=((1, 2), (3, 5)))
    np.testing.assert_array_equal(np.asarray(part), data[1:2, 3:5, :3])
    fields = image_fields(layer, "YXS")
    assert fields["rgb"]
    assert fields["channel_names"] == ("red", "green", "blue")
    assert label_grid(layer, "YXS").shape == (5, 6)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.uint16, np.float16, np.float64])
def test_numbers_of_all_kinds(dtype: type) -> None:
    data = np.eye(7, dtype=dtype)
    np.testing.assert_array_equal(np.asarray(layer_array(Image(data))), data)


def test_what_cannot_be_segmented_is_told() -> None:
    empty = Image(np.zeros((0, 5, 6)), name="none", contrast_limits=(0, 1))
    assert guess_axes(empty).axes == "ZYX"
    with pytest.raises(ImageError, match=r"'none' is empty: its shape is \(0, 5, 6\)"):
        layer_array(empty)
    with pytest.raises(ImageError, match="complex"):
        # A layer of napari refuses them already; a subclass of a plugin may not.
        layer_array(SimpleNamespace(data=np.ones((4, 5), complex), ndim=2, name="waves"))


def test_levels_are_chosen_by_pixel_size_or_count() -> None:
    pyramid = [da.zeros((20000 // 2**i,) * 2, dtype=np.uint8) for i in range(4)]
    layer = Image(pyramid, multiscale=True, scale=(0.2, 0.2), units="um", contrast_limits=(0, 1))
    assert [level.factors for level in levels(layer)] == [(2.0**i,) * 2 for i in range(4)]
    assert suggest_level(layer, "YX") == 2
    assert suggest_level(layer, "YX", (0.19, 0.19)) == 0
    assert suggest_level(layer, "YX", (0.5, 0.5)) == 1
    assert suggest_level(layer, "YX", (99.0, 99.0)) == 3
    assert suggest_level(Image(np.zeros((3, 4))), "YX", (0.1, 0.1)) == 0
    assert layer_array(layer, 3).shape == (2500, 2500)


def test_the_engine_understands_what_it_is_told() -> None:
    layer = Image(
        counting((2, 3, 4, 5)),
        rgb=False,
        name="cells",
        scale=(1, 3, 2, 0.5),
        translate=(0, 0, 10, 20),
        units=("pixel", "um", "um", "um"),
        metadata={"channel_names": ["dna", "actin"]},
    )
    fields = image_fields(layer, "CZYX", bounds=((0, 2), (1, 3), (2, 4), (0, 5)))
    assert fields["spacing"] == (3.0, 2.0, 0.5)
    assert fields["origin"] == (3.0, 14.0, 20.0)
    assert fields["direction"] == ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    assert fields["unit"] == "micrometer"
    assert fields["channel_names"] == ("dna", "actin")
    ref = ImageRef(**fields)
    assert ref.name == "cells"
    assert from_dict({"kind": "segment", "image": fields, "model": "m", "output": "o"}).image == ref
    assert "direction" not in image_fields(Image(np.zeros((3, 4)), shear=[0.3]), "YX")


@pytest.mark.parametrize(
    ("axes", "shape", "labels", "grid"),
    [
        ("YX", (5, 6), (5, 6), "YX"),
        ("CYX", (2, 5, 6), (5, 6), "YX"),
        ("YXC", (5, 6, 2), (5, 6, 1), "YXC"),
        ("TCYX", (4, 2, 5, 6), (4, 1, 5, 6), "TCYX"),
        ("XYZ", (6, 5, 3), (6, 5, 3), "XYZ"),
        ("TZCYX", (4, 3, 2, 5, 6), (4, 3, 1, 5, 6), "TZCYX"),
        ("ZYX", (1, 5, 6), (1, 5, 6), "ZYX"),
        ("YX", (1, 6), (1, 6), "YX"),
    ],
)
def test_labels_are_arranged(axes: str, shape: tuple, labels: tuple, grid: str) -> None:
    image = Image(np.zeros(shape, np.uint8), rgb=False)
    found = label_grid(image, axes)
    assert (found.shape, found.axes) == (labels, grid)
    result = counting(tuple(n for n, letter in zip(shape, axes, strict=True) if letter != "C"))
    arranged = found.arrange(result)
    assert np.shares_memory(arranged, result)
    layer = Labels(arranged.astype(np.int32), **found.arguments())
    assert layer.data.shape == labels
    assert found.empty().shape == labels
    with pytest.raises(ImageError, match="do not fit"):
        found.arrange(np.zeros((9, 9)))


def test_a_part_is_pasted_into_the_whole() -> None:
    image = Image(np.zeros((2, 3, 8, 10), np.uint8), rgb=False, scale=(1, 1, 2, 2))
    whole = label_grid(image, "TCYX")
    part = label_grid(image, "TCYX", bounds=((1, 2), (0, 3), (2, 5), (4, 10)))
    target = whole.empty()
    target[0, 0, 0, 0] = 7
    target[1, 0, 3, 5] = 9  # an earlier result in the same place goes
    labels = part.arrange(np.array([[[0, 1, 1, 0, 2, 2]] * 3], np.uint32))
    whole.paste(part, labels, target, new=True)
    assert target.dtype == np.int32
    assert sorted(np.unique(target)) == [0, 7, 8, 9]
    np.testing.assert_array_equal(target[1, 0, 3], [0, 0, 0, 0, 0, 8, 8, 0, 9, 9])
    whole.paste(part, labels, target, new=False)
    np.testing.assert_array_equal(target[1, 0, 3], [0, 0, 0, 0, 0, 1, 1, 0, 2, 2])
    world = np.array(Labels(labels.astype(np.int32), **part.arguments()).data_to_world((0,) * 4))
    np.testing.assert_allclose(world, image.data_to_world((1, 1, 2, 4)))
