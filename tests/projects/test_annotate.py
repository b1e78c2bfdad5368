"""What clicks and strokes vouch for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from tttunet.projects import (
    pieces,
    training_labels,
    unvouch_object,
    vouch_edits,
    vouch_object,
)

SHAPES = st.sampled_from([(9, 11), (1, 8), (5, 6, 7), (1, 1, 3)])
LABELS = SHAPES.flatmap(lambda shape: hnp.arrays(np.int32, shape, elements=st.integers(0, 3)))


def rim_of(mask: np.ndarray, width: int) -> np.ndarray:
    return ndimage.binary_dilation(mask, np.ones((2 * width + 1,) * mask.ndim))


@given(LABELS, st.integers(1, 3), st.integers(0, 3))
def test_checked_object_with_its_rim(labels: np.ndarray, number: int, rim: int):
    vouched = vouch_object(labels, np.zeros(labels.shape, np.uint8), number, rim)
    mine = labels == number
    expected = mine | (rim_of(mine, rim) & (labels == 0)) if mine.any() else mine
    assert np.array_equal(vouched > 0, expected)
    assert vouched.dtype == np.uint8


def test_rim_inside_unchecked_neighbours_stays_unlabelled():
    labels = np.array([[0, 1, 1, 2, 2, 0, 0, 0]])
    vouched = vouch_object(labels, np.zeros((1, 8)), 1)
    assert vouched.tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]]
    both = vouch_object(labels, vouched, 2)
    assert both.tolist() == [[1, 1, 1, 1, 1, 1, 1, 0]]
    assert training_labels(labels, vouched).tolist() == [[0, 1, 1, -1, -1, -1, -1, -1]]
    assert training_labels(labels, vouched).dtype == np.int32


@given(LABELS, st.integers(0, 2))
def test_taking_back_leaves_the_other_objects(labels: np.ndarray, rim: int):
    """Checking 1 and 2 and taking back 2 is checking 1."""
    none = np.zeros(labels.shape, np.uint8)
    one = vouch_object(labels, none, 1, rim)
    both = vouch_object(labels, one, 2, rim)
    assert np.array_equal(unvouch_object(labels, both, 2, rim), one)


def test_rim_per_axis():
    labels = np.zeros((5, 9, 9), int)
    labels[2, 4, 4] = 1
    vouched = vouch_object(labels, np.zeros(labels.shape), 1, (0, 1, 2))
    assert vouched.sum() == 1 * 3 * 5
    assert vouched[2, 3:6, 2:7].all()


def test_background_is_no_object():
    with pytest.raises(ValueError, match="not the number of an object"):
        vouch_object(np.zeros((2, 2), int), np.zeros((2, 2)), 0)


def test_inputs_are_not_changed():
    labels, vouched = np.array([[0, 1, 0, 2]]), np.array([[0, 0, 0, 1]], np.uint8)
    copies = labels.copy(), vouched.copy()
    vouch_object(labels, vouched, 1)
    unvouch_object(labels, vouched, 2)
    vouch_edits(labels, labels + 1, vouched)
    assert np.array_equal(labels, copies[0])
    assert np.array_equal(vouched, copies[1])


def test_painted_object_is_checked_and_erased_pixels_are_background():
    before = np.zeros((10, 30), int)
    before[2:6, 2:6], before[2:6, 20:24] = 1, 2
    after = before.copy()
    after[6, 2:6] = 1  # a row more
    after[2, 20:24] = 0  # a row less
    vouched = vouch_edits(before, after, np.zeros(before.shape, np.uint8))
    assert np.array_equal(vouched[0:9, 0:8], np.ones((9, 8)))  # object 1 and its rim
    assert vouched[2, 20:24].all()  # erased
    assert not vouched[3:6, 20:24].any()  # the rest of object 2 is as unchecked as before


def test_new_object_is_checked():
    before = np.zeros((8, 8), int)
    after = before.copy()
    after[4, 4] = 9
    assert vouch_edits(before, after, np.zeros((8, 8)), rim=1).sum() == 9


def test_class_labels_vouch_for_changed_pixels_only():
    before = np.zeros((4, 8), int)
    before[:, :4] = 1
    after = before.copy()
    after[0, 4:6] = 1
    after[1, 0] = 0
    vouched = vouch_edits(before, after, np.zeros((4, 8)), task="semantic")
    assert np.array_equal(vouched > 0, before != after)


def test_negative_takes_back():
    before = np.ones((2, 2), int)
    after = np.array([[-1, 1], [1, 1]])
    assert vouch_edits(before, after, np.ones((2, 2))).tolist() == [[0, 1], [1, 1]]


@given(SHAPES.flatmap(lambda shape: hnp.arrays(bool, shape)))
@settings(max_examples=200)
def test_pieces_are_those_of_scipy(mask: np.ndarray):
    expected, count = ndimage.label(mask, np.ones((3,) * mask.ndim))
    found = pieces(mask)
    assert found.max(initial=0) == count
    assert np.array_equal(found, expected)


@given(LABELS)
def test_pieces_of_touching_objects_are_told_apart(labels: np.ndarray):
    found = pieces(labels)
    assert np.array_equal(found > 0, labels > 0)
    for number in range(1, 4):
        expected, count = ndimage.label(labels == number, np.ones((3,) * labels.ndim))
        mine = found[labels == number]
        assert len(np.unique(mine)) == count
        assert (
            len(set(zip(mine.tolist(), expected[labels == number].tolist(), strict=True))) == count
        )


def test_pieces_of_a_spiral_take_few_rounds():
    mask = np.zeros((257, 257), bool)
    mask[::4] = True
    mask[2::8, -1] = mask[1::8, -1] = mask[3::8, -1] = True
    mask[5::8, 0] = mask[6::8, 0] = mask[7::8, 0] = True
    assert pieces(mask).max() == 1
