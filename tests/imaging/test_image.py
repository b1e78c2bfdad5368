"""Axes and geometry of an `Image`."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tttunet.errors import ImageError
from tttunet.imaging import Image


def test_two_dimensions_need_no_axes() -> None:
    image = Image.from_array(np.zeros((4, 5), np.uint8), name="grey")
    assert (image.axes, image.spatial_shape, image.spacing) == ("YX", (4, 5), (1.0, 1.0))
    assert (image.unit, image.rgb, image.channels, image.name) == (None, False, 1, "grey")
    assert "array" not in repr(image)


@given(st.sets(st.sampled_from("TCZ")).flatmap(lambda more: st.permutations([*more, "Y", "X"])))
@settings(max_examples=30)
def test_any_order_becomes_canonical(order: list[str]) -> None:
    axes = "".join(order)
    sizes = dict(zip("TCZYX", (2, 3, 4, 5, 6), strict=True))
    values = dict(zip("TCZYX", (10000, 1000, 100, 10, 1), strict=True))
    array = sum(
        np.arange(sizes[letter]).reshape([-1 if other == letter else 1 for other in axes])
        * values[letter]
        for letter in axes
    )
    image = Image.from_array(array, axes)
    assert image.axes == "".join(letter for letter in "TCZYX" if letter in axes)
    assert image.array.shape == tuple(sizes[letter] for letter in image.axes)
    last = tuple(size - 1 for size in image.array.shape)
    assert image.array[last] == sum((sizes[a] - 1) * values[a] for a in image.axes)


@pytest.mark.parametrize(
    ("shape", "axes", "expected", "rgb"),
    [
        ((4, 5, 3), "YXS", "CYX", True),
        ((4, 5, 4), "YXS", "CYX", True),
        ((4, 5, 2), "yxs", "YX", False),
        ((4, 5, 1), "YXS", "YX", False),
        ((4, 5, 7), "YXS", "CYX", False),
        ((4, 5, 3), "YXC", "CYX", False),
        ((3, 4, 5), "SYX", "CYX", True),
        ((6, 4, 5, 3), "ZYXS", "CZYX", True),
        ((6, 4, 5, 3), "TYXS", "TCYX", True),
        ((1, 1, 1, 4, 5), "TCZYX", "YX", False),
        ((1, 1), "YX", "YX", False),
        ((3, 1, 1), "ZYX", "ZYX", False),
    ],
)
def test_samples_and_single_axes(
    shape: tuple[int, ...], axes: str, expected: str, rgb: bool
) -> None:
    image = Image.from_array(np.zeros(shape, np.uint8), axes)
    assert (image.axes, image.rgb) == (expected, rgb)
    if rgb:
        assert image.channels == 3


@pytest.mark.parametrize(
    ("shape", "axes", "words"),
    [
        ((5, 6, 7), None, r"\(5, 6, 7\).*--axes.*ZYX, TYX or CYX"),
        ((5, 6, 3), None, r"ZYX, TYX, CYX or YXS"),
        ((2, 5, 6, 7), None, r"TZYX, .*or"),
        ((5, 6), "ZYX", r"\(5, 6\), which needs 2 axes; 'ZYX' has 3"),
        ((5, 6, 7), "YX", "needs 3 axes"),
        ((5, 6, 7), "QYX", "unknown letter 'Q'"),
        ((5, 6, 7), "YYX", "twice"),
        ((5, 6, 7), "TZY", "lack Y or X"),
        ((5, 6, 7, 3), "CYXS", "both channels"),
        ((5,), None, "at least two"),
        ((), None, "at least two"),
        ((0, 5), None, r"is empty.*\(0, 5\)"),
    ],
)
def test_bad_axes(shape: tuple[int, ...], axes: str | None, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        Image.from_array(np.zeros(shape), axes)


@pytest.mark.parametrize("dtype", ["c8", "U3", "O", "M8[s]"])
def test_bad_dtypes(dtype: str) -> None:
    with pytest.raises(ImageError, match=r"complex|not numbers"):
        Image.from_array(np.zeros((4, 4), dtype))


def test_foreign_byte_order_becomes_native() -> None:
    array = np.arange(6, dtype=">u2").reshape(2, 3)
    image = Image.from_array(array)
    assert image.array.dtype.isnative
    np.testing.assert_array_equal(image.array, array)


def test_single_slice_loses_its_z_geometry_with_its_axis() -> None:
    image = Image.from_array(
        np.zeros((1, 4, 5)), "ZYX", spacing=(9, 2, 3), origin=(7, 8, 9), unit="micrometer"
    )
    assert (image.axes, image.spacing, image.origin) == ("YX", (2.0, 3.0), (8.0, 9.0))
    assert image.direction.shape == (2, 2)


@pytest.mark.parametrize("spacing", [(0, 1), (-1, 1), (np.nan, 1), (1,)])
def test_bad_spacing(spacing: tuple[float, ...]) -> None:
    with pytest.raises(ImageError, match="spacing"):
        Image.from_array(np.zeros((4, 5)), spacing=spacing)


def test_with_array_keeps_the_place() -> None:
    image = Image.from_array(
        np.zeros((2, 6, 4, 5, 3), np.uint8), "TZYXS", spacing=(3, 2, 1), origin=(1, 2, 3)
    )
    labels = image.with_array(np.zeros((2, 6, 4, 5), int), "TZYX")
    assert (labels.spacing, labels.origin, labels.rgb) == ((3, 2, 1), (1, 2, 3), False)
    plane = image.with_array(image.array[0, :, 0], "CYX")
    assert (plane.spacing, plane.origin, plane.rgb) == ((2, 1), (2, 3), True)
    with pytest.raises(ImageError, match="do not follow"):
        plane.with_array(np.zeros((6, 4, 5)), "ZYX")
    with pytest.raises(ImageError, match="order"):
        image.with_array(np.zeros((4, 5, 3)), "YXC")


def test_select_channel() -> None:
    array = np.arange(24).reshape(2, 3, 4)
    image = Image.from_array(array, "CYX", channel_names=("DAPI", "GFP"))
    for channel in (1, "1", "GFP"):
        chosen = image.select_channel(channel)
        assert (chosen.axes, chosen.channel_names) == ("YX", ("GFP",))
        np.testing.assert_array_equal(chosen.array, array[1])
    for missing in (2, -1, "RFP"):
        with pytest.raises(ImageError, match=r"no channel.*DAPI, GFP"):
            image.select_channel(missing)
