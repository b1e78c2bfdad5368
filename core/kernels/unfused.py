"""The backends in plain PyTorch: what goes into the inner loop is prepared step by step."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from tttunet.kernels import dual, reference
from tttunet.kernels.contract import Settings, TTTResult
from tttunet.kernels.rope import rotary_embedding

BACKENDS: dict[str, ModuleType] = {"dual": dual, "reference": reference}


def run(
    backend: str,
    inner: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    coefficient: Tensor,
    state: tuple[Tensor, ...],
    norm_weight: Tensor,
    norm_bias: Tensor,
    settings: Settings,
) -> TTTResult:
    """A TTT operator with rates, directions and rotation as steps of their own, in fp32 or fp64."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    q, k, v, lr, coefficient = (x.to(dtype) for x in (q, k, v, lr, coefficient))
    batch, d = q.shape[0], q.shape[-1]
    if settings.base_lr is not None:
        lr = settings.base_lr * torch.sigmoid(lr) / d
    if settings.bidirectional:
        # Both directions run as one batch.
        q, k, v, lr = (torch.cat((x, x.flip(2))) for x in (q, k, v, lr))
    if settings.rope_theta is not None:
        q, k = (rotary_embedding(x, coefficient.shape[0], settings.rope_theta) for x in (q, k))
    result = getattr(BACKENDS[backend], f"ttt_{inner}")(
        q,
        k,
        v,
        lr,
        coefficient,
        _per_sample(state, batch, len(q), dtype),
        norm_weight.to(dtype),
        norm_bias.to(dtype),
        settings.eps,
    )
    if not settings.bidirectional:
        return TTTResult(result.output, result.state, result.losses.detach())
    forward, backward = result.output.chunk(2)
    losses = result.losses.detach().unflatten(0, (2, batch))
    losses = torch.stack((losses[0], losses[1].flip(2)))
    parts = tuple(part.unflatten(0, (2, batch)) for part in result.state)
    return TTTResult((forward + backward.flip(2)) / 2, parts, losses)


def _per_sample(
    state: tuple[Tensor, ...], batch: int, copies: int, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """The state of every sample and direction, [copies, heads, ...] each."""
    parts = []
    for index, part in enumerate(state):
        shared = part.ndim == (2 if index % 2 else 3)
        part = part.to(dtype)
        if shared:
            parts.append(part.expand(copies, *part.shape))
        else:
            parts.append(part.repeat(copies // batch, *[1] * (part.ndim - 1)))
    return tuple(parts)
