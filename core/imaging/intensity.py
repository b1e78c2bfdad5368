"""Intensities as nnU-Net v2 normalises them: one scheme per channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

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
    array: np.ndarray, intensities: Sequence[Intensity], inside: np.ndarray | None = None
) -> np.ndarray:
    """Normalise every channel by its own scheme.

    NaN counts as 0, and larger numbers than `LARGEST_VALUE`, infinity among them, as that.

    Args:
        array: [C, *spatial], any numeric dtype.
        intensities: one per channel.
        inside: [*spatial] bool, the region for `zscore_nonzero`; None: everything.

    Returns:
        float32, same shape, a new array.

    Raises:
        ValueError: another number of channels than of schemes.
    """
    result = np.empty(array.shape, np.float32)
    for source, target, rule in zip(array, result, intensities, strict=True):
        with np.errstate(over="ignore"):
            np.copyto(target, source, casting="unsafe")
        np.nan_to_num(target, copy=False)
        np.clip(target, -LARGEST_VALUE, LARGEST_VALUE, out=target)
        _normalise(target, rule, inside)
    return result


def _normalise(values: np.ndarray, rule: Intensity, inside: np.ndarray | None) -> None:
    """In place; the sums are in 64 bits, which float32 volumes need."""
    if rule.scheme == "ct":
        assert rule.mean is not None
        assert rule.deviation is not None
        np.clip(values, rule.low, rule.high, out=values)
        values -= np.float32(rule.mean)
        values /= np.float32(max(rule.deviation, SMALLEST_DEVIATION))
    elif rule.scheme == "rescale":
        low, high = float(values.min()), float(values.max())
        values -= np.float32(low)
        values /= np.float32(max(high - low, SMALLEST_DEVIATION))
    elif rule.scheme == "rgb":
        values /= np.float32(255)
    elif rule.scheme == "zscore_nonzero" and inside is not None and not inside.all():
        part = values[inside]
        if part.size:
            values[inside] = _scored(part)
    elif rule.scheme in ("zscore", "zscore_nonzero"):
        values[...] = _scored(values)


def _scored(values: np.ndarray) -> np.ndarray:
    mean = float(values.mean(dtype=np.float64))
    deviation = float(values.std(dtype=np.float64))
    return (values - np.float32(mean)) / np.float32(max(deviation, SMALLEST_DEVIATION))
