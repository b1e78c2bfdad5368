from __future__ import annotations

import numpy as np
import torch

from tiny import make_config
from tttunet.imaging.image import Image
from tttunet.inference.components import keep_largest
from tttunet.inference.segment import segment
from tttunet.models.model import Model

LABELS = np.array(
    [
        [1, 1, 0, 0, 2, 0],
        [1, 0, 0, 2, 0, 0],
        [0, 0, 0, 0, 0, 1],
        [2, 2, 2, 0, 1, 0],
    ],
    np.uint8,
)


def test_every_class_by_itself():
    found = keep_largest(LABELS, [(1,), (2,)])
    expected = LABELS.copy()
    expected[2:, 4:] = 0  # two pixels that touch at a corner: the smaller piece of class 1
    expected[:2, 3:5] = 0
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.uint8
    assert LABELS[2, 5] == 1


def test_classes_as_one_mask():
    labels = LABELS.copy()
    labels[1, 2] = 1  # joins the piece of class 2 at the top
    found = keep_largest(labels, [(1, 2)])
    assert (found[:2] == labels[:2]).all()
    assert not found[2:].any()


def test_nothing_to_remove():
    assert keep_largest(LABELS, ()) is LABELS
    one = np.zeros((4, 5, 6), np.uint16)
    one[1:3, 2, 2] = 3
    assert keep_largest(one, [(3,), (4,)]) is one


def test_segment_keeps_the_largest_piece():
    torch.manual_seed(0)
    model = Model.create(make_config(task="semantic"))
    image = Image.from_array(np.random.default_rng(0).random((64, 64)).astype(np.float32), "YX")
    whole = segment(image, model, device="cpu").labels
    plan = model.config.plan.model_copy(update={"keep_largest": ((1,),)})
    model.config = model.config.model_copy(update={"plan": plan})
    largest = segment(image, model, device="cpu").labels
    np.testing.assert_array_equal(largest, keep_largest(whole, [(1,)]))
    assert 0 < largest.sum() < whole.sum()
