"""`tttunet finetune`: some steps on three small images, and what is said about them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tttunet
from squares import write_squares
from tttunet.models.config import Label
from tttunet.models.model import Model
from tttunet.training.defaults import BLEND, SHARE
from tttunet.training.run import RECORD_NAME

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


def of_squares(folder: Path, *more: str) -> Path:
    """A model that finds the data set's class, and more."""
    config = tiny_model("semantic").config
    labels = tuple(Label(value=i, name=name) for i, name in enumerate(("square", *more), 1))
    network = config.network.model_copy(update={"output_channels": len(labels) + 1})
    changed = config.model_copy(update={"labels": labels, "network": network})
    return Model.create(changed).save(folder / "finds-squares")


def test_classes_that_are_left_alone_are_named_once(run: Run, dataset, tmp_path):
    ran = run(
        "finetune", of_squares(tmp_path, "ground"), dataset, "-o", tmp_path / "run", "--steps", 1
    )
    assert ran.code == 0, ran.err
    assert ran.out.count("The model also finds 'ground'") == 1
    assert ran.out.index("'ground'") < ran.out.index("Held out")


def test_shares_of_what_is_held_out_and_of_the_trained_weights(run: Run, dataset, tmp_path):
    model = of_squares(tmp_path)

    def card(name: str, *options: object) -> dict:
        words = ["finetune", model, dataset, "-o", tmp_path / name, "--steps", 2, *options]
        ran = run(*words)
        assert ran.code == 0, ran.err
        return tttunet.load_model(tmp_path / name / "model").config.card.training

    default = card("default")
    assert default["settings"]["blend"] == BLEND
    assert json.loads((tmp_path / "default" / RECORD_NAME).read_text())["share"] == SHARE
    chosen = card("chosen", "--blend", 0.25, "--share", 0.5)
    assert chosen["settings"]["blend"] == 0.25
    assert json.loads((tmp_path / "chosen" / RECORD_NAME).read_text())["share"] == 0.5
    for wrong in (["--share", 1.5], ["--blend", 0]):
        assert run("finetune", model, dataset, "-o", tmp_path / "wrong", *wrong).code == 2
    again = run("finetune", model, dataset, "-o", tmp_path / "chosen", "--steps", 2, "--resume")
    assert "differ: share" in again.err, "what was held out must not be trained on"


def test_nothing_to_resume(run: Run, model, dataset, tmp_path):
    ran = run("finetune", model, dataset, "-o", tmp_path / "run", "--resume")
    assert (ran.code, "no fine-tuning to resume" in ran.err) == (1, True)
