"""InstanceNorm, residual and LeakyReLU on the CPU, forward and backward, without copies.

The eager operators read and write the whole map five to seven times and convert channels-last maps
to channels-first and back. Here a map is walked in blocks that stay in the core's cache: once for
the statistics, once to apply one scale and one shift per channel, the residual and the activation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Bytes of a block per thread; the inner loops keep two or three of them in a core's L2 cache.
BLOCK_BYTES = 1 << 19
#: Rows shorter than this many values are joined, because every row costs a loop's overhead.
MIN_WIDTH = 1024
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


class _Rows(NamedTuple):
    """How a channels-last sample is cut: rows of `repeat` positions, blocks of `height` rows."""

    repeat: int
    height: int

    @classmethod
    def of(cls, x: Tensor) -> _Rows:
        """For maps of the shape of x, [batch, C, *spatial]."""
        channels, positions = x.shape[1], x[0, 0].numel()
        repeat = 1
        while positions % (2 * repeat) == 0 and repeat * channels < MIN_WIDTH:
            repeat *= 2
        width = repeat * channels * (8 if x.dtype == torch.float64 else 4)
        return cls(repeat, max(1, BLOCK_BYTES * torch.get_num_threads() // width))

    def blocks(self, *samples: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Views of samples [C, *spatial] as blocks of [rows, repeat * C]."""
        matrices = (s.movedim(0, -1).reshape(-1, self.repeat * len(s)) for s in samples)
        return zip(*(matrix.split(self.height) for matrix in matrices), strict=True)

    def spread(self, values: Tensor) -> Tensor:
        """[C] -> [repeat * C]."""
        return values.repeat(self.repeat)

    def gather(self, sums: Tensor) -> Tensor:
        """Sums over the rows, [repeat * C] -> [C]."""
        return sums.view(self.repeat, -1).sum(0)


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


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
    dtype, rows = _accumulator(x), _Rows.of(x)
    means, rstds = [], []
    for n, sample in enumerate(x):
        mean, variance = _statistics(sample, rows, dtype)
        rstd = torch.rsqrt(variance + eps)
        scale = weight.to(dtype) * rstd
        shift = torch.addcmul(bias.to(dtype), mean, scale, value=-1)
        added = () if residual is None else (residual[n],)
        _apply(rows.blocks(sample, out[n], *added), rows.spread(scale), rows.spread(shift), slope)
        means.append(mean)
        rstds.append(rstd)
    return torch.stack(means), torch.stack(rstds)


def _statistics(sample: Tensor, rows: _Rows, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel of a sample [C, *spatial]."""
    (first,) = next(rows.blocks(sample))
    ones = torch.ones(len(first), dtype=dtype)
    # Deviations from a mean of some positions: their squares cannot cancel much.
    centre = rows.gather(_add_rows(first.to(dtype), ones)) / (len(first) * rows.repeat)
    wide = rows.spread(centre)
    scratch = torch.empty(first.shape, dtype=dtype)
    total, square = torch.zeros_like(wide), torch.zeros_like(wide)
    for (block,) in rows.blocks(sample):
        deviation = torch.sub(block, wide, out=scratch[: len(block)])
        _add_rows(deviation, ones, total)
        _add_rows(deviation.square_(), ones, square)
    count = math.prod(sample.shape[1:])
    offset = rows.gather(total) / count
    variance = rows.gather(square) / count - offset.square()
    return centre + offset, variance.clamp_min_(0)


def _add_rows(block: Tensor, ones: Tensor, total: Tensor | None = None) -> Tensor:
    """Add the rows of a block to `total`; a product with ones is the fastest way."""
    ones = ones[: len(block)]
    return torch.mv(block.t(), ones) if total is None else total.addmv_(block.t(), ones)


def _apply(
    blocks: Iterator[tuple[Tensor, ...]], scale: Tensor, shift: Tensor, slope: float
) -> None:
    """out = leaky_relu(x * scale + shift + residual) for blocks of x, out and perhaps residual."""
    for x, out, *residual in blocks:
        # Half precision is rounded once, at the end.
        exact = out.dtype == scale.dtype
        work = torch.addcmul(shift, x, scale, out=out if exact else None)
        for added in residual:
            work += added
        if slope != 1:
            F.leaky_relu_(work, slope)
        if not exact:
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
        dtype, rows = _accumulator(x), _Rows.of(x)
        grad = grad.contiguous(memory_format=_CHANNELS_LAST[x.ndim])
        # The gradient before the activation, g, is written once. It is the residual's; without a
        # residual the gradient of x takes its place.
        g = torch.empty_like(x) if out else grad
        grad_x = torch.empty_like(x) if ctx.has_residual or not out else g
        if out:
            torch.ops.aten.leaky_relu_backward.grad_input(grad, *out, ctx.slope, True, grad_input=g)
        of_weight, of_bias = torch.empty_like(mean), torch.empty_like(mean)
        for n, sample in enumerate(x):
            of_weight[n], of_bias[n] = _sums(rows, sample, g[n], mean[n], rstd[n])
            # dx = weight rstd (g - mean(g) - xhat mean(g xhat)), linear in g and x.
            of_g = weight.to(dtype) * rstd[n]
            of_x = -of_g * rstd[n] * of_weight[n] / math.prod(sample.shape[1:])
            constant = -of_g * of_bias[n] / math.prod(sample.shape[1:]) - of_x * mean[n]
            terms = [rows.spread(term) for term in (of_g, of_x, constant)]
            _combine(rows.blocks(sample, g[n], grad_x[n]), *terms)
        return (
            grad_x,
            of_weight.sum(0).to(weight.dtype),
            of_bias.sum(0).to(weight.dtype),
            g if ctx.has_residual else None,
            None,
            None,
        )


def _sums(rows: _Rows, x: Tensor, g: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of g * xhat and of g over the positions of a sample, [C] each.

    PyTorch's BatchNorm knows channels-last maps; of its gradients only the sums. Whole rows as
    channels make it up to four times as fast, most where C is no multiple of a vector's length.
    """
    wide = [s.movedim(0, -1).reshape(-1, rows.repeat * len(s)).t()[None, ..., None] for s in (g, x)]
    mean, rstd = rows.spread(mean), rows.spread(rstd)
    _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
        *wide, None, None, None, mean, rstd, True, 0.0, [False, True, True]
    )
    return rows.gather(of_weight), rows.gather(of_bias)


def _combine(
    blocks: Iterator[tuple[Tensor, ...]], of_g: Tensor, of_x: Tensor, constant: Tensor
) -> None:
    """grad_x = g * of_g + x * of_x + constant for blocks of x, g and grad_x, which may be g."""
    scratch = None
    for x, g, grad_x in blocks:
        scratch = constant.new_empty(x.shape) if scratch is None else scratch
        work = torch.addcmul(constant, x, of_x, out=scratch[: len(x)])
        torch.addcmul(work, g, of_g, out=grad_x if grad_x.dtype == work.dtype else work)
        if grad_x.dtype != work.dtype:
            grad_x.copy_(work)
