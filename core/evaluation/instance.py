"""Scores of instance segmentation: how many objects were found, and how well outlined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tttunet.errors import DatasetError
from tttunet.evaluation.matching import match, overlap_table

#: 0.5, 0.55, ... 0.95: the thresholds of the Data Science Bowl 2018 and of COCO.
IOU_THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))

METRICS = ("precision", "recall", "f1", "ap", "mean_matched_iou", "panoptic_quality")


@dataclass(frozen=True)
class InstanceScores:
    """Scores at one IoU threshold, of one image or pooled over the objects of many.

    A predicted and a true object match if their IoU is >= `threshold` (as in StarDist; the Data
    Science Bowl and panoptic quality ask for >, which differs only for an IoU of exactly the
    threshold). No objects in either image is perfect: every score is 1. If only one of them is
    empty every score is 0.

    Attributes:
        threshold: smallest IoU of a match.
        tp, fp, fn: matched objects, predicted objects without and true objects without a match.
        iou_sum: sum of the IoU of the matches.
    """

    threshold: float
    tp: int
    fp: int
    fn: int
    iou_sum: float

    @property
    def precision(self) -> float:
        """tp / (tp + fp): share of the predicted objects that are real."""
        return self._ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """tp / (tp + fn): share of the true objects that were found."""
        return self._ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """2 tp / (2 tp + fp + fn), the harmonic mean of precision and recall."""
        return self._ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def ap(self) -> float:
        """tp / (tp + fp + fn).

        "Average precision" as StarDist, Cellpose and the Data Science Bowl 2018 define it, not
        the area under a precision-recall curve of COCO: a label image has no confidences.
        """
        return self._ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def mean_matched_iou(self) -> float:
        """Mean IoU of the matches; 0 without matches (segmentation quality in the PQ paper)."""
        return self._ratio(self.iou_sum, self.tp)

    @property
    def panoptic_quality(self) -> float:
        """iou_sum / (tp + fp / 2 + fn / 2) = f1 * mean_matched_iou (Kirillov et al. 2019)."""
        return self._ratio(self.iou_sum, self.tp + (self.fp + self.fn) / 2)

    def to_dict(self) -> dict[str, Any]:
        """Threshold, counts and all scores, ready for JSON."""
        counts = {"threshold": self.threshold, "tp": self.tp, "fp": self.fp, "fn": self.fn}
        return counts | {metric: getattr(self, metric) for metric in METRICS}

    def _ratio(self, part: float, whole: float) -> float:
        if whole:
            return part / whole
        return 0.0 if self.fp or self.fn else 1.0


def instance_scores(
    pred: np.ndarray,
    truth: np.ndarray,
    thresholds: Sequence[float] = IOU_THRESHOLDS,
    valid: np.ndarray | None = None,
) -> tuple[InstanceScores, ...]:
    """Score one label image against another, once per threshold.

    Args:
        pred: integer labels of any number of dimensions; 0 is background, other values are free.
        truth: integer labels of the same shape.
        thresholds: IoU thresholds in (0, 1].
        valid: bool, same shape; pixels outside it are ignored (see `matching.overlap_table`).

    Raises:
        DatasetError: shapes differ, labels are no whole numbers >= 0, a threshold is out of range.
    """
    table = overlap_table(pred, truth, valid)
    matchings = [(threshold, match(table, threshold)) for threshold in thresholds]
    return tuple(
        InstanceScores(
            threshold=float(threshold),
            tp=len(matching.pred),
            fp=len(matching.unmatched_pred),
            fn=len(matching.unmatched_truth),
            iou_sum=float(matching.iou.sum()),
        )
        for threshold, matching in matchings
    )


def pool(images: Sequence[Sequence[InstanceScores]]) -> tuple[InstanceScores, ...]:
    """Scores over the objects of all images together: every object weighs the same.

    Args:
        images: per image what `instance_scores` gave, all at the same thresholds.

    Raises:
        DatasetError: no images, or not the same thresholds everywhere.
    """
    return tuple(
        InstanceScores(
            threshold=column[0].threshold,
            tp=sum(scores.tp for scores in column),
            fp=sum(scores.fp for scores in column),
            fn=sum(scores.fn for scores in column),
            iou_sum=sum(scores.iou_sum for scores in column),
        )
        for column in _by_threshold(images)
    )


def mean_over_images(images: Sequence[Sequence[InstanceScores]]) -> list[dict[str, float]]:
    """Mean of the images' scores: every image weighs the same, however many objects it has.

    Returns:
        One dictionary per threshold: `threshold` and the mean of every score in `METRICS`.

    Raises:
        DatasetError: no images, or not the same thresholds everywhere.
    """
    return [
        {"threshold": column[0].threshold}
        | {m: float(np.mean([getattr(scores, m) for scores in column])) for m in METRICS}
        for column in _by_threshold(images)
    ]


def mean_ap(scores: Sequence[InstanceScores]) -> float:
    """Mean AP over the thresholds of one image or pool (the Data Science Bowl's score)."""
    return float(np.mean([one.ap for one in scores]))


def _by_threshold(images: Sequence[Sequence[InstanceScores]]) -> list[list[InstanceScores]]:
    if not images:
        raise DatasetError("There are no images to average over.")
    if len({tuple(one.threshold for one in scores) for scores in images}) != 1:
        raise DatasetError("The images were scored at different IoU thresholds.")
    return [list(column) for column in zip(*images, strict=True)]
