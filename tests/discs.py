"""Bright discs, which a tiny network knows, and dark ones, which it learns by fine-tuning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tiny import blobs
from tttunet.models.model import load_model
from tttunet.training.checkpoint import CHECKPOINT_NAME
from tttunet.training.finetune import FinetuneResult, finetune
from tttunet.training.prepare import IGNORE
from tttunet.training.samples import Sample

#: Small and fast, and the same on every machine.
FAST = {"precision": "32-true", "batch_size": 2, "warmup_steps": 2, "validate_every": 10}


def sample(seed: int, *, dark: bool = True, shape=(64, 80), count=14) -> Sample:
    image, labels = blobs(seed, shape, count)
    image = image.astype(np.float32)
    return Sample(f"image{seed}", 1 - image if dark else image, labels)


def partly(one: Sample) -> Sample:
    """Nobody looked at a half of it."""
    labels = one.labels.copy()
    labels[:, 40:] = IGNORE
    return replace(one, labels=labels)


def run(start, data, output, **options) -> FinetuneResult:
    options.setdefault("steps", 30)
    options.setdefault("learning_rate", 1e-2)
    chosen = FAST | options.pop("options", {})
    return finetune(start, data, output, device="cpu", options=chosen, **options)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(folder).network.state_dict()


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return all(torch.equal(first[name], second[name]) for name in first)


def same_state(one: Path, other: Path) -> bool:
    """Weights, moving average and choice of the best, at the end of two trainings."""
    first, second = (
        torch.load(folder / CHECKPOINT_NAME, weights_only=True) for folder in (one, other)
    )
    equal = all(
        torch.equal(value, second[part][name])
        for part in ("network", "average")
        for name, value in first[part].items()
    )
    numbers = ("step", "best", "best_step", "stale")
    return equal and all(first[name] == second[name] for name in numbers)
