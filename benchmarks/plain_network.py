"""The network as plain PyTorch code would write it: the peer of the fast one.

Every layer calls PyTorch's own operator, channels first, and the TTT layer loops over mini-batches.
"""

from __future__ import annotations

import functools
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tttunet import kernels
from tttunet.kernels import cpu_norm
from tttunet.layers import residual
from tttunet.networks import plain_unet, ttt_unet


def use_plain_operators() -> None:
    """Replace the fast layers of this process by plain ones, for good."""
    residual.SameConv2d.forward = nn.Conv2d.forward
    residual.SameConv3d.forward = nn.Conv3d.forward
    residual._MatrixProduct.forward = _pointwise
    residual._NormWithActivation.forward = _norm
    for module in (plain_unet, ttt_unet):
        module.to_channels_last = lambda x: x
    ttt_unet.NearestUpsample.forward = _upsample
    for name in ("ttt_linear", "ttt_mlp"):
        setattr(kernels, name, functools.partial(getattr(kernels, name), backend="dual"))


def _norm(
    self: Any, x: Tensor, residual: Tensor | None = None, slope: float = 1.0, **_: Any
) -> Tensor:
    return cpu_norm.plain_instance_norm(x, self.weight, self.bias, residual, self.eps, slope)


def _pointwise(self: Any, x: Tensor, **_: Any) -> Tensor:
    return self._conv_forward(x, self.weight, self.bias)


def _upsample(self: Any, x: Tensor) -> Tensor:
    return self.conv(F.interpolate(x, scale_factor=self.stride, mode="nearest"))
