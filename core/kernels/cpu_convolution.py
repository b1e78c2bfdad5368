"""Convolutions on the CPU whose result and gradients are each computed the fastest known way.

Winograd's way (`cpu_winograd`), strips and matrix products (`cpu_weight_gradient`) or oneDNN's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tttunet.kernels import cpu_pointwise, cpu_weight_gradient, cpu_winograd

#: Channels, by the kernel's depth, from which on Winograd's is the fastest gradient of the weights
#: on CPUs with AVX2 only.
WINOGRAD_GRADIENT_CHANNELS = {1: 20, 3: 1}
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_CONVOLVE = {4: F.conv2d, 5: F.conv3d}


def takes(x: Tensor, weight: Tensor) -> bool:
    """Whether functions written here may take these: fp32 on the CPU, channels-last, no tracer.

    Args:
        x: [batch, C, (D,) H, W].
        weight: of a convolution without groups and dilation.
    """
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.is_contiguous(memory_format=_CHANNELS_LAST[x.ndim])
        and type(x) is Tensor
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )


def pays(x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> bool:
    """Whether `convolution` is possible and faster than PyTorch's, or its gradients are.

    Args:
        x, weight: see `takes`.
        stride, padding: per spatial axis; the padding is zeros.
    """
    # First, as compilers cannot follow the question after the processor.
    if not takes(x, weight):
        return False
    if _keeps_size(weight, stride, padding) and cpu_winograd.pays(x, weight):
        return True
    wanted = torch.is_grad_enabled() and weight.requires_grad
    return wanted and _weight_gradient_of(x, weight, stride, padding) is not _by_pytorch


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """`torch.nn.functional.conv2d` or `conv3d` of what `takes` allows; differentiable once.

    Winograd's weights are transformed anew every time, which costs a few percent of the
    convolution: a copy four times as large would have to be kept and to follow every change.

    Args:
        x: [batch, C, (D,) H, W], contiguous in channels-last.
        weight: [outputs, C, *kernel].
        bias: [outputs].
        stride, padding: per spatial axis; the padding is zeros.
    """
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return _Convolution.apply(x, weight, bias, tuple(stride), tuple(padding))
    return _convolve(x, weight, bias, stride, padding)


def with_projection(
    x: Tensor,
    weight: Tensor,
    projection: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """`convolution` without bias, and a 1x1 convolution of the same map with the same stride.

    Differentiable once. The projection's gradient of x is added to the other one's where that
    lies, by the product that computes it.

    Args:
        x, weight, stride, padding: see `convolution`.
        projection: [outputs 2, C, 1, ...].

    Returns:
        Both maps, channels-last.
    """
    return _WithProjection.apply(x, weight, projection, tuple(stride), tuple(padding))


def weight_gradient(
    x: Tensor, grad: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Gradient of a loss with respect to the weight of `convolution`, shape of the weight.

    Args:
        x, weight, stride, padding: see `convolution`.
        grad: [batch, outputs, (D,) H, W], of the loss with respect to the result, channels-last.
    """
    arguments = weight, stride, padding
    return _weight_gradient_of(x, *arguments)(x, grad, *arguments)


def _keeps_size(weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> bool:
    return set(stride) == {1} and tuple(padding) == tuple(k // 2 for k in weight.shape[2:])


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    if _keeps_size(weight, stride, padding) and cpu_winograd.pays(x, weight):
        return cpu_winograd.convolve(x, cpu_winograd.transform_weight(weight), bias)
    return _CONVOLVE[x.ndim](x, weight, bias, stride, padding)


def _input_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Shape of x, channels-last."""
    if _keeps_size(weight, stride, padding) and cpu_winograd.pays(grad, weight):
        return cpu_winograd.convolve(grad, cpu_winograd.transform_weight(weight, backwards=True))
    return _pytorch_gradient(grad, x, weight, stride, padding, 0)


def _weight_gradient_of(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]
) -> Any:
    """The fastest of the ways below."""
    kernel = weight.shape[2:]
    avx2 = torch.backends.cpu.get_cpu_capability() == "AVX2"
    if _keeps_size(weight, stride, padding) and kernel[-2:] == (3, 3):
        least = WINOGRAD_GRADIENT_CHANNELS.get(math.prod(kernel[:-2]), math.inf)
        if cpu_winograd.pays(x, weight) or (avx2 and min(weight.shape[:2]) >= least):
            return _by_winograd
    return _by_products if avx2 and cpu_weight_gradient.pays(weight) else _by_pytorch


def _by_winograd(
    x: Tensor, grad: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    taps = math.prod(weight.shape[2:-2])
    return cpu_winograd.weight_gradient(x, grad, taps).reshape(weight.shape)


def _by_products(
    x: Tensor, grad: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    return cpu_weight_gradient.weight_gradient(x, grad, weight.shape[2:], stride, padding)


def _by_pytorch(
    x: Tensor, grad: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    return _pytorch_gradient(grad, x, weight, stride, padding, 1)


def _pytorch_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    which: int,
) -> Tensor:
    """Of the input (0) or the weights (1)."""
    axes = x.ndim - 2
    return torch.ops.aten.convolution_backward(
        *(grad, x, weight, None, stride, padding, [1] * axes, False, [0] * axes, 1),
        [which == 0, which == 1, False],
    )[which]


def _gradients(
    ctx: Any, grad: Tensor, x: Tensor, weight: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Of x and the weight, the first two inputs, where they are wanted."""
    arguments = weight, ctx.stride, ctx.padding
    grad = grad.contiguous(memory_format=_CHANNELS_LAST[x.ndim])
    grad_x = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_x = _input_gradient(grad, x, *arguments)
    if ctx.needs_input_grad[1]:
        grad_weight = weight_gradient(x, grad, *arguments)
    return grad_x, grad_weight


class _Convolution(torch.autograd.Function):
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
        return _convolve(x, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_bias = None
        if ctx.has_bias and ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, *range(2, grad.ndim)))
        return *_gradients(ctx, grad, *ctx.saved_tensors), grad_bias, None, None


class _WithProjection(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        projection: Tensor,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight, projection)
        ctx.stride, ctx.padding = stride, padding
        y = _convolve(x, weight, None, stride, padding)
        return y, cpu_pointwise.project(x, projection, None, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_projected: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, projection = ctx.saved_tensors
        grad_x, grad_weight = _gradients(ctx, grad, x, weight)
        grad_projection = None
        if ctx.needs_input_grad[2]:
            arguments = grad_projected, projection, ctx.stride
            grad_projection = cpu_pointwise.weight_gradient(x, *arguments)
        if grad_x is not None:
            grad_x = grad_x.contiguous(memory_format=_CHANNELS_LAST[x.ndim])
            cpu_pointwise.add_input_gradient(grad_x, grad_projected, projection, ctx.stride)
        return grad_x, grad_weight, grad_projection, None, None
