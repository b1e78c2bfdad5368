"""Gradient of a convolution's weights on CPUs with AVX2 but without AVX-512, by matrix products.

There oneDNN's operator (3.12) reaches a fifth of the peak on channels-last maps, and converting
them costs as much as it saves. Here the taps of a kernel's row are gathered for a strip that stays
in the cache, and one matrix product per row of the kernel multiplies it with the gradient.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tttunet.kernels.cpu_winograd import takes

#: Values of a gathered strip: larger ones leave the cache, smaller ones make short products.
STRIP_VALUES = 1 << 19
#: Kernels without their depth axis, and along it.
_ROW, _DEPTHS = (3, 3), (1, 3)
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_CONVOLVE = {4: F.conv2d, 5: F.conv3d}


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether `convolution(x, weight, bias)` is possible and its backward pass faster.

    Args:
        x: [batch, C, (D,) H, W].
        weight: [outputs, C, (1 or 3,) 3, 3] of a convolution with stride 1, no groups and zero
            padding that keeps the size.
    """
    return (
        # First, as compilers cannot follow the question after the processor.
        takes(x, weight)
        and torch.backends.cpu.get_cpu_capability() == "AVX2"
        and torch.is_grad_enabled()
        and weight.requires_grad
        and tuple(weight.shape[-2:]) == _ROW
        and math.prod(weight.shape[2:-2]) in _DEPTHS
        and x.numel() > 0
    )


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`torch.nn.functional.conv2d` or `conv3d` where `pays(x, weight)`; differentiable once."""
    return _Convolution.apply(x, weight, bias)


def weight_gradient(x: Tensor, grad: Tensor, depth: int) -> Tensor:
    """Gradient of a loss with respect to the weights.

    Args:
        x: [batch, C, (D,) H, W], contiguous in channels-last.
        grad: [batch, outputs, (D,) H, W], of the loss with respect to the output; the same.
        depth: of the kernel along D, 1 or 3; 1 in 2D.

    Returns:
        [outputs, C, depth, 3, 3].
    """
    # Slices [batch, D, H, W, C], with one slice in 2D.
    inputs, gradients = ((m if m.ndim == 5 else m[:, :, None]).movedim(1, -1) for m in (x, grad))
    slices, height, width, channels = inputs.shape[1:]
    rows = min(height, max(1, STRIP_VALUES // (3 * width * channels)))
    padded = x.new_zeros(rows + 2, width + 2, channels)
    down, right, _ = padded.stride()
    windows = padded.as_strided((rows + 2, width, 3 * channels), (down, right, 1))
    gathered = torch.empty_like(windows, memory_format=torch.contiguous_format)
    total = x.new_zeros(depth, 3, 3 * channels, grad.shape[1])
    for sample, gradient in zip(inputs, gradients, strict=True):
        for z, plane in enumerate(sample):
            for row in range(0, height, rows):
                _read(plane, row, padded)
                gathered.copy_(windows)
                count = min(rows, height - row)
                for tap in range(depth):
                    target = z + depth // 2 - tap
                    if 0 <= target < slices:
                        strip = gradient[target, row : row + count].flatten(0, 1)
                        _add_products(total[tap], gathered[: count + 2], strip)
    return total.view(depth, 3, 3, channels, -1).permute(4, 3, 0, 1, 2)


def _read(plane: Tensor, row: int, padded: Tensor) -> None:
    """Fill `padded` with rows `row` - 1 to the end of the strip; zeros outside of the plane."""
    height, width, _ = plane.shape
    above = row - 1
    top, bottom = max(above, 0), min(above + len(padded), height)
    padded[: top - above] = 0
    padded[bottom - above :] = 0
    padded[top - above : bottom - above, 1 : width + 1] = plane[top:bottom]


def _add_products(total: Tensor, gathered: Tensor, gradient: Tensor) -> None:
    """total[i] += gathered[i:-2 + i].T @ gradient for the three rows of the kernel.

    Args:
        total: [3, 3 C, outputs].
        gathered: [rows + 2, W, 3 C].
        gradient: [rows * W, outputs].
    """
    rows = len(gathered) - 2
    for tap, result in enumerate(total):
        result.addmm_(gathered[tap : tap + rows].flatten(0, 1).t(), gradient)


class _Convolution(torch.autograd.Function):
    """PyTorch's convolution with another gradient of the weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        padding = tuple(k // 2 for k in weight.shape[2:])
        return _CONVOLVE[x.ndim](x, weight, bias, padding=padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=_CHANNELS_LAST[x.ndim])
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            ones = [1] * (x.ndim - 2)
            padding = [k // 2 for k in weight.shape[2:]]
            grad_x = torch.ops.aten.convolution_backward(
                *(grad, x, weight, None, ones, padding, ones, False, [0] * len(ones), 1),
                [True, False, False],
            )[0]
        if ctx.needs_input_grad[1]:
            depth = weight.shape[2] if weight.ndim == 5 else 1
            grad_weight = weight_gradient(x, grad, depth).reshape(weight.shape)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, *range(2, grad.ndim)))
        return grad_x, grad_weight, grad_bias
