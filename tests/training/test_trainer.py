import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric.plugins import MixedPrecision

from tiny import make_case, make_config
from tttunet.errors import Cancelled, DatasetError
from tttunet.models.model import Model, load_model
from tttunet.training.checkpoint import CHECKPOINT_NAME
from tttunet.training.config import TrainConfig
from tttunet.training.trainer import Trainer, TrainEvent, TrainingFailed


@pytest.fixture
def cases():
    return [make_case(seed, (40, 48)) for seed in range(4)]


def make(folder, cases, steps, *, dim=2, task="instance", **options):
    torch.manual_seed(0)
    recipe = {"batch_size": 2, "workers": 0, "precision": "32-true", "warmup_steps": 5}
    keys = set(TrainConfig.model_fields) & set(options)
    recipe |= {key: options.pop(key) for key in keys}
    return Trainer(
        Model.create(make_config(dim, task)),
        cases,
        cases[:1],
        TrainConfig(steps=steps, **recipe),
        folder,
        device="cpu",
        **options,
    )


def train(folder, cases, steps, *, resume=False, **options):
    trainer = make(folder, cases, steps, **options)
    return trainer, trainer.run(resume=resume)


def weights(folder):
    return torch.load(folder / CHECKPOINT_NAME, weights_only=True)["network"]


def test_learns_and_leaves_model_curve_and_history(tmp_path, cases):
    events: list[TrainEvent] = []
    _, model = train(tmp_path, cases, 60, listener=events.append, validate_every=30)
    rows = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < 0.75 * losses[0]
    assert [row["step"] for row in rows if "score" in row] == [30, 60]
    assert (tmp_path / "loss.png").stat().st_size > 1000
    assert [event.step for event in events if event.kind == "step"] == list(range(1, 61))
    assert events[-1].kind == "validation"
    assert events[-1].progress == 1
    assert events[0].remaining > 0
    reloaded = load_model(tmp_path / "model")
    x = torch.randn(1, 1, 32, 32)
    with torch.inference_mode():
        assert torch.equal(reloaded.network(x), model.network(x))


def test_resume_is_exact(tmp_path, cases):
    train(tmp_path / "whole", cases, 12)
    stop_at = iter([False] * 7 + [True] * 100)
    with pytest.raises(Cancelled):
        train(tmp_path / "parts", cases, 12, cancel=lambda: next(stop_at))
    train(tmp_path / "parts", cases, 12, resume=True)
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_seed_decides_everything(tmp_path, cases):
    train(tmp_path / "a", cases, 4)
    train(tmp_path / "b", cases, 4)
    train(tmp_path / "c", cases, 4, seed=1)
    a, b, c = (weights(tmp_path / name) for name in "abc")
    name = "encoder.stages.0.blocks.0.conv1.weight"
    assert torch.equal(a[name], b[name])
    assert not torch.equal(a[name], c[name])


def test_three_dimensions_and_classes(tmp_path):
    cases = [make_case(seed, (32, 36, 40), "semantic") for seed in range(2)]
    _, model = train(tmp_path, cases, 3, dim=3, task="semantic", optimiser="sgd")
    assert model.config.network.dim == 3


def test_divergence_ends_with_a_sentence(tmp_path, cases):
    torch.manual_seed(0)
    model = Model.create(make_config())
    with torch.no_grad():
        next(model.network.parameters()).fill_(float("nan"))
    config = TrainConfig(steps=100, batch_size=1, workers=0, precision="32-true")
    with pytest.raises(TrainingFailed, match="not finite"):
        Trainer(model, cases, [], config, tmp_path, device="cpu").run()
    assert not (tmp_path / "model").exists()


def test_time_budget_ends_the_training(tmp_path, cases):
    trainer, _ = train(tmp_path, cases, None, max_minutes=0.05)
    assert trainer.step > 0
    assert 3 <= trainer.elapsed < 30


def test_resume_without_a_checkpoint(tmp_path, cases):
    with pytest.raises(DatasetError, match="no checkpoint"):
        train(tmp_path, cases, 2, resume=True)


def test_damaged_checkpoint(tmp_path, cases):
    train(tmp_path, cases, 2)
    path = tmp_path / CHECKPOINT_NAME
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DatasetError, match="damaged"):
        train(tmp_path, cases, 4, resume=True)
    load_model(tmp_path / "model")


def test_a_budget_is_required(tmp_path, cases):
    with pytest.raises(ValueError, match="steps or minutes"):
        train(tmp_path, cases, None)


TWO_PROCESSES = """
import sys
from tiny import make_case, make_config
from tttunet.models.model import Model
from tttunet.training.config import TrainConfig
from tttunet.training.trainer import Trainer

cases = [make_case(seed, (40, 48)) for seed in range(2)]
config = TrainConfig(steps=4, batch_size=1, workers=0, precision="32-true")
trainer = Trainer(
    Model.create(make_config()), cases, cases[:1], config, sys.argv[1], device="cpu", devices=2
)
trainer.run()
total = sum(p.double().sum() for p in trainer.network.module.parameters()).item()
print(f"weights {trainer.fabric.global_rank} {total!r}", flush=True)
"""


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    tests = Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, script, tmp_path / "out"],
        env={**os.environ, "PYTHONPATH": str(tests)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    sums = [line.split()[2] for line in run.stdout.splitlines() if line.startswith("weights")]
    assert len(sums) == 2
    assert sums[0] == sums[1]
    rows = (tmp_path / "out" / "history.jsonl").read_text().splitlines()
    assert len(rows) == 1
    load_model(tmp_path / "out" / "model")


def test_empty_validation_images_leave_a_model(tmp_path, cases):
    """Where neither the truth nor the result has a class, there is no score."""
    cases = [replace(case, label=(case.label > 0).astype(np.int32)) for case in cases]
    trainer, model = train(
        tmp_path, cases, 4, task="semantic", validate_every=2, score=lambda model: float("nan")
    )
    assert trainer.best_step == 4
    assert load_model(tmp_path / "model").config.name == model.config.name


@pytest.mark.parametrize("wanted", [None, "16-mixed"])
def test_no_half_floats_on_a_cpu_beside_a_gpu(tmp_path, cases, monkeypatch, wanted):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    trainer = Trainer(
        Model.create(make_config(2)),
        cases,
        [],
        TrainConfig(steps=1, precision=wanted),
        tmp_path,
        device="cpu",
    )
    assert trainer.precision != "16-mixed"


def test_the_scale_of_the_gradients_is_resumed(tmp_path, cases):
    """Half precision on a CPU: what Fabric does on GPUs, without one."""

    def half(folder):
        trainer = make(folder, cases, 2, optimiser="sgd")
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2)
        trainer.fabric.strategy.precision = MixedPrecision("16-mixed", "cpu", scaler)
        return trainer, scaler

    trainer, scaler = half(tmp_path)
    trainer.run()
    scale = scaler.get_scale()
    assert scale == 512.0
    trainer, scaler = half(tmp_path)
    assert scaler.get_scale() == 256.0
    trainer.run(resume=True)
    assert scaler.get_scale() == scale
