"""Cutting an array into overlapping tiles and weighing them when they are put together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np

#: Half-precision sums must not lose the corners of a tile, where the Gaussian is 1e-7 or less.
_SMALLEST_WEIGHT = 1e-4


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

    Args:
        tile: size per axis.

    Returns:
        float32 of shape `tile`, largest value 1, never 0.
    """
    weight = np.ones((1,) * len(tile), np.float64)
    for axis, size in enumerate(tile):
        distance = (np.arange(size) - (size - 1) / 2) / (size / 8)
        shape = [1] * len(tile)
        shape[axis] = size
        weight = weight * np.exp(-0.5 * distance**2).reshape(shape)
    return np.maximum(weight / weight.max(), _SMALLEST_WEIGHT).astype(np.float32)
