from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from tttunet.errors import DatasetError
from tttunet.training.augment import AugmentConfig
from tttunet.training.loader import PatchDataset, crop_reflected, make_loader
from tttunet.training.prepare import PreparedCase


def case(number, shape=(40, 30), modality=None, folder=None):
    """A constant image that carries its number, with a small object near one corner."""
    image = np.full((2, *shape), number, np.float16)
    label = np.zeros(shape, np.int32)
    label[tuple(slice(n - 3, n - 1) for n in shape)] = number + 1
    positions = np.argwhere(label)
    locations = np.column_stack([label[label > 0], positions]).astype(np.int32)
    parts = (image, label, locations)
    if folder is not None:
        paths = [folder / f"{number}.{i}.npy" for i in range(3)]
        for path, part in zip(paths, parts, strict=True):
            np.save(path, part)
        parts = paths
    return PreparedCase(f"case{number}", *parts, None, modality)


def first(loader, count):
    return list(itertools.islice(loader, count))


@pytest.mark.parametrize("shape", [(40, 30), (12, 14, 10)])
def test_items_have_the_patch_size(shape):
    patch = (16,) * len(shape)  # larger than the volume along some axes
    data = PatchDataset([case(0, shape)], patch, AugmentConfig.for_patch(patch), seed=5)
    for i in range(6):
        image, label = data[i]
        assert image.shape == (2, *patch)
        assert image.dtype == torch.float32
        assert label.shape == patch
        assert label.dtype == torch.int32
        assert set(label.unique().tolist()) <= {0, 1}


@pytest.mark.parametrize("workers", [0, 1])
def test_resume_continues_the_same_order(tmp_path, workers):
    cases = [case(i, folder=tmp_path) for i in range(5)]
    config = AugmentConfig(p_rotation=1.0, p_noise=1.0)
    whole = first(make_loader(cases, (16, 16), 2, augment=config, seed=1, workers=workers), 4)
    resumed = make_loader(cases, (16, 16), 2, augment=config, seed=1, start_step=2, steps=2)
    for (a, a_label), (b, b_label) in zip(whole[2:], resumed, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a_label, b_label)
    other = first(make_loader(cases, (16, 16), 2, augment=config, seed=2), 1)
    assert not torch.equal(whole[0][0], other[0][0])


def test_every_case_once_per_epoch():
    data = PatchDataset([case(i) for i in range(7)], (8, 8), seed=3)
    epochs = [[data.case_index(e * 7 + i) for i in range(7)] for e in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(("exponent", "share"), [(0.5, 0.25), (1.0, 0.5), (0.0, 0.1)])
def test_balance_by_modality(exponent, share):
    cases = [case(i, modality="common") for i in range(18)]
    cases += [case(i, modality="rare") for i in range(2)]
    data = PatchDataset(cases, (8, 8), balance="modality", balance_exponent=exponent)
    drawn = Counter(cases[data.case_index(i)].modality for i in range(400))
    assert drawn["rare"] / 400 == pytest.approx(share, abs=0.03)


def test_foreground_is_oversampled():
    always = PatchDataset([case(0)], (8, 8), oversample_foreground=1.0)
    assert all((always[i][1] == 1).any() for i in range(20))
    never = PatchDataset([case(0)], (8, 8), oversample_foreground=0.0)
    assert sum((never[i][1] == 1).any().item() for i in range(20)) < 10


def test_transform_runs_last():
    data = PatchDataset(
        [case(4)], (8, 8), transform=lambda image, label: (image.mean(), label.sum())
    )
    assert data[0][0] == 4


def test_crop_reflected_continues_the_image():
    array = np.arange(12).reshape(1, 3, 4)
    crop = crop_reflected(array, (-1, 2), (4, 4))
    np.testing.assert_array_equal(crop[0, 0], [6, 7, 6, 5])
    np.testing.assert_array_equal(crop[0, 1], [2, 3, 2, 1])
    assert crop_reflected(np.ones((2, 1, 3)), (-5, -5), (11, 13)).shape == (2, 11, 13)


def test_no_cases():
    with pytest.raises(DatasetError, match="no cases"):
        PatchDataset([], (8, 8))
