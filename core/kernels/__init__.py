"""Operators on tensors: one operator, one contract, several backends.

    reference   token by token, straight from the equations: the contract
    dual        mini-batch dual form in PyTorch: any device, differentiable as often as you like
    cpu         the same, made fast on CPUs, with a backward pass of its own
    triton      fused kernels for NVIDIA and AMD GPUs

All keep the inner state in fp32 (fp64 for fp64 inputs) whatever the autocast.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from tttunet.kernels import fused, unfused
from tttunet.kernels.contract import (
    OperatorError,
    Settings,
    TTTResult,
    check_arguments,
    check_finite,
)
from tttunet.kernels.device import available_backends, fused_backend
from tttunet.kernels.norm import instance_norm
from tttunet.kernels.rope import rotary_embedding

__all__ = [
    "Backend",
    "OperatorError",
    "TTTResult",
    "available_backends",
    "instance_norm",
    "rotary_embedding",
    "ttt_linear",
    "ttt_linear_with_state",
    "ttt_mlp",
    "ttt_mlp_with_state",
]

Backend = Literal["auto", "cpu", "triton", "dual", "reference"]


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
    base_lr: float | None = None,
    rope_theta: float | None = None,
    bidirectional: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """TTT-Linear: the inner model is x W + b, trained while it reads the tokens.

    Args:
        q, k, v: [batch, heads, tokens, d], fp64, fp32, bf16 or fp16, all of one dtype.
        lr: inner learning rate of every token, [batch, heads, tokens]; its logit if `base_lr`.
        coefficient: factor of every position in a mini-batch, [K]; K is the mini-batch size. A
            tail of tokens % K forms a shorter mini-batch.
        state: (W [heads, d, d], b [heads, d]), the state every sample starts from. A leading
            batch axis gives each sample its own.
        norm_weight, norm_bias: inner LayerNorm, [heads, d].
        eps: of the inner LayerNorm, inside the square root.
        base_lr: the rate of a token is base_lr * sigmoid(lr) / d; None: it is lr.
        rope_theta: base of the rotary embedding of q and k, see `rotary_embedding`; None: none.
        bidirectional: scan the tokens in both orders from the same state, and average.
        backend: `auto` takes the fastest one for the device.

    Returns:
        [batch, heads, tokens, d] in fp32 (fp64 for fp64 inputs).

    Raises:
        OperatorError: shapes, dtypes or devices do not fit, a tensor is empty, the backend
            cannot run here, or, on CPUs without gradients, an argument is NaN or infinite.
    """
    arguments = (q, k, v, lr, coefficient, state, norm_weight, norm_bias)
    settings = Settings(eps, base_lr, rope_theta, bidirectional)
    return _run("linear", arguments, settings, backend).output


def ttt_linear_with_state(
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
    base_lr: float | None = None,
    rope_theta: float | None = None,
    bidirectional: bool = False,
    backend: Backend = "auto",
) -> TTTResult:
    """`ttt_linear` with its final state, to go on from, and the inner losses."""
    arguments = (q, k, v, lr, coefficient, state, norm_weight, norm_bias)
    settings = Settings(eps, base_lr, rope_theta, bidirectional)
    return _run("linear", arguments, settings, backend)


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
    base_lr: float | None = None,
    rope_theta: float | None = None,
    bidirectional: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """TTT-MLP: the inner model is gelu(x W1 + b1) W2 + b2 with m hidden units.

    Args:
        state: (W1 [heads, d, m], b1 [heads, m], W2 [heads, m, d], b2 [heads, d]), with an
            optional leading batch axis. The other arguments, the result and the errors are those
            of `ttt_linear`.
    """
    arguments = (q, k, v, lr, coefficient, state, norm_weight, norm_bias)
    settings = Settings(eps, base_lr, rope_theta, bidirectional)
    return _run("mlp", arguments, settings, backend).output


def ttt_mlp_with_state(
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
    base_lr: float | None = None,
    rope_theta: float | None = None,
    bidirectional: bool = False,
    backend: Backend = "auto",
) -> TTTResult:
    """`ttt_mlp` with its final state, to go on from, and the inner losses."""
    arguments = (q, k, v, lr, coefficient, state, norm_weight, norm_bias)
    settings = Settings(eps, base_lr, rope_theta, bidirectional)
    return _run("mlp", arguments, settings, backend)


Arguments = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, tuple[Tensor, ...], Tensor, Tensor]


def _run(inner: str, arguments: Arguments, settings: Settings, backend: Backend) -> TTTResult:
    check_arguments(inner, *arguments, settings)
    q, _, _, _, coefficient, *_ = arguments
    usable = available_backends(q.device)
    if backend == "auto":
        chosen = fused_backend(q, coefficient) or "dual"
    elif backend in usable:
        chosen = backend
    elif backend in get_args(Backend):
        raise OperatorError(
            f"The backend '{backend}' cannot run on {q.device} here.",
            f"Choose one of: {', '.join(usable)}.",
        )
    else:
        raise OperatorError(f"There is no backend '{backend}'.", f"There are: {', '.join(usable)}.")
    run = unfused.run if chosen in unfused.BACKENDS else fused.run
    with fused.no_autocast(q.device.type):
        result = run(chosen, inner, *arguments, settings)
    # In training a bad step is left out, and on a GPU the check would wait for the result: the
    # trainer and `predict` check theirs.
    wanted = q.device.type == "cpu" and not result.output.requires_grad
    if wanted and not torch.compiler.is_compiling():
        names = ("q", "k", "v", "lr", "coefficient", "norm_weight", "norm_bias")
        tensors = [x for x in arguments if isinstance(x, Tensor)]
        states = {f"state[{i}]": x for i, x in enumerate(arguments[5])}
        check_finite(result, dict(zip(names, tensors, strict=True)) | states)
    return result
