"""The extents that the kernels' benchmarks share: layers and maps of the networks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Layer:
    """A TTT layer: `tokens` of `heads` x d channels."""

    name: str
    tokens: int
    heads: int
    d: int


@dataclass(frozen=True)
class Map:
    """The input of an InstanceNorm: channels and spatial axes."""

    name: str
    channels: int
    size: tuple[int, ...]


LAYERS = (
    Layer("Enc, 256 x 256 x 64", 65536, 8, 8),
    Layer("Bot 5-stage 512, 32 x 32 x 320", 1024, 16, 20),
    Layer("Enc, 64 x 64 x 256", 4096, 8, 32),
    Layer("64 x 64 x 512", 4096, 8, 64),
    Layer("32 x 32 x 1024", 1024, 8, 128),
)
MAPS = (
    Map("Bot 5-stage 512, first stage", 32, (512, 512)),
    Map("Bot 5-stage 512, third stage", 128, (128, 128)),
    Map("Bot 5-stage 512, last stage", 320, (32, 32)),
    Map("Bot 3D, first stage", 32, (40, 112, 96)),
)
