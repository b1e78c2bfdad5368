"""Resampling against scikit-image, as nnU-Net v2 calls it, and against itself in slabs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.transform import resize

from tttunet.imaging import resample
from tttunet.imaging.intensity import Intensity, normalise_channels
from tttunet.imaging.resample import (
    coarse_axis,
    likeliest,
    nearest,
    resample_image,
    resample_labels,
    resample_maps,
    resampled_shape,
)

SHAPES = [
    ((9, 20, 31), (14, 11, 40), None),
    ((9, 20, 31), (4, 33, 31), 0),
    ((12, 7, 16), (20, 9, 8), 1),
    ((12, 7, 16), (6, 7, 25), 2),
    ((20, 31), (33, 12), None),
    ((1, 5, 6), (3, 10, 3), 0),
]
each_shape = pytest.mark.parametrize(("old", "new", "coarse"), SHAPES)


def smooth(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    from scipy import ndimage

    values = np.random.default_rng(seed).normal(size=shape)
    return ndimage.gaussian_filter(values, 1.5).astype(np.float32)


def by_slices(array: np.ndarray, shape: tuple[int, ...], coarse: int | None, order: int):
    """nnU-Net's `resample_data_or_seg`: in-plane by `resize`, then the nearest slice."""
    options = {"order": order, "mode": "edge", "anti_aliasing": False, "clip": True}
    if coarse is None:
        return resize(array.astype(float), shape, **options)
    flat = tuple(n for axis, n in enumerate(shape) if axis != coarse)
    slices = [resize(one.astype(float), flat, **options) for one in np.moveaxis(array, coarse, 0)]
    index = nearest(array.shape[coarse], shape[coarse])
    return np.moveaxis(np.stack(slices)[index], 0, coarse)


@each_shape
def test_images_are_those_of_nnunet(old, new, coarse):
    array = smooth(old)
    found = resample_image(array[None], new, coarse)[0]
    np.testing.assert_allclose(found, by_slices(array, new, coarse, 3), atol=2e-5)


@each_shape
def test_maps_are_those_of_nnunet(old, new, coarse, monkeypatch):
    array = smooth(old)
    found = resample_maps(array[None], new, coarse)[0]
    np.testing.assert_allclose(found, by_slices(array, new, coarse, 1), atol=1e-5)
    monkeypatch.setattr(resample, "SLAB", 50)
    np.testing.assert_allclose(resample_maps(array[None], new, coarse)[0], found, atol=1e-6)


@each_shape
def test_labels_are_those_of_nnunet(old, new, coarse):
    labels = (4 * (smooth(old) > 0) + 2 * (smooth(old, 1) > 0.1) - 1).astype(np.int32)
    expected = np.zeros(new, np.int32)
    for value in np.unique(labels):
        expected[by_slices(labels == value, new, coarse, 1) >= 0.5 - 1e-9] = value
    found = resample_labels(labels, new, coarse)
    assert found.dtype == labels.dtype
    # Where a mask is exactly one half, rounding decides.
    assert (found != expected).mean() < 0.004


@each_shape
def test_the_likeliest_class_needs_no_maps(old, new, coarse, monkeypatch):
    maps = np.stack([smooth(old, seed) for seed in range(4)])
    values = np.array([0, 3, 9, 200], np.uint8)
    expected = values[resample_maps(maps, new, coarse).argmax(0)]
    monkeypatch.setattr(resample, "SLAB", 100)
    found = likeliest(maps, new, coarse, values)
    assert found.dtype == np.uint8
    # In slabs the positions are summed from other numbers, so a tie may fall the other way.
    assert (found != expected).mean() < 1e-3


lengths = st.tuples(*[st.integers(1, 14)] * 3)


@settings(max_examples=80, deadline=None)
@given(old=lengths, new=lengths, coarse=st.sampled_from((None, 0, 1, 2)), seed=st.integers(0, 99))
def test_any_sizes_agree(old, new, coarse, seed):
    rng = np.random.default_rng(seed)
    maps = rng.random((3, *old)).astype(np.float32) ** 8  # peaks: boxes are much smaller
    maps /= maps.sum(0)
    whole = resample_maps(maps, new, coarse)
    np.testing.assert_allclose(whole[0], by_slices(maps[0], new, coarse, 1), atol=1e-5)
    found = likeliest(maps, new, coarse, np.arange(3))
    first, second = np.sort(whole, 0)[:0:-1]
    sure = first - second > 1e-5
    np.testing.assert_array_equal(found[sure], whole.argmax(0)[sure])
    labels = maps.argmax(0)
    again = resample_labels(labels, new, coarse)
    for value in (1, 2):
        mask = resample_maps((labels == value)[None].astype(np.float32), new, coarse)[0]
        assert (again[(mask > 0.5 + 1e-6)] == value).all()


def test_nothing_is_copied_where_the_shape_stays():
    array = smooth((1, 6, 7))
    assert resample_image(array, (6, 7), None) is array
    assert resample_maps(array, (6, 7), None) is array
    labels = np.ones((6, 7), int)
    assert resample_labels(labels, (6, 7), None) is labels


def test_small_labels_at_the_border_are_kept():
    labels = np.zeros((8, 8), np.uint16)
    labels[0, 0], labels[7, 7], labels[3:5, 3:5] = 1, 2, 3
    found = resample_labels(labels, (16, 16), None)
    assert (np.unique(found)).tolist() == [0, 1, 2, 3]
    assert found[0, 0] == 1
    assert found[15, 15] == 2
    assert (found == 3).sum() == 16


@pytest.mark.parametrize(
    ("spacing", "target", "axis"),
    [
        ((5, 1, 1), (5, 0.8, 0.8), 0),
        ((1, 1, 5), (1, 1, 1), 2),
        ((1, 1, 1), (1, 4, 1), 1),
        ((3, 1, 1), (1, 1, 1), None),  # exactly three times is not more
        ((0.24, 1.25, 1.25), (1, 1, 1), None),
        ((9, 1), (1, 1), None),
    ],
)
def test_the_coarse_axis(spacing, target, axis):
    assert coarse_axis(spacing, target) == axis


def test_shapes_cover_the_same_extent():
    assert resampled_shape((10, 100, 3), (5, 0.7, 0.1), (2.5, 0.8, 2)) == (20, 88, 1)


def test_ct_and_other_rules_by_hand():
    array = np.array([[[-2000.0, 0, 100, 5000]]] * 6, np.float32)
    rules = [
        Intensity(scheme="ct", low=-1000, high=1000, mean=50, deviation=200),
        Intensity(scheme="zscore"),
        Intensity(scheme="zscore_nonzero"),
        Intensity(scheme="rescale"),
        Intensity(scheme="rgb"),
        Intensity(scheme="none"),
    ]
    inside = np.array([[True, False, True, True]])
    ct, score, inner, scaled, rgb, none = normalise_channels(array, rules, inside)[:, 0]
    np.testing.assert_allclose(ct, [-5.25, -0.25, 0.25, 4.75])
    values = array[0, 0].astype(np.float64)
    np.testing.assert_allclose(score, (values - values.mean()) / values.std(), rtol=1e-5)
    part = values[[0, 2, 3]]
    np.testing.assert_allclose(inner[[0, 2, 3]], (part - part.mean()) / part.std(), rtol=1e-5)
    assert inner[1] == 0
    np.testing.assert_allclose(scaled, (values + 2000) / 7000, rtol=1e-5)
    np.testing.assert_allclose(rgb, values / 255, rtol=1e-6)
    np.testing.assert_array_equal(none, values)


def test_any_intensities_give_numbers():
    wild = np.array([[np.nan, np.inf, -np.inf, 1.0]], np.float64)
    flat = np.full((1, 4), 7, np.uint8)
    for scheme in ("zscore", "zscore_nonzero", "rescale", "rgb", "none"):
        rule = [Intensity(scheme=scheme)]
        assert np.isfinite(normalise_channels(wild, rule)).all()
        assert np.isfinite(normalise_channels(flat, rule)).all()
    assert not normalise_channels(flat, [Intensity(scheme="zscore")]).any()
