"""Scores of semantic segmentation: Dice and normalised surface Dice (NSD) of every class."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tttunet.errors import DatasetError
from tttunet.evaluation.matching import Overlap, overlap_table
from tttunet.evaluation.surface import surface_dice

#: In mm, one for all classes or one per class.
Tolerance = float | Mapping[int, float]


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class in one image.

    A class that is in neither image has no score: `dice` and `nsd` are NaN, and means leave it
    out (some challenges count it as 1 instead). A class in only one of the two images scores 0.

    Attributes:
        label: the class.
        intersection, pred_size, truth_size: pixels or voxels.
        nsd: see `surface.surface_dice`; also NaN if it was not asked for.
    """

    label: int
    intersection: int
    pred_size: int
    truth_size: int
    nsd: float = math.nan

    @property
    def dice(self) -> float:
        """2 |P and T| / (|P| + |T|)."""
        whole = self.pred_size + self.truth_size
        return 2 * self.intersection / whole if whole else math.nan


def semantic_scores(
    pred: np.ndarray,
    truth: np.ndarray,
    *,
    classes: Iterable[int] | None = None,
    spacing: Sequence[float] | None = None,
    tolerance: Tolerance | None = None,
    ignore: int | None = None,
) -> tuple[ClassScores, ...]:
    """Score every class of one label image against another.

    Args:
        pred: integer class labels; any number of dimensions for Dice, 2 or 3 for NSD.
        truth: integer class labels of the same shape. 0 is background and is not scored.
        classes: labels to score; None: those found in either image.
        spacing: pixel size per axis in the unit of `tolerance`; None: 1, a tolerance in pixels.
        tolerance: of the NSD; None: no NSD.
        ignore: label in `truth` of pixels that do not count, whatever the prediction says there.

    Returns:
        One entry per class, ascending.

    Raises:
        DatasetError: shapes differ, labels are no whole numbers >= 0, a class has no tolerance,
            or spacing or tolerance make no sense.
    """
    pred, truth = np.asarray(pred), np.asarray(truth)
    valid = None if ignore is None else truth != ignore
    table = overlap_table(pred, truth, valid)
    pred_sizes = dict(zip(table.pred_labels.tolist(), table.pred_sizes.tolist(), strict=True))
    truth_sizes = dict(zip(table.truth_labels.tolist(), table.truth_sizes.tolist(), strict=True))
    shared_sizes = _sizes_of_agreement(table)
    labels = pred_sizes.keys() | truth_sizes.keys() if classes is None else set(classes)
    return tuple(
        ClassScores(
            label=label,
            intersection=shared_sizes.get(label, 0),
            pred_size=pred_sizes.get(label, 0),
            truth_size=truth_sizes.get(label, 0),
            nsd=math.nan
            if tolerance is None
            else surface_dice(
                pred == label,
                truth == label,
                tolerance=_tolerance_of(label, tolerance),
                spacing=spacing,
                valid=valid,
            ),
        )
        for label in sorted(labels - {0, ignore})
    )


def nan_mean(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN; NaN if there are none."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def _sizes_of_agreement(table: Overlap) -> dict[int, int]:
    """Pixels in which both images hold the same label, for every label."""
    rows, cols = table.pairs.T
    labels = table.pred_labels[rows]
    same = labels == table.truth_labels[cols]
    return dict(zip(labels[same].tolist(), table.intersections[same].tolist(), strict=True))


def _tolerance_of(label: int, tolerance: Tolerance) -> float:
    if not isinstance(tolerance, Mapping):
        return tolerance
    if label not in tolerance:
        raise DatasetError(f"No NSD tolerance is given for class {label}.")
    return tolerance[label]
