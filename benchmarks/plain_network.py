"""The network as plain PyTorch code would write it: the peer of the fast one.

Every layer calls PyTorch's own operator, channels first, and the TTT layer loops over mini-batches.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from tttunet import kernels
from tttunet.kernels import cpu_norm
from tttunet.layers import residual
from tttunet.networks import plain_unet, ttt_unet


def use_plain_operators() -> None:
    """Replace the fast layers of this process by plain ones, for good."""
    residual._WinogradWhereFaster.forward = _convolve
    residual._MatrixProduct.forward = _convolve
    residual._NormWithActivation.forward = _norm
    for module in (plain_unet, ttt_unet):
        module.to_channels_last = lambda x: x
    ttt_unet.Decoder.forward = _decode
    for name in ("ttt_linear", "ttt_mlp"):
        setattr(kernels, name, functools.partial(getattr(kernels, name), backend="dual"))


def _norm(
    self: Any, x: Tensor, residual: Tensor | None = None, slope: float = 1.0, **_: Any
) -> Tensor:
    return cpu_norm.plain_instance_norm(x, self.weight, self.bias, residual, self.eps, slope)


def _convolve(self: Any, x: Tensor, **_: Any) -> Tensor:
    return self._conv_forward(x, self.weight, self.bias)


def _decode(self: Any, skips: list[Tensor], all_resolutions: bool) -> list[Tensor]:
    x, last = skips[-1], len(self.stages) - 1
    predictions = []
    for depth, (upsample, stage) in enumerate(zip(self.upsample, self.stages, strict=True)):
        x = upsample(x)
        if self._has_skip(last - depth):
            x = torch.cat((x, skips[last - depth]), dim=1)
        x = stage(x)
        if all_resolutions and len(self.heads) > 1:
            predictions.append(self.heads[depth](x))
        elif depth == last:
            predictions.append(self.heads[-1](x))
    return predictions[::-1]
