"""From layers to the engine and back: which array, on which grid, where the result belongs.

Nothing here reads pixels or imports napari: layers are asked for what they know, and arrays
(numpy, dask, zarr) are only wrapped, so that a huge image costs nothing until the engine copies
it chunk by chunk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from napari_tttunet.axes import data_shape, is_rgb
from napari_tttunet.geometry import (
    Bounds,
    Transform,
    crop_transform,
    full_bounds,
    level_factors,
    level_transform,
)
from napari_tttunet.placement import SPATIAL, common_unit, world_placement
from tttunet.errors import ImageError

#: Without a pixel size to go by, a pyramid's finest level of at most so many pixels is proposed.
LARGEST_LEVEL = 2**26


# Arrays


class Window:
    """A part of an array that is only read when it is sliced.

    Enough of an array for `tttunet.engine.exchange.write_array`: shape, dtype and slicing.

    Args:
        data: numpy, dask, zarr or anything that slices by ranges.
        bounds: first and last-plus-one index per axis.
    """

    def __init__(self, data: Any, bounds: Bounds) -> None:
        self.data, self.bounds = data, bounds
        self.shape = tuple(stop - start for start, stop in bounds)
        self.dtype = np.dtype(data.dtype)
        self.ndim = len(bounds)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        """Slices with steps of 1, one per leading axis; other axes are taken whole."""
        parts = key if isinstance(key, tuple) else (key,)
        parts = (*parts, *[slice(None)] * (self.ndim - len(parts)))
        ranges = []
        for part, (start, stop) in zip(parts, self.bounds, strict=True):
            first, last, step = part.indices(stop - start)
            if step != 1:
                raise IndexError("A window has no steps.")
            ranges.append(slice(start + first, start + max(first, last)))
        return self.data[tuple(ranges)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = np.asarray(self[()], dtype)
        return array.copy() if copy else array


def real_viewer(viewer: Any) -> Any:
    """The viewer itself: napari gives plugins a proxy, whose layers are never the same objects."""
    return getattr(viewer, "__wrapped__", viewer)


def layer_array(layer: Any, level: int = 0, bounds: Bounds | None = None) -> Window:
    """The pixels of a layer, or a part of them, without reading any. Alpha is left out.

    Args:
        layer: an Image or Labels layer.
        level: of a multiscale layer; 0 is the finest.
        bounds: per data axis without colours; None: all.

    Raises:
        ImageError: the layer is empty or holds no numbers.
    """
    data = layer.data[level] if getattr(layer, "multiscale", False) else layer.data
    shape = data_shape(layer, level)
    if 0 in data.shape:
        raise ImageError(f"'{layer.name}' is empty: its shape is {tuple(data.shape)}.")
    if np.dtype(data.dtype).kind not in "buif":
        raise ImageError(
            f"'{layer.name}' holds {data.dtype} data.", "An image of real numbers is needed."
        )
    colours = ((0, 3),) if is_rgb(layer) else ()
    return Window(data, (*(bounds or full_bounds(shape)), *colours))


# Levels of a pyramid


@dataclass(frozen=True)
class Level:
    """A level of a multiscale layer.

    Attributes:
        index: 0 is the finest.
        shape: without colours.
        factors: pixels of level 0 per pixel of this level, per axis.
    """

    index: int
    shape: tuple[int, ...]
    factors: tuple[float, ...]


def levels(layer: Any) -> list[Level]:
    """The levels of a layer, finest first; a plain layer has one."""
    count = len(layer.data) if getattr(layer, "multiscale", False) else 1
    first = data_shape(layer)
    shapes = [data_shape(layer, index) for index in range(count)]
    return [Level(i, shape, level_factors(first, shape)) for i, shape in enumerate(shapes)]


def suggest_level(layer: Any, axes: str, spacing: Sequence[float] = ()) -> int:
    """The level to segment: that whose pixels are closest in size to what the model knows.

    Args:
        layer: an Image layer.
        axes: its axes.
        spacing: of the model's training images (Z, Y, X or Y, X), in the layer's unit; empty:
            not known, so the finest level of at most `LARGEST_LEVEL` pixels.
    """
    choices = levels(layer)
    if spacing:
        wanted = math.log(spacing[-1])

        def distance(level: Level) -> float:
            return abs(math.log(layer_spacing(layer, axes, level.index).values[-1]) - wanted)

        return min(choices, key=distance).index
    small = [level for level in choices if math.prod(level.shape) <= LARGEST_LEVEL]
    return (small[0] if small else choices[-1]).index


# Physical size


@dataclass(frozen=True)
class Spacing:
    """Distances between pixels.

    Attributes:
        values: per spatial axis in the order Z, Y, X.
        unit: "micrometer", "millimeter", or None where the layer has none (pixels).
    """

    values: tuple[float, ...]
    unit: str | None


def layer_spacing(layer: Any, axes: str, level: int = 0) -> Spacing:
    """The distances between the pixel centres of a layer, whatever its rotation and shear."""
    steps = np.linalg.norm(_transform(layer, level).matrix[:-1, :-1], axis=0)
    places = [axes.index(letter) for letter in SPATIAL if letter in axes]
    unit, factors = common_unit([layer.units[i] for i in places])
    values = (float(steps[i]) * factor for i, factor in zip(places, factors, strict=True))
    return Spacing(tuple(values), unit)


def _transform(layer: Any, level: int) -> Transform:
    return level_transform(Transform.of(layer), levels(layer)[level].factors)


# What the engine is told


def image_fields(
    layer: Any, axes: str, level: int = 0, bounds: Bounds | None = None
) -> dict[str, Any]:
    """The fields of `tttunet.engine.messages.ImageRef` that a layer determines.

    `origin` and `direction` are left out if the transform shears, which no file format holds.

    Args:
        layer: an Image layer.
        axes: its axes, one letter per data axis, the S of RGB colours included.
        level: the level that is segmented.
        bounds: the part that is segmented, per data axis without colours.

    Returns:
        axes, spacing, origin, direction, unit, channel_names, rgb, name.
    """
    spacing = layer_spacing(layer, axes, level)
    transform = _transform(layer, level)
    if bounds is not None:
        transform = crop_transform(transform, bounds)
    placement = world_placement(transform, axes, layer.units, layer.metadata)
    fields: dict[str, Any] = {
        "axes": axes,
        "spacing": spacing.values,
        "unit": spacing.unit,
        "channel_names": _channel_names(layer, axes),
        "rgb": is_rgb(layer),
        "name": layer.name,
    }
    if placement is not None:
        fields["origin"] = placement.origin
        fields["direction"] = tuple(map(tuple, placement.direction.tolist()))
    return fields


def _channel_names(layer: Any, axes: str) -> tuple[str, ...]:
    if is_rgb(layer):
        return ("red", "green", "blue")
    own = layer.metadata.get("tttunet") or {}
    names = own.get("channel_names") or layer.metadata.get("channel_names") or ()
    count = data_shape(layer)[axes.index("C")] if "C" in axes else 1
    return tuple(map(str, names)) if len(names) == count else ()


# Where the labels go


@dataclass(frozen=True, eq=False)
class LabelGrid:
    """The grid of a Labels layer over (a part of) an image layer.

    A leading channel axis is dropped: napari lines up layers at their last axes. Another one
    (as in TCYX) stays as a single plane that is as thick as all channels together, so that the
    labels lie at the image's place in every channel, and time and space keep their sliders.

    Attributes:
        axes: one letter per axis of the labels, in the image layer's order.
        shape: of the labels.
        transform: of the Labels layer; the same as the image's on time and space.
        units, axis_labels: those of the image layer.
        bounds: the part of the image at this level, per axis of the labels.
        metadata: what a writer needs to give the labels the place of the image's file.
    """

    axes: str
    shape: tuple[int, ...]
    transform: Transform
    units: tuple[Any, ...]
    axis_labels: tuple[str, ...]
    bounds: Bounds
    metadata: dict[str, Any] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `napari.layers.Labels`."""
        return {
            **self.transform.arguments(),
            "units": self.units,
            "axis_labels": self.axis_labels,
            "metadata": {"tttunet": dict(self.metadata)},
        }

    def arrange(self, labels: np.ndarray) -> np.ndarray:
        """Labels as the engine returns them (the image's axes without C), as a view of this grid.

        Raises:
            ImageError: the labels are not of this grid.
        """
        thick = self.axes.find("C")
        arranged = np.expand_dims(labels, thick) if thick >= 0 else labels
        if arranged.shape != self.shape:
            raise ImageError(f"Labels of shape {labels.shape} do not fit {self.shape}.")
        return arranged

    def empty(self, dtype: Any = np.int32) -> np.ndarray:
        """Labels of this grid with nothing in them; untouched parts take no memory on Linux."""
        return np.zeros(self.shape, dtype)

    def paste(self, part: LabelGrid, labels: np.ndarray, target: np.ndarray, new: bool) -> None:
        """Writes the labels of a part into labels of this grid, in place.

        Args:
            part: a grid of the same layer and level, within this one's bounds.
            labels: arranged for `part`.
            target: labels of this grid.
            new: give objects numbers above those in the rest of `target` (instances); else the
                numbers are classes and stay.
        """
        places = tuple(
            slice(start - first, stop - first)
            for (start, stop), (first, _) in zip(part.bounds, self.bounds, strict=True)
        )
        target[places] = 0
        offset = int(target.max(initial=0)) if new else 0
        target[places] = np.where(labels > 0, labels.astype(target.dtype) + offset, 0)


def label_grid(layer: Any, axes: str, level: int = 0, bounds: Bounds | None = None) -> LabelGrid:
    """The grid of labels for an image layer.

    Args:
        layer: an Image layer.
        axes: one letter per data axis, the S of RGB colours included.
        level: of a multiscale layer.
        bounds: the part of the level that the labels cover, per data axis; None: all of it.
    """
    shape = data_shape(layer, level)
    axes = axes[: len(shape)]
    bounds = bounds or full_bounds(shape)
    transform = crop_transform(_transform(layer, level), bounds)
    units, names = tuple(layer.units), tuple(layer.axis_labels)
    own = layer.metadata.get("tttunet") or {}
    metadata = {"geometry": own["geometry"]} if "geometry" in own else {}
    if "C" in axes:
        channel = axes.index("C")
        reduced = transform.without(channel) if channel == 0 else None
        if reduced is not None:
            axes, units, names = axes[1:], units[1:], names[1:]
            bounds, transform = bounds[1:], reduced
        else:
            start = bounds[channel][0]
            steps, shift = np.ones(len(shape)), np.zeros(len(shape))
            steps[channel], shift[channel] = shape[channel], (shape[channel] - 1) / 2 - start
            transform = transform.regrid(steps, shift)
            bounds = (*bounds[:channel], (0, 1), *bounds[channel + 1 :])
    size = tuple(stop - start for start, stop in bounds)
    return LabelGrid(axes, size, transform, units, names, bounds, {"axes": axes, **metadata})
