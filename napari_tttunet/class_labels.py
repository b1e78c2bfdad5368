"""Labels that are classes: their names and colours, and how much of each there is. No widgets."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Generator, Mapping
from typing import Any

import numpy as np

from napari_tttunet.axes import data_shape
from napari_tttunet.geometry import Bounds, Transform
from napari_tttunet.placement import SPATIAL, common_unit

#: Numbers that no class has, which a person may paint with.
_OTHER_COLOUR = (0.75, 0.75, 0.75, 1.0)
#: Pixels that are counted at once: Python is busy with them for a millisecond.
BLOCK_PIXELS = 2**18
#: Below this, counting by number takes less time than sorting.
_SMALL_NUMBER = 2**16
_NUMBERED = re.compile(r"(\d+)\s*[:=]\s*(.+)")
_SYMBOLS = {"micrometer": "µm", "millimeter": "mm"}
_RANK = {2: "²", 3: "³"}


def described_classes(model: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The classes of an entry of `ListModels`: value, name, and color or None.

    Empty for a model of objects, whose labels are numbers of objects.
    """
    if model.get("task") == "instance":
        return []
    kept = ("value", "name", "color")
    return [{key: label.get(key) for key in kept} for label in model.get("labels") or ()]


def classes_of(layer: Any) -> dict[int, str]:
    """Names of the classes of a Labels layer that a model made, by number; else empty."""
    own = layer.metadata.get("tttunet") if isinstance(layer.metadata, dict) else None
    classes = own.get("classes") if isinstance(own, dict) else None
    return {int(one["value"]): str(one["name"]) for one in classes or ()}


def classes_text(classes: Mapping[int, str]) -> str:
    """Classes as a person types them: `cell, nucleus`, with numbers where they are not 1, 2, ..."""
    counted = list(classes) == list(range(1, len(classes) + 1))
    entries = [name if counted else f"{value}: {name}" for value, name in classes.items()]
    written = io.StringIO()
    csv.writer(written, lineterminator="").writerow(entries)
    plain = not any("," in entry for entry in entries)
    return written.getvalue().replace(",", ", ") if plain else written.getvalue()


def parse_classes(text: str) -> dict[int, str]:
    """The opposite of `classes_text`; without a number, a class gets the one after the last.

    Raises:
        ValueError: two classes have one number; its text is for the user.
    """
    (entries,) = csv.reader([text], skipinitialspace=True) if text.strip() else ([],)
    classes: dict[int, str] = {}
    value = 0
    for entry in filter(None, map(str.strip, entries)):
        numbered = _NUMBERED.fullmatch(entry)
        value, name = (int(numbered[1]), numbered[2]) if numbered else (value + 1, entry)
        if value in classes or value == 0:
            taken = "the background" if value == 0 else f"'{classes[value]}'"
            raise ValueError(f"Number {value} is {taken} already.")
        classes[value] = name
    return classes


def look_of_classes(record: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of a Labels layer: names for the status bar, colours where there are some.

    Args:
        record: with `classes` as `described_classes` gives them.
    """
    classes = record.get("classes") or ()
    if not classes:
        return {}
    named = [(0, "background"), *((one["value"], one["name"]) for one in classes)]
    indices, names = zip(*named, strict=True)
    look: dict[str, Any] = {"features": {"index": list(indices), "name": list(names)}}
    colours = {one["value"]: one["color"] for one in classes if one.get("color")}
    if colours:
        from napari.utils.colormaps import DirectLabelColormap

        shown: dict[int | None, Any] = {None: np.array(_OTHER_COLOUR), 0: np.zeros(4)}
        shown |= {value: np.array([*rgb, 255]) / 255 for value, rgb in colours.items()}
        look["colormap"] = DirectLabelColormap(color_dict=shown)
    return look


def count_labels(data: Any, bounds: Bounds) -> Generator[None, None, dict[int, int]]:
    """Counts the pixels of every label, background left out; not for the window's thread.

    Args:
        data: integers, anything that slices; read block by block.
        bounds: the part that counts, per axis.

    Yields:
        After every block.

    Returns:
        Number of pixels by label, of the labels that occur.
    """
    *lead, rows, _ = ((stop - start) for start, stop in bounds)
    columns = bounds[-1][1] - bounds[-1][0]
    step = max(1, BLOCK_PIXELS // max(columns, 1))
    found: dict[int, int] = {}
    for index in np.ndindex(*lead):
        plane = tuple(start + i for (start, _), i in zip(bounds, index, strict=False))
        for first in range(0, rows, step):
            start = bounds[-2][0]
            along = slice(start + first, min(start + first + step, bounds[-2][1]))
            block = np.asarray(data[(*plane, along, slice(*bounds[-1]))])
            for value, count in _counted(block):
                found[value] = found.get(value, 0) + count
            yield
    return {value: found[value] for value in sorted(found) if value != 0}


def _counted(block: np.ndarray) -> list[tuple[int, int]]:
    if block.size == 0 or (block.min() == 0 and block.max() == 0):
        return []
    if block.min() >= 0 and block.max() < _SMALL_NUMBER:
        counts = np.bincount(block.ravel())
        values = np.flatnonzero(counts)
        return list(zip(values.tolist(), counts[values].tolist(), strict=True))
    values, counts = np.unique(block, return_counts=True)
    return list(zip(values.tolist(), counts.tolist(), strict=True))


def pixel_size(layer: Any, axes: str) -> tuple[float, str]:
    """What one pixel of a layer is in space, whatever its rotation and shear.

    Args:
        layer: a Labels layer.
        axes: one letter per data axis.

    Returns:
        Its volume in ml (where the world is in millimeters) or in another unit, or its area where
        there is a single slice; and the unit's symbol.
    """
    shape = data_shape(layer)
    deep = "Z" in axes and shape[axes.index("Z")] > 1
    letters = SPATIAL if deep else SPATIAL[1:]
    places = [axes.index(letter) for letter in letters]
    unit, factors = common_unit([layer.units[place] for place in places])
    linear = Transform.of(layer).matrix[np.ix_(places, places)] * np.array(factors)[:, None]
    size = abs(float(np.linalg.det(linear)))
    if unit == "millimeter" and deep:
        return size / 1000, "ml"
    if unit:
        return size, _SYMBOLS[unit] + _RANK[len(places)]
    if np.allclose(np.linalg.norm(linear, axis=0), 1):
        return 1.0, "voxels" if deep else "pixels"
    return size, "units" + _RANK[len(places)]


def size_text(size: float, unit: str) -> str:
    """`1234 ml`, `12.0 ml` or `0.0123 ml`."""
    if unit in ("voxels", "pixels"):
        return f"{round(size)} {unit}"
    text = f"{size:.0f}" if size >= 100 else f"{size:#.3g}"
    return f"{text} {unit}"
