"""Objects of a Labels layer in the order in which a person should look at them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: The order of doubtful places, in words.
DOUBTFUL_FIRST = "the most doubtful first"


@dataclass(frozen=True, eq=False)
class Objects:
    """Places to look at, one after the other.

    Attributes:
        numbers: [n], of the labels; 0: a place without label.
        centres: [n, axes], in pixels.
        order: what the order is, in words.
        doubts: [n], see `tttunet.inference.review`; None: they are not known.
    """

    numbers: np.ndarray
    centres: np.ndarray
    order: str
    doubts: np.ndarray | None = None

    def chosen(self, which: np.ndarray) -> Objects:
        """Some of them, by a boolean per place."""
        doubts = None if self.doubts is None else self.doubts[which]
        return Objects(self.numbers[which], self.centres[which], self.order, doubts)


def odd_first(labels: np.ndarray) -> Objects:
    """Objects whose size differs most from the usual first; not for the window's thread.

    Args:
        labels: integers, 0 is background.
    """
    places = np.nonzero(labels)
    numbers, inverse = np.unique(labels[places], return_inverse=True)
    sizes = np.bincount(inverse, minlength=len(numbers))
    centres = np.stack(
        [np.bincount(inverse, along, len(numbers)) / np.maximum(sizes, 1) for along in places],
        axis=1,
    )
    oddness = np.abs(np.log(sizes / np.median(sizes))) if len(numbers) else np.zeros(0)
    order = np.argsort(-oddness, kind="stable")
    return Objects(numbers[order], centres[order], "unusual sizes first")
