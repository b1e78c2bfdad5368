"""Cutting an array into overlapping tiles and weighing them when they are put together."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from itertools import product

import numpy as np


def tile_grid(
    shape: Sequence[int], tile: Sequence[int], overlap: float = 0.5
) -> list[tuple[slice, ...]]:
    """Places tiles so that they cover everything.

    Args:
        shape: spatial shape of the array.
        tile: size of a tile per axis; larger than the array: clamped to it.
        overlap: fraction of a tile that neighbours share at least, 0 <= overlap < 1.

    Returns:
        Slices of equally sized, evenly spread tiles, last axis fastest.
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must be at least 0 and below 1, not {overlap}")
    per_axis = []
    for length, wanted in zip(shape, tile, strict=True):
        size = min(length, wanted)
        step = max(1, math.floor(size * (1 - overlap)))
        count = math.ceil((length - size) / step) + 1
        starts = [(length - size) * i // max(1, count - 1) for i in range(count)]
        per_axis.append([slice(start, start + size) for start in starts])
    return list(product(*per_axis))


def gaussian_weight(tile: Sequence[int]) -> np.ndarray:
    """Importance of a tile's pixels: a Gaussian of sigma = size / 8, as nnU-Net's.

    The last few maps are kept, so a map is computed once per tile size. Corners, four sigma away on
    every axis, weigh 4e-11 in 3D: far too little for half precision, far enough for single.

    Args:
        tile: size per axis.

    Returns:
        float32 of shape `tile`, read-only, largest value 1, never 0.
    """
    return _gaussian_weight(tuple(int(size) for size in tile))


@functools.lru_cache(maxsize=4)
def _gaussian_weight(tile: tuple[int, ...]) -> np.ndarray:
    weight = np.ones((1,) * len(tile), np.float32)
    for axis, size in enumerate(tile):
        distance = (np.arange(size, dtype=np.float32) - (size - 1) / 2) / (size / 8)
        shape = [1] * len(tile)
        shape[axis] = size
        profile = np.exp(-0.5 * distance**2)
        # In a tile of even size the middle lies between two pixels.
        weight = weight * (profile / profile.max()).reshape(shape)
    weight.flags.writeable = False
    return weight


def read_reflected(image: np.ndarray, place: Sequence[slice], out: np.ndarray) -> None:
    """Copy a place that may reach beyond the end of an image, which is continued by reflection.

    Gives what slicing `np.pad(image, ..., mode="symmetric")` would, without the padded copy.

    Args:
        image: [C, *spatial]; only the place is read, so a memory map will do.
        place: slice per spatial axis, within a multiple of the image.
        out: [C, *size of the place], is overwritten.
    """
    part = image
    beyond = []
    for axis, (along, length) in enumerate(zip(place, image.shape[1:], strict=True), start=1):
        if along.stop > length:
            beyond.append((axis, _reflected(along, length)))
        else:
            part = part[(slice(None),) * axis + (along,)]
    # Last, when the other axes are cut already: taking by index copies.
    for axis, index in beyond:
        part = part.take(index, axis)
    out[...] = part


def _reflected(along: slice, length: int) -> np.ndarray:
    """Indices 0..length-1 that the positions of a slice stand for, the last pixel repeated."""
    index = np.arange(along.start, along.stop) % (2 * length)
    return np.minimum(index, 2 * length - 1 - index)
