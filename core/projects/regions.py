"""Regions that the user called complete: everything inside is vouched for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tttunet.projects.schema import Bounds, Damaged, take


@dataclass(frozen=True)
class Region:
    """A box, or a polygon in the plane of the last two axes.

    Attributes:
        bounds: (first, first outside) per label axis; the polygon is cut off at them.
        polygon: (y, x) corners in pixels, where pixel centres have whole numbers; empty: the box.
    """

    bounds: Bounds
    polygon: tuple[tuple[float, float], ...] = ()

    def mask(self) -> np.ndarray:
        """Boolean, of the shape of `bounds`: what lies inside."""
        return self.inside(self.bounds)

    def inside(self, bounds: Bounds) -> np.ndarray:
        """Boolean, of the shape of `bounds`: what of that box lies inside the region."""
        found = np.zeros([stop - start for start, stop in bounds], bool)
        common = tuple(
            (max(a, c), min(b, d)) for (a, b), (c, d) in zip(bounds, self.bounds, strict=True)
        )
        if all(start < stop for start, stop in common):
            axes = zip(common, bounds, strict=True)
            place = tuple(slice(a - start, b - start) for (a, b), (start, _) in axes)
            found[place] = _fill(self.polygon, common[-2:]) if self.polygon else True
        return found

    @classmethod
    def around(
        cls, polygon: list[tuple[float, float]], leading: Bounds, shape: tuple[int, ...]
    ) -> Region:
        """The region of a polygon with its tightest bounds.

        Args:
            polygon: (y, x) corners.
            leading: bounds of the axes before Y and X.
            shape: of the labels; what lies outside is cut off.
        """
        corners = np.asarray(polygon, np.float64)
        low = np.clip(np.ceil(corners.min(0)), 0, shape[-2:]).astype(int).tolist()
        high = np.clip(np.floor(corners.max(0)) + 1, 0, shape[-2:]).astype(int).tolist()
        plane = tuple((a, max(a, b)) for a, b in zip(low, high, strict=True))
        return cls((*leading, *plane), tuple((float(y), float(x)) for y, x in polygon))

    def to_json(self) -> dict[str, Any]:
        return {"bounds": [list(pair) for pair in self.bounds], "polygon": list(self.polygon)}

    @classmethod
    def from_json(cls, data: Any, shape: tuple[int, ...]) -> Region:
        """Raises `Damaged` if it is no region of labels of this shape."""
        if not isinstance(data, dict):
            raise Damaged("a region is not a JSON object")
        bounds = tuple(_pair(value, int) for value in take(data, "bounds", list))
        fits = len(bounds) == len(shape) and all(
            0 <= start < stop <= size for (start, stop), size in zip(bounds, shape, strict=True)
        )
        if not fits:
            raise Damaged("a region lies outside the image")
        corners = take(data, "polygon", list, default=[])
        return cls(bounds, tuple(_pair(value, int, float) for value in corners))


def _pair(value: Any, *kinds: type) -> tuple[Any, Any]:
    good = isinstance(value, list) and len(value) == 2
    if not good or not all(type(x) in kinds and math.isfinite(x) for x in value):
        raise Damaged("a region has corners that are no numbers")
    return value[0], value[1]


def covered(bounds: Bounds, regions: Iterable[Region]) -> np.ndarray:
    """Boolean, of the shape of `bounds`: what lies inside one of the regions."""
    found = np.zeros([stop - start for start, stop in bounds], bool)
    for region in regions:
        found |= region.inside(bounds)
    return found


def _fill(polygon: Sequence[tuple[float, float]], bounds: Bounds) -> np.ndarray:
    """Pixels whose centre lies inside a polygon, by the even-odd rule.

    Every edge toggles, in the rows that it crosses, all pixels to the right of the crossing. The
    answer for a pixel is the same in every box.

    Args:
        polygon: (y, x) corners.
        bounds: rows and columns of the result.
    """
    (top, bottom), (left, right) = bounds
    corners, height, width = np.asarray(polygon, np.float64), bottom - top, right - left
    toggles = np.zeros((height, width + 1), np.int32)
    for (y0, x0), (y1, x1) in zip(corners, np.roll(corners, -1, 0), strict=True):
        first, last = sorted((math.ceil(y0), math.ceil(y1)))
        rows = np.arange(max(first, top), min(last, bottom))
        if y0 == y1 or not len(rows):
            continue
        crossing = x0 + (rows - y0) * (x1 - x0) / (y1 - y0)
        columns = np.clip(np.ceil(crossing) - left, 0, width).astype(int)
        toggles[rows - top, columns] += 1  # each row occurs once per edge
    return np.cumsum(toggles[:, :width], axis=1) % 2 == 1
