"""1x1 convolutions on the CPU: gradients as matrix products, without copies of channels-last maps.

oneDNN's own gradients take longer, and with a stride that of the weights (3.12, AVX2) writes past
the end of its memory where there are fewer than 8 input channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

#: From so many positions on, and up to so many channels, PyTorch's own convolution is taken.
MIN_POSITIONS, MAX_CHANNELS = 4096, 128
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_CONVOLVE = {4: F.conv2d, 5: F.conv3d}


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int]) -> Tensor:
    """A 1x1 convolution of what `cpu_convolution.takes` allows; differentiable once.

    Args:
        x: [batch, C, (D,) H, W], contiguous in channels-last.
        weight: [outputs, C, 1, ...].
        bias: [outputs].
        stride: per spatial axis.

    Returns:
        [batch, outputs, (D,) H, W] divided by the stride, channels-last.
    """
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return _Pointwise.apply(x, weight, bias, tuple(stride))
    return project(x, weight, bias, stride)


def project(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int]) -> Tensor:
    """`convolution` without gradients."""
    layout = _CHANNELS_LAST[x.ndim]
    # There MKL's thin products take up to twice as long. Of many channels and few positions oneDNN
    # divides the channels among the threads, on whose number the rounding then depends.
    channels = x.shape[1]
    thin = channels <= MAX_CHANNELS and x.numel() >= MIN_POSITIONS * channels
    if thin and torch.backends.cpu.get_cpu_capability() == "AVX2":
        return _CONVOLVE[x.ndim](x, weight, bias, stride).contiguous(memory_format=layout)
    rows, matrix = _strided_rows(x, stride), weight.flatten(1).t()
    batch, *size, _ = rows.shape
    y = torch.empty((batch, len(weight), *size), dtype=x.dtype, memory_format=layout)
    flat, out = rows.flatten(0, -2), y.movedim(1, -1).view(-1, len(weight))
    if bias is None:
        torch.mm(flat, matrix, out=out)
    else:
        torch.addmm(bias, flat, matrix, out=out)
    return y


def add_input_gradient(target: Tensor, grad: Tensor, weight: Tensor, stride: Sequence[int]) -> None:
    """Add the gradient of the input to a channels-last map of its shape.

    Args:
        target: as the input.
        grad: of the result.
        weight, stride: see `convolution`.
    """
    rows, matrix = grad.movedim(1, -1).flatten(0, -2), weight.flatten(1)
    places = _strided_rows(target, stride)
    if set(stride) == {1}:
        places.view(-1, matrix.shape[1]).addmm_(rows, matrix)
    else:
        places += (rows @ matrix).view(places.shape)


def weight_gradient(x: Tensor, grad: Tensor, weight: Tensor, stride: Sequence[int]) -> Tensor:
    """Gradient of the weight; `grad` is that of the result."""
    rows = grad.movedim(1, -1).flatten(0, -2)
    inputs = _strided_rows(x, stride).flatten(0, -2)
    # The product of the smaller matrix, transposed, with the larger is the faster one.
    fewer = inputs.shape[1] < rows.shape[1]
    product = (inputs.t() @ rows).t() if fewer else rows.t() @ inputs
    return product.reshape(weight.shape)


def _strided_rows(x: Tensor, stride: Sequence[int]) -> Tensor:
    """[batch, *positions that a convolution with this stride reads, C], a view."""
    return x.movedim(1, -1)[(slice(None), *(slice(None, None, step) for step in stride))]


class _Pointwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias, ctx.stride = bias is not None, stride
        return project(x, weight, bias, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0] and set(ctx.stride) == {1}:
            rows = grad.movedim(1, -1) @ weight.flatten(1)
            grad_x = rows.movedim(-1, 1)
        elif ctx.needs_input_grad[0]:
            grad_x = torch.zeros_like(x)
            add_input_gradient(grad_x, grad, weight, ctx.stride)
        if ctx.needs_input_grad[1]:
            grad_weight = weight_gradient(x, grad, weight, ctx.stride)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, *range(2, grad.ndim)))
        return grad_x, grad_weight, grad_bias, None
