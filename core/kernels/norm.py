"""InstanceNorm, the sum with a shortcut and LeakyReLU as one operator.

    y = leaky_relu(instance_norm(x) + residual)

On CPUs by `cpu_norm`, on GPUs by Triton where the tensor is channels-last, elsewhere by
PyTorch's own operators one after the other.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tttunet.kernels.contract import OperatorError
from tttunet.kernels.device import available_backends


def instance_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    slope: float = 1.0,
    backend: str = "auto",
) -> Tensor:
    """leaky_relu(instance_norm(x) + residual).

    Args:
        x: [batch, C, *spatial], at least two positions.
        weight, bias: [C].
        residual: as x; None: nothing is added.
        eps: added to the variance.
        slope: of the LeakyReLU below zero; 1: no activation.
        backend: `auto`, `cpu`, `triton` or `torch`.

    Returns:
        Tensor of the shape, dtype and memory format of x.

    Raises:
        OperatorError: shapes do not fit.
    """
    _check(x, weight, bias, residual)
    if backend == "auto":
        backend = _pick(x)
    if backend == "cpu":
        from tttunet.kernels import cpu_norm

        return cpu_norm.instance_norm(x, weight, bias, residual, eps, slope)
    if backend == "triton":
        rows = _channels_last(x)
        shortcut = None if residual is None else _channels_last(residual.to(x.dtype))
        y, _, _ = _forward(rows, weight.float(), bias.float(), shortcut, eps, slope)
        return y.unflatten(1, x.shape[2:]).movedim(-1, 1)
    y = F.instance_norm(x, weight=weight.to(x.dtype), bias=bias.to(x.dtype), eps=eps)
    if residual is not None:
        y = y + residual
    return y if slope == 1 else F.leaky_relu(y, slope)


def _check(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> None:
    if x.ndim < 3 or 0 in x.shape or not x.is_floating_point():
        raise OperatorError(
            f"x is {x.dtype} of the shape {list(x.shape)}; it must be floating point, "
            "[batch, channels, *spatial], and not empty."
        )
    if x[0, 0].numel() == 1:
        raise OperatorError(f"x has a single position ({list(x.shape)}); a norm needs two.")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor.shape != x.shape[1:2]:
            raise OperatorError(
                f"{name} has the shape {list(tensor.shape)}; it must be {[x.shape[1]]}."
            )
    if residual is not None and residual.shape != x.shape:
        raise OperatorError(
            f"residual has the shape {list(residual.shape)}; x has {list(x.shape)}."
        )


def _pick(x: Tensor) -> str:
    first = available_backends(x.device)[0]
    if first == "cpu":
        return first
    rows = x.movedim(1, -1)
    fits = first == "triton" and rows.is_contiguous() and x.dtype != torch.float64
    return "triton" if fits else "torch"


def _channels_last(x: Tensor) -> Tensor:
    """[batch, C, *spatial] -> [batch, positions, C], contiguous; a view of channels-last memory."""
    return x.movedim(1, -1).flatten(1, -2).contiguous()


@torch.library.custom_op(
    "tttunet::instance_norm",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias, Tensor? residual, float eps, float slope) "
    "-> (Tensor, Tensor, Tensor)",
)
def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """y, mean and reciprocal deviation; x is [batch, positions, C]."""
    from tttunet.kernels.triton_norm import norm_forward

    return tuple(norm_forward(x, weight, bias, residual, eps, slope))  # type: ignore[return-value]


@_forward.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    statistics = [weight.new_empty(x.shape[0], x.shape[2]) for _ in range(2)]
    return torch.empty_like(x), statistics[0], statistics[1]


@torch.library.custom_op(
    "tttunet::instance_norm_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor weight, Tensor bias, Tensor? residual, Tensor mean, "
    "Tensor rstd, float slope) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and residual (empty without one)."""
    from tttunet.kernels.triton_norm import norm_backward

    dx, dweight, dbias, dresidual = norm_backward(
        grad, x, weight, bias, residual, mean, rstd, slope
    )
    return dx, dweight, dbias, x.new_empty(0) if dresidual is None else dresidual


@_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dresidual = x.new_empty(0) if residual is None else torch.empty_like(residual)
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias), dresidual


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    x, weight, bias, residual, _, ctx.slope = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, weight, bias, residual, mean, rstd)


def _differentiate(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, weight, bias, residual, mean, rstd = ctx.saved_tensors
    dx, dweight, dbias, dresidual = _backward(
        grad.contiguous(), x, weight, bias, residual, mean, rstd, ctx.slope
    )
    return dx, dweight, dbias, None if residual is None else dresidual, None, None


_forward.register_autograd(_differentiate, setup_context=_setup_context)
