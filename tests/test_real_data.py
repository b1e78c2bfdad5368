"""The whole way on real images: volumes in and out, and the shipped model on real nuclei."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import tttunet
from tttunet.cli import main
from tttunet.evaluation import instance_scores, pool
from tttunet.training.dataset import open_dataset

TINY_VOLUME_NETWORK = {
    "network": {
        "features": [8, 16, 16],
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        "kernel_sizes": [[3, 3, 3]] * 3,
        "encoder_blocks": [1, 1, 1],
        "decoder_blocks": [1, 1],
    },
    "train": {"batch_size": 2, "workers": 0, "precision": "32-true"},
}


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture
def hippocampus(data_dir: Path, tmp_path: Path) -> Path:
    """Four training and two validation volumes as a data set of their own."""
    source = data_dir / "mr_hippocampus_msd"
    if not source.is_dir():
        pytest.skip(f"{source} does not exist")
    description = json.loads((source / "dataset.json").read_text())
    split = {"train": description["split"]["train"][:4], "val": description["split"]["val"][:2]}
    folder = tmp_path / "hippocampus"
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
        for name in split["train"] + split["val"]:
            shutil.copy(source / part / f"{name}.nii.gz", folder / part)
    (folder / "dataset.json").write_text(json.dumps(description | {"split": split}))
    return folder


def test_volumes_are_trained_on_and_segmented_on_their_own_grid(hippocampus, tmp_path):
    recipe = tmp_path / "tiny.json"
    recipe.write_text(json.dumps(TINY_VOLUME_NETWORK))
    training = tmp_path / "training"
    run("train", hippocampus, "--output", training, "--recipe", recipe, "--steps", 4)
    names = json.loads((hippocampus / "dataset.json").read_text())["split"]["val"]
    inputs = [hippocampus / "images" / f"{name}.nii.gz" for name in names]
    output = tmp_path / "segmented"
    run("segment", *inputs, "--model", training / "model", "--output", output)
    for name, path in zip(names, inputs, strict=True):
        image = sitk.ReadImage(str(path))
        labels = sitk.ReadImage(str(output / f"{name}_labels.nii.gz"))
        assert labels.GetSize() == image.GetSize()
        assert labels.GetSpacing() == image.GetSpacing()
        assert labels.GetOrigin() == image.GetOrigin()
        assert labels.GetDirection() == image.GetDirection()
        assert set(np.unique(sitk.GetArrayFromImage(labels))) <= {0, 1, 2}
    report = tmp_path / "report.json"
    truth = tmp_path / "truth"
    truth.mkdir()
    for name in names:
        shutil.copy(hippocampus / "labels" / f"{name}.nii.gz", truth)
    run("evaluate", output, truth, "--task", "semantic", "--json", report)
    assert len(json.loads(report.read_text())["cases"]) == 2


@pytest.mark.slow
def test_the_recipe_for_the_hippocampus_learns(hippocampus, tmp_path):
    losses = []
    model = tttunet.train(
        hippocampus,
        tmp_path / "training",
        recipe="hippocampus-mr",
        steps=12,
        device="cpu",
        listener=lambda event: losses.append(event.loss) if event.kind == "step" else None,
    )
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.1
    plan = model.config.plan
    assert (plan.patch_size, plan.spacing) == ((40, 56, 40), (1.0, 1.0, 1.0))
    assert [rule.scheme for rule in plan.intensities] == ["zscore"]
    assert model.config.labels[0].name == "anterior hippocampus"


@pytest.mark.slow
def test_the_shipped_model_on_real_nuclei(data_dir):
    folder = data_dir / "nuclei_dsb2018"
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist")
    model = tttunet.load_model("nuclei")
    scores = []
    for case in open_dataset(folder).cases["val"]:
        labels = tttunet.segment(tttunet.load_image(case.images[0]), model).labels
        scores.append(instance_scores(labels, tttunet.load_labels(case.label).array, (0.5,)))
    # benchmarks/results/nuclei_accuracy.json records 0.867 and 0.871.
    assert pool(scores)[0].f1 > 0.86
    assert np.mean([image[0].f1 for image in scores]) > 0.87
