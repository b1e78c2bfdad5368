import numpy as np
import pytest
import torch

from tttunet.inference.instances import decode_instances
from tttunet.models.config import InstanceDecoding
from tttunet.training.prepare import IGNORE
from tttunet.training.targets import BACKGROUND, BOUNDARY, INTERIOR, batch_targets, instance_targets


def touching_squares() -> np.ndarray:
    labels = np.zeros((24, 40), np.int32)
    labels[4:20, 4:20] = 7
    labels[4:20, 20:36] = 3
    return labels


def test_classes_separate_touching_objects():
    classes, distance = instance_targets(touching_squares())
    assert (classes[10, 19], classes[10, 20]) == (BOUNDARY, BOUNDARY)
    assert classes[10, 12] == INTERIOR
    assert classes[0, 0] == BACKGROUND
    assert distance[10, 12] > 0.8
    assert distance[10, 19] < 0.2
    assert distance[0, 0] == 0


def test_distance_is_relative_to_the_size_of_the_object():
    labels = np.zeros((80, 80), np.int32)
    labels[2:9, 2:9] = 1
    labels[20:75, 20:75] = 2
    _, distance = instance_targets(labels)
    assert distance[labels == 1].max() == distance[labels == 2].max() == 1


@pytest.mark.parametrize("labels", [np.zeros((8, 9), int), np.ones((8, 9), int)])
def test_images_of_one_value(labels):
    classes, distance = instance_targets(labels)
    assert np.isfinite(distance).all()
    assert (classes == (INTERIOR if labels.any() else BACKGROUND)).all()


def test_ignored_pixels_stay_ignored():
    labels = touching_squares()
    labels[:, :6] = IGNORE
    classes, _ = instance_targets(labels)
    assert (classes[:, :6] == IGNORE).all()
    assert (classes[:, 6:] != IGNORE).all()


@pytest.mark.parametrize("dim", [2, 3])
def test_decoding_the_targets_gives_the_objects_back(dim):
    labels = touching_squares()
    if dim == 3:
        labels = np.stack([np.zeros_like(labels)] * 3 + [labels] * 12 + [np.zeros_like(labels)] * 3)
    classes, distance = instance_targets(labels)
    maps = np.stack([classes == c for c in (0, 1, 2)] + [distance]).astype(np.float32)
    found = decode_instances(maps, InstanceDecoding())
    assert found.dtype == np.uint32
    assert found.max() == 2
    for value in (3, 7):
        inside = found[labels == value]
        assert (inside == np.bincount(inside).argmax()).mean() > 0.97


def test_batch_targets_by_task():
    labels = torch.from_numpy(np.stack([touching_squares()] * 2))
    instance = batch_targets(labels, "instance")
    assert instance["classes"].shape == (2, 24, 40)
    assert instance["distance"].shape == (2, 1, 24, 40)
    semantic = batch_targets(labels, "semantic")
    assert torch.equal(semantic["classes"], labels.long())


def test_class_numbers_become_outputs():
    labels = torch.tensor([[[0, 255, 3], [-1, -2, 255]]])
    found = batch_targets(labels, "semantic", [0, 3, 255])["classes"]
    assert found.tolist() == [[[0, 2, 1], [-1, -2, 2]]]
