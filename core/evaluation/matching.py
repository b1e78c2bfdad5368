"""Which predicted object is which true object: overlap table and one-to-one matching."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tttunet.errors import DatasetError


@dataclass(frozen=True)
class Overlap:
    """Sparse overlap table of P predicted and T true objects of which K pairs share pixels.

    Attributes:
        pred_labels, truth_labels: [P] and [T] label values, ascending, without background.
        pred_sizes, truth_sizes: int64 [P] and [T], pixels (inside the valid area).
        pred_optional, truth_optional: bool [P] and [T]; more than half of the object lies
            outside the valid area, so it does not count as an error if it stays unmatched.
        pairs: int64 [K, 2], positions in `pred_labels` and `truth_labels`.
        intersections: int64 [K], shared pixels of each pair.
    """

    pred_labels: np.ndarray
    truth_labels: np.ndarray
    pred_sizes: np.ndarray
    truth_sizes: np.ndarray
    pred_optional: np.ndarray
    truth_optional: np.ndarray
    pairs: np.ndarray
    intersections: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """float64 [K], intersection over union of each pair."""
        rows, columns = self.pairs.T
        union = self.pred_sizes[rows] + self.truth_sizes[columns] - self.intersections
        return self.intersections / union


@dataclass(frozen=True)
class Matching:
    """M matched pairs and what was left over.

    Attributes:
        pred, truth: int64 [M], positions in the overlap table's labels, ascending in `pred`.
        iou: float64 [M].
        unmatched_pred, unmatched_truth: positions of the objects without a partner, optional
            ones (see `Overlap`) left out: the false positives and the false negatives.
    """

    pred: np.ndarray
    truth: np.ndarray
    iou: np.ndarray
    unmatched_pred: np.ndarray
    unmatched_truth: np.ndarray


def overlap_table(pred: np.ndarray, truth: np.ndarray, valid: np.ndarray | None = None) -> Overlap:
    """Count the pixels that every predicted object shares with every true object.

    Args:
        pred: integer labels of any number of dimensions; 0 is background, other values are free.
        truth: integer labels of the same shape.
        valid: bool, same shape; pixels outside it are ignored on both sides, so that objects are
            compared only where the truth is known. As in the panoptic quality paper
            (Kirillov et al. 2019, section 4.1, "void"), an unmatched object that lies mostly
            outside is no error; the rule is applied to both sides alike.

    Raises:
        DatasetError: shapes differ, an array is not of an integer type, or a label is negative.
    """
    pred, truth = _label_array(pred, "predicted"), _label_array(truth, "true")
    columns = [pred, truth] if valid is None else [pred, truth, np.asarray(valid, dtype=bool)]
    for name, column in zip(("true labels", "valid area"), columns[1:], strict=False):
        if column.shape != pred.shape:
            raise DatasetError(
                f"The predicted labels have the shape {pred.shape}, the {name} {column.shape}."
            )
    runs, lengths = _run_lengths([column.ravel() for column in columns])
    inside = lengths if valid is None else lengths * runs[2]
    pred_labels, pred_sizes, pred_optional, rows = _objects(runs[0], lengths, inside)
    truth_labels, truth_sizes, truth_optional, cols = _objects(runs[1], lengths, inside)
    shared = (rows >= 0) & (cols >= 0) & (inside > 0)
    table = coo_array(
        (inside[shared], (rows[shared], cols[shared])),
        shape=(len(pred_labels), len(truth_labels)),
    )
    table.sum_duplicates()
    return Overlap(
        pred_labels=pred_labels,
        truth_labels=truth_labels,
        pred_sizes=pred_sizes,
        truth_sizes=truth_sizes,
        pred_optional=pred_optional,
        truth_optional=truth_optional,
        pairs=np.stack(table.coords, axis=1).astype(np.int64),
        intersections=table.data,
    )


def match(table: Overlap, threshold: float = 0.5) -> Matching:
    """Match objects one to one, only pairs with IoU >= `threshold`.

    Above 0.5 an object has at most one possible partner. At exactly 0.5 (an object cut into two
    halves) and below, conflicts are solved like in StarDist: as many matched pairs as possible,
    and among those solutions the one with the largest sum of IoU.

    Args:
        table: see `overlap_table`.
        threshold: in (0, 1].

    Raises:
        DatasetError: the threshold is outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise DatasetError(f"An IoU threshold must be above 0 and at most 1, not {threshold}.")
    iou = table.iou
    candidate = iou >= threshold
    rows, cols = table.pairs[candidate].T
    iou = iou[candidate]
    chosen = _assign(rows, cols, iou, len(table.pred_labels))
    rows, cols, iou = rows[chosen], cols[chosen], iou[chosen]
    order = np.argsort(rows)
    return Matching(
        pred=rows[order],
        truth=cols[order],
        iou=iou[order],
        unmatched_pred=_leftover(rows, table.pred_optional),
        unmatched_truth=_leftover(cols, table.truth_optional),
    )


def _label_array(labels: np.ndarray, side: str) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.dtype.kind not in "uib":
        raise DatasetError(
            f"The {side} labels are of type {labels.dtype}, not of an integer type.",
            "Label files hold one whole number per object or class.",
        )
    return labels


def _run_lengths(columns: list[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """Run-length encode arrays [N] jointly: values [R] of every array, int64 lengths [R].

    Label images are flat almost everywhere, so everything after this works on a tenth of the
    pixels or less.
    """
    size = columns[0].size
    changed = np.zeros(max(size - 1, 0), dtype=bool)
    for column in columns:
        changed |= column[1:] != column[:-1]
    starts = np.flatnonzero(changed) + 1
    if size:
        starts = np.concatenate(([0], starts))
    lengths = np.diff(np.append(starts, size)).astype(np.int64)
    return [column[starts] for column in columns], lengths


def _objects(
    runs: np.ndarray, lengths: np.ndarray, inside: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels, sizes and `optional` of the objects of one side, and the position of every run's
    object (-1: background or wholly outside the valid area)."""
    labels, index = np.unique(runs, return_inverse=True)
    total = np.bincount(index, weights=lengths, minlength=len(labels)).astype(np.int64)
    sizes = np.bincount(index, weights=inside, minlength=len(labels)).astype(np.int64)
    kept = (labels != 0) & (sizes > 0)
    if np.any(labels[kept] < 0):
        raise DatasetError(
            f"Labels must not be negative, found {labels[kept].min()}.",
            "If it marks unlabelled pixels, name it as the label to ignore.",
        )
    position = np.where(kept, np.cumsum(kept) - 1, -1)
    return labels[kept], sizes[kept], (2 * sizes < total)[kept], position[index]


def _assign(rows: np.ndarray, cols: np.ndarray, iou: np.ndarray, row_count: int) -> np.ndarray:
    """Positions of the chosen candidates. Groups of candidates that share no object are solved
    one by one, so the dense assignment problems stay small however many objects there are."""
    if not len(rows):
        return np.zeros(0, dtype=np.int64)
    nodes = row_count + int(cols.max()) + 1
    graph = coo_array((np.ones(len(rows)), (rows, cols + row_count)), shape=(nodes, nodes))
    group = connected_components(graph, directed=False)[1][rows]
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order])) + 1
    chosen = [
        members if len(members) == 1 else members[_assign_group(rows, cols, iou, members)]
        for members in np.split(order, starts)
    ]
    return np.concatenate(chosen)


def _assign_group(
    rows: np.ndarray, cols: np.ndarray, iou: np.ndarray, members: np.ndarray
) -> np.ndarray:
    row_values, row = np.unique(rows[members], return_inverse=True)
    col_values, col = np.unique(cols[members], return_inverse=True)
    # All the IoU that can be gained together is worth half a match: the count comes first.
    best = min(len(row_values), len(col_values))
    gain = np.zeros((len(row_values), len(col_values)))
    gain[row, col] = 1 + iou[members] / (2 * best)
    candidate = np.full(gain.shape, -1)
    candidate[row, col] = np.arange(len(members))
    picked = candidate[linear_sum_assignment(gain, maximize=True)]
    return picked[picked >= 0]


def _leftover(matched: np.ndarray, optional: np.ndarray) -> np.ndarray:
    free = ~optional
    free[matched] = False
    return np.flatnonzero(free)
