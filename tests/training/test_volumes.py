"""Training on volumes: turned, cropped and resampled for the network, labels on their own grid."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from tttunet.errors import DatasetError
from tttunet.imaging.readers import load_image, load_labels
from tttunet.inference.ensemble import ensemble
from tttunet.inference.segment import segment
from tttunet.models.config import Plan
from tttunet.networks.config import uniform_config
from tttunet.training.augment import AugmentConfig
from tttunet.training.dataset import open_dataset
from tttunet.training.planning import plan_training
from tttunet.training.prepare import IGNORE, prepare
from tttunet.training.run import train
from tttunet.training.samples import read_split, to_cases
from tttunet.training.trainer import TrainEvent

from .volumes import ball, describe, write_case

SMALL = {
    "network": {
        "features": [4, 8],
        "kernel_sizes": [[3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2]],
        "encoder_blocks": [1, 1],
        "decoder_blocks": [1],
        "ttt": {"heads": 2, "residual": True},
    },
    "plan": {"patch_size": [8, 24, 24]},
    "train": {
        "batch_size": 2,
        "workers": 0,
        "learning_rate": 1e-2,
        "warmup_steps": 5,
        "ema_decay": 0.8,
        "precision": "32-true",
    },
}


@pytest.fixture
def balls(tmp_path):
    """Balls in volumes of three slice distances, one of them upside down."""
    for number, thickness in enumerate([2.0, 2.0, 2.0, 1.0, 4.0, 2.0]):
        shape = (round(24 / thickness), 24, 24)
        image, label = ball(shape, (thickness, 1, 1), seed=number)
        image[0] = 0  # cropped away
        flip = (1, 0, 0, 0, 1, 0, 0, 0, -1) if number == 5 else None
        write_case(tmp_path, f"v{number}", image, label, spacing=(thickness, 1, 1), direction=flip)
    return describe(tmp_path)


def test_everything_is_brought_to_one_grid(balls):
    plan = Plan(
        patch_size=(8, 24, 24),
        spacing=(2.0, 1.0, 1.0),
        unit="millimeter",
        orientation="LPS",
        normalisation="zscore",
        crop="nonzero",
    )
    dataset = open_dataset(balls)
    cases = {c.name: c.open() for s in ("train", "val") for c in prepare(dataset, plan, split=s)}
    volumes = {}
    for name, (image, label, locations) in cases.items():
        assert image.shape[1:] == label.shape
        assert abs(image.shape[1] - 11) <= 1
        assert np.all(label[tuple(locations[:, 1:].T)] == locations[:, 0])
        # Bright where it is labelled: image and label were moved alike.
        assert image[0][label == 1].mean() > image[0][label == 0].mean() + 1
        volumes[name] = int((label == 1).sum()) * 2
    # The same ball whatever the thickness of the slices: 4/3 pi 7^3 = 1437 mm3.
    assert all(abs(volume - 1437) < 150 for volume in volumes.values()), volumes


def test_ignored_voxels_stay_ignored(balls):
    describe(balls, labels={"background": 0, "cube": 2, "ignore": 1})
    plan = Plan(patch_size=(8, 24, 24), spacing=(1.0, 1.0, 1.0), normalisation="zscore")
    case = prepare(open_dataset(balls), plan)[0]
    assert set(np.unique(case.open()[1])) == {IGNORE, 0}


def test_training_segments_the_original_grid(balls, tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps(SMALL))
    events: list[TrainEvent] = []
    model = train(
        balls,
        tmp_path / "run",
        recipe=str(tmp_path / "recipe.json"),
        steps=60,
        device="cpu",
        listener=events.append,
    )
    losses = [event.loss for event in events if event.kind == "step"]
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.5
    plan = model.config.plan
    assert (plan.orientation, plan.crop) == ("LPS", "nonzero")
    assert plan.spacing == pytest.approx((2, 1, 1))
    for name in ("v4", "v5"):
        image = load_image(balls / "imagesTr" / f"{name}_0000.nii.gz")
        truth = load_labels(balls / "labelsTr" / f"{name}.nii.gz").array
        found = segment(image, model, device="cpu").labels
        assert found.shape == truth.shape
        dice = 2 * (found * truth).sum() / (found.sum() + truth.sum())
        assert dice > 0.8, name


def test_cross_validation(balls, tmp_path):
    """Two folds hold out different volumes, have one plan, and segment as one."""
    (tmp_path / "recipe.json").write_text(json.dumps(SMALL))
    folds = []
    for fold in range(2):
        model = train(
            balls,
            tmp_path / f"fold{fold}",
            recipe=str(tmp_path / "recipe.json"),
            overrides={"train": {"folds": 2, "fold": fold}},
            steps=2,
            device="cpu",
        )
        assert model.config.card.training["val_images"] == 3
        folds.append(model)
    assert folds[0].config.plan == folds[1].config.plan
    caches = [{path.name for path in (tmp_path / f"fold{i}/cache").rglob("*.npy")} for i in (0, 1)]
    assert caches[0] == caches[1]
    image = load_image(balls / "imagesTr" / "v5_0000.nii.gz")
    assert segment(image, ensemble(folds), device="cpu").labels.shape == image.array.shape

    again = train(balls, tmp_path / "fold1", resume=True, steps=3, device="cpu")
    settings = json.loads((tmp_path / "fold1" / "training.json").read_text())
    assert (settings["folds"], settings["fold"]) == (2, 1)
    assert again.config.card.training["val_images"] == 3


def test_samples_for_fine_tuning_are_brought_to_the_same_grid(balls):
    """What a model is fine-tuned on looks as what it was trained on, also where labels are few."""
    config, _ = plan_training(open_dataset(balls), SMALL)
    samples, _ = read_split(balls, "train")
    cases = to_cases(samples, config)
    for case, other in zip(cases, prepare(open_dataset(balls), config.plan), strict=True):
        for ours, theirs in zip(case.open(), other.open(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    one = next(sample for sample in samples if sample.name == "v4")
    part = replace(one, labels=one.labels[2:5], bounds=((2, 5), (0, 24), (0, 24)))
    _, label, _ = to_cases([part], config)[0].open()
    known = np.flatnonzero((label != IGNORE).any((1, 2)))
    # Three slices of 4 mm are six of 2 mm.
    assert known[-1] - known[0] + 1 == 6
    with pytest.raises(DatasetError, match="shape"):
        to_cases([replace(part, bounds=((2, 4), (0, 24), (0, 24)))], config)
    flat = config.model_copy(update={"network": uniform_config(2, 1, 2, (4, 8))})
    with pytest.raises(DatasetError, match="grid of its own"):
        to_cases(samples, flat)


def test_a_single_labelled_slice_is_never_lost(balls):
    """The network's voxels are three times as thick as the slices."""
    config = plan_training(open_dataset(balls), name="balls")[0]
    thick = tuple(3 * size for size in config.plan.spacing)
    plan = config.plan.model_copy(update={"spacing": thick})
    config = config.model_copy(update={"plan": plan})
    whole = read_split(balls)[0][0]
    for z in range(3, 9):
        labels = np.full(whole.labels.shape, IGNORE, np.int32)
        labels[z] = whole.labels[z]
        (case,) = to_cases([replace(whole, labels=labels)], config)
        known = case.open()[1]
        assert (known == 1).any()
        assert (known == 0).any()


def test_rotations_of_flat_patches_stay_in_the_plane():
    assert AugmentConfig.for_patch((8, 112, 128)).in_plane
    assert AugmentConfig.for_patch((8, 112, 128)).rotation == 180
    assert not AugmentConfig.for_patch((40, 56, 40)).in_plane
    assert AugmentConfig.for_patch((40, 56, 40)).rotation == 30
