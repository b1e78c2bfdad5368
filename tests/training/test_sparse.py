import edt
import numpy as np
import pytest
import torch

from tiny import blobs
from tttunet.training.loss import segmentation_loss
from tttunet.training.prepare import FOREGROUND, IGNORE
from tttunet.training.sparse import UNKNOWN_DISTANCE, neighbours, objects_from_mask
from tttunet.training.targets import BACKGROUND, BOUNDARY, INTERIOR, instance_targets


def crowded(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Discs, many of which touch."""
    return blobs(seed, shape, count=25 if len(shape) == 2 else 40)[1]


@pytest.mark.parametrize("shape", [(40, 48), (16, 24, 24)])
def test_complete_labels_give_what_their_definition_says(shape):
    labels = crowded(0, shape)
    classes, distance = instance_targets(labels)
    exact = edt.edt(labels.astype(np.uint32), black_border=False)
    assert (classes[labels == 0] == BACKGROUND).all()
    assert ((classes == BOUNDARY) == ((labels > 0) & (exact <= 1.5))).all()
    for value in np.unique(labels[labels > 0]):
        inside = labels == value
        assert np.array_equal(distance[inside], exact[inside] / exact[inside].max())
    assert distance.min() == 0


@pytest.mark.parametrize("shape", [(40, 48), (16, 24, 24)])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_decided_is_what_complete_labels_say(seed, shape):
    rng = np.random.default_rng(seed)
    labels = crowded(seed, shape)
    # A box, a stripe, some objects and some pixels of which nobody said anything.
    unknown = rng.random(shape) < 0.002
    unknown[: shape[0] // 3, : shape[1] // 2] = True
    unknown |= np.isin(labels, rng.choice(np.arange(1, 26), 5))
    known = np.where(unknown, IGNORE, labels)
    (classes, distance), (full, full_distance) = instance_targets(known), instance_targets(labels)
    assert (classes[unknown] == IGNORE).all()
    decided = classes >= 0
    assert np.array_equal(classes[decided], full[decided])
    assert (full[classes == FOREGROUND] != BACKGROUND).all()
    measured = distance != UNKNOWN_DISTANCE
    assert np.allclose(distance[measured], full_distance[measured])
    # Not by leaving everything open.
    assert decided.mean() > 0.4
    assert (distance[measured] > 0).any()
    assert (classes == FOREGROUND).any()


def test_an_object_that_goes_on_where_nobody_looked():
    labels = np.zeros((12, 20), np.int32)
    labels[2:10, 2:10] = 5
    labels[2:10, 14:18] = 6
    labels[:, :6] = IGNORE
    classes, distance = instance_targets(labels)
    assert (classes[4:8, 6] == FOREGROUND).all()  # the object's inside or its border
    assert classes[5, 8] == INTERIOR
    assert classes[5, 9] == BOUNDARY
    assert (distance[labels == 5] == UNKNOWN_DISTANCE).all()
    assert distance[labels == 6].max() == 1
    assert (distance[labels == 0] == 0).all()


def test_neighbours_at_the_edge_of_the_image():
    known, unknown = neighbours(np.array([[1, 1, IGNORE], [1, 1, 0]]))
    assert known.tolist() == [[False, True, True], [False, True, True]]
    assert unknown.tolist() == [[False, True, False], [False, True, True]]


def test_some_object_teaches_that_it_is_no_background_and_nothing_else():
    torch.manual_seed(0)
    outputs = torch.randn(1, 4, 8, 8, requires_grad=True)
    classes = torch.full((1, 8, 8), FOREGROUND)
    distance = torch.full((1, 1, 8, 8), UNKNOWN_DISTANCE)
    segmentation_loss(outputs, {"classes": classes, "distance": distance}).backward()
    gradient = outputs.grad
    assert (gradient[:, 0] > 0).all()
    assert (gradient[:, 1:3] < 0).all()
    assert (gradient[:, 3] == 0).all()
    # Interior and boundary keep their ratio: what is pulled up is their sum.
    share = outputs.detach()[:, 1:3].softmax(1)
    pulled = gradient[:, 1:3] / gradient[:, 1:3].sum(1, keepdim=True)
    assert torch.allclose(pulled, share, atol=1e-5)


def test_masks_become_objects_and_clumps():
    mask = np.zeros((60, 80), np.uint8)
    grid = np.stack(np.mgrid[:60, :80], -1)
    for centre in ((12, 12), (12, 40), (40, 20)):
        mask[np.linalg.norm(grid - centre, axis=-1) < 7] = 1
    for centre in ((40, 52), (40, 64)):  # two that touch
        mask[np.linalg.norm(grid - centre, axis=-1) < 7] = 1
    labels = objects_from_mask(mask)
    assert sorted(np.unique(labels)) == [FOREGROUND, 0, 1, 2, 3]
    assert (labels[33:47, 46:70][mask[33:47, 46:70] > 0] == FOREGROUND).all()
    assert np.array_equal(labels != 0, mask > 0)
    assert (objects_from_mask(np.full((9, 9), IGNORE)) == IGNORE).all()
