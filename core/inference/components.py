"""Postprocessing of classes: of what is there once in a body, only the largest piece is kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def keep_largest(labels: np.ndarray, groups: Sequence[Sequence[int]]) -> np.ndarray:
    """Remove all but the largest connected component of every group of classes.

    Args:
        labels: [*spatial] of classes.
        groups: numbers of classes that are one mask together; diagonal neighbours are connected.

    Returns:
        `labels` itself if nothing is removed, else a new array of the same dtype.
    """
    if not groups:
        return labels
    from scipy import ndimage

    everywhere = np.ones((3,) * labels.ndim, bool)
    result = labels
    for group in groups:
        pieces, count = ndimage.label(np.isin(result, group), everywhere)
        if count < 2:
            continue
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        result = np.where((pieces > 0) & (pieces != sizes.argmax()), result.dtype.type(0), result)
    return result
