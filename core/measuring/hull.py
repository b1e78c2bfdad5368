"""Convex hulls of many objects at once, from the runs of pixels that they consist of."""

from __future__ import annotations

import numpy as np


def hull_areas(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Areas of the convex hulls of objects, in pixels.

    Args:
        rows: int64 [R, 4]: label, y, first x, last x + 1 of runs; in any order.
        labels: [K], ascending, all that occur in `rows`.

    Returns:
        float64 [K].
    """
    objects = np.searchsorted(labels, rows[:, 0])
    objects = np.concatenate([objects, objects])
    y = np.concatenate([rows[:, 1], rows[:, 1] + 1])  # upper and lower corners
    areas = np.zeros(len(labels))
    # The right boundary is the left one of the mirrored object.
    for x in (rows[:, 2], -rows[:, 3]):
        order = np.lexsort((np.tile(x, 2), y, objects))
        chain = np.stack([objects[order], y[order], np.tile(x, 2)[order]])
        new = np.ones(len(order), bool)
        new[1:] = (chain[:2, 1:] != chain[:2, :-1]).any(0)
        areas -= _under_convex(chain[:, new], len(labels))
    return areas


def _under_convex(chain: np.ndarray, count: int) -> np.ndarray:
    """Integrals over y of the lower convex boundary of points.

    A point that lies on or above the line between its neighbours is no corner of the hull,
    whichever other points go at the same time; when none lies there, all are corners.

    Args:
        chain: int64 [3, P]: object, y, x; by object, then by y, each (object, y) once.
        count: of objects.
    """
    areas = np.zeros(count)
    while chain.shape[1]:
        obj, y, x = chain
        inner = (obj[1:-1] == obj[:-2]) & (obj[1:-1] == obj[2:])
        turn = (x[1:-1] - x[:-2]) * (y[2:] - y[:-2]) - (x[2:] - x[:-2]) * (y[1:-1] - y[:-2])
        gone = np.zeros(len(obj), bool)
        gone[1:-1] = inner & (turn >= 0)
        busy = np.zeros(count, bool)
        busy[obj[gone]] = True
        ready = chain[:, ~busy[obj]]
        step = (ready[0, 1:] == ready[0, :-1]) * (ready[1, 1:] - ready[1, :-1])
        part = step * (ready[2, 1:] + ready[2, :-1]) / 2
        areas += np.bincount(ready[0, 1:], part, count)
        chain = chain[:, busy[obj] & ~gone]
    return areas
