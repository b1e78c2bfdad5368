"""Intensities as nnU-Net v2 normalises them: one scheme per channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from tttunet.imaging.normalise import Scale, Scales
from tttunet.layers.config import StrictModel

#: Below this a channel counts as constant (nnU-Net's number).
SMALLEST_DEVIATION = 1e-8
#: Larger magnitudes are no measurements; sums and differences of these stay finite.
LARGEST_VALUE = 1e30

Scheme = Literal["ct", "zscore", "zscore_nonzero", "rescale", "rgb", "none"]


class Intensity(StrictModel):
    """How one channel is normalised (nnU-Net v2, `default_normalization_schemes`).

    Attributes:
        scheme: `ct` clips to `low`..`high`, then subtracts `mean` and divides by `deviation`, all
            four of the data set's foreground; `zscore` is mean 0, standard deviation 1 of the
            image; `zscore_nonzero` the same of the part that is not zero in every channel (holes
            are filled), the rest stays 0; `rescale` maps minimum..maximum of the image to 0..1;
            `rgb` divides by 255; `none` leaves values as they are.
        low, high: percentiles 0.5 and 99.5 of the foreground, for `ct`.
        mean, deviation: of the foreground, for `ct`.
    """

    scheme: Scheme
    low: float | None = None
    high: float | None = None
    mean: float | None = None
    deviation: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _complete(self) -> Intensity:
        numbers = (self.low, self.high, self.mean, self.deviation)
        if self.scheme == "ct" and None in numbers:
            raise ValueError("the scheme 'ct' needs low, high, mean and deviation")
        return self


def normalise_channels(
    array: np.ndarray,
    intensities: Sequence[Intensity],
    inside: np.ndarray | None = None,
    scales: Scales | None = None,
) -> np.ndarray:
    """Normalise every channel by its own scheme.

    NaN counts as 0, and larger numbers than `LARGEST_VALUE`, infinity among them, as that.

    Args:
        array: [C, *spatial], any numeric dtype.
        intensities: one per channel.
        inside: [*spatial] bool, the region for `zscore_nonzero`; None: everything.
        scales: of a larger image that this is a part of, see `channel_scales`; None: its own.

    Returns:
        float32, same shape, a new array.

    Raises:
        ValueError: another number of channels than of schemes.
    """
    result = np.empty(array.shape, np.float32)
    known = scales or (None,) * len(array)
    for source, target, rule, scale in zip(array, result, intensities, known, strict=True):
        _cleaned(source, target)
        scale = scale or _scale_of(target, rule, inside)
        if scale is not None:
            _apply(target, rule, scale, inside)
    return result


def channel_scales(
    array: np.ndarray, intensities: Sequence[Intensity], inside: np.ndarray | None = None
) -> Scales:
    """The statistics that `normalise_channels` scales by; arguments as there."""
    work = np.empty(array.shape[1:], np.float32)
    found: list[Scale | None] = []
    for source, rule in zip(array, intensities, strict=True):
        _cleaned(source, work)
        found.append(_scale_of(work, rule, inside))
    return tuple(found)


def _cleaned(source: np.ndarray, target: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        np.copyto(target, source, casting="unsafe")
    np.nan_to_num(target, copy=False)
    np.clip(target, -LARGEST_VALUE, LARGEST_VALUE, out=target)


def _scale_of(values: np.ndarray, rule: Intensity, inside: np.ndarray | None) -> Scale | None:
    """None: values stay as they are. The sums are in 64 bits, which float32 volumes need."""
    if rule.scheme == "ct":
        assert rule.low is not None
        assert rule.high is not None
        assert rule.mean is not None
        assert rule.deviation is not None
        divisor = max(rule.deviation, SMALLEST_DEVIATION)
        return Scale(rule.mean, divisor, (rule.low, rule.high))
    if rule.scheme == "rescale":
        low, high = float(values.min()), float(values.max())
        return Scale(low, max(high - low, SMALLEST_DEVIATION))
    if rule.scheme == "rgb":
        return Scale(0.0, 255.0)
    if rule.scheme in ("zscore", "zscore_nonzero"):
        part = _part(values, rule, inside)
        if not part.size:
            return None
        deviation = float(part.std(dtype=np.float64))
        return Scale(float(part.mean(dtype=np.float64)), max(deviation, SMALLEST_DEVIATION))
    return None


def _apply(values: np.ndarray, rule: Intensity, scale: Scale, inside: np.ndarray | None) -> None:
    """In place; `ct` clips before it scales."""
    part = _part(values, rule, inside)
    if rule.scheme == "ct":
        np.clip(part, *scale.ends, out=part)
    part -= np.float32(scale.offset)
    part /= np.float32(scale.divisor)
    if part is not values:
        values[inside] = part


def _part(values: np.ndarray, rule: Intensity, inside: np.ndarray | None) -> np.ndarray:
    """What counts: the array itself, or a copy of what lies inside."""
    masked = rule.scheme == "zscore_nonzero" and inside is not None and not inside.all()
    return values[inside] if masked else values
