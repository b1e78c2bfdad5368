"""Where predicted and true labels agree, as an image; part by part, so that files can be read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

#: Pixels that are painted at once.
_PART = 2**21

#: What a pixel can be.
MATCHED, MISSED, FALSE, DIFFERENT = 1, 2, 3, 4


def paint_objects(
    pred: np.ndarray, truth: np.ndarray, result: Mapping[str, Any], painted: np.ndarray
) -> Iterator[float]:
    """Where objects were matched, missed or false.

    A pixel of a missed object that a false one has too is DIFFERENT: found, with another outline.

    Args:
        pred, truth: label numbers, of the same shape.
        result: `matched` (predicted number first), `missed` and `false` numbers.
        painted: uint8 zeros of that shape, filled in place.

    Yields:
        The share that is done.
    """
    matched = np.array(sorted(one[0] for one in result["matched"]), np.int64)
    missed, false = (np.array(sorted(result[key]), np.int64) for key in ("missed", "false"))
    for fraction, part in _parts(painted.shape):
        ours, true = (np.asarray(side[part]).astype(np.int64) for side in (pred, truth))
        wrong, lost = _among(ours, false), _among(true, missed)
        target = painted[part]
        target[lost] = MISSED
        target[wrong] = FALSE
        target[wrong & lost] = DIFFERENT
        target[_among(ours, matched)] = MATCHED
        yield fraction


def paint_classes(pred: np.ndarray, truth: np.ndarray, painted: np.ndarray) -> Iterator[float]:
    """Where classes agree (MATCHED), are in one side only (MISSED, FALSE) or are DIFFERENT."""
    for fraction, part in _parts(painted.shape):
        ours, true = np.asarray(pred[part]), np.asarray(truth[part])
        target = painted[part]
        target[(ours == 0) & (true != 0)] = MISSED
        target[(ours != 0) & (true == 0)] = FALSE
        both = (ours != 0) & (true != 0)
        target[both] = np.where(ours[both] == true[both], MATCHED, DIFFERENT)
        yield fraction


def _among(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which values are in a sorted array."""
    if not len(known):
        return np.zeros(values.shape, bool)
    places = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return known[places] == values


def _parts(shape: Sequence[int]) -> Iterator[tuple[float, tuple[slice, ...]]]:
    """Slices of about `_PART` pixels, and the share that is done after each."""
    plane = math.prod(shape[1:])
    if plane > _PART and len(shape) > 1:
        for i in range(shape[0]):
            for fraction, part in _parts(shape[1:]):
                yield (i + fraction) / shape[0], (slice(i, i + 1), *part)
        return
    step = max(1, _PART // max(plane, 1))
    for i in range(0, shape[0], step):
        yield min((i + step) / shape[0], 1.0), (slice(i, i + step),)
