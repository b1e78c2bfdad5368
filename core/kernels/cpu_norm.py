"""InstanceNorm, residual and LeakyReLU on the CPU, forward and backward, without copies.

The eager operators read and write the whole map five to seven times and convert channels-last maps
to channels-first and back. PyTorch's BatchNorm has kernels for channels-last maps; one sample's
BatchNorm is InstanceNorm. Blocks that stay in the cache are read twice: once for the statistics,
once to apply them by that kernel, the residual and the activation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Bytes of a block; larger ones leave the cache, smaller ones cost calls.
BLOCK_BYTES = 1 << 21
#: Values of a row whose columns are added up: fewer cost a loop's overhead and make long sums.
MIN_WIDTH = 1024
#: Bytes of a cache line of all processors of today that PyTorch runs on.
CACHE_LINE = 64
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def instance_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    slope: float = 1.0,
    *,
    inplace: bool = False,
) -> Tensor:
    """leaky_relu(InstanceNorm(x) * weight + bias + residual, slope).

    Statistics are those of every sample and channel over all positions, computed in fp32 (fp64
    for fp64) around the mean of the first positions, so that a large common offset does not
    cancel. Other devices and compilers take PyTorch's operators.

    Args:
        x: [batch, channels, *spatial], 2D or 3D, floating point. Contiguous in
            `torch.channels_last` (`channels_last_3d`) it is not copied.
        weight, bias: [channels].
        residual: added before the activation, shape of `x`.
        eps: added to the variance.
        slope: of the activation for negative values; 1 is no activation.
        inplace: where no gradient is wanted, overwrite `x` with the result.

    Returns:
        Shape and dtype of `x`, channels-last. Differentiable once, with respect to `x`, `weight`,
        `bias` and `residual`.
    """
    if slope <= 0 or _needs_plain_operators(x):
        return plain_instance_norm(x, weight, bias, residual, eps, slope)
    layout = _CHANNELS_LAST[x.ndim]
    x = x.contiguous(memory_format=layout)
    if residual is not None:
        residual = residual.to(x.dtype).contiguous(memory_format=layout)
    tensors = (x, weight, bias) if residual is None else (x, weight, bias, residual)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return _InstanceNorm.apply(x, weight, bias, residual, eps, slope)
    out = x if inplace else torch.empty_like(x)
    _forward(x, weight, bias, residual, eps, slope, out)
    return out


def plain_instance_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    slope: float = 1.0,
) -> Tensor:
    """The same by PyTorch's own operators: any device, compilers, higher derivatives.

    On the CPU their gradients are wrong (torch 2.13) for a batch of one if the gradient of the
    result is channels-last.
    """
    y = F.instance_norm(x, weight=weight, bias=bias, eps=eps)
    if residual is not None:
        y = y + residual
    return y if slope == 1 else F.leaky_relu(y, slope)


def _needs_plain_operators(x: Tensor) -> bool:
    """Compilers and tensors without data must not see a loop over blocks."""
    return (
        x.device.type != "cpu"
        or x.ndim not in _CHANNELS_LAST
        or x.numel() == x.shape[0] * x.shape[1]
        or type(x) not in (Tensor, torch.nn.Parameter)
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
    )


def _as_rows(x: Tensor, start: int, rows: int, width: int) -> Tensor:
    """View of a dense channels-last map's memory as another, [1, width, rows, 1]."""
    # Cheaper than the six views that lead there, and there are many blocks.
    strides = (rows * width, 1, width, width)
    return x.as_strided((1, width, rows, 1), strides, x.storage_offset() + start)


def _sample_as_rows(x: Tensor, n: int, repeat: int = 1) -> Tensor:
    """View of one sample of x [batch, C, *spatial] as [1, repeat * C, positions / repeat, 1]."""
    size, width = x[0].numel(), repeat * x.shape[1]
    return _as_rows(x, n * size, size // width, width)


def _blocks(n: int, *maps: Tensor, repeat: int = 1) -> Iterator[tuple[Tensor, ...]]:
    """The same of one sample of all maps together, in blocks that stay in the cache."""
    size, width = maps[0][0].numel(), repeat * maps[0].shape[1]
    rows = size // width
    height = max(1, BLOCK_BYTES // (width * maps[0].element_size()))
    for first in range(0, rows, height):
        start, count = n * size + first * width, min(height, rows - first)
        yield tuple(_as_rows(x, start, count, width) for x in maps)


def _positions_per_row(channels: int, positions: int) -> int:
    """How many positions make a row whose columns are worth adding up, a divisor of all."""
    repeat = 1
    while positions % (2 * repeat) == 0 and repeat * channels < MIN_WIDTH:
        repeat *= 2
    return repeat


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    eps: float,
    slope: float,
    out: Tensor,
) -> tuple[Tensor, Tensor]:
    """Fill `out`, which may be `x`; returns mean and 1/std, [batch, C] each."""
    means, variances = _statistics(x)
    weight, bias = weight.to(means.dtype), bias.to(means.dtype)
    maps = (x, out) if residual is None else (x, out, residual)
    for n in range(len(x)):
        norm = _Norm(weight, bias, means[n], variances[n], eps=eps)
        _apply(_blocks(n, *maps), norm, slope)
    return means, torch.rsqrt(variances + eps)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every sample and channel, [batch, C], at least fp32.

    They are put together from those of short columns: no sum is long, and the squares are small
    where values have a large offset. PyTorch's own statistics would take three quarters of the
    time, but their rounding depends on the number of threads, and Winograd's maps make more of it.
    """
    channels, positions = x.shape[1], x[0, 0].numel()
    repeat = _positions_per_row(channels, positions)
    dtype = torch.promote_types(x.dtype, torch.float32)
    blocks = [
        block[0, ..., 0].t() for n in range(len(x)) for (block,) in _blocks(n, x, repeat=repeat)
    ]
    scratch, parts = torch.empty_like(blocks[0], dtype=dtype), []
    for block in blocks:
        mean, deviations = block.mean(0, dtype=dtype), scratch[: len(block)]
        torch.sub(block, mean, out=deviations)
        parts.append((mean, deviations.square_().mean(0)))
    means, variances = (
        torch.stack(values).view(len(x), -1, repeat, channels)
        for values in zip(*parts, strict=True)
    )
    heights = means.new_tensor([len(block) for block in blocks[: means.shape[1]]])
    share = (heights / positions)[:, None, None]
    mean = (means * share).sum((1, 2), keepdim=True)
    return mean[:, 0, 0], ((variances + (means - mean).square()) * share).sum((1, 2))


class _Norm:
    """PyTorch's BatchNorm of one sample by its mean and variance."""

    def __init__(self, *parameters: Tensor, eps: float) -> None:
        self.arguments = (*parameters, False, 0.0, eps)
        self.dtype = parameters[0].dtype
        self.unused = {name: parameters[0].new_empty(0) for name in ("save_mean", "save_invstd")}

    def __call__(self, x: Tensor, out: Tensor) -> None:
        torch.ops.aten.native_batch_norm.out(x, *self.arguments, out=out, **self.unused)


def _apply(blocks: Iterable[tuple[Tensor, ...]], norm: _Norm, slope: float) -> None:
    """out = leaky_relu(norm(x) + residual) for blocks of x, out and perhaps residual."""
    scratch = None
    for x, out, *residual in blocks:
        work = out
        if residual and out.dtype != norm.dtype:
            # Half precision is rounded once, at the end: the sum may be small beside its parts.
            scratch = torch.empty_like(x, dtype=norm.dtype) if scratch is None else scratch
            work = scratch[:, :, : x.shape[2]]
            x = work.copy_(x)
        norm(x, work)
        for added in residual:
            work += added
        if slope != 1:
            F.leaky_relu_(work, slope)
        if work is not out:
            out.copy_(work)


class _InstanceNorm(torch.autograd.Function):
    """Saves x, its statistics and the output, which the next convolution saves anyway."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        eps: float,
        slope: float,
    ) -> Tensor:
        out = torch.empty_like(x)
        mean, rstd = _forward(x, weight, bias, residual, eps, slope, out)
        ctx.save_for_backward(x, weight, mean, rstd, *(() if slope == 1 else (out,)))
        ctx.slope, ctx.has_residual = slope, residual is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd, *out = ctx.saved_tensors
        grad = grad.contiguous(memory_format=_CHANNELS_LAST[x.ndim])
        # The gradient before the activation, g, is written once. It is the residual's; without a
        # residual the gradient of x takes its place.
        g = torch.empty_like(x) if out else grad
        grad_x = torch.empty_like(x) if ctx.has_residual or not out else g
        if out:
            torch.ops.aten.leaky_relu_backward.grad_input(grad, *out, ctx.slope, True, grad_input=g)
        of_weight, of_bias = torch.empty_like(mean), torch.empty_like(mean)
        for n in range(len(x)):
            norm = weight.to(mean.dtype), mean[n], rstd[n]
            of_weight[n], of_bias[n] = _gradients(n, g, x, *norm, grad_x)
        return (
            grad_x,
            of_weight.sum(0).to(weight.dtype),
            of_bias.sum(0).to(weight.dtype),
            g if ctx.has_residual else None,
            None,
            None,
        )


def _gradients(
    n: int, g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, out: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of one sample's norm, without activation and residual.

    Args:
        n: the sample.
        g, x: gradient of the norm's result, and its input, [batch, C, *spatial].
        weight, mean, rstd: [C], of this sample.
        out: its part is filled with the gradient of x; may be g.

    Returns:
        Gradients of the weight and the bias, [C].
    """
    channels, positions = x.shape[1], x[0, 0].numel()
    repeat = _positions_per_row(channels, positions)
    # Every thread of the operator adds up in a row of C values of its own. Rows that end within
    # a cache line make the threads wait for each other, up to three times as long as they work.
    aligned = channels * mean.element_size() % CACHE_LINE == 0
    if aligned or repeat == 1 or x.dtype != mean.dtype:
        gradient, *sums = torch.ops.aten.native_batch_norm_backward(
            *(_sample_as_rows(g, n), _sample_as_rows(x, n), weight, None, None, mean, rstd),
            *(True, 0.0, [True] * 3),
        )
        _sample_as_rows(out, n).copy_(gradient)
        return sums[0], sums[1]
    means, rows = mean.repeat(repeat), (_sample_as_rows(m, n, repeat) for m in (g, x))
    _, *parts = torch.ops.aten.native_batch_norm_backward(
        *(*rows, None, None, None, means, rstd.repeat(repeat), True, 0.0, [False, True, True])
    )
    of_weight, of_bias = (part.view(repeat, channels).sum(0) for part in parts)
    # rstd weight (g - mean(g) - (x - mean) rstd mean(g (x - mean) rstd))
    factor = weight * rstd
    slope, offset = -factor * rstd * of_weight / positions, -factor * of_bias / positions
    scale = factor.repeat(repeat)[:, None, None]
    norm = _Norm(slope.repeat(repeat), offset.repeat(repeat), means, torch.ones_like(means), eps=0)
    scratch = None
    for gradients, inputs, target in _blocks(n, g, x, out, repeat=repeat):
        scratch = torch.empty_like(inputs) if scratch is None else scratch
        rest = scratch[:, :, : target.shape[2]]
        norm(inputs, rest)
        torch.addcmul(rest, gradients, scale, out=target)
    return of_weight, of_bias
