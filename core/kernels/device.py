"""Which backend runs where."""

from __future__ import annotations

import functools
import os
from importlib.util import find_spec

import torch
from torch import Tensor

#: Limits of the Triton kernels.
MAX_TRITON_HEAD_DIM = 128
MAX_TRITON_MINI_BATCH = 64


def available_backends(device: torch.device | str) -> tuple[str, ...]:
    """Backends of the TTT operators that can run on a device, the fastest first.

    Triton's interpreter (TRITON_INTERPRET=1) runs its kernels on CPU tensors, very slowly.
    """
    kind = torch.device(device).type
    backends: tuple[str, ...] = ("dual", "reference")
    if kind == "cpu":
        backends = ("cpu", *backends, *(("triton",) if _interpreted() else ()))
    elif kind == "cuda" and _has_triton():
        backends = ("triton", *backends)
    return backends


def fused_backend(q: Tensor, coefficient: Tensor) -> str | None:
    """The fused backend for these tensors, or None where only PyTorch's operators serve."""
    first = available_backends(q.device)[0]
    if first == "cpu":
        return first
    d = q.shape[-1]
    fits = d <= MAX_TRITON_HEAD_DIM and len(coefficient) <= MAX_TRITON_MINI_BATCH
    return first if first == "triton" and fits and q.dtype != torch.float64 else None


@functools.cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1" and _has_triton()
