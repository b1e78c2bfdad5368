"""Training steps per second, and where the time of a step goes."""

from __future__ import annotations

import functools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from torch import Tensor

from tttunet.bench.machine import peak_memory, synchronise, use_threads
from tttunet.bench.paired import GateFailed, Progress, Spread
from tttunet.bench.report import Report, megabytes, part_cells, part_rows
from tttunet.models.config import ModelConfig
from tttunet.models.model import Model
from tttunet.training.config import TrainConfig
from tttunet.training.dataset import open_dataset
from tttunet.training.planning import load_recipe, plan_training
from tttunet.training.prepare import PreparedCase, prepare
from tttunet.training.trainer import Trainer

#: In the order in which they happen. `data` is waiting for a batch, `forward` includes the loss.
PARTS = ("data", "forward", "backward", "optimiser")
#: Steps before the measured ones.
WARMUPS = 2
_CASES = 4
_DISCS_PER_PIXEL = 1 / 1000
_SIDE = {2: 320, 3: 80}


class TimedTrainer(Trainer):
    """A trainer that keeps the time of the parts of its steps.

    Attributes:
        steps: seconds of `PARTS`, one entry per step.
        losses: of every step.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.steps: list[dict[str, float]] = []
        self.losses: list[float | None] = []
        self._waited = self._backward_start = self._backward_end = 0.0
        setattr(self.fabric, "backward", self._timed(self.fabric.backward))  # noqa: B010

    def _timed(self, backward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(backward)
        def timed(*arguments: Any, **options: Any) -> None:
            self._backward_start = self._clock()
            backward(*arguments, **options)
            self._backward_end = self._clock()

        return timed

    def _clock(self) -> float:
        synchronise(self.fabric.device)
        return time.perf_counter()

    def batches(self) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """The training's batches; waiting for one counts as `data`."""
        source = self._batches()
        while True:
            start = time.perf_counter()
            batch = next(source)
            self._waited = time.perf_counter() - start
            yield batch

    def timed_step(self, image: Tensor, targets: dict[str, Tensor]) -> None:
        """One step on a batch of `batches`."""
        start = self._clock()
        self.losses.append(self._train_step(image, targets))
        end = self._clock()
        self.step += 1
        parts = (
            self._waited,
            self._backward_start - start,
            self._backward_end - self._backward_start,
            end - self._backward_end,
        )
        self.steps.append(dict(zip(PARTS, parts, strict=True)))


def measure_training(
    recipe: str = "nuclei",
    *,
    batch_size: int | None = None,
    workers: int = 0,
    rounds: int = 5,
    threads: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Report:
    """Train the network of a recipe for a few steps on made-up images of discs.

    Args:
        recipe: name of a shipped recipe, or path of a JSON file.
        batch_size: patches per step; None: the recipe's.
        workers: processes that prepare patches; 0: none, so that `data` is all of that work.
        rounds: measured steps.
        threads: of PyTorch; None: as they are.
        device: `cpu`, `cuda` or `mps`.
        progress: called with (steps done, steps in all).

    Raises:
        DatasetError: the recipe is unknown or wrong.
        GateFailed: a loss is not finite.
    """
    parts = load_recipe(recipe)
    with tempfile.TemporaryDirectory() as folder, use_threads(threads):
        config, settings, cases = _plan(parts, Path(folder), batch_size, workers, rounds)
        trainer = _make_trainer(config, settings, cases, Path(folder), device)
        source = trainer.batches()
        for _ in range(WARMUPS - 1):
            trainer.timed_step(*next(source))
        batch = next(source)
        memory = peak_memory(lambda: trainer.timed_step(*batch), device)
        _check_losses(trainer)
        trainer.steps.clear()
        for done in range(rounds):
            trainer.timed_step(*next(source))
            if progress is not None:
                progress(done + 1, rounds)
        losses = _check_losses(trainer)
        return _report(recipe, trainer, settings, config, losses, memory, device)


def _plan(
    parts: dict[str, Any], folder: Path, batch_size: int | None, workers: int, rounds: int
) -> tuple[ModelConfig, TrainConfig, list[PreparedCase]]:
    strides = parts.get("network", {}).get("strides") or [(1, 1)]
    _write_dataset(folder / "data", len(strides[0]))
    changes: dict[str, Any] = {"workers": workers, "steps": WARMUPS + rounds, "max_minutes": None}
    if batch_size is not None:
        changes["batch_size"] = batch_size
    data = open_dataset(folder / "data")
    merged = {**parts, "train": {**parts.get("train", {}), **changes}}
    config, settings = plan_training(data, merged, "bench")
    cache = folder / "cache" if workers else None
    channels = config.network.input_channels
    return config, settings, prepare(data, config.plan, cache, channels=channels)


def _make_trainer(
    config: ModelConfig,
    settings: TrainConfig,
    cases: list[PreparedCase],
    folder: Path,
    device: str,
) -> TimedTrainer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = Model.create(config)
    return TimedTrainer(model, cases, [], settings, folder / "run", device=device)


def _write_dataset(folder: Path, dim: int) -> None:
    """Bright discs on noise with their labels, as files."""
    shape = (_SIDE[dim],) * dim
    grid = np.indices(shape, np.float32)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for number in range(_CASES):
        rng = np.random.default_rng(number)
        label = np.zeros(shape, np.uint16)
        for value in range(1, int(_SIDE[2] ** 2 * _DISCS_PER_PIXEL) + 1):
            centre = rng.uniform(0, shape[0], dim).reshape(-1, *(1,) * dim)
            label[((grid - centre) ** 2).sum(0) < rng.uniform(4, 10) ** 2] = value
        image = rng.normal(60, 10, shape) + 120 * (label > 0)
        pixels = image.clip(0, 255).astype(np.uint8)
        for kind, array in (("images", pixels), ("labels", label)):
            path = folder / kind / f"{number}.tif"
            tifffile.imwrite(path, array, imagej=True, metadata={"axes": "ZYX"[-dim:]})
    names = [str(number) for number in range(_CASES)]
    description = {
        "task": "instance",
        "dim": dim,
        "classes": {"1": "disc"},
        "split": {"train": names, "val": []},
    }
    (folder / "dataset.json").write_text(json.dumps(description))


def _check_losses(trainer: TimedTrainer) -> list[float]:
    losses = [loss for loss in trainer.losses if loss is not None]
    if len(losses) < len(trainer.losses):
        raise GateFailed("The loss or its gradient is not finite; the times would mean nothing.")
    return losses


def _report(
    recipe: str,
    trainer: TimedTrainer,
    settings: TrainConfig,
    config: ModelConfig,
    losses: list[float],
    memory: int | None,
    device: str,
) -> Report:
    totals = Spread.of([sum(step.values()) for step in trainer.steps])
    spreads = {name: Spread.of([step[name] for step in trainer.steps]) for name in PARTS}
    rows = part_rows(spreads, totals)
    patch = " x ".join(map(str, config.plan.patch_size))
    rate = 1 / totals.median
    return Report(
        "training",
        f"A training step of the recipe {recipe}: {settings.batch_size} patches of {patch}",
        ("part", "ms", "share"),
        part_cells(rows),
        rows,
        {
            "recipe": recipe,
            "patch_size": list(config.plan.patch_size),
            "batch_size": settings.batch_size,
            "workers": settings.workers,
            "precision": trainer.precision,
            "rounds": len(trainer.steps),
            "device": device,
            "steps_per_second": rate,
            "peak_memory_bytes": memory,
        },
        {"losses": losses},
        (
            f"{rate:.3g} steps per second in {trainer.precision}; a step needs up to "
            f"{megabytes(memory)} MB beside weights and optimiser.",
        ),
    )
