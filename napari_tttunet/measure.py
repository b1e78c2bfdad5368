"""What the engine must know to measure the objects of a Labels layer; no pixel is read here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from napari_tttunet.axes import LETTERS, data_shape, guess_axes, is_rgb
from napari_tttunet.geometry import Bounds, Transform, level_transform
from napari_tttunet.layers import Window, layer_array, levels
from napari_tttunet.placement import SPATIAL, common_unit
from tttunet.errors import ImageError
from tttunet.measuring.objects import Grid

_SYMBOLS = {"micrometer": "µm", "millimeter": "mm"}
_TITLES_OF_COLOURS = ("red", "green", "blue")


class Channel:
    """Brightness on the grid of the labels; an array for the engine.

    Args:
        name: of the image, and of its channel if it has several.
        window: the pixels under the labels.
        extra: position of an axis of one entry that the labels do not have; None: there is none.
        colour: the last axis of `window` is one colour.
    """

    def __init__(
        self, name: str, window: Window, extra: int | None = None, colour: bool = False
    ) -> None:
        self.name, self.window = name, window
        self._extra, self._colour = extra, colour
        shape = window.shape[:-1] if colour else window.shape
        self.shape = shape if extra is None else (*shape[:extra], *shape[extra + 1 :])
        self.dtype, self.ndim = window.dtype, len(self.shape)

    def __getitem__(self, key: Any) -> np.ndarray:
        """Slices, one per leading axis."""
        keys = [*(key if isinstance(key, tuple) else (key,))]
        keys += [slice(None)] * (self.ndim - len(keys))
        if self._extra is not None:
            keys.insert(self._extra, slice(None))
        part = np.asarray(self.window[tuple(keys)])
        if self._colour:
            part = part[..., 0]
        return part if self._extra is None else np.squeeze(part, self._extra)


@dataclass(frozen=True, eq=False)
class Plan:
    """Labels and how to measure them.

    Attributes:
        labels: the pixels.
        grid: where they lie.
        channels: brightness to measure.
    """

    labels: Window
    grid: Grid
    channels: tuple[Channel, ...] = ()

    @property
    def circumstances(self) -> tuple[Any, ...]:
        """All that decides the numbers, except for the labels' pixels."""
        grid = self.grid
        channels = tuple(
            (one.name, id(one.window.data), one.window.bounds) for one in self.channels
        )
        return grid.axes, grid.shape_axes, grid.unit, grid.matrix.tobytes(), channels


def plan_measurement(
    layer: Any, axes: str, volumes: bool = True, image: Any = None, viewer_labels: Any = ()
) -> Plan:
    """What is needed to measure a Labels layer; no pixel is read.

    Args:
        layer: a Labels layer; of a pyramid, the finest level is measured.
        axes: one letter per data axis.
        volumes: objects extend over Z; else every slice is measured by itself.
        image: an Image layer of which brightness is measured; None: none.
        viewer_labels: `viewer.dims.axis_labels`, to tell the channels of `image`.

    Raises:
        ImageError: the layer is empty, its transform flattens an axis, or `image` has no pixels
            under the labels.
    """
    shape = data_shape(layer)
    window = layer_array(layer)
    deep = volumes and "Z" in axes and shape[axes.index("Z")] > 1
    letters = SPATIAL if deep else SPATIAL[1:]
    places = [axes.index(letter) for letter in letters]
    unit, factors = common_unit([layer.units[place] for place in places])
    matrix = Transform.of(layer).matrix[places] * np.array(factors)[:, None]
    grid = Grid(axes, letters, matrix, _symbol(unit, matrix[:, places]))
    if abs(np.linalg.det(grid.linear)) < 1e-300:
        raise ImageError(
            f"The transform of '{layer.name}' makes an axis flat.", "Check its scale and affine."
        )
    channels: tuple[Channel, ...] = ()
    if image is not None:
        channels = channels_under(layer, axes, image, viewer_labels)
        if not channels:
            raise ImageError(
                f"'{image.name}' has other pixels than '{layer.name}'.",
                "Choose the image that the labels were made from.",
            )
    return Plan(window, grid, channels)


def _symbol(unit: str | None, linear: np.ndarray) -> str:
    """A scale without a unit says nothing of microns, nor that one unit is a pixel."""
    if unit:
        return _SYMBOLS[unit]
    return "px" if np.allclose(np.linalg.norm(linear, axis=0), 1) else "units"


def axes_of_labels(layer: Any, viewer_labels: Any = ()) -> str:
    """What the axes of labels are: as they were made, else as `guess_axes` thinks.

    Raises:
        ImageError: the layer has more axes than there are letters.
    """
    own = layer.metadata.get("tttunet") if isinstance(layer.metadata, dict) else None
    made = str(own.get("axes", "")) if isinstance(own, dict) else ""
    known = len(set(made)) == len(made) == layer.ndim and {"X", "Y"} <= set(made) <= set(LETTERS)
    return made if known else guess_axes(layer, viewer_labels).axes


def channels_under(
    layer: Any, axes: str, image: Any, viewer_labels: Any = ()
) -> tuple[Channel, ...]:
    """The channels of an image whose pixels coincide with those of labels; else nothing.

    The labels may be of a part of the image, or of a level of a pyramid.

    Args:
        layer: a Labels layer.
        axes: its axes.
        image: an Image or another Labels layer; its pixels are not read.
        viewer_labels: `viewer.dims.axis_labels`.
    """
    try:
        letters = guess_axes(image, viewer_labels).axes[: image.ndim]
    except ImageError:
        return ()
    colour = letters.find("C")
    kept = [i for i in range(image.ndim) if i != colour]
    thick = axes.find("C") if colour >= 0 else -1
    mine = [i for i in range(layer.ndim) if i != thick]
    if len(kept) != len(mine) or 0 in data_shape(image):
        return ()
    for level in levels(image):
        transform = level_transform(Transform.of(image), level.factors)
        part = _part_of(_kept(Transform.of(layer), mine), _kept(transform, kept))
        sizes = [data_shape(layer)[i] for i in mine]
        if part is None or any(
            first < 0 or first + size > level.shape[i]
            for first, size, i in zip(part, sizes, kept, strict=True)
        ):
            continue
        bounds = [(first, first + size) for first, size in zip(part, sizes, strict=True)]
        return _channels(image, level.index, colour, bounds, thick >= 0)
    return ()


def _channels(
    image: Any, level: int, colour: int, bounds: list[tuple[int, int]], thick: bool
) -> tuple[Channel, ...]:
    data = image.data[level] if getattr(image, "multiscale", False) else image.data
    if is_rgb(image):
        return tuple(
            Channel(f"{image.name}, {name}", Window(data, (*bounds, (k, k + 1))), colour=True)
            for k, name in enumerate(_TITLES_OF_COLOURS)
        )
    if colour < 0:
        return (Channel(image.name, Window(data, tuple(bounds))),)
    count = data_shape(image, level)[colour]
    found = []
    for k in range(count):
        whole: Bounds = (*bounds[:colour], (k, k + 1), *bounds[colour:])
        name = f"{image.name}, channel {k}" if count > 1 else image.name
        # Labels with a thick channel axis have one entry there already.
        found.append(Channel(name, Window(data, whole), None if thick else colour))
    return tuple(found)


def _kept(transform: Transform, axes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    matrix = transform.matrix
    return matrix[np.ix_(axes, axes)], matrix[axes, -1]


def _part_of(
    own: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]
) -> list[int] | None:
    """The pixel of another grid at which one's own begins; None if pixels do not coincide."""
    (linear, shift), (other_linear, other_shift) = own, other
    size = np.abs(other_linear).max()
    if not np.allclose(linear, other_linear, rtol=1e-5, atol=1e-6 * size):
        return None
    try:
        first = np.linalg.solve(other_linear, shift - other_shift)
    except np.linalg.LinAlgError:
        return None
    whole = np.rint(first)
    return [int(x) for x in whole] if np.abs(first - whole).max() < 0.01 else None
