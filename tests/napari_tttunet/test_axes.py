"""What each axis is: guessed from names, units and shapes; typed letters are checked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import dask.array as da
import numpy as np
import pytest
from napari.layers import Image, Labels

from napari_tttunet.axes import data_shape, guess_axes, parse_axes
from tttunet.errors import ImageError


def image(*shape: int, **arguments: Any) -> Image:
    return Image(da.zeros(shape, np.uint8, chunks=-1), **{"rgb": False, **arguments})


@pytest.mark.parametrize(
    ("shape", "arguments", "axes"),
    [
        ((64, 80), {}, "YX"),
        ((64, 1), {}, "YX"),
        ((1, 64), {}, "YX"),
        ((64, 80, 3), {"rgb": True}, "YXS"),
        ((64, 80, 4), {"rgb": True}, "YXS"),
        ((64, 80, 3), {}, "YXC"),
        ((3, 64, 80), {}, "CYX"),
        ((3, 64, 80), {"scale": (2, 1, 1)}, "ZYX"),
        ((30, 64, 80), {}, "ZYX"),
        ((30, 64, 80, 3), {"rgb": True}, "TYXS"),
        ((5, 30, 64, 80, 3), {"rgb": True}, "TZYXS"),
        ((2, 30, 64, 80), {}, "CZYX"),
        ((30, 2, 64, 80), {}, "ZCYX"),
        ((20, 30, 64, 80), {}, "TZYX"),
        ((20, 30, 2, 64, 80), {}, "TZCYX"),
        ((20, 2, 30, 64, 80), {}, "TCZYX"),
        ((20, 9, 30, 64, 80), {}, "TCZYX"),
        ((30, 64, 80), {"units": ("s", "um", "um")}, "TYX"),
        ((3, 64, 80), {"units": ("um", "um", "um")}, "ZYX"),
        ((1, 64, 80), {}, "ZYX"),
        ((30, 64, 3), {}, "YXC"),
        ((5, 6, 3), {}, "ZYX"),
    ],
)
def test_guess_from_shape(shape: tuple[int, ...], arguments: dict, axes: str) -> None:
    guess = guess_axes(image(*shape, **arguments))
    assert guess.axes == axes
    assert not guess.certain
    assert guess.reason == "From the shape"


@pytest.mark.parametrize(
    ("names", "axes"),
    [
        (("t", "z", "y", "x"), "TZYX"),
        (("Time", "Channel", "row", "col"), "TCYX"),
        (("x", "y", "z", "c"), "XYZC"),
    ],
)
def test_axis_labels_count_first(names: tuple[str, ...], axes: str) -> None:
    layer = image(3, 4, 64, 80, axis_labels=names, metadata={"axes": "CZYX"})
    guess = guess_axes(layer, viewer_labels=("z", "t", "y", "x"))
    assert (guess.axes, guess.certain) == (axes, True)
    assert guess.reason == "From the layer's axis labels"


@pytest.mark.parametrize(
    ("shape", "metadata", "axes"),
    [
        ((3, 4, 64, 80), {"axes": "TCYX"}, "TCYX"),
        ((3, 4, 64, 80), {"axes": ["t", "z", "y", "x"]}, "TZYX"),
        ((3, 4, 64, 80), {"axes": [{"name": n, "type": "space"} for n in "tzyx"]}, "TZYX"),
        ((4, 64, 80), {"axes": "TCYX"}, "TYX"),  # one channel of it
        ((4, 64, 80), {"tttunet": {"axes": "TYX"}, "axes": "ZYX"}, "TYX"),
    ],
)
def test_metadata_of_readers(shape: tuple[int, ...], metadata: dict, axes: str) -> None:
    guess = guess_axes(image(*shape, metadata=metadata))
    assert (guess.axes, guess.certain) == (axes, True)


@pytest.mark.parametrize("axes", ["QQYX", "YX" * 4, 7, [None], {"a": 1}, "YYYX"])
def test_useless_metadata_are_no_obstacle(axes: object) -> None:
    assert guess_axes(image(20, 30, 64, 80, metadata={"axes": axes})).axes == "TZYX"


def test_other_sources() -> None:
    layer = image(20, 64, 80)
    assert guess_axes(layer, viewer_labels=("c", "t", "y", "x")).axes == "TYX"
    assert guess_axes(layer, viewer_labels=("0", "1", "2")).axes == "ZYX"
    mixed = guess_axes(image(20, 5, 64, 80, axis_labels=("frame", "a", "b", "d")))
    assert (mixed.axes, mixed.certain) == ("TZYX", False)
    assert mixed.reason == "From the layer's axis labels and the shape"
    array = SimpleNamespace(shape=(20, 64, 80), dims=("time", "y", "x"))
    described = SimpleNamespace(
        data=array,
        ndim=3,
        rgb=False,
        name="a",
        metadata={},
        axis_labels=(),
        units=layer.units,
        scale=layer.scale,
    )
    assert guess_axes(described).axes == "TYX"


def test_labels_have_no_channels() -> None:
    labels = Labels(np.zeros((3, 20, 20), np.int32))
    assert guess_axes(labels).axes == "ZYX"
    with pytest.raises(ImageError, match="no channels"):
        parse_axes("CYX", labels)


def test_too_many_axes() -> None:
    with pytest.raises(ImageError, match=r"has 6 axes; at most 5"):
        guess_axes(image(2, 2, 2, 2, 8, 8))
    with pytest.raises(ImageError, match=r"has 5 axes; at most 4"):
        guess_axes(image(2, 2, 2, 8, 8, 3, rgb=True))


def test_pyramids_are_not_read() -> None:
    pyramid = [da.zeros((4, 400, 400), chunks=(1, 100, 100)), da.zeros((4, 200, 200))]
    layer = Image(pyramid, multiscale=True, axis_labels=("t", "y", "x"))
    assert data_shape(layer, 1) == (4, 200, 200)
    assert guess_axes(layer).axes == "TYX"


@pytest.mark.parametrize(
    ("text", "axes"), [("tzyx", "TZYX"), (" T, Z  Y-X ", "TZYX"), ("XYZT", "XYZT")]
)
def test_typed_axes(text: str, axes: str) -> None:
    assert parse_axes(text, image(2, 3, 64, 80)) == axes


@pytest.mark.parametrize("text", ["yx", "YXS", "yxc"])
def test_colours_may_be_left_out(text: str) -> None:
    assert parse_axes(text, image(64, 80, 3, rgb=True)) == "YXS"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("QYX", "'Q' is not the name of an axis"),
        ("YYX", "Y is named twice"),
        ("YX", r"has 3 axes of size 5 x 64 x 80, but 2 are named"),
        ("", "but 0 are named"),
        ("ZCX", "Y or X is missing"),
    ],
)
def test_typing_errors(text: str, message: str) -> None:
    with pytest.raises(ImageError, match=message) as error:
        parse_axes(text, image(5, 64, 80))
    assert "TZYX" in error.value.hint


def test_colours_are_the_channels() -> None:
    with pytest.raises(ImageError, match="colours"):
        parse_axes("CYXS", image(5, 64, 80, 3, rgb=True))
