"""`tttunet finetune`: some steps on three small images, and what is said about them."""

from __future__ import annotations

from pathlib import Path

import pytest

import tttunet
from squares import write_squares

from .conftest import Run, tiny_model


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_squares(tmp_path / "squares", "semantic")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_model("instance").save(tmp_path / "start")


def test_masks_teach_an_instance_model(run: Run, model, dataset, tmp_path):
    words = ["finetune", model, dataset, "-o", tmp_path / "run", "--task", "instance"]
    ran = run(*words, "--steps", 3, "--seed", 4, "--name", "mine")
    assert ran.code == 0, ran.err
    assert "Held out: F1 at IoU 0.5" in ran.out
    assert "objects" in ran.out
    assert f"Model: {tmp_path / 'run' / 'model'}" in ran.out
    tuned = tttunet.load_model(tmp_path / "run" / "model")
    assert (tuned.config.name, tuned.config.task) == ("mine", "instance")
    assert tuned.config.card.training["seed"] == 4
    again = run(*words, "--steps", 3)
    assert (again.code, "holds a training already" in again.err) == (1, True)
    assert run(*words, "--steps", 3, "--overwrite").code == 0


def test_a_new_head_for_other_classes(run: Run, model, dataset, tmp_path):
    ran = run("finetune", model, dataset, "-o", tmp_path / "run", "--steps", 2, "--parts", "head")
    assert ran.code == 0, ran.err
    assert "Held out: Dice" in ran.out
    config = tttunet.load_model(tmp_path / "run" / "model").config
    assert (config.task, config.labels[0].name) == ("semantic", "square")


def test_from_scratch(run: Run, dataset, tmp_path):
    ran = run("finetune", "scratch", dataset, "-o", tmp_path / "run", "--steps", 1)
    assert ran.code == 0, ran.err
    assert tttunet.load_model(tmp_path / "run" / "model").config.card.parent is None


def test_nothing_to_resume(run: Run, model, dataset, tmp_path):
    ran = run("finetune", model, dataset, "-o", tmp_path / "run", "--resume")
    assert (ran.code, "no fine-tuning to resume" in ran.err) == (1, True)
