"""From stored intensities to what a network takes."""

from __future__ import annotations

from typing import Literal

import numpy as np

from tttunet.errors import ImageError
from tttunet.imaging.image import Image

#: `percentile` leaves room beyond 0..1 so that a few very bright or dark pixels keep their
#: order, but cannot dominate a feature map.
CLIP = (-0.5, 1.5)
#: Percentiles of larger arrays are taken from this many values, drawn with a fixed seed.
SAMPLE = 1_000_000
#: Larger magnitudes are no measurements (some programs fill with the largest number); they count
#: as infinite, so that sums and squares stay within 64 bits.
_LARGEST_VALUE = 1e30


def normalise(
    array: np.ndarray,
    scheme: Literal["percentile", "zscore"] = "percentile",
    percentiles: tuple[float, float] = (0.5, 99.8),
) -> np.ndarray:
    """Scales intensities; any input gives finite numbers.

    `percentile` maps the two percentiles of all channels together to 0 and 1 and clips to
    `CLIP`, so colours are kept. If both percentiles are equal (a few bright pixels on a flat
    background), minimum and maximum take their place. `zscore` gives every channel mean 0 and
    standard deviation 1.

    Statistics come from finite values only. NaN becomes 0 and infinity the nearest end of the
    range; a constant array (or channel, for `zscore`) becomes 0.

    Args:
        array: [C, *spatial], any numeric dtype.
        scheme: see above.
        percentiles: low and high, 0 to 100.

    Returns:
        float32, same shape, a new array.
    """
    result = np.zeros(array.shape, np.float32)
    if scheme == "percentile":
        low, high = _percentile_range(array, percentiles)
        if high > low:
            for source, target in zip(array, result, strict=True):
                _scale(source, low, high - low, CLIP, target)
        return result
    if scheme != "zscore":
        raise ValueError(f"unknown normalisation '{scheme}'")
    for source, target in zip(array, result, strict=True):
        values = _finite(source)
        if values.size and (smallest := values.min()) < (largest := values.max()):
            mean = float(values.mean(dtype=np.float64))
            # The squares of tiny differences vanish even in 64 bits.
            deviation = float(values.std(dtype=np.float64)) or float(largest) - float(smallest)
            ends = ((float(smallest) - mean) / deviation, (float(largest) - mean) / deviation)
            _scale(source, mean, deviation, ends, target)
    return result


def prepare_channels(image: Image, channels: Literal["rgb", "as_is"], count: int) -> np.ndarray:
    """The array that a network with `count` input channels takes, intensities unchanged.

    Args:
        image: any image.
        channels: "rgb": a grey image is repeated to three channels, three channels stay as they
            are; "as_is": the image has exactly `count` channels.
        count: input channels of the network; 3 for "rgb".

    Returns:
        [T, C, *spatial] if the image has a T axis, else [C, *spatial]; a view of the image,
        read-only where a grey image is repeated.

    Raises:
        ImageError: the image has another number of channels.
    """
    if channels == "rgb" and count != 3:
        raise ValueError(f"'rgb' means 3 channels, not {count}")
    position = 1 if "T" in image.axes else 0
    array = image.array if "C" in image.axes else np.expand_dims(image.array, position)
    found = array.shape[position]
    if channels == "rgb" and found == 1:
        shape = (*array.shape[:position], count, *array.shape[position + 1 :])
        return np.broadcast_to(array, shape)
    if found == count:
        return array
    names = f" ({', '.join(image.channel_names)})" if image.channel_names else ""
    kind = "colour channels" if image.rgb else f"channel{'s' if found > 1 else ''}{names}"
    wanted = "a grey or RGB image" if channels == "rgb" else f"{count} channel{'s' * (count > 1)}"
    raise ImageError(
        f"'{image.name}' has {found} {kind}; the model takes {wanted}.",
        "Choose one (--channel, in Python image.select_channel)."
        if channels == "rgb" or count == 1
        else "Choose another model.",
    )


def _percentile_range(array: np.ndarray, percentiles: tuple[float, float]) -> tuple[float, float]:
    values = array
    if array.size > 4 * SAMPLE:
        places = np.random.default_rng(0).integers(array.size, size=SAMPLE)
        values = array[np.unravel_index(places, array.shape)]
    values = _finite(values)
    if values.size:
        # float16 and float32 would lose digits while interpolating.
        low, high = np.percentile(values.astype(np.float64), percentiles)
        if high > low:
            return float(low), float(high)
    values = _finite(array)
    return (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)


def _finite(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind != "f":
        return array
    with np.errstate(over="ignore"):
        finite = np.abs(array) < _LARGEST_VALUE
    return array if finite.all() else array[finite]


def _scale(
    source: np.ndarray, offset: float, divisor: float, ends: tuple[float, float], out: np.ndarray
) -> None:
    """out = clip((source - offset) / divisor), NaN replaced by 0."""
    exact_in_float32 = source.dtype.itemsize <= 2 or source.dtype == np.float32
    with np.errstate(all="ignore"):
        work = source.astype(np.float32 if exact_in_float32 else np.float64)
        np.subtract(work, offset, out=work)
        np.divide(work, divisor, out=work)
        np.clip(work, *ends, out=work)
        np.nan_to_num(work, copy=False, nan=0.0)
    out[...] = work
