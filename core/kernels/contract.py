"""What every backend of a TTT operator takes and returns, and the checks in front of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tttunet.errors import TTTUNetError

INPUT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class OperatorError(TTTUNetError, ValueError):
    """Arguments of an operator do not fit together."""


class TTTResult(NamedTuple):
    """Everything a TTT operator can tell.

    Attributes:
        output: [batch, heads, tokens, d].
        state: the parts of the state after the last token, [batch, heads, ...] each.
        losses: inner loss of every token before the step of its mini-batch,
            1/2 ||LN(f(k)) - (v - k)||^2, [batch, heads, tokens].

    Scanned in both directions, `output` is the mean of the two; state and losses have a leading
    axis of 2: along the tokens, against them.
    """

    output: Tensor
    state: tuple[Tensor, ...]
    losses: Tensor


class ForwardResult(NamedTuple):
    """What the forward pass of a fused backend returns, of TTT-Linear or TTT-MLP.

    fp32, or fp64 for fp64 arguments; R is the number of directions.

    Attributes:
        output: [R, batch, heads, tokens, d].
        state: the parts of the final state, [R, batch, heads, ...] each.
        losses: inner loss of every token before its mini-batch's step, [R, batch, heads, tokens].
        saved: the parts of the states at the start of the mini-batches 0, save, 2 save, ...,
            [R, batch, heads, ceil(mini-batches / save), ...]; without elements if `save` is 0.
    """

    output: Tensor
    state: tuple[Tensor, ...]
    losses: Tensor
    saved: tuple[Tensor, ...]


@dataclass(frozen=True)
class Settings:
    """The scalar arguments of a TTT operator.

    Attributes:
        eps: of the inner LayerNorm, inside the square root.
        base_lr: the rate of a token is base_lr * sigmoid(lr) / d; None: it is lr itself.
        rope_theta: base of the rotary embedding of q and k; None: no rotation.
        bidirectional: scan the tokens in both orders and average.
    """

    eps: float = 1e-6
    base_lr: float | None = None
    rope_theta: float | None = None
    bidirectional: bool = False


def check_arguments(
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
) -> None:
    """Shapes, dtypes and devices of a TTT operator's arguments.

    Args:
        inner: `linear` or `mlp`; the others are those of `tttunet.kernels.ttt_linear`.

    Raises:
        OperatorError: naming the argument, what it is and what it should be.
    """
    if q.ndim != 4:
        raise OperatorError(f"q has the shape {_shape(q)}; it must be [batch, heads, tokens, d].")
    if 0 in q.shape:
        raise OperatorError(f"q is empty: it has the shape {_shape(q)}.")
    batch, heads, tokens, d = q.shape
    if q.dtype not in INPUT_DTYPES:
        raise OperatorError(f"q is {q.dtype}; it must be floating point.")
    if coefficient.ndim != 1 or coefficient.numel() == 0:
        raise OperatorError(
            f"coefficient has the shape {_shape(coefficient)}; it must be [mini-batch size]."
        )
    expected: dict[str, tuple[Tensor, tuple[int, ...]]] = {
        "k": (k, (batch, heads, tokens, d)),
        "v": (v, (batch, heads, tokens, d)),
        "lr": (lr, (batch, heads, tokens)),
        "norm_weight": (norm_weight, (heads, d)),
        "norm_bias": (norm_bias, (heads, d)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise OperatorError(f"{name} has the shape {_shape(tensor)}; it must be {list(shape)}.")
    for name, tensor in (("k", k), ("v", v)):
        if tensor.dtype != q.dtype:
            raise OperatorError(f"{name} is {tensor.dtype}, but q is {q.dtype}.")
    _check_state(state, 2 if inner == "linear" else 4, batch, heads, d)
    named = {name: tensor for name, (tensor, _) in expected.items()}
    named |= {"coefficient": coefficient} | {f"state[{i}]": x for i, x in enumerate(state)}
    for name, tensor in named.items():
        if tensor.device != q.device:
            raise OperatorError(f"{name} is on {tensor.device}, but q is on {q.device}.")
        if not tensor.is_floating_point():
            raise OperatorError(f"{name} is {tensor.dtype}; it must be floating point.")
    for name, value in (("eps", settings.eps), ("rope_theta", settings.rope_theta)):
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise OperatorError(f"{name} is {value}; it must be positive.")


def _check_state(state: tuple[Tensor, ...], parts: int, batch: int, heads: int, d: int) -> None:
    if len(state) != parts:
        raise OperatorError(f"state has {len(state)} parts; this inner model has {parts}.")
    hidden = d if parts == 2 else state[0].shape[-1]
    shapes: tuple[tuple[int, ...], ...] = ((d, hidden), (hidden,))
    if parts == 4:
        shapes += ((hidden, d), (d,))
    for index, (part, shape) in enumerate(zip(state, shapes, strict=True)):
        if part.shape != (heads, *shape) and part.shape != (batch, heads, *shape):
            raise OperatorError(
                f"state[{index}] has the shape {_shape(part)}; it must be {[heads, *shape]}, or "
                f"{[batch, heads, *shape]} for a state of each sample."
            )


def check_finite(result: TTTResult, arguments: dict[str, Tensor]) -> None:
    """Name the argument that made a result NaN or infinite.

    Raises:
        OperatorError: `result.output` has a value that is not finite.
    """
    # The sum of finite values is finite unless they are huge: one pass, no copy.
    if math.isfinite(result.output.sum().item()) or torch.isfinite(result.output).all():
        return
    guilty = [name for name, x in arguments.items() if not torch.isfinite(x).all()]
    if guilty:
        raise OperatorError(f"{' and '.join(guilty)} contain NaN or infinity.")
    raise OperatorError(
        "The inner model diverged: its output is NaN or infinite.",
        "Lower the inner learning rate (base_lr) or the scale of q, k and v.",
    )


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
