"""Gradient of a convolution's weights on CPUs with AVX2 but without AVX-512, by matrix products.

There oneDNN's operator (3.12) reaches a fifth of the peak on channels-last maps, and converting
them costs as much as it saves. Here the taps of a kernel's row are gathered for a strip that stays
in the cache, and one matrix product per row of the kernel multiplies it with the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tttunet.kernels import cpu_winograd

#: Values of a gathered strip: larger ones leave the cache, smaller ones make short products.
STRIP_VALUES = 1 << 19
#: Channels, by the kernel's depth, from which on Winograd's multiplications are fewer and faster.
WINOGRAD_CHANNELS = {1: 32, 3: 16}
#: Kernels without their depth axis, and along it.
_ROWS, _DEPTHS = ((2, 2), (3, 3)), (1, 2, 3)
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_CONVOLVE = {4: F.conv2d, 5: F.conv3d}


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether `convolution(x, weight, ...)` is possible and its backward pass faster.

    Args:
        x: [batch, C, (D,) H, W].
        weight: [outputs, C, (1, 2 or 3,) 2 or 3, the same] of a convolution without groups and
            dilation.
    """
    return (
        # First, as compilers cannot follow the question after the processor.
        cpu_winograd.takes(x, weight)
        and torch.backends.cpu.get_cpu_capability() == "AVX2"
        and torch.is_grad_enabled()
        and weight.requires_grad
        and tuple(weight.shape[-2:]) in _ROWS
        and math.prod(weight.shape[2:-2]) in _DEPTHS
        and x.numel() > 0
    )


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """`torch.nn.functional.conv2d` or `conv3d` where `pays(x, weight)`; differentiable once.

    Args:
        x, weight: see `pays`.
        bias: [outputs].
        stride, padding: per spatial axis; the padding is zeros.
    """
    return _Convolution.apply(x, weight, bias, tuple(stride), tuple(padding))


def weight_gradient(
    x: Tensor,
    grad: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """Gradient of a loss with respect to the weights.

    Args:
        x: [batch, C, (D,) H, W], contiguous in channels-last.
        grad: [batch, outputs, (D,) H, W], of the loss with respect to the output; the same.
        kernel, stride, padding: of the convolution, per spatial axis.

    Returns:
        [outputs, C, *kernel].
    """
    # Slices [batch, D, H, W, C], with one slice in 2D.
    inputs, gradients = ((m if m.ndim == 5 else m[:, :, None]).movedim(1, -1) for m in (x, grad))
    depth, tall, wide = (1,) * (5 - x.ndim) + tuple(kernel)
    deep, down, right = (1,) * (5 - x.ndim) + tuple(stride)
    before, above, left = (0,) * (5 - x.ndim) + tuple(padding)
    slices, height, width, outputs = gradients.shape[1:]
    channels = x.shape[1]
    rows = min(height, max(1, STRIP_VALUES // (wide * width * channels)))
    # With a stride, the rows that one tap reads are those of one remainder.
    groups = rows + (tall - 1) // down
    padded = x.new_zeros(groups * down, (width - 1) * right + wide, channels)
    row_step, step, _ = padded.stride()
    windows = padded.as_strided(
        (down, groups, width, wide * channels), (row_step, down * row_step, right * step, 1)
    )
    gathered = torch.empty_like(windows, memory_format=torch.contiguous_format)
    total = x.new_zeros(depth, tall, wide * channels, outputs)
    for sample, gradient in zip(inputs, gradients, strict=True):
        for z, plane in enumerate(sample):
            reached = [(tap, *divmod(z + before - tap, deep)) for tap in range(depth)]
            targets = [(tap, t) for tap, t, rest in reached if rest == 0 and 0 <= t < slices]
            for row in range(0, height if targets else 0, rows):
                _read(plane, row * down - above, left, padded)
                gathered.copy_(windows)
                count = min(rows, height - row)
                for tap, target in targets:
                    strip = gradient[target, row : row + count].flatten(0, 1)
                    _add_products(total[tap], gathered, strip, count)
    return (
        total.view(depth, tall, wide, channels, outputs)
        .permute(4, 3, 0, 1, 2)
        .flatten(2, 4)
        .unflatten(2, tuple(kernel))
    )


def _read(plane: Tensor, first: int, left: int, padded: Tensor) -> None:
    """Fill `padded` with rows from `first` on, behind `left` zeros; zeros outside of the plane."""
    height, width, _ = plane.shape
    top, bottom = max(first, 0), min(first + len(padded), height)
    padded[: top - first] = 0
    padded[bottom - first :] = 0
    # A stride may leave the last columns unread; those behind the map were never anything but zero.
    width = min(width, padded.shape[1] - left)
    padded[top - first : bottom - first, left : left + width] = plane[top:bottom, :width]


def _add_products(total: Tensor, gathered: Tensor, gradient: Tensor, rows: int) -> None:
    """Add the product of every row of the kernel with the gradient.

    Args:
        total: [rows of the kernel, taps in a row * C, outputs].
        gathered: [stride, groups, W, taps in a row * C].
        gradient: [rows * W, outputs].
        rows: of the gradient.
    """
    for tap, result in enumerate(total):
        first, remainder = divmod(tap, len(gathered))
        result.addmm_(gathered[remainder, first : first + rows].flatten(0, 1).t(), gradient)


class _Convolution(torch.autograd.Function):
    """PyTorch's convolution with another gradient of the weights."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias, ctx.stride, ctx.padding = bias is not None, stride, padding
        return _CONVOLVE[x.ndim](x, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=_CHANNELS_LAST[x.ndim])
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            axes = x.ndim - 2
            grad_x = torch.ops.aten.convolution_backward(
                *(grad, x, weight, None, ctx.stride, ctx.padding),
                *([1] * axes, False, [0] * axes, 1, [True, False, False]),
            )[0]
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(x, grad, weight, ctx.stride, ctx.padding)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, *range(2, grad.ndim)))
        return grad_x, grad_weight, grad_bias, None, None


def _weight_gradient(
    x: Tensor, grad: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]
) -> Tensor:
    """By the faster of the two ways."""
    kernel = weight.shape[2:]
    depth = math.prod(kernel[:-2])
    plain = set(stride) == {1} and kernel[-1] == 3 and padding == tuple(k // 2 for k in kernel)
    if plain and min(weight.shape[:2]) >= WINOGRAD_CHANNELS.get(depth, math.inf):
        return cpu_winograd.weight_gradient(x, grad, depth).reshape(weight.shape)
    return weight_gradient(x, grad, kernel, stride, padding)
