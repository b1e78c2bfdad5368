"""nnU-Net's plain convolutional U-Net: the baseline of the paper's cost tables."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tttunet.layers.residual import (
    NEGATIVE_SLOPE,
    initialise,
    instance_norm,
    pointwise_conv,
    same_conv,
    to_channels_last,
    up_conv,
)
from tttunet.networks.config import NetworkConfig
from tttunet.networks.shape import check_input


class ConvStage(nn.Sequential):
    """`convs` times conv - InstanceNorm - LeakyReLU, the first one with the stride."""

    def __init__(
        self,
        dim: int,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, ...],
        stride: tuple[int, ...] | int,
        convs: int,
    ) -> None:
        layers: list[nn.Module] = []
        for index in range(convs):
            channels, step = (in_channels, stride) if index == 0 else (out_channels, 1)
            layers += [
                same_conv(dim, channels, out_channels, kernel, step),
                instance_norm(dim, out_channels),
                nn.LeakyReLU(NEGATIVE_SLOPE),
            ]
        super().__init__(*layers)

    def forward(self, x: Tensor) -> Tensor:
        layers: list[Any] = list(self)
        for conv, norm, activation in zip(layers[::3], layers[1::3], layers[2::3], strict=True):
            x, shift = conv.before_norm(x)
            x = norm(x, slope=activation.negative_slope, shift=shift, inplace=True)
        return x


class PlainUNet(nn.Module):
    """nnU-Net's PlainConvUNet, 2D and 3D.

    Args:
        config: see `NetworkConfig`. `encoder_blocks` and `decoder_blocks` count convolutions, two
            in nnU-Net.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        dim, features, n = config.dim, config.features, config.stages
        inputs = (config.input_channels, *features[:-1])
        self.encoder = nn.ModuleList(
            ConvStage(
                dim, i, o, config.kernel_sizes[s], config.strides[s], config.encoder_blocks[s]
            )
            for s, (i, o) in enumerate(zip(inputs, features, strict=True))
        )
        levels = range(n - 2, -1, -1)
        self.upsample = nn.ModuleList(
            up_conv(dim, features[s + 1], features[s], config.strides[s + 1]) for s in levels
        )
        self.decoder = nn.ModuleList(
            ConvStage(dim, 2 * features[s], features[s], config.kernel_sizes[s], 1, convs)
            for s, convs in zip(levels, config.decoder_blocks, strict=True)
        )
        self.heads = nn.ModuleList(
            pointwise_conv(dim, features[s], config.output_channels)
            for s in levels
            if s == 0 or config.deep_supervision
        )
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, *spatial] -> logits [batch, outputs, *spatial].

        Spatial sizes must be multiples of `config.total_stride`; `inference` pads.

        Raises:
            ModelError: x has another number of channels or a size that does not fit.
        """
        return self._predict(x, all_resolutions=False)[0]

    def forward_all(self, x: Tensor) -> list[Tensor]:
        """Logits at every decoder resolution, highest first (deep supervision)."""
        return self._predict(x, all_resolutions=len(self.heads) > 1)

    def _predict(self, x: Tensor, all_resolutions: bool) -> list[Tensor]:
        check_input(self.config, x)
        x = to_channels_last(x)
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        predictions = []
        pairs = zip(self.upsample, self.decoder, skips[-2::-1], strict=True)
        for depth, (upsample, stage, skip) in enumerate(pairs):
            x = stage(torch.cat((upsample(x), skip), dim=1))
            if all_resolutions:
                predictions.append(self.heads[depth](x))
        return predictions[::-1] or [self.heads[-1](x)]
