"""The estimate of memory against what a segmentation really takes."""

from __future__ import annotations

import ctypes
import gc
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tttunet.engine.memory import Estimate, estimate
from tttunet.imaging import Image
from tttunet.imaging.preprocess import place_of
from tttunet.inference.segment import segment
from tttunet.models.config import Card, InstanceDecoding, Label, ModelConfig, Plan
from tttunet.models.model import Model
from tttunet.networks.config import TTTConfig, uniform_config

from .conftest import noise

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures by /proc"),
]


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(name)))


def model_of(dim: int, task: str, features: tuple[int, ...], blocks: int) -> Model:
    labels = tuple(Label(value=i, name=str(i)) for i in range(1, 14 if task == "semantic" else 2))
    config = ModelConfig(
        name="m",
        task=task,
        network=uniform_config(
            dim, 1, 4 if task == "instance" else 14, features, blocks, ttt=TTTConfig(heads=4)
        ),
        plan=Plan(
            patch_size=(64,) * dim, decoding=InstanceDecoding() if task == "instance" else None
        ),
        labels=labels,
        card=Card(title="m"),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model.create(config)


@pytest.mark.parametrize(
    ("dim", "task", "features", "shape", "tile"),
    [
        (2, "instance", (32, 64, 128), (768, 768), 768),
        (2, "semantic", (32, 64, 128), (1024, 1024), 256),
        (3, "semantic", (16, 32, 64), (96, 96, 96), 96),
        (3, "instance", (16, 32), (96, 96, 96), 64),
        (3, "semantic", (32, 64), (64, 96, 96), 64),
    ],
)
def test_estimate_is_near_the_peak(dim, task, features, shape, tile):
    model = model_of(dim, task, features, 2 if dim == 2 else 1)
    tiles = (tile,) * dim
    axes = "ZYX"[-dim:]
    # What is allocated once only: threads, caches of the libraries, the weights' layout.
    segment(Image.from_array(noise((64,) * dim), axes), model, device="cpu", tile=tiles)
    image = Image.from_array(noise(shape), axes)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free in the heap would not show in the peak
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    segment(image, model, device="cpu", tile=tiles)
    peak = status("VmHWM") - before
    needed = without_files(estimate(model.config, shape, tile=tiles), model.config, shape)
    print(f"{dim}D {task} {features} {shape}: {peak / 1e6:.0f} MB, {needed / 1e6:.0f} MB estimated")
    assert 0.85 * peak < needed < 2 * peak


def without_files(need: Estimate, config: ModelConfig, shape: tuple[int, ...]) -> int:
    """The image and the labels in the exchange folder are not this process's."""
    label_bytes = 4 if config.task == "instance" else 1
    return need.host - math.prod(shape) * (1 + label_bytes)


@pytest.mark.parametrize(("spacing", "keep"), [((3.0, 1.0, 1.0), False), ((1.0, 0.6, 0.6), True)])
def test_estimate_is_near_the_peak_on_another_grid(spacing, keep):
    model = model_of(3, "semantic", (16, 32), 1)
    plan = model.config.plan.model_copy(
        update={"spacing": (1.0, 1.0, 1.0), "unit": "millimeter", "orientation": "RAS"}
    )
    model.config = model.config.model_copy(update={"plan": plan})
    options = {"spacing": spacing, "unit": "millimeter"}
    small = Image.from_array(noise((24, 64, 64)), "ZYX", **options)
    segment(small, model, device="cpu", tile=(64, 64, 64))
    image = Image.from_array(noise((60, 160, 160)), "ZYX", **options)
    place, _ = place_of(image.spatial_shape, spacing, image.direction, image.unit, plan)
    kept: list[np.ndarray | None] = []
    maps_done = (lambda index, maps: kept.append(maps)) if keep else None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    segment(image, model, device="cpu", tile=(64, 64, 64), maps_done=maps_done)
    peak = status("VmHWM") - before
    need = estimate(
        model.config, image.spatial_shape, tile=(64, 64, 64), place=place, keep_maps=keep
    )
    needed = without_files(need, model.config, image.spatial_shape)
    print(f"{spacing} {place.grid}: {peak / 1e6:.0f} MB, {needed / 1e6:.0f} MB estimated")
    assert 0.85 * peak < needed < 2 * peak
