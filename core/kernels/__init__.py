"""Operators on tensors: one operator, one contract, several backends.

Backends: `reference` (token by token, the contract) and `dual` (mini-batch dual form, the
default). All compute in fp32, or in fp64 if the inputs are fp64, whatever the autocast.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from tttunet.kernels import dual, reference
from tttunet.kernels.rope import rotary_embedding

__all__ = ["Backend", "rotary_embedding", "ttt_linear", "ttt_mlp"]

Backend = Literal["dual", "reference"]
_BACKENDS: dict[str, ModuleType] = {"dual": dual, "reference": reference}


def ttt_linear(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    coefficient: Tensor,
    state: tuple[Tensor, Tensor],
    norm_weight: Tensor,
    norm_bias: Tensor,
    *,
    eps: float = 1e-6,
    backend: Backend = "dual",
) -> Tensor:
    """TTT-Linear: the inner model is x W + b, trained while it reads the tokens.

    Args:
        q, k, v: [batch, heads, tokens, d], after rotary embedding.
        lr: inner learning rate of every token, [batch, heads, tokens].
        coefficient: factor of every position in a mini-batch, [K]; K is the mini-batch size. A
            tail of tokens % K forms a shorter mini-batch.
        state: (W [heads, d, d], b [heads, d]), the state every sample starts from. A leading
            batch axis gives each sample its own.
        norm_weight, norm_bias: inner LayerNorm, [heads, d].
        eps: of the inner LayerNorm, inside the square root.
        backend: `dual` or `reference`.

    Returns:
        [batch, heads, tokens, d] in fp32 (fp64 for fp64 inputs).
    """
    return _run("ttt_linear", q, k, v, lr, coefficient, state, norm_weight, norm_bias, eps, backend)


def ttt_mlp(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    coefficient: Tensor,
    state: tuple[Tensor, Tensor, Tensor, Tensor],
    norm_weight: Tensor,
    norm_bias: Tensor,
    *,
    eps: float = 1e-6,
    backend: Backend = "dual",
) -> Tensor:
    """TTT-MLP: the inner model is gelu(x W1 + b1) W2 + b2 with m hidden units.

    Args:
        state: (W1 [heads, d, m], b1 [heads, m], W2 [heads, m, d], b2 [heads, d]), with an
            optional leading batch axis. The other arguments are those of `ttt_linear`.

    Returns:
        [batch, heads, tokens, d] in fp32 (fp64 for fp64 inputs).
    """
    return _run("ttt_mlp", q, k, v, lr, coefficient, state, norm_weight, norm_bias, eps, backend)


def _run(
    operator: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    coefficient: Tensor,
    state: tuple[Tensor, ...],
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    backend: Backend,
) -> Tensor:
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    batch = q.shape[0]
    tensors = [x.to(dtype) for x in (q, k, v, lr, coefficient)]
    parts = []
    for index, part in enumerate(state):
        is_bias = index % 2 == 1
        part = part.to(dtype)
        if part.ndim == (2 if is_bias else 3):
            part = part.expand(batch, *part.shape)
        # The dual form works on whole mini-batches: its biases carry a token axis of one.
        parts.append(part[:, :, None] if is_bias and backend == "dual" else part)
    with _no_autocast(q.device.type):
        return getattr(_BACKENDS[backend], operator)(
            *tensors, tuple(parts), norm_weight.to(dtype), norm_bias.to(dtype), eps
        )


def _no_autocast(device_type: str) -> AbstractContextManager:
    """Autocast off, also for devices (meta) that know none."""
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
