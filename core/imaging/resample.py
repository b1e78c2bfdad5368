"""Between a stored grid and the network's, by the rules of nnU-Net v2 (default resampling).

The edges of the first and last voxel stay where they are, so position i of n lies at
(i + 0.5) m / n - 0.5 of m. Images are interpolated by cubic splines, labels one by one and
probabilities linearly. Where one axis is much coarser than the others, it is left out of that and
takes the nearest slice: across slices that lie far apart there is nothing to interpolate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

Shape = tuple[int, ...]

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
    if coarse is not None:
        labels = labels.take(nearest(labels.shape[coarse], shape[coarse]), coarse)
    result = np.zeros(shape, labels.dtype)
    values, places = np.unique(labels, return_inverse=True)
    for value, box in zip(
        values, ndimage.find_objects(places.reshape(labels.shape) + 1), strict=True
    ):
        if value == 0:
            continue
        source = tuple(
            slice(max(0, along.start - 1), along.stop + 1) for along in box
        )  # the mask falls to zero within one voxel
        mask = (labels[source] == value).astype(np.float32)
        target = tuple(
            _reached(along, length, count)
            for along, length, count in zip(source, labels.shape, shape, strict=True)
        )
        if any(along.start >= along.stop for along in target):
            continue
        part = result[target]
        part[_linear(mask, source, labels.shape, target, shape) >= 0.5] = value
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
    for rows in _slabs(shape):
        for source, target in zip(maps, result, strict=True):
            target[rows] = _slab(source, shape, coarse, rows)
    return result


def likeliest(
    maps: np.ndarray, shape: Sequence[int], coarse: int | None, values: np.ndarray
) -> np.ndarray:
    """The class whose interpolated map is largest, as `resample_maps(...).argmax(0)` gives it.

    The interpolated maps are never in memory: slabs of at most `SLAB` voxels (or one row of
    voxels along the first axis) are compared class by class. Beside the maps and the result this
    takes about 16 bytes per voxel of a slab.

    Args:
        maps: [K, *spatial] float32.
        shape: the new spatial shape.
        coarse: as for `resample_image`.
        values: [K], the label of every class.

    Returns:
        [*shape] of the dtype of `values`.
    """
    shape = tuple(shape)
    result = np.empty(shape, values.dtype)
    for rows in _slabs(shape):
        part = result[rows]
        part[...] = values[0]
        best = _slab(maps[0], shape, coarse, rows)
        for value, source in zip(values[1:], maps[1:], strict=True):
            found = _slab(source, shape, coarse, rows)
            part[found > best] = value
            np.maximum(best, found, out=best)
    return result


def nearest(length: int, count: int) -> np.ndarray:
    """Index of the nearest of `length` positions for each of `count` that cover the same extent."""
    places = (np.arange(count) + 0.5) * (length / count) - 0.5
    return np.clip(np.floor(places + 0.5).astype(np.intp), 0, length - 1)


def _cubic(source: np.ndarray, target: np.ndarray) -> None:
    from scipy import ndimage

    factors = [new / old for new, old in zip(target.shape, source.shape, strict=True)]
    if all(factor == 1 for factor in factors):
        target[...] = source
        return
    made = ndimage.zoom(source, factors, np.float32, order=3, mode="nearest", grid_mode=True)
    # Splines overshoot at edges.
    np.clip(made, source.min(), source.max(), out=target)


def _slabs(shape: Shape) -> Iterator[slice]:
    """Rows along the first axis that make up at most `SLAB` voxels."""
    count = max(1, SLAB // math.prod(shape[1:]))
    for start in range(0, shape[0], count):
        yield slice(start, min(start + count, shape[0]))


def _slab(source: np.ndarray, shape: Shape, coarse: int | None, rows: slice) -> np.ndarray:
    """[rows, *shape[1:]] float32 of one interpolated map."""
    grid, target = source.shape, (rows, *(slice(0, n) for n in shape[1:]))
    lengths = list(grid)
    if coarse is not None:
        index = nearest(grid[coarse], shape[coarse])
        source = source.take(index[rows] if coarse == 0 else index, coarse)
        lengths[coarse] = shape[coarse]
    # Only the rows that this slab lies between.
    if coarse == 0:
        here = rows
    else:
        scale = lengths[0] / shape[0]
        first = math.floor((rows.start + 0.5) * scale - 0.5)
        last = math.floor((rows.stop - 0.5) * scale - 0.5) + 2
        here = slice(max(0, first), min(lengths[0], last))
        source = source[here]
    place = (here, *(slice(0, n) for n in source.shape[1:]))
    return _linear(source, place, tuple(lengths), target, shape)


def _linear(
    part: np.ndarray, place: tuple[slice, ...], grid: Shape, target: tuple[slice, ...], shape: Shape
) -> np.ndarray:
    """A part of a grid, interpolated to a part of another one.

    Args:
        part: the values at `place`.
        place: in the grid of shape `grid`; holds all neighbours of the target, or zeros around it.
        target: in the grid of shape `shape`.
    """
    from scipy import ndimage

    scale = np.array([m / n for m, n in zip(grid, shape, strict=True)])
    begin = np.array([along.start for along in target])
    offset = (begin + 0.5) * scale - 0.5 - [along.start for along in place]
    size = tuple(along.stop - along.start for along in target)
    return ndimage.affine_transform(
        part, scale, offset, size, np.float32, order=1, mode="nearest", prefilter=False
    )


def _reached(along: slice, length: int, count: int) -> slice:
    """The positions of `count` that lie within a slice of `length`."""
    first = math.ceil((along.start + 0.5) * count / length - 0.5)
    last = math.floor((min(along.stop, length) - 0.5) * count / length - 0.5)
    # Beyond the outermost centres the outermost value goes on.
    return slice(
        0 if along.start == 0 else max(0, first),
        count if along.stop >= length else min(count, last + 1),
    )
