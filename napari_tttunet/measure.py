"""The objects of a Labels layer in numbers: size, shape, brightness, place; without Qt.

    plan = plan_measurement(layer, axes)          # in the window's thread: nothing is read
    for fraction in (steps := measure(plan)):     # in another thread: any array, block by block
        ...                                       # the generator's return value is an ObjectTable

Each object of a frame (and of a slice, if slices are measured by themselves) is one row. All
numbers are sums over runs of equal pixels, for all objects at once, because a call per object
(scikit-image's regionprops) takes minutes for 100 000 of them. `shape_sums` says how perimeter,
surface and solidity come from the pixels.
"""

from __future__ import annotations

import csv
import itertools
import math
import zlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from napari_tttunet.axes import LETTERS, data_shape, guess_axes, is_rgb
from napari_tttunet.geometry import Bounds, Transform, level_transform
from napari_tttunet.layers import Window, layer_array, levels
from napari_tttunet.placement import SPATIAL, common_unit
from napari_tttunet.shape_sums import BLOCK_PIXELS, BlockSums, FrameSums, crofton_weights
from tttunet.errors import ImageError
from tttunet.files import atomic_write

#: Pixels that are read at once from an array; a dask or zarr array computes whole chunks.
_SLAB_PIXELS = 2**24
_SYMBOLS = {"micrometer": "µm", "millimeter": "mm"}
_RANK = ("", "", "²", "³")
_FRAMES = {"T": "Frame", "Z": "Slice", "C": "Channel"}
_TITLES_OF_COLOURS = ("red", "green", "blue")


# The table


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        key: its name in `ObjectTable.values` and in the settings.
        title: for people.
        unit: e.g. "µm²"; empty: a pure number.
        tip: what it means, in a sentence.
    """

    key: str
    title: str
    unit: str = ""
    tip: str = ""

    @property
    def header(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit else self.title


@dataclass(frozen=True, eq=False)
class ObjectTable:
    """N objects.

    Attributes:
        columns: in the order in which they are shown; the first is the label.
        values: by key, [N] each.
        centres: float [N, n], centre of mass in the layer's data coordinates, all data axes.
        shape_axes: the axes that an object extends over, "YX" or "ZYX".
    """

    columns: tuple[Column, ...]
    values: dict[str, np.ndarray]
    centres: np.ndarray
    shape_axes: str = "YX"

    def __len__(self) -> int:
        return len(self.centres)

    def column(self, key: str) -> Column | None:
        return next((column for column in self.columns if column.key == key), None)

    @property
    def size_key(self) -> str:
        return "volume" if len(self.shape_axes) == 3 else "area"

    def rows(self, order: Sequence[int] | np.ndarray) -> Iterator[list[str]]:
        """Rows as text with nine digits, for files and the clipboard."""
        columns = [self.values[column.key] for column in self.columns]
        for part in np.array_split(np.asarray(order, np.int64), max(1, len(order) // 2000)):
            cells = [values[part].tolist() for values in columns]
            for row in zip(*cells, strict=True):
                yield [str(x) if isinstance(x, int) else f"{x:.9g}" for x in row]


def plain_header(column: Column) -> str:
    """The header in letters that every program reads: "Area (um^2)"."""
    header = column.header.replace("µ", "u").replace("²", "^2").replace("³", "^3")
    return header.encode("ascii", "replace").decode()


def write_csv(table: ObjectTable, path: Path, order: np.ndarray) -> Generator[int, None, Path]:
    """Writes rows of a table to a CSV file; the file appears only when it is complete.

    Args:
        table: what `measure` found.
        path: an existing file is replaced.
        order: which rows, in this order.

    Yields:
        The number of rows written so far, now and then.

    Raises:
        OutputError: the file cannot be written.
    """
    with (
        atomic_write(path, overwrite=True) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow([plain_header(column) for column in table.columns])
        for count, row in enumerate(table.rows(order), 1):
            writer.writerow(row)
            if count % 1000 == 0:
                yield count
    return path


# What will be measured


@dataclass(frozen=True, eq=False)
class Channel:
    """Brightness on the grid of the labels.

    Attributes:
        name: of the image, and of its channel if it has several.
        window: the pixels under the labels.
        extra: position of an axis of one entry that the labels do not have; None: there is none.
    """

    name: str
    window: Window
    extra: int | None = None

    def read(self, key: tuple[slice, ...]) -> np.ndarray:
        """The pixels under a part of the labels, as float64 in the labels' axes."""
        keys = list(key)
        if self.extra is not None:
            keys.insert(self.extra, slice(None))
        part = np.asarray(self.window[tuple(keys)], np.float64)
        if part.ndim > len(keys):  # the colour
            part = part[..., 0]
        return part if self.extra is None else np.squeeze(part, self.extra)


@dataclass(frozen=True, eq=False)
class Plan:
    """Labels and how to measure them.

    Attributes:
        labels: the pixels.
        axes: one letter per axis of them.
        shape_axes: the axes that an object extends over, "YX" or "ZYX".
        linear: data to world along these, in `unit`.
        transform: of the layer; `factors` per axis of `shape_axes` turn its world into `unit`.
        unit: "micrometer", "millimeter" or None.
        channels: brightness to measure.
    """

    labels: Window
    axes: str
    shape_axes: str
    linear: np.ndarray
    transform: Transform
    factors: tuple[float, ...]
    unit: str | None
    channels: tuple[Channel, ...] = field(default=())

    @property
    def places(self) -> list[int]:
        return [self.axes.index(letter) for letter in self.shape_axes]

    @property
    def frame_places(self) -> list[int]:
        return [i for i, letter in enumerate(self.axes) if letter not in self.shape_axes]

    @property
    def unit_symbol(self) -> str:
        """A scale without a unit says nothing of microns, nor that one unit is a pixel."""
        if self.unit:
            return _SYMBOLS[self.unit]
        return "px" if np.allclose(np.linalg.norm(self.linear, axis=0), 1) else "units"


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
    transform = Transform.of(layer)
    linear = transform.matrix[np.ix_(places, places)] * np.array(factors)[:, None]
    if abs(np.linalg.det(linear)) < 1e-300:
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
    return Plan(window, axes, letters, linear, transform, tuple(factors), unit, channels)


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
            Channel(f"{image.name}, {name}", Window(data, (*bounds, (k, k + 1))))
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


# Measuring


def measure(plan: Plan) -> Generator[float, None, ObjectTable]:
    """Measures all objects.

    Yields:
        The share that is done.

    Returns:
        Rows by frame, then by label.
    """
    frames = list(itertools.product(*(range(plan.labels.shape[i]) for i in plan.frame_places)))
    weights = crofton_weights(plan.linear)
    parts: list[tuple[tuple[int, ...], FrameSums]] = []
    for number, frame in enumerate(frames):
        sums = FrameSums(len(plan.shape_axes), len(plan.channels))
        for fraction, block in _blocks(plan, frame, weights):
            sums.add(block)
            yield (number + fraction) / len(frames)
        for _ in sums.finish():
            yield (number + 1) / len(frames)
        parts.append((frame, sums))
    return _table(plan, parts)


def measure_once(plan: Plan) -> Generator[float, None, tuple[Any, ObjectTable]]:
    """As `measure_changes`, without a look at what is known."""
    return None, (yield from measure(plan))


def measure_changes(
    plan: Plan, known: Any = None
) -> Generator[float, None, tuple[Any, ObjectTable | None]]:
    """Measures all objects, unless nothing has changed.

    Args:
        plan: what to measure; its labels are read as a whole.
        known: what an earlier call returned first.

    Yields:
        The share that is done.

    Returns:
        What tells these labels from others, and the table, or None if they are the known.
    """
    pixels = np.ascontiguousarray(plan.labels[()])
    yield 0.0
    place = plan.transform.matrix.tobytes(), plan.linear.tobytes(), plan.unit
    channels = tuple((c.name, id(c.window.data), c.window.bounds) for c in plan.channels)
    found = zlib.crc32(pixels.data), plan.axes, plan.shape_axes, place, channels
    if found == known:
        return known, None
    return found, (yield from measure(plan))


def _blocks(
    plan: Plan, frame: tuple[int, ...], weights: np.ndarray
) -> Iterator[tuple[float, BlockSums]]:
    """The sums of the blocks of one frame, and the share of it that is done."""
    shape = [plan.labels.shape[place] for place in plan.places]
    lazy = not isinstance(plan.labels.data, np.ndarray)
    plane = math.prod(shape[1:])
    thick = max(1, (_SLAB_PIXELS if lazy else BLOCK_PIXELS) // plane)
    if len(shape) == 3:
        thick = max(thick, 8)  # neighbouring planes are read twice
    for start in range(0, shape[0], thick):
        stop = min(start + thick, shape[0])
        low, high = max(start - 1, 0), min(stop + 1, shape[0])
        raw = _read(plan, plan.labels, frame, (low, high))
        padded = np.zeros([stop - start + 2, *(n + 2 for n in shape[1:])], raw.dtype)
        inner = (slice(1, -1),) * (len(shape) - 1)
        padded[(slice(low - start + 1, high - start + 1), *inner)] = raw
        bright = [_read(plan, channel, frame, (start, stop)) for channel in plan.channels]
        # Of a slab, blocks of rows: one call of numpy shall not keep other threads waiting.
        axis = len(shape) - 2
        rows = shape[axis] if axis else stop - start
        step = max(1, BLOCK_PIXELS // (math.prod(padded.shape) // padded.shape[axis]))
        for first in range(0, rows, step):
            last = min(first + step, rows)
            lead = (slice(None),) * axis
            corner = [start, *([0] * (len(shape) - 1))]
            corner[axis] += first
            block = BlockSums.of(
                padded[(*lead, slice(first, last + 2))],
                corner,
                [part[(*lead, slice(first, last))] for part in bright],
                weights,
            )
            yield (start + (stop - start) * last / rows) / shape[0], block


def _read(
    plan: Plan, source: Window | Channel, frame: tuple[int, ...], planes: tuple[int, int]
) -> np.ndarray:
    """Some planes of one frame in the order of `plan.shape_axes`."""
    key = [slice(None)] * len(plan.axes)
    for place, index in zip(plan.frame_places, frame, strict=True):
        key[place] = slice(index, index + 1)
    key[plan.places[0]] = slice(*planes)
    part = source.read(tuple(key)) if isinstance(source, Channel) else source[tuple(key)]
    part = np.asarray(part).transpose(*plan.frame_places, *plan.places)
    return part.reshape(part.shape[len(frame) :])


def _table(plan: Plan, parts: list[tuple[tuple[int, ...], FrameSums]]) -> ObjectTable:
    unit, n = plan.unit_symbol, len(plan.shape_axes)
    joined = FrameSums.join([sums for _, sums in parts])
    frame_of = np.repeat(np.arange(len(parts)), [len(sums.labels) for _, sums in parts])
    indices = np.array([frame for frame, _ in parts], np.int64).reshape(len(parts), -1)[frame_of]

    columns = [Column("label", "Label", tip="The number of the object in the Labels layer")]
    values: dict[str, np.ndarray] = {"label": joined.labels}
    for position, place in enumerate(plan.frame_places):
        if plan.labels.shape[place] > 1:
            title = _FRAMES[plan.axes[place]]
            columns.append(Column(title.lower(), title, tip="Counted from 0, as the slider does"))
            values[title.lower()] = indices[:, position]

    for key, title, power, tip, numbers in joined.shapes(plan.linear):
        columns.append(Column(key, title, f"{unit}{_RANK[power]}" if power else "", tip))
        values[key] = numbers
    for k, channel in enumerate(plan.channels):
        for key, title, numbers in joined.brightness(k):
            name = f"{title} of {channel.name}"
            columns.append(Column(f"{key}_{k}", name, tip=f"{title} brightness of the object"))
            values[f"{key}_{k}"] = numbers

    centres = np.zeros((len(joined.labels), len(plan.axes)))
    centres[:, plan.frame_places] = indices
    centres[:, plan.places] = joined.centres
    world = plan.transform.to_world(centres)[:, plan.places] * plan.factors
    tip = "Centre of mass in napari's coordinates"
    for k in range(n):
        letter = plan.shape_axes[k]
        columns.append(Column(f"centre_{letter.lower()}", f"Centre {letter}", unit, tip))
        values[f"centre_{letter.lower()}"] = world[:, k]
    return ObjectTable(tuple(columns), values, centres, plan.shape_axes)
