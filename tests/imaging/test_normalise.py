"""Intensities: any array becomes finite numbers of a sane range."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tttunet.errors import ImageError
from tttunet.imaging import Image, normalise, prepare_channels

SCHEMES = ["percentile", "zscore"]


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=60)
@given(
    array=hnp.arrays(
        st.sampled_from(["u1", "u2", "i2", "i4", "u8", "f2", "f4", "f8", "?"]),
        hnp.array_shapes(min_dims=3, max_dims=4, min_side=1, max_side=5),
    )
)
def test_always_finite(scheme: str, array: np.ndarray) -> None:
    before = array.copy()
    result = normalise(array, scheme)
    assert (result.dtype, result.shape) == (np.float32, array.shape)
    assert np.isfinite(result).all()
    np.testing.assert_array_equal(array, before)
    if scheme == "percentile":
        assert result.min() >= -0.5
        assert result.max() <= 1.5


def test_percentiles_are_joint_and_become_0_and_1() -> None:
    array = np.stack([np.linspace(0, 100, 1001), np.linspace(0, 50, 1001)])[:, None]
    result = normalise(array, "percentile", (0, 100))
    assert result[0].max() == pytest.approx(1)
    assert result[1].max() == pytest.approx(0.5)


def test_zscore_is_per_channel() -> None:
    rng = np.random.default_rng(0)
    array = np.stack([rng.normal(5, 2, (20, 20)), rng.normal(-300, 50, (20, 20))])
    result = normalise(array, "zscore")
    np.testing.assert_allclose(result.mean(axis=(1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(result.std(axis=(1, 2)), 1, atol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("value", [0, 7, 0.1, np.nan, np.inf])
def test_constant_is_zero(scheme: str, value: float) -> None:
    result = normalise(np.full((3, 33, 7), value, np.float32), scheme)
    assert not result.any()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_non_finite_values(scheme: str) -> None:
    clean = np.random.default_rng(0).normal(100, 10, (1, 32, 32)).astype(np.float32)
    dirty = clean.copy()
    dirty[0, 0, :3] = np.nan, np.inf, -np.inf
    result, expected = normalise(dirty, scheme), normalise(clean, scheme)
    assert result[0, 0, 0] == 0
    assert result[0, 0, 1] == result.max()
    assert result[0, 0, 2] == result.min()
    np.testing.assert_allclose(result[0, 1:], expected[0, 1:], atol=0.05)


def test_few_bright_pixels_on_a_flat_background() -> None:
    array = np.zeros((1, 100, 100), np.uint16)
    array[0, 5, 5] = 60000
    result = normalise(array)
    assert (result.max(), result.min()) == (1, 0)


def test_large_arrays_are_sampled_the_same_way_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # The function hides the module of the same name.
    monkeypatch.setattr(import_module("tttunet.imaging.normalise"), "SAMPLE", 20_000)
    array = np.random.default_rng(0).integers(0, 1000, (1, 300, 300)).astype(np.uint16)
    result = normalise(array)
    np.testing.assert_array_equal(result, normalise(array))
    low, high = np.percentile(array, (0.5, 99.8))
    np.testing.assert_allclose(result, (array - low) / (high - low), atol=0.01)


def test_large_offsets_keep_their_digits() -> None:
    array = 1e9 + np.linspace(0, 1, 100).reshape(1, 10, 10)
    np.testing.assert_allclose(normalise(array, "percentile", (0, 100)), array - 1e9, atol=1e-6)


def test_unknown_scheme() -> None:
    with pytest.raises(ValueError, match="minmax"):
        normalise(np.zeros((1, 4, 4)), "minmax")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "axes", "channels", "count", "expected"),
    [
        ((5, 6), "YX", "rgb", 3, (3, 5, 6)),
        ((5, 6, 3), "YXS", "rgb", 3, (3, 5, 6)),
        ((3, 5, 6), "CYX", "rgb", 3, (3, 5, 6)),
        ((4, 5, 6), "ZYX", "rgb", 3, (3, 4, 5, 6)),
        ((4, 5, 6), "TYX", "rgb", 3, (4, 3, 5, 6)),
        ((4, 5, 6), "TYX", "as_is", 1, (4, 1, 5, 6)),
        ((2, 5, 6), "CYX", "as_is", 2, (2, 5, 6)),
        ((7, 2, 4, 5, 6), "TCZYX", "as_is", 2, (7, 2, 4, 5, 6)),
    ],
)
def test_channels(shape: tuple, axes: str, channels, count: int, expected: tuple) -> None:
    image = Image.from_array(np.zeros(shape, np.uint8), axes)
    assert prepare_channels(image, channels, count).shape == expected


@pytest.mark.parametrize(
    ("shape", "axes", "channels", "count", "words"),
    [
        ((2, 5, 6), "CYX", "rgb", 3, r"2 channels \(DAPI, GFP\).*grey or RGB.*--channel"),
        ((2, 5, 6), "CYX", "as_is", 1, "takes 1 channel"),
        ((5, 6), "YX", "as_is", 2, "1 channel.*takes 2 channels.*another model"),
        ((5, 6, 3), "YXS", "as_is", 1, "3 colour channels.*takes 1 channel"),
    ],
)
def test_channels_that_do_not_fit(
    shape: tuple, axes: str, channels, count: int, words: str
) -> None:
    image = Image.from_array(np.zeros(shape), axes, channel_names=("DAPI", "GFP"))
    with pytest.raises(ImageError, match=words):
        prepare_channels(image, channels, count)
