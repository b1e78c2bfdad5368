"""The network as plain PyTorch code would write it: the peer of the fast one.

Every layer calls PyTorch's own operator, channels first, and the TTT layer loops over mini-batches.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from tttunet import kernels
from tttunet.kernels import cpu_norm
from tttunet.layers import residual
from tttunet.networks import plain_unet, ttt_unet


def use_plain_operators() -> None:
    """Replace the fast layers of this process by plain ones, for good."""
    residual._FasterOnCPUs.forward = _convolve
    residual._MatrixProduct.forward = _convolve
    residual.ResidualBlock._convolve_and_project = _convolve_and_project
    for up, transposed in (
        (residual.UpConv2d, nn.ConvTranspose2d),
        (residual.UpConv3d, nn.ConvTranspose3d),
    ):
        up.forward = transposed.forward
    residual._NormWithActivation.forward = _norm
    for module in (plain_unet, ttt_unet):
        module.to_channels_last = lambda x: x
    ttt_unet.Decoder.rise = _rise
    for name in ("ttt_linear", "ttt_mlp"):
        setattr(kernels, name, functools.partial(getattr(kernels, name), backend="dual"))


def _norm(
    self: Any, x: Tensor, residual: Tensor | None = None, slope: float = 1.0, **_: Any
) -> Tensor:
    return cpu_norm.plain_instance_norm(x, self.weight, self.bias, residual, self.eps, slope)


def _convolve(self: Any, x: Tensor, **_: Any) -> Tensor:
    return self._conv_forward(x, self.weight, self.bias)


def _convolve_and_project(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return self.conv1(x), self.shortcut(x)


def _rise(self: Any, depth: int, x: Tensor, skips: list[Tensor]) -> Tensor:
    level = len(self.stages) - 1 - depth
    x = self.upsample[depth](x)
    return self.stages[depth](torch.cat((x, skips[level]), dim=1) if self.has_skip(level) else x)
