"""Residual convolution blocks, 2D and 3D from one class."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

NEGATIVE_SLOPE = 0.01
Build = Callable[..., nn.Module]
CONV: dict[int, Build] = {2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE: dict[int, Build] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
INSTANCE_NORM: dict[int, Build] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


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
    return CONV[dim](in_channels, out_channels, kernel, stride, padding, groups=groups)


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
            CONV[dim](in_channels, out_channels, 1, stride) if project else nn.Identity()
        )
        self.activation = nn.LeakyReLU(NEGATIVE_SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.norm1(self.conv1(x)))
        return self.activation(self.norm2(self.conv2(y)) + self.shortcut(x))


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


def initialise(module: nn.Module) -> None:
    """Kaiming normal for spatial convolutions; everything else keeps its constructor's values.

    For `nn.Module.apply`; nnU-Net's initialisation.
    """
    if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
