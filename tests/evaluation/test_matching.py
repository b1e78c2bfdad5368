"""The overlap table and the matching against a twin that uses sets, fractions and brute force."""

from __future__ import annotations

import time
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tttunet.errors import DatasetError
from tttunet.evaluation import instance_scores, match, overlap_table

THRESHOLDS = ("0.1", "0.25", "0.4", "0.5", "0.55", "0.75", "1")


@st.composite
def label_pairs(draw, most: int = 4):
    """Two small label arrays of the same shape in 1 to 3 dimensions."""
    shape = draw(array_shapes(min_dims=1, max_dims=3, max_side=4))
    labels = st.integers(0, most)
    return tuple(draw(arrays(np.uint16, shape, elements=labels)) for _ in range(2))


def objects(labels: np.ndarray) -> dict[int, set]:
    found: dict[int, set] = {}
    for position, value in np.ndenumerate(labels):
        if value:
            found.setdefault(int(value), set()).add(position)
    return found


def twin(pred, truth, threshold: str, valid=None) -> set[tuple[int, int, int, float]]:
    """(tp, fp, fn, iou_sum) of every best one-to-one matching; more than one only where
    equally good matchings leave out objects that do or do not count."""
    known = {position for position in np.ndindex(pred.shape) if valid is None or valid[position]}
    whole = [objects(pred), objects(truth)]
    clipped = [{k: v & known for k, v in side.items() if v & known} for side in whole]
    counts = [
        [2 * len(part) >= len(side[label]) for label, part in clip.items()]
        for side, clip in zip(whole, clipped, strict=True)
    ]
    p, t = (list(side.values()) for side in clipped)
    iou = [[Fraction(len(a & b), len(a | b)) for b in t] for a in p]

    @cache
    def best(row: int, used: frozenset):
        """All (count, sum of IoU, used columns, matched rows) that rows from `row` on can add."""
        if row == len(p):
            return {(0, Fraction(0), used, frozenset())}
        found = set(best(row + 1, used))
        for column in range(len(t)):
            if column not in used and iou[row][column] >= Fraction(threshold):
                for count, total, columns, rows in best(row + 1, used | {column}):
                    found.add((count + 1, total + iou[row][column], columns, rows | {row}))
        return found

    options = best(0, frozenset())
    top = max((count, total) for count, total, _, _ in options)
    outcomes = set()
    for count, total, columns, rows in options:
        if (count, total) == top:
            fp = sum(counts[0][row] for row in range(len(p)) if row not in rows)
            fn = sum(counts[1][column] for column in range(len(t)) if column not in columns)
            outcomes.add((count, fp, fn, round(float(total), 9)))
    return outcomes


def ours(pred, truth, threshold: str, valid=None):
    scores = instance_scores(pred, truth, [float(threshold)], valid)[0]
    return scores.tp, scores.fp, scores.fn, round(scores.iou_sum, 9)


@settings(max_examples=150)
@given(label_pairs(), st.sampled_from(THRESHOLDS))
def test_agrees_with_brute_force(pair, threshold):
    assert ours(*pair, threshold) in twin(*pair, threshold)


@settings(max_examples=100)
@given(label_pairs(most=3), st.sampled_from(THRESHOLDS), st.data())
def test_agrees_with_brute_force_inside_a_valid_area(pair, threshold, data):
    valid = data.draw(arrays(np.bool_, pair[0].shape))
    assert ours(*pair, threshold, valid) in twin(*pair, threshold, valid)


@settings(max_examples=50)
@given(label_pairs())
def test_overlap_table_counts_pixels(pair):
    table = overlap_table(*pair)
    p, t = objects(pair[0]), objects(pair[1])
    assert table.pred_labels.tolist() == sorted(p)
    assert table.truth_sizes.tolist() == [len(t[label]) for label in sorted(t)]
    shared = {
        (int(table.pred_labels[row]), int(table.truth_labels[column])): int(pixels)
        for (row, column), pixels in zip(table.pairs, table.intersections, strict=True)
    }
    assert shared == {(a, b): len(p[a] & t[b]) for a in p for b in t if p[a] & t[b]}


@settings(max_examples=50)
@given(label_pairs(), st.permutations(range(1, 5)), st.sampled_from(THRESHOLDS))
def test_label_values_do_not_matter(pair, order, threshold):
    values = np.array([0, *order], dtype=np.uint32)
    scattered = np.where(values > 0, values * np.uint32(999_999_937), np.uint32(0))
    assert ours(scattered[pair[0]], pair[1], threshold) == ours(*pair, threshold)


@settings(max_examples=50)
@given(label_pairs(), st.randoms(use_true_random=False), st.sampled_from(THRESHOLDS))
def test_order_of_pixels_does_not_matter(pair, random, threshold):
    order = list(range(pair[0].size))
    random.shuffle(order)
    shuffled = [labels.ravel()[order] for labels in pair]
    expected = ours(*pair, threshold)
    assert ours(*shuffled, threshold) == expected
    assert ours(pair[0].T, pair[1].T, threshold) == expected


@settings(max_examples=50)
@given(label_pairs(), st.sampled_from(THRESHOLDS))
def test_swapping_the_images_swaps_precision_and_recall(pair, threshold):
    there = instance_scores(*pair, [float(threshold)])[0]
    back = instance_scores(*pair[::-1], [float(threshold)])[0]
    assert (there.precision, there.recall) == (back.recall, back.precision)
    assert there.f1 == back.f1
    assert there.panoptic_quality == pytest.approx(back.panoptic_quality)


def test_an_object_cut_in_halves_matches_only_one_of_them():
    table = overlap_table(np.array([1, 1, 2, 2]), np.array([7, 7, 7, 7]))
    matching = match(table, 0.5)
    assert len(matching.pred) == len(matching.unmatched_pred) == 1
    assert matching.iou.tolist() == [0.5]


def test_as_many_matches_as_possible_come_before_the_best_single_match():
    # IoU of prediction 1 with truth 1: 10/16, more than the two others, 3/13 each, together.
    pred = np.array([1] * 10 + [1] * 3 + [2] * 3)
    truth = np.array([1] * 10 + [2] * 3 + [1] * 3)
    matching = match(overlap_table(pred, truth), 0.2)
    assert matching.pred.tolist() == [0, 1]
    assert matching.truth.tolist() == [1, 0]


def test_an_object_beside_the_labelled_area_is_no_error():
    # Unlabelled nucleus, rightly predicted, that reaches one pixel into the labelled area.
    pred = np.array([1, 1, 1, 0, 2, 2, 2, 2])
    truth = np.array([5, 5, 5, 0, 0, 0, 0, 0])
    valid = np.array([1, 1, 1, 1, 1, 0, 0, 0], dtype=bool)
    assert instance_scores(pred, truth, [0.5], valid)[0].f1 == 1
    assert instance_scores(pred, truth, [0.5])[0].fp == 1


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 2)])
def test_nothing_predicted_and_nothing_there(shape):
    empty = np.zeros(shape, dtype=np.uint8)
    table = overlap_table(empty, empty)
    assert table.pairs.shape == (0, 2)
    assert len(match(table, 0.5).pred) == 0


def test_boolean_masks_count_as_one_object():
    mask = np.array([True, True, False])
    assert match(overlap_table(mask, mask), 1.0).iou.tolist() == [1.0]


@pytest.mark.parametrize(
    ("pred", "truth", "valid", "message"),
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), None, r"\(2, 3\).*\(3, 2\)"),
        (np.zeros(3, int), np.zeros(3, int), np.ones(2, bool), r"valid area \(2,\)"),
        (np.zeros(3), np.zeros(3, int), None, "predicted labels are of type float64"),
        (np.zeros(3, int), np.array([0, -1, 1]), None, "negative"),
    ],
)
def test_impossible_labels_are_refused(pred, truth, valid, message):
    with pytest.raises(DatasetError, match=message):
        overlap_table(pred, truth, valid)


@pytest.mark.parametrize("threshold", [0, 1.01, -1, float("nan")])
def test_impossible_thresholds_are_refused(threshold):
    with pytest.raises(DatasetError, match="threshold"):
        match(overlap_table(np.array([1]), np.array([1])), threshold)


def test_a_thousand_objects_take_less_than_a_tenth_of_a_second():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:1024, :1024]

    def nuclei() -> np.ndarray:
        cell = (y // 32) * 32 + x // 32
        dy, dx = rng.normal(16, 2, (2, 1024))[:, cell]
        inside = (y % 32 - dy) ** 2 + (x % 32 - dx) ** 2 < 13**2
        return np.where(inside, cell + 1, 0).astype(np.uint32)

    pred, truth = nuclei(), nuclei()
    seconds = []
    for _ in range(5):
        start = time.process_time()
        matching = match(overlap_table(pred, truth), 0.5)
        seconds.append(time.process_time() - start)
    assert len(matching.pred) > 900
    assert min(seconds) < 0.1
