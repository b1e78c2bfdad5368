"""Dice per class against its formula, and what is undefined or ignored."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tttunet.errors import DatasetError
from tttunet.evaluation import semantic_scores
from tttunet.evaluation.semantic import nan_mean


@st.composite
def class_images(draw):
    shape = draw(array_shapes(min_dims=1, max_dims=4, max_side=4))
    return tuple(draw(arrays(np.uint8, shape, elements=st.integers(0, 3))) for _ in range(2))


def dice(pred: np.ndarray, truth: np.ndarray) -> float:
    whole = pred.sum() + truth.sum()
    return 2 * (pred & truth).sum() / whole if whole else math.nan


@settings(max_examples=80)
@given(class_images())
def test_dice_is_the_formula(images):
    pred, truth = images
    scores = semantic_scores(pred, truth, classes=[1, 2, 3])
    assert [one.label for one in scores] == [1, 2, 3]
    for one in scores:
        expected = dice(pred == one.label, truth == one.label)
        assert one.dice == pytest.approx(expected, nan_ok=True)
        assert one.pred_size == (pred == one.label).sum()
    back = semantic_scores(truth, pred, classes=[1, 2, 3])
    assert [one.dice for one in back] == pytest.approx([one.dice for one in scores], nan_ok=True)


@settings(max_examples=80)
@given(class_images())
def test_ignored_pixels_count_nowhere(images):
    pred, truth = images
    scores = semantic_scores(pred, truth, ignore=3)
    known = truth != 3
    for one in scores:
        assert one.label != 3
        expected = dice((pred == one.label) & known, (truth == one.label) & known)
        assert one.dice == pytest.approx(expected)


def test_a_class_in_neither_image_is_undefined_and_in_one_of_them_zero():
    scores = semantic_scores(
        np.array([[0, 1, 1]]), np.array([[0, 1, 2]]), classes=[1, 2, 5], tolerance=1
    )
    assert [one.dice for one in scores] == pytest.approx([2 / 3, 0, math.nan], nan_ok=True)
    assert [one.nsd for one in scores] == pytest.approx([1, 0, math.nan], nan_ok=True)
    assert nan_mean(one.dice for one in scores) == pytest.approx(1 / 3)
    assert math.isnan(nan_mean([math.nan]))


def test_classes_are_those_found_in_either_image():
    scores = semantic_scores(np.array([0, 7, 7]), np.array([0, 0, 300]))
    assert [one.label for one in scores] == [7, 300]


def test_minus_one_may_mark_ignored_pixels():
    scores = semantic_scores(np.array([1, 1, 0]), np.array([1, -1, -1]), ignore=-1)
    assert [(one.label, one.dice) for one in scores] == [(1, 1.0)]


def test_a_tolerance_per_class():
    truth = np.zeros((12, 12), dtype=np.uint8)
    truth[2:5, 2:6], truth[7:10, 2:6] = 1, 2
    pred = np.roll(truth, 2, axis=1)
    near, far = semantic_scores(pred, truth, spacing=(1, 0.5), tolerance={1: 1.0, 2: 0.4})
    assert near.nsd == 1.0
    assert far.nsd < 1.0
    with pytest.raises(DatasetError, match="class 2"):
        semantic_scores(pred, truth, tolerance={1: 1.0})


def test_shapes_must_agree_also_with_an_ignored_label():
    with pytest.raises(DatasetError, match=r"\(1, 2\).*\(2, 1\)"):
        semantic_scores(np.ones((1, 2), int), np.ones((2, 1), int), ignore=1)


def test_dice_alone_needs_no_monai(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.metrics.utils", None)
    labels = np.array([[0, 1]])
    assert math.isnan(semantic_scores(labels, labels)[0].nsd)
