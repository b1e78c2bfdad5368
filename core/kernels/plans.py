"""The launches of a whole operator for given extents, planned without data.

For the static analysis: tensors are on the meta device, laid out as the TTT layer and the
residual blocks hand them over.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor

from tttunet.kernels.contract import Settings
from tttunet.kernels.triton_launch import Launch

PASSES = ("forward", "backward")


@dataclass(frozen=True)
class TTTProblem:
    """Extents of a TTT operator.

    Attributes:
        inner: `linear`, or `mlp` with 4 d hidden units.
        batch, heads, tokens, d, mini_batch: extents.
        dtype: of q, k and v.
        bidirectional: both scan directions.
    """

    inner: str
    tokens: int
    heads: int
    d: int
    dtype: torch.dtype = torch.bfloat16
    batch: int = 1
    mini_batch: int = 64
    bidirectional: bool = False


def plan_ttt(problem: TTTProblem, hip: bool = False) -> dict[str, list[Launch]]:
    """Launches of both passes, with rotary embedding and gated rates as in the TTT layer.

    The forward pass is that of training: it saves the states that the backward pass wants, at
    the interval that the operator chooses.

    Args:
        problem: extents.
        hip: plan for an AMD GPU, not for one of NVIDIA's.

    Returns:
        Launches by pass, see `PASSES`.
    """
    # Imported here: planning needs Triton, the names of this module do not.
    from tttunet.kernels.fused import save_interval

    settings = Settings(base_lr=1.0, rope_theta=10000.0, bidirectional=problem.bidirectional)
    heads, d = problem.heads, problem.d
    hidden = 4 * d
    shapes = [(d, d), (d,)]
    if problem.inner == "mlp":
        shapes = [(d, hidden), (hidden,), (hidden, d), (d,)]
    rows = _meta(problem.batch, problem.tokens, heads, d, dtype=problem.dtype)
    q = k = v = rows.transpose(1, 2)
    lr = _meta(problem.batch, heads, problem.tokens)
    coefficient = _meta(problem.mini_batch)
    state = [_meta(1, heads, *shape) for shape in shapes]
    norm = [_meta(heads, d), _meta(heads, d)]
    save = save_interval(state, d, problem.mini_batch)
    given = (q, k, v, lr, coefficient, *state, *norm)
    # TTT-MLP is launched alike everywhere.
    options = {"hip": hip} if problem.inner == "linear" else {}

    module = import_module(f"tttunet.kernels.triton_{problem.inner}")
    forward, result = module.plan_forward(*given, settings, save, **options)
    module = import_module(f"tttunet.kernels.triton_{problem.inner}_backward")
    backward, _ = module.plan_backward(
        result.output, *result.state, *given, *result.saved, settings, save, **options
    )
    return {"forward": forward, "backward": backward}


@dataclass(frozen=True)
class NormProblem:
    """Extents of InstanceNorm + residual add + LeakyReLU on channels-last memory.

    Attributes:
        positions: product of the spatial axes.
        channels, batch: extents.
        dtype: of the map.
        residual: whether a shortcut is added.
    """

    positions: int
    channels: int
    dtype: torch.dtype = torch.bfloat16
    batch: int = 1
    residual: bool = True


def plan_norm(problem: NormProblem) -> dict[str, list[Launch]]:
    """Launches of both passes, see `PASSES`."""
    from tttunet.kernels.triton_norm import plan_norm_backward, plan_norm_forward

    x = _meta(problem.batch, problem.positions, problem.channels, dtype=problem.dtype)
    affine = (_meta(problem.channels), _meta(problem.channels))
    residual = torch.empty_like(x) if problem.residual else None
    forward, result = plan_norm_forward(x, *affine, residual, 1e-5, 0.01)
    backward, _ = plan_norm_backward(result.y, x, *affine, residual, result.mean, result.rstd, 0.01)
    return {"forward": forward, "backward": backward}


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
