"""Between a stored grid and the network's, by the rules of nnU-Net v2 (default resampling).

The edges of the first and last voxel stay where they are, so position i of n lies at
(i + 0.5) m / n - 0.5 of m. Images are interpolated by cubic splines, labels one by one and
probabilities linearly. Where one axis is much coarser than the others, it is left out of that and
takes the nearest slice: across slices that lie far apart there is nothing to interpolate.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np

Shape = tuple[int, ...]
Box = tuple[slice, ...]

#: A grid counts as anisotropic when its largest spacing is more than this times its smallest.
ANISOTROPY = 3.0
#: Voxels of the finer grid that are interpolated at a time.
SLAB = 2**22


def resampled_shape(
    shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]
) -> Shape:
    """Number of voxels that cover the same extent at another spacing, at least one per axis."""
    return tuple(
        max(1, round(n * own / wanted))
        for n, own, wanted in zip(shape, spacing, target, strict=True)
    )


def coarse_axis(spacing: Sequence[float], target: Sequence[float]) -> int | None:
    """The axis that is treated apart on the way from one grid to another.

    It is the coarse one of the first grid that is anisotropic; None in 2D, where neither is, or
    where two axes are equally coarse.
    """
    if len(spacing) < 3:
        return None
    for grid in (spacing, target):
        if max(grid) > ANISOTROPY * min(grid):
            largest = [axis for axis, value in enumerate(grid) if value == max(grid)]
            return largest[0] if len(largest) == 1 else None
    return None


def resample_image(array: np.ndarray, shape: Sequence[int], coarse: int | None) -> np.ndarray:
    """Cubic interpolation of every channel, clipped to the channel's range.

    Args:
        array: [C, *spatial] float32.
        shape: the new spatial shape.
        coarse: the axis that takes the nearest slice, see `coarse_axis`.

    Returns:
        [C, *shape] float32; `array` itself if the shape is the same.
    """
    shape = tuple(shape)
    if array.shape[1:] == shape:
        return array
    result = np.empty((len(array), *shape), np.float32)
    for source, target in zip(array, result, strict=True):
        if coarse is None:
            _cubic(source, target)
            continue
        slices, made = np.moveaxis(source, coarse, 0), np.moveaxis(target, coarse, 0)
        last = -1
        for place, index in enumerate(nearest(len(slices), len(made))):
            if index == last:
                made[place] = made[place - 1]
            else:
                _cubic(slices[index], made[place])
            last = index
    return result


def resample_labels(labels: np.ndarray, shape: Sequence[int], coarse: int | None) -> np.ndarray:
    """Every label on its own: where its linearly interpolated mask is at least one half.

    Where two labels reach one half, the larger number wins; where none does, it is 0.

    Args:
        labels: [*spatial] integer, negative numbers (not labelled) are labels too.
        shape: the new shape.
        coarse: as for `resample_image`.

    Returns:
        [*shape], same dtype.
    """
    from scipy import ndimage

    shape = tuple(shape)
    if labels.shape == shape:
        return labels
    result = np.zeros(shape, labels.dtype)
    values, places = np.unique(labels, return_inverse=True)
    boxes = ndimage.find_objects(places.reshape(labels.shape) + 1)
    for value, box in zip(values, boxes, strict=True):
        if value == 0:
            continue
        source, target = _reach(box, labels.shape, shape)
        mask = (labels[source] == value).astype(np.float32)
        part = result[target]
        part[_linear(mask, source, labels.shape, target, shape, coarse) >= 0.5] = value
    return result


def resample_maps(maps: np.ndarray, shape: Sequence[int], coarse: int | None) -> np.ndarray:
    """Linear interpolation of every map.

    Args:
        maps: [K, *spatial] float32.
        shape: the new spatial shape.
        coarse: as for `resample_image`.

    Returns:
        [K, *shape] float32; `maps` itself if the shape is the same.
    """
    shape = tuple(shape)
    if maps.shape[1:] == shape:
        return maps
    result = np.empty((len(maps), *shape), np.float32)
    whole, there = _all(maps.shape[1:]), _all(shape)
    for source, target in zip(maps, result, strict=True):
        _linear(source, whole, source.shape, there, shape, coarse, target)
    return result


def likeliest(
    maps: np.ndarray, shape: Sequence[int], coarse: int | None, values: np.ndarray
) -> np.ndarray:
    """The class whose interpolated map is largest, as `resample_maps(...).argmax(0)` gives it.

    The interpolated maps are never in memory: slabs of at most `SLAB` voxels (or one row of
    voxels along the first axis) are compared class by class. What cannot win is left out: the
    largest of K maps is at least the smallest sum of all divided by K, so only the box around
    the voxels where a class reaches that is interpolated.

    Beside the maps and the result this takes 8 bytes per voxel of a slab and 5 per voxel of one
    map.

    Args:
        maps: [K, *spatial] float32.
        shape: the new spatial shape.
        coarse: as for `resample_image`.
        values: [K], the label of every class.

    Returns:
        [*shape] of the dtype of `values`.
    """
    shape = tuple(shape)
    result = np.full(shape, values[0])
    least = float(maps.sum(0).min()) / len(maps)
    least -= 1e-4 * abs(least)  # rounding
    boxes = [_all(maps.shape[1:]), *(box_around(one >= least) for one in maps[1:])]
    ways = [None if box is None else _reach(box, maps.shape[1:], shape) for box in boxes]
    for rows in _slabs(shape):
        best = np.full((rows.stop - rows.start, *shape[1:]), -np.inf, np.float32)
        for value, one, way in zip(values, maps, ways, strict=True):
            if way is None:
                continue
            source, target = way
            first, last = max(rows.start, target[0].start), min(rows.stop, target[0].stop)
            if first >= last:
                continue
            target = (slice(first, last), *target[1:])
            found = _linear(one[source], source, one.shape, target, shape, coarse)
            here = best[(slice(first - rows.start, last - rows.start), *target[1:])]
            np.copyto(result[target], value, where=found > here)
            np.maximum(here, found, out=here)
    return result


def nearest(length: int, count: int) -> np.ndarray:
    """Index of the nearest of `length` positions for each of `count` that cover the same extent."""
    places = (np.arange(count) + 0.5) * (length / count) - 0.5
    return np.clip(np.floor(places + 0.5).astype(np.intp), 0, length - 1)


def _cubic(source: np.ndarray, target: np.ndarray) -> None:
    """SciPy's cubic `zoom`, axis after axis; where an axis shrinks most, first.

    A spline through n points is linear in them, so that along one axis it is a matrix product,
    which takes a 20th of the time of `zoom` itself and no copy of the volume in 64 bits.
    """
    low, high = source.min(), source.max()
    growth = [new / old for new, old in zip(target.shape, source.shape, strict=True)]
    made = source
    for axis in sorted(range(source.ndim), key=growth.__getitem__):
        length, count = source.shape[axis], target.shape[axis]
        if length == count:
            continue
        spline = _spline(length, count)
        if axis == made.ndim - 1:
            made = made @ spline.T
        elif axis == made.ndim - 2:
            made = spline @ made
        else:
            made = (spline @ made.reshape(length, -1)).reshape(count, *made.shape[1:])
    # Splines overshoot at edges.
    np.clip(made, low, high, out=target)


@functools.lru_cache(maxsize=6)
def _spline(length: int, count: int) -> np.ndarray:
    """[count, length] float32: what every one of `length` points adds to each of `count`."""
    from scipy import ndimage

    points = np.eye(length)
    factors = (count / length, 1)
    made = ndimage.zoom(points, factors, order=3, mode="nearest", grid_mode=True)
    # Weights fade with the distance, to numbers so small that processors are slow with them.
    made[np.abs(made) < 1e-12] = 0
    return made.astype(np.float32)


def _slabs(shape: Shape) -> Iterator[slice]:
    """Rows along the first axis that make up at most `SLAB` voxels."""
    count = max(1, SLAB // math.prod(shape[1:]))
    for start in range(0, shape[0], count):
        yield slice(start, min(start + count, shape[0]))


def _all(shape: Shape) -> Box:
    return tuple(slice(0, n) for n in shape)


def box_around(mask: np.ndarray) -> Box | None:
    """The smallest box around all that is True; None if nothing is."""
    box = []
    for axis in range(mask.ndim):
        found = np.flatnonzero(mask.any(tuple(k for k in range(mask.ndim) if k != axis)))
        if not found.size:
            return None
        box.append(slice(int(found[0]), int(found[-1]) + 1))
    return tuple(box)


def _reach(box: Box, grid: Shape, shape: Shape) -> tuple[Box, Box]:
    """The box with one voxel around it, and all positions of the other grid between these."""
    source, target = [], []
    for along, length, count in zip(box, grid, shape, strict=True):
        start, stop = max(0, along.start - 1), min(length, along.stop + 1)
        source.append(slice(start, stop))
        # Beyond the outermost centres the outermost value goes on.
        first = 0 if start == 0 else math.ceil((start + 0.5) * count / length - 0.5)
        last = count if stop == length else math.floor((stop - 0.5) * count / length - 0.5) + 1
        target.append(slice(first, max(first, last)))
    return tuple(source), tuple(target)


def _linear(
    part: np.ndarray,
    place: Box,
    grid: Shape,
    target: Box,
    shape: Shape,
    coarse: int | None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """A part of a grid, interpolated linearly to a part of another one.

    Plane by plane, which stays in a core's cache: 20 times as fast as SciPy, and unlike PyTorch's
    it takes boxes.

    Args:
        part: float32, the values at `place`.
        place: in the grid of shape `grid`; holds the neighbours of every position of the target.
        target: in the grid of shape `shape`.
        coarse: the axis that takes the nearest value.
        out: receives the result.

    Returns:
        float32 of the size of the target.
    """
    if part.ndim == 2:  # one plane of a volume
        coarse = None if coarse is None else coarse + 1
        made = None if out is None else out[None]
        one = (slice(0, 1),)
        return _linear(
            part[None], one + place, (1, *grid), one + target, (1, *shape), coarse, made
        )[0]
    if out is None:
        out = np.empty([along.stop - along.start for along in target], np.float32)
    ways = [
        _between(m, n, there, here.start, axis == coarse)
        for axis, (m, n, there, here) in enumerate(zip(grid, shape, target, place, strict=True))
    ]
    for made, low, high, share in zip(out, *ways[0], strict=True):
        plane = part[low] if share == 0 else part[low] + share * (part[high] - part[low])
        for axis in (1, 0):
            low_index, high_index, shares = ways[axis + 1]
            first = plane.take(low_index, axis)
            step = plane.take(high_index, axis)
            step -= first
            step *= shares if axis == 1 else shares[:, None]
            plane = np.add(first, step, out=made if axis == 0 else step)
    return out


def _between(
    length: int, count: int, target: slice, begin: int, coarse: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For positions of `count`: the two of `length` (less `begin`) around each, and the share of
    the second."""
    if coarse:
        low = nearest(length, count)[target] - begin
        return low, low, np.zeros(len(low), np.float32)
    places = (np.arange(target.start, target.stop) + 0.5) * (length / count) - 0.5
    # Rounded, so that a position on a voxel never asks for the next one, which may be outside.
    places = np.clip(np.round(places, 9), 0, length - 1)
    low = places.astype(np.intp)
    high = np.minimum(low + 1, length - 1)
    share = (places - low).astype(np.float32)
    high = np.where(share > 0, high, low)
    return low - begin, high - begin, share
