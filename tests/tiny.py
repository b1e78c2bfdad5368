"""Small made-up data and networks that train in seconds."""

from __future__ import annotations

import numpy as np

from tttunet.models.config import (
    INSTANCE_CHANNELS,
    Card,
    InstanceDecoding,
    Label,
    ModelConfig,
    Plan,
)
from tttunet.networks.config import TTTConfig, uniform_config
from tttunet.training.prepare import PreparedCase


def blobs(seed: int, shape: tuple[int, ...], count: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Bright discs on a dark noisy ground: image [1, *shape] float16, label int32."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    label = np.zeros(shape, np.int32)
    for value in range(1, count + 1):
        centre = [rng.uniform(4, n - 4) for n in shape]
        label[np.linalg.norm(grid - centre, axis=-1) < rng.uniform(3, 5)] = value
    image = 0.1 * rng.standard_normal(shape) + 0.8 * (label > 0)
    return image[None].astype(np.float16), label


def make_case(seed: int, shape: tuple[int, ...], task: str = "instance") -> PreparedCase:
    image, label = blobs(seed, shape)
    if task == "semantic":
        label = (label > 0).astype(np.int32)
    locations = np.argwhere(label > 0).astype(np.int32)
    values = label[tuple(locations.T)][:, None]
    order = np.argsort(values[:, 0], kind="stable")
    return PreparedCase(f"case{seed}", image, label, np.hstack([values, locations])[order])


def make_config(dim: int = 2, task: str = "instance") -> ModelConfig:
    patch = (32,) * dim
    instance = task == "instance"
    return ModelConfig(
        name="tiny",
        task=task,
        network=uniform_config(
            dim,
            1,
            len(INSTANCE_CHANNELS) if instance else 2,
            (8, 16, 16),
            blocks=1,
            ttt=TTTConfig(heads=2, residual=True),
        ),
        plan=Plan(
            patch_size=patch,
            decoding=InstanceDecoding(min_size=5) if instance else None,
            mirror_axes=tuple(range(dim)),
        ),
        labels=(Label(value=1, name="disc"),),
        card=Card(title="tiny"),
    )
