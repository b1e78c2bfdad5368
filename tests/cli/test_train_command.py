"""`tttunet train`: two steps on three small images, stopped, resumed, replaced, continued."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest

import tttunet
from squares import NETWORK, write_squares
from tttunet.cli.console import ProgressBar
from tttunet.cli.train import _StopKey, duration
from tttunet.errors import ModelError, OutputError, TTTUNetError
from tttunet.training.trainer import Trainer

from .conftest import Run

RECIPE = {"network": NETWORK, "train": {"batch_size": 1, "workers": 0}}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_squares(tmp_path / "squares")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(RECIPE))
    return path


def test_train_says_what_it_made(run: Run, tmp_path: Path, dataset: Path, recipe: Path):
    output = tmp_path / "run"
    ran = run("train", dataset, "--output", output, "--recipe", recipe, "--steps", 2)
    assert ran.code == 0, ran.err
    assert "step 2" in ran.err
    for expected in (f"Model: {output / 'model'}", f"Curve: {output / 'loss.png'}", "Score: "):
        assert expected in ran.out
    assert (output / "loss.png").is_file()

    card = tttunet.load_model(output / "model").config.card
    assert card.licence == "CC0-1.0"
    assert card.training["steps"] == 2
    assert card.training["train_images"] == 2
    assert 0 <= card.scores["val"]["all"]["f1_pooled_iou50"] <= 1

    again = run("train", dataset, "--output", output, "--recipe", recipe, "--steps", 2)
    assert again.code == 1
    assert "--resume" in again.err
    assert "--overwrite" in again.err


def test_stopping_saves_and_resuming_goes_on(
    run: Run, tmp_path: Path, dataset: Path, recipe: Path, monkeypatch
):
    output = tmp_path / "run"
    steps = iter(range(10))
    original = Trainer._train_step

    def press_ctrl_c_in_the_second_step(self, *args):
        if next(steps) == 1:
            signal.raise_signal(signal.SIGINT)
        return original(self, *args)

    monkeypatch.setattr(Trainer, "_train_step", press_ctrl_c_in_the_second_step)
    words = ("train", dataset, "--output", output)
    ran = run(*words, "--recipe", recipe, "--steps", 4, "--seed", 3)
    assert ran.code == 130
    assert "Stopping after this step" in ran.err
    assert f"tttunet train {dataset} --output {output} --resume" in ran.err

    ran = run(*words, "--resume", "--seed", 4)
    assert ran.code == 1
    assert "train.seed" in ran.err
    ran = run(*words, "--resume", "--recipe", recipe, "--seed", 3, "--steps", 3)
    assert ran.code == 0, ran.err
    model = tttunet.load_model(output / "model")
    assert model.config.card.training["steps"] == 3
    assert next(steps) == 3


def test_python_function_with_start_model_and_without_ttt(
    tmp_path: Path, dataset: Path, recipe: Path
):
    overrides = {"network": {"ttt": None}}
    first = tttunet.train(
        dataset, tmp_path / "one", recipe=str(recipe), steps=1, overrides=overrides, name="first"
    )
    assert first.config.network.ttt is None
    second = tttunet.train(
        dataset,
        tmp_path / "two",
        start=first,
        steps=1,
        overrides={"train": {"workers": 0, "learning_rate": 1e-12}},
    )
    assert second.config.card.parent == "first 1.0.0"
    for name, value in first.network.state_dict().items():
        np.testing.assert_allclose(second.network.state_dict()[name], value, atol=1e-6)
    with pytest.raises(ModelError, match="cannot be changed"):
        tttunet.train(
            dataset, tmp_path / "three", start=first, overrides={"network": {"ttt": {"heads": 2}}}
        )


def test_overwriting_replaces_the_old_training_but_nothing_else(
    tmp_path: Path, dataset: Path, recipe: Path
):
    output = tmp_path / "run"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    (output / "checkpoint.pt").write_bytes(b"old")
    with pytest.raises(OutputError, match="holds a training already"):
        tttunet.train(dataset, output, recipe=str(recipe), steps=1)
    assert (output / "checkpoint.pt").read_bytes() == b"old"
    tttunet.train(dataset, output, recipe=str(recipe), steps=1, overwrite=True)
    assert (output / "checkpoint.pt").read_bytes() != b"old"
    assert (output / "notes.txt").read_text() == "mine"
    (output / "model" / "code.py").write_text("mine")
    with pytest.raises(OutputError, match=r"something else than a model \('code.py'\)"):
        tttunet.train(dataset, output, recipe=str(recipe), steps=1, overwrite=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "no-such"], "no recipe 'no-such'"),
        (["--resume"], "no training to resume"),
        (["--resume", "--overwrite"], "either resumed or overwritten"),
        (["--device", "abacus"], "Unknown device"),
        (["--from", "no-such"], "No model is called"),
        (["--learning-rate", "-1"], "learning_rate"),
    ],
)
def test_mistakes_are_named(run: Run, tmp_path: Path, dataset: Path, words, message: str):
    ran = run("train", dataset, "--output", tmp_path / "run", *words)
    assert ran.code == 1
    assert message in ran.err
    assert not (tmp_path / "run" / "plan.json").exists()


def test_dataset_without_description(run: Run, tmp_path: Path):
    ran = run("train", tmp_path, "--output", tmp_path / "run")
    assert ran.code == 1
    assert "dataset.json" in ran.err


def test_start_model_of_another_task(tmp_path: Path, dataset: Path, volume_model: Path):
    with pytest.raises(TTTUNetError, match="does not fit the data set"):
        tttunet.train(dataset, tmp_path / "run", start=volume_model)


def test_second_ctrl_c_and_one_before_the_first_step_end_at_once():
    stop = _StopKey(ProgressBar())
    with pytest.raises(KeyboardInterrupt):
        stop.handle(signal.SIGINT, None)
    assert stop() is False
    stop.handle(signal.SIGINT, None)
    assert stop() is True
    with pytest.raises(KeyboardInterrupt):
        stop.handle(signal.SIGINT, None)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min"), (3570, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_duration(seconds: float, text: str):
    assert duration(seconds) == text
