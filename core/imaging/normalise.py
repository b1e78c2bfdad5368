"""From stored intensities to what a network takes."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Scale:
    """How one channel is scaled: (value - offset) / divisor, between `ends`."""

    offset: float
    divisor: float
    ends: tuple[float, float] = (-np.inf, np.inf)


#: One for every channel; None: a constant one.
Scales = tuple[Scale | None, ...]


def normalise(
    array: np.ndarray,
    scheme: Literal["percentile", "zscore"] = "percentile",
    percentiles: tuple[float, float] = (0.5, 99.8),
    scales: Scales | None = None,
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
        scales: of a larger image that this is a part of, see `find_scales`; None: its own.

    Returns:
        float32, same shape, a new array.
    """
    result = np.zeros(array.shape, np.float32)
    scales = scales or find_scales(array, scheme, percentiles)
    for source, scale, target in zip(array, scales, result, strict=True):
        if scale is not None:
            _apply(source, scale, target)
    return result


def find_scales(
    array: np.ndarray,
    scheme: Literal["percentile", "zscore"] = "percentile",
    percentiles: tuple[float, float] = (0.5, 99.8),
) -> Scales:
    """The statistics that `normalise` scales by; arguments as there."""
    if scheme == "percentile":
        low, high = _percentile_range(array, percentiles)
        return (Scale(low, high - low, CLIP) if high > low else None,) * len(array)
    if scheme != "zscore":
        raise ValueError(f"unknown normalisation '{scheme}'")
    return tuple(_score(_finite(channel)) for channel in array)


def _score(values: np.ndarray) -> Scale | None:
    if not values.size or not (smallest := values.min()) < (largest := values.max()):
        return None
    mean = float(values.mean(dtype=np.float64))
    # The squares of tiny differences vanish even in 64 bits.
    deviation = float(values.std(dtype=np.float64)) or float(largest) - float(smallest)
    ends = ((float(smallest) - mean) / deviation, (float(largest) - mean) / deviation)
    return Scale(mean, deviation, ends)


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


def _apply(source: np.ndarray, scale: Scale, out: np.ndarray) -> None:
    """Scale a channel, NaN replaced by 0."""
    exact_in_float32 = source.dtype.itemsize <= 2 or source.dtype == np.float32
    with np.errstate(all="ignore"):
        work = source.astype(np.float32 if exact_in_float32 else np.float64)
        np.subtract(work, scale.offset, out=work)
        np.divide(work, scale.divisor, out=work)
        np.clip(work, *scale.ends, out=work)
        np.nan_to_num(work, copy=False, nan=0.0)
    out[...] = work
