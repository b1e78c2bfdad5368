"""Residual convolution blocks, 2D and 3D from one class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tttunet import kernels
from tttunet.kernels import cpu_convolution, cpu_norm, cpu_pointwise, cpu_transposed
from tttunet.layers.upsampled import convolve_upsampled, pays, project_upsampled

NEGATIVE_SLOPE = 0.01
Build = Callable[..., nn.Module]


def to_channels_last(x: Tensor) -> Tensor:
    """A map [batch, C, *spatial] in the memory format that convolutions on the CPU want.

    Elsewhere, without data, and for exporters by tracing, the map as it is.
    """
    if x.device.type != "cpu" or torch.jit.is_tracing():
        return x
    rows = x.movedim(1, -1).contiguous()
    if len(rows) == 1:
        # The stride of a batch of one is arbitrary, yet convolutions choose the format by it.
        rows = rows[0][None]
    return rows.movedim(-1, 1)


class _NormWithActivation:
    """Adds a residual and an activation to InstanceNorm, in one operator."""

    weight: Any
    bias: Any
    eps: float

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        slope: float = 1.0,
        *,
        shift: Tensor | None = None,
        inplace: bool = False,
    ) -> Tensor:
        """leaky_relu(norm(x) + residual + shift, slope); with `inplace` x may be overwritten.

        Args:
            x: [batch, C, *spatial].
            residual: as x.
            slope: of the activation; 1 is none.
            shift: [C], what is missing in the residual.
            inplace: see `cpu_norm.instance_norm`.
        """
        bias = self.bias if shift is None else self.bias + shift
        if x.device.type not in ("cpu", "meta"):
            return kernels.instance_norm(x, self.weight, bias, residual, self.eps, slope)
        return cpu_norm.instance_norm(
            x, self.weight, bias, residual, self.eps, slope, inplace=inplace
        )


class InstanceNorm2d(_NormWithActivation, nn.InstanceNorm2d):
    """[batch, C, H, W], affine."""


class InstanceNorm3d(_NormWithActivation, nn.InstanceNorm3d):
    """[batch, C, D, H, W], affine."""


class _FasterOnCPUs:
    """A convolution whose output has the input's size divided by the stride."""

    weight: Any
    bias: Any
    stride: Any
    padding: Any
    groups: int

    def forward(self, x: Tensor, add_bias: bool = True) -> Tensor:
        bias, arguments = self.bias if add_bias else None, (self.stride, self.padding)
        if self.groups == 1 and cpu_convolution.pays(x, self.weight, *arguments):
            return cpu_convolution.convolution(x, self.weight, bias, *arguments)
        return self._conv_forward(x, self.weight, bias)  # type: ignore[attr-defined]

    def before_norm(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The map without bias, and what the norm after it is to add.

        A constant vanishes in a norm. The bias stays among the parameters, with gradient zero.
        """
        return self(x, add_bias=False), self.no_shift()  # type: ignore[operator]

    def no_shift(self) -> Tensor | None:
        """Zeros [outputs] for the bias's gradient."""
        return 0 * self.bias if torch.is_grad_enabled() else None


class SameConv2d(_FasterOnCPUs, nn.Conv2d):
    """[batch, C, H, W] -> [batch, outputs, H / stride, W / stride]."""


class SameConv3d(_FasterOnCPUs, nn.Conv3d):
    """[batch, C, D, H, W] -> [batch, outputs, D / stride, H / stride, W / stride]."""


class _MatrixProduct:
    """A 1x1 convolution: on channels-last maps a matrix product."""

    weight: Any
    bias: Any
    stride: Any

    def forward(self, x: Tensor, add_bias: bool = True) -> Tensor:
        bias = self.bias if add_bias else None
        if cpu_convolution.takes(x, self.weight):
            return cpu_pointwise.convolution(x, self.weight, bias, self.stride)
        rows = x.movedim(1, -1)
        if x.device.type != "cpu" or not rows.is_contiguous() or torch.jit.is_tracing():
            return self._conv_forward(x, self.weight, bias)  # type: ignore[attr-defined]
        # Compilers and other dtypes see a product, whose gradients are right: see `cpu_pointwise`.
        rows = rows[(slice(None), *(slice(None, None, step) for step in self.stride))]
        flat, matrix = rows.flatten(0, -2), self.weight.flatten(1).t()
        y = flat @ matrix if bias is None else torch.addmm(bias, flat, matrix)
        return y.view(*rows.shape[:-1], y.shape[-1]).movedim(-1, 1)


class PointwiseConv2d(_MatrixProduct, nn.Conv2d):
    """[batch, C, H, W] -> [batch, outputs, H / stride, W / stride], kernel 1."""


class PointwiseConv3d(_MatrixProduct, nn.Conv3d):
    """[batch, C, D, H, W] -> [batch, outputs, D / stride, H / stride, W / stride], kernel 1."""


class _ProductsInBackward:
    """A transposed convolution whose stride is its kernel."""

    weight: Any
    bias: Any

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is None and cpu_transposed.pays(input, self.weight):
            return cpu_transposed.convolution(input, self.weight, self.bias)
        return super().forward(input, output_size)  # type: ignore[misc]


class UpConv2d(_ProductsInBackward, nn.ConvTranspose2d):
    """[batch, C, H, W] -> [batch, outputs, H * stride, W * stride]."""


class UpConv3d(_ProductsInBackward, nn.ConvTranspose3d):
    """[batch, C, D, H, W] -> [batch, outputs, D * stride, H * stride, W * stride]."""


INSTANCE_NORM: dict[int, Build] = {2: InstanceNorm2d, 3: InstanceNorm3d}
_SAME_CONV: dict[int, Build] = {2: SameConv2d, 3: SameConv3d}
_POINTWISE_CONV: dict[int, Build] = {2: PointwiseConv2d, 3: PointwiseConv3d}
_UP_CONV: dict[int, Build] = {2: UpConv2d, 3: UpConv3d}


def same_conv(
    dim: int,
    in_channels: int,
    out_channels: int,
    kernel: tuple[int, ...],
    stride: tuple[int, ...] | int = 1,
    groups: int = 1,
) -> nn.Module:
    """Convolution whose output has the input's size divided by the stride; kernels are odd."""
    padding = tuple(k // 2 for k in kernel)
    return _SAME_CONV[dim](in_channels, out_channels, kernel, stride, padding, groups=groups)


def pointwise_conv(
    dim: int, in_channels: int, out_channels: int, stride: tuple[int, ...] | int = 1
) -> nn.Module:
    """Convolution with kernel 1."""
    return _POINTWISE_CONV[dim](in_channels, out_channels, 1, stride)


def up_conv(
    dim: int, in_channels: int, out_channels: int, stride: tuple[int, ...] | int
) -> nn.Module:
    """Transposed convolution whose kernel is its stride."""
    return _UP_CONV[dim](in_channels, out_channels, stride, stride)


def instance_norm(dim: int, channels: int) -> nn.Module:
    """Affine InstanceNorm with the authors' epsilon."""
    return INSTANCE_NORM[dim](channels, eps=1e-5, affine=True)


class ResidualBlock(nn.Module):
    """conv - norm - LeakyReLU - conv - norm, plus a shortcut, then LeakyReLU.

    Args:
        dim: 2 or 3.
        in_channels, out_channels: channels.
        kernel: kernel size per axis, odd.
        stride: stride per axis of the first convolution.
        project: 1x1 convolution on the shortcut; needed when channels or size change.
    """

    conv1: Any
    conv2: Any
    shortcut: Any

    def __init__(
        self,
        dim: int,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, ...],
        stride: tuple[int, ...] | int = 1,
        project: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = same_conv(dim, in_channels, out_channels, kernel, stride)
        self.norm1 = instance_norm(dim, out_channels)
        self.conv2 = same_conv(dim, out_channels, out_channels, kernel)
        self.norm2 = instance_norm(dim, out_channels)
        self.shortcut = (
            pointwise_conv(dim, in_channels, out_channels, stride) if project else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(self.shortcut, _MatrixProduct):
            y, shift = self.conv1.before_norm(x)
            return self._rest(y, shift, self.shortcut(x), None)
        # The norm adds a constant anyway; the product would need a pass of its own for it.
        y, residual = self._convolve_and_project(x)
        return self._rest(y, self.conv1.no_shift(), residual, self.shortcut.bias)

    def _convolve_and_project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The first convolution and the shortcut, both without their biases."""
        conv, project = self.conv1, self.shortcut
        if torch.is_grad_enabled() and cpu_convolution.takes(x, conv.weight):
            weights = conv.weight, project.weight
            return cpu_convolution.with_projection(x, *weights, conv.stride, conv.padding)
        return conv(x, add_bias=False), project(x, add_bias=False)

    def forward_upsampled(
        self, low: Tensor, factors: tuple[int, ...], skip: Tensor | None
    ) -> Tensor:
        """`forward(cat(upsample(low), skip))`, nearest neighbours.

        Args:
            low: [batch, C, *spatial].
            factors: of the upsampling, per axis.
            skip: [batch, C2, *spatial * factors].
        """
        conv, project = self.conv1, self.shortcut
        if not (isinstance(project, _MatrixProduct) and pays(low, skip, factors, conv.weight)):
            x = F.interpolate(low, scale_factor=[float(f) for f in factors], mode="nearest")
            return self(x if skip is None else torch.cat((x, skip), dim=1))
        y = convolve_upsampled(low, skip, factors, conv.weight)
        residual = project_upsampled(low, skip, factors, project.weight)
        return self._rest(y, conv.no_shift(), residual, project.bias)

    def _rest(
        self, y: Tensor, shift: Tensor | None, residual: Tensor, residual_shift: Tensor | None
    ) -> Tensor:
        """What follows the first convolution; its output and the residual lack their shifts."""
        y = self.norm1(y, slope=NEGATIVE_SLOPE, shift=shift, inplace=True)
        y, shift = self.conv2.before_norm(y)
        if shift is None or residual_shift is None:
            shift = residual_shift if shift is None else shift
        else:
            shift = shift + residual_shift
        return self.norm2(y, residual, NEGATIVE_SLOPE, shift=shift, inplace=True)


class ResidualStage(nn.Sequential):
    """`blocks` residual blocks; the first one changes channels and size."""

    def __init__(
        self,
        dim: int,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, ...],
        stride: tuple[int, ...] | int = 1,
        blocks: int = 2,
    ) -> None:
        first = ResidualBlock(dim, in_channels, out_channels, kernel, stride, project=True)
        rest = [ResidualBlock(dim, out_channels, out_channels, kernel) for _ in range(blocks - 1)]
        super().__init__(first, *rest)

    def forward_upsampled(
        self, low: Tensor, factors: tuple[int, ...], skip: Tensor | None
    ) -> Tensor:
        """See `ResidualBlock.forward_upsampled`."""
        first, *rest = self
        x = first.forward_upsampled(low, factors, skip)  # type: ignore[operator]
        for block in rest:
            x = block(x)
        return x


def initialise(module: nn.Module) -> None:
    """Kaiming normal for spatial convolutions; everything else keeps its constructor's values.

    For `nn.Module.apply`; nnU-Net's initialisation.
    """
    if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
