"""Gradient of a convolution's weights on CPUs with AVX2 but without AVX-512, by matrix products.

There oneDNN's operator (3.12) reaches a fifth of the peak on channels-last maps, and converting
them costs as much as it saves. Here the taps of a kernel's row are gathered for a strip that stays
in the cache, and one matrix product per row of the kernel multiplies it with the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

#: Values of a gathered strip: larger ones leave the cache, smaller ones make short products.
STRIP_VALUES = 1 << 19
#: Pairs of an input and an output channel below which products of single slices are too thin.
MIN_PAIRS = 512
#: Kernels without their depth axis, and along it.
_ROWS, _DEPTHS = ((2, 2), (3, 3)), (1, 2, 3)


def pays(weight: Tensor) -> bool:
    """Whether `weight_gradient` is possible and, with AVX2 only, faster than PyTorch's.

    Args:
        weight: [outputs, C, *kernel].
    """
    outputs, channels, *kernel = weight.shape
    depth = math.prod(kernel[:-2])
    # oneDNN is slowest where one channel comes in, and good at few.
    enough = depth > 1 or channels == 1 or channels * outputs >= MIN_PAIRS
    return enough and tuple(kernel[-2:]) in _ROWS and depth in _DEPTHS


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
