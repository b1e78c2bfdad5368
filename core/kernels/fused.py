"""The fused backends as operators of `torch.library`: autograd, compile, export and CUDA graphs.

One operator serves both inner models and all fused backends; `inner` and `backend` choose the
implementation, `state` is the list of its parts. A backend module provides `linear_forward`,
`linear_backward`, `mlp_forward` and `mlp_backward` and is imported when it is first used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from tttunet.kernels.contract import ForwardResult, Settings, TTTResult

#: Modules of the backends: forward and backward of each inner model.
_MODULES = {
    ("cpu", "linear"): ("cpu_linear", "cpu_linear"),
    ("cpu", "mlp"): ("cpu_mlp", "cpu_mlp"),
    ("triton", "linear"): ("triton_linear", "triton_linear_backward"),
    ("triton", "mlp"): ("triton_mlp", "triton_mlp_backward"),
}
_ARGUMENTS = (
    "Tensor q, Tensor k, Tensor v, Tensor lr, Tensor coefficient, Tensor[] state, "
    "Tensor norm_weight, Tensor norm_bias"
)
_SETTINGS = "float eps, float? base_lr, float? rope_theta, bool bidirectional"
_CHOICE = "str inner, str backend, int save"


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
    """A TTT operator by a fused backend.

    q, k and v keep their dtype in Triton; everything else, and everything on the CPU, is fp32,
    or fp64 on the CPU if q is.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    if backend == "cpu":
        q, k, v = (x.to(dtype) for x in (q, k, v))
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    parts = [
        (part if part.ndim == (3 if index % 2 else 4) else part[None]).to(dtype).contiguous()
        for index, part in enumerate(state)
    ]
    small = [x.to(dtype).contiguous() for x in (lr, coefficient, norm_weight, norm_bias)]
    differentiated = torch.is_grad_enabled() and any(
        x.requires_grad for x in (q, k, v, *small, *parts)
    )
    save = save_interval(parts, q.shape[-1], len(coefficient)) if differentiated else 0
    output, final, losses, _ = _forward(
        q,
        k,
        v,
        small[0],
        small[1],
        parts,
        small[2],
        small[3],
        settings.eps,
        settings.base_lr,
        settings.rope_theta,
        settings.bidirectional,
        inner,
        backend,
        save,
    )
    if settings.bidirectional:
        return TTTResult((output[0] + output[1]) / 2, tuple(final), losses)
    return TTTResult(output[0], tuple(part[0] for part in final), losses[0])


def save_interval(state: Sequence[Tensor], d: int, mini_batch: int) -> int:
    """Mini-batches between saved states, so that these take no more memory than q, k and v."""
    elements = sum(math.prod(part.shape[2:]) for part in state)
    return max(1, math.ceil(elements / (3 * mini_batch * d)))


@torch.library.custom_op(
    "tttunet::ttt",
    mutates_args=(),
    schema=f"({_ARGUMENTS}, {_SETTINGS}, {_CHOICE}) -> (Tensor, Tensor[], Tensor, Tensor[])",
)
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    coefficient: Tensor,
    state: Sequence[Tensor],
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    base_lr: float | None,
    rope_theta: float | None,
    bidirectional: bool,
    inner: str,
    backend: str,
    save: int,
) -> tuple[Tensor, list[Tensor], Tensor, list[Tensor]]:
    """Output [R, B, H, T, d], final state, losses [R, B, H, T] and the saved states."""
    settings = Settings(eps, base_lr, rope_theta, bidirectional)
    function = _function(backend, inner, "forward")
    with no_autocast(q.device.type):
        result: ForwardResult = function(
            q, k, v, lr, coefficient, *state, norm_weight, norm_bias, settings, save
        )
    return result.output, list(result.state), result.losses, list(result.saved)


@_forward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    coefficient: Tensor,
    state: Sequence[Tensor],
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    base_lr: float | None,
    rope_theta: float | None,
    bidirectional: bool,
    inner: str,
    backend: str,
    save: int,
) -> tuple[Tensor, list[Tensor], Tensor, list[Tensor]]:
    directions, batch, heads, tokens = 2 if bidirectional else 1, *q.shape[:3]
    new = lr.new_empty  # fp32, or fp64
    final = [new(directions, batch, heads, *part.shape[2:]) for part in state]
    if save:
        mini_batches = -(-tokens // coefficient.shape[0])
        lead = (directions, batch, heads, -(-mini_batches // save))
        saved = [new(*lead, *part.shape[2:]) for part in state]
    else:
        saved = [new(0) for _ in state]
    losses = new(directions, batch, heads, tokens)
    return new(directions, *q.shape), final, losses, saved


@torch.library.custom_op(
    "tttunet::ttt_backward",
    mutates_args=(),
    schema=(
        f"(Tensor grad_output, Tensor[] grad_state, {_ARGUMENTS}, Tensor[] saved, {_SETTINGS}, "
        f"{_CHOICE}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor[], Tensor, Tensor)"
    ),
)
def _backward(
    grad_output: Tensor,
    grad_state: Sequence[Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    coefficient: Tensor,
    state: Sequence[Tensor],
    norm_weight: Tensor,
    norm_bias: Tensor,
    saved: Sequence[Tensor],
    eps: float,
    base_lr: float | None,
    rope_theta: float | None,
    bidirectional: bool,
    inner: str,
    backend: str,
    save: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor], Tensor, Tensor]:
    """Gradients of q, k, v, lr, coefficient, state, norm_weight and norm_bias."""
    settings = Settings(eps, base_lr, rope_theta, bidirectional)
    arguments = (q, k, v, lr, coefficient, *state, norm_weight, norm_bias)
    function = _function(backend, inner, "backward")
    with no_autocast(q.device.type):
        gradients = function(grad_output, *grad_state, *arguments, *saved, settings, save)
    dq, dk, dv, dlr, dc, *dstate, dweight, dbias = gradients
    return dq, dk, dv, dlr, dc, dstate, dweight, dbias


@_backward.register_fake
def _(
    grad_output: Tensor,
    grad_state: Sequence[Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    coefficient: Tensor,
    state: Sequence[Tensor],
    norm_weight: Tensor,
    norm_bias: Tensor,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor], Tensor, Tensor]:
    def like(x: Tensor) -> Tensor:
        return x.new_empty(x.shape)

    before = [like(x) for x in (q, k, v, lr, coefficient)]
    parts = [like(part) for part in state]
    return (*before, parts, like(norm_weight), like(norm_bias))  # type: ignore[return-value]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    q, k, v, lr, coefficient, state, norm_weight, norm_bias, *ctx.choice = inputs
    _, _, losses, saved = output
    ctx.parts = len(state)
    ctx.mark_non_differentiable(losses, *saved)
    ctx.save_for_backward(q, k, v, lr, coefficient, norm_weight, norm_bias, *state, *saved)


def _differentiate(
    ctx: Any, grad_output: Tensor, grad_state: Sequence[Tensor], *_: Any
) -> tuple[Any, ...]:
    *before, norm_weight, norm_bias = ctx.saved_tensors[:7]
    rest = ctx.saved_tensors[7:]
    state, saved = rest[: ctx.parts], rest[ctx.parts :]
    gradients = _backward(
        grad_output, list(grad_state), *before, state, norm_weight, norm_bias, saved, *ctx.choice
    )
    return (*gradients, *[None] * len(ctx.choice))


_forward.register_autograd(_differentiate, setup_context=_setup_context)


def _function(backend: str, inner: str, direction: str) -> Callable[..., Any]:
    module = _MODULES[backend, inner][direction == "backward"]
    return getattr(import_module(f"tttunet.kernels.{module}"), f"{inner}_{direction}")


def no_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Autocast off, where it is on; also for devices (meta) that know none."""
    available = torch.amp.is_autocast_available(device_type)
    if not (available and torch.is_autocast_enabled(device_type)):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
