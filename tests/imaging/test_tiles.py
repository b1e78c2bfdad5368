"""Tiles cover everything and are weighted sanely."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tttunet.imaging import gaussian_weight, tile_grid
from tttunet.imaging.tiles import read_reflected

sizes = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=3)


@settings(max_examples=40)
@given(sizes, st.floats(0, 0.9))
def test_tiles_cover_everything_with_the_overlap(pairs: list, overlap: float) -> None:
    shape, tile = zip(*pairs, strict=True)
    for axis, (length, wanted) in enumerate(pairs):
        spans = sorted({(t[axis].start, t[axis].stop) for t in tile_grid(shape, tile, overlap)})
        size = min(length, wanted)
        assert {stop - start for start, stop in spans} == {size}
        assert (spans[0][0], spans[-1][1]) == (0, length)
        step = max(1, math.floor(size * (1 - overlap)))
        assert all(b[0] - a[0] <= step for a, b in pairwise(spans))


def test_tiles_are_distinct_and_few() -> None:
    assert len(tile_grid((512, 512), (256, 256), 0.5)) == 9
    assert tile_grid((100,), (256,), 0.5) == [(slice(0, 100),)]
    assert tile_grid((512, 512), (512, 512)) == [(slice(0, 512), slice(0, 512))]
    grid = tile_grid((33, 7, 90), (10, 10, 32), 0.25)
    assert len({str(tile) for tile in grid}) == len(grid)


@pytest.mark.parametrize("overlap", [-0.1, 1, 1.5])
def test_bad_overlap(overlap: float) -> None:
    with pytest.raises(ValueError, match="overlap"):
        tile_grid((10,), (5,), overlap)


@pytest.mark.parametrize("tile", [(1,), (2, 3), (64, 64), (32, 64, 64), (1, 1, 1)])
def test_gaussian_weight(tile: tuple[int, ...]) -> None:
    weight = gaussian_weight(tile)
    assert (weight.dtype, weight.shape, weight.max()) == (np.float32, tile, 1)
    # No floor: where several tiles' ends meet, the nearest middle decides.
    corner = [np.exp(-0.5 * (4 * (n - 1) / n) ** 2) for n in tile]
    middle = [np.exp(-0.5 * (4 / n) ** 2) if n % 2 == 0 else 1 for n in tile]
    assert weight.min() == pytest.approx(math.prod(corner) / math.prod(middle))
    assert weight.min() > 0
    np.testing.assert_allclose(weight, np.flip(weight), rtol=1e-5)


def test_gaussian_weight_has_nnunets_width() -> None:
    weight = gaussian_weight((65,))
    sigma = 65 / 8
    assert weight[32 + 8] == pytest.approx(np.exp(-0.5 * (8 / sigma) ** 2))


def test_weighted_tiles_of_a_constant_are_that_constant() -> None:
    shape, tile = (37, 50), (16, 20)
    total, weights = np.zeros(shape), np.zeros(shape)
    for place in tile_grid(shape, tile, 0.5):
        total[place] += 3 * gaussian_weight(tile)
        weights[place] += gaussian_weight(tile)
    np.testing.assert_allclose(total / weights, 3)


def test_gaussian_weight_is_computed_once_and_cannot_be_spoilt() -> None:
    weight = gaussian_weight([12, 14])
    assert gaussian_weight((12, 14)) is weight
    with pytest.raises(ValueError, match="read-only"):
        weight[0] = 1


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_reading_beyond_the_image_is_symmetric_padding(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    image = rng.random((2, *shape), dtype=np.float32)
    padded = np.pad(image, [(0, 0), *((0, 30) for _ in shape)], mode="symmetric")
    place = []
    for length in shape:
        start = data.draw(st.integers(0, length - 1))
        place.append(slice(start, start + data.draw(st.integers(1, 29))))
    expected = padded[(slice(None), *place)]
    out = np.empty_like(expected)
    read_reflected(image, place, out)
    np.testing.assert_array_equal(out, expected)
