"""Labels that say something about some pixels only.

`IGNORE` (-1) is a pixel that nobody looked at; `FOREGROUND` (-2) one of which only is known that it
belongs to some object. What a network should have said at a labelled pixel may depend on pixels
that are not: `neighbours` tells where.
"""

from __future__ import annotations

import itertools

import numpy as np

from tttunet.training.prepare import FOREGROUND

#: In distance maps: the true value depends on pixels that are not labelled.
UNKNOWN_DISTANCE = -1.0

#: Components of a mask that are this convex, and no larger than so many times the median of such
#: ones, are taken for single objects.
SOLIDITY = 0.93
LARGEST = 1.8
SMALLEST = 20


def neighbours(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What lies beside every pixel, up to the diagonal of a square (a distance of 1.5).

    Args:
        labels: [*spatial] integers, negative where not labelled.

    Returns:
        Two bool arrays [*spatial]: whether a labelled pixel of another value is beside the pixel,
        and whether one that is not labelled is.
    """
    known, unknown = np.zeros(labels.shape, bool), np.zeros(labels.shape, bool)
    for offset in itertools.product((-1, 0, 1), repeat=labels.ndim):
        if not 0 < sum(step * step for step in offset) <= 2:
            continue
        here = tuple(slice(max(-step, 0), -step if step > 0 else None) for step in offset)
        there = tuple(slice(max(step, 0), step if step < 0 else None) for step in offset)
        mine, other = labels[here], labels[there]
        known[here] |= (other >= 0) & (other != mine)
        unknown[here] |= other < 0
    return known, unknown


def objects_from_mask(mask: np.ndarray) -> np.ndarray:
    """Instance labels from a mask that does not tell touching objects apart.

    Components that look like one object become one; clumps become `FOREGROUND`, so that an
    instance model learns from them where objects are, but not that they are one.

    Args:
        mask: [*spatial] integers: above 0 is foreground; `IGNORE` stays.

    Returns:
        [*spatial] int32.
    """
    from skimage.measure import label, regionprops

    components = label(mask > 0, connectivity=1)
    found = [region for region in regionprops(components) if region.area >= SMALLEST]
    convex = [region for region in found if region.solidity >= SOLIDITY]
    usual = np.median([region.area for region in convex]) if convex else 0
    single = [region.label for region in convex if region.area <= LARGEST * usual]
    lookup = np.full(components.max() + 1, FOREGROUND, np.int32)
    lookup[0] = 0
    lookup[single] = np.arange(1, len(single) + 1)
    return np.where(mask < 0, mask, lookup[components]).astype(np.int32)
