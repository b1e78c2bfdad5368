"""Definitions of the instance scores, on examples worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tttunet.errors import DatasetError
from tttunet.evaluation import (
    IOU_THRESHOLDS,
    InstanceScores,
    instance_scores,
    mean_ap,
    mean_over_images,
    pool,
)
from tttunet.evaluation.instance import METRICS


def segments(*lengths_and_labels: tuple[int, int]) -> np.ndarray:
    return np.concatenate([np.full(length, label) for length, label in lengths_and_labels])


# Of the true objects the first is found with IoU 8/10, the second with 6/12 (four pixels missing,
# two too many), the third is missed; the last prediction is not there.
TRUTH = segments((10, 1), (5, 0), (10, 2), (5, 0), (4, 3), (6, 0))
PRED = segments((8, 4), (5, 0), (8, 9), (13, 0), (6, 7))


@pytest.fixture
def scores() -> dict[float, InstanceScores]:
    return {one.threshold: one for one in instance_scores(PRED, TRUTH)}


def test_a_worked_example(scores):
    at_50 = scores[0.5]
    assert (at_50.tp, at_50.fp, at_50.fn) == (2, 1, 1)
    assert at_50.precision == at_50.recall == at_50.f1 == pytest.approx(2 / 3)
    assert at_50.ap == 2 / 4
    assert at_50.iou_sum == pytest.approx(8 / 10 + 6 / 12)
    assert at_50.mean_matched_iou == pytest.approx(0.65)
    assert at_50.panoptic_quality == pytest.approx(1.3 / 3)
    at_55 = scores[0.55]
    assert (at_55.tp, at_55.fp, at_55.fn) == (1, 2, 2)
    assert at_55.ap == 1 / 5


def test_an_iou_of_exactly_the_threshold_is_a_match(scores):
    assert scores[0.8].tp == 1
    assert scores[0.85].tp == 0


def test_mean_ap_is_the_mean_over_the_ten_thresholds(scores):
    # 0.5: 2 of 4; 0.55 to 0.8: 1 of 5; 0.85 to 0.95: none.
    assert mean_ap(list(scores.values())) == pytest.approx((0.5 + 6 * 0.2 + 3 * 0) / 10)


def test_the_thresholds_are_the_usual_ten():
    assert IOU_THRESHOLDS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def test_panoptic_quality_is_f1_times_matched_iou(scores):
    for one in scores.values():
        assert one.panoptic_quality == pytest.approx(one.f1 * one.mean_matched_iou)


def test_both_empty_is_perfect():
    empty = np.zeros((3, 3), dtype=np.uint8)
    for one in instance_scores(empty, empty):
        assert (one.tp, one.fp, one.fn) == (0, 0, 0)
        assert [getattr(one, metric) for metric in METRICS] == [1.0] * len(METRICS)


@pytest.mark.parametrize("swap", [False, True])
def test_only_one_empty_scores_zero(swap):
    empty, full = np.zeros((3, 3), dtype=np.uint8), np.eye(3, dtype=np.uint8)
    pair = (full, empty) if swap else (empty, full)
    for one in instance_scores(*pair):
        assert [getattr(one, metric) for metric in METRICS] == [0.0] * len(METRICS)


def test_the_same_image_is_perfect():
    labels = np.arange(27, dtype=np.uint16).reshape(3, 3, 3)
    for one in instance_scores(labels, labels):
        assert (one.tp, one.f1, one.panoptic_quality) == (26, 1.0, 1.0)


def test_pooling_weighs_objects_and_the_mean_weighs_images():
    many, few = np.arange(1, 10), np.array([1, 1, 0])
    images = [
        instance_scores(many, many, [0.5]),
        instance_scores(np.zeros(3, int), few, [0.5]),
    ]
    pooled = pool(images)[0]
    assert (pooled.tp, pooled.fp, pooled.fn) == (9, 0, 1)
    assert pooled.f1 == pytest.approx(18 / 19)
    assert mean_over_images(images)[0]["f1"] == 0.5


def test_pooling_empty_images_changes_nothing(scores):
    empty = instance_scores(np.zeros(3, int), np.zeros(3, int))
    full = tuple(scores.values())
    assert pool([full, empty]) == full


def test_pooling_needs_images_with_the_same_thresholds():
    labels = np.array([1])
    with pytest.raises(DatasetError, match="no images"):
        pool([])
    with pytest.raises(DatasetError, match="different IoU thresholds"):
        pool([instance_scores(labels, labels, [0.5]), instance_scores(labels, labels, [0.6])])


def test_the_dictionary_holds_counts_and_scores(scores):
    row = scores[0.5].to_dict()
    assert set(row) == {"threshold", "tp", "fp", "fn", *METRICS}
    assert row["ap"] == scores[0.5].ap
