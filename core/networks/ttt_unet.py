"""TTT-UNet_Bot and TTT-UNet_Enc (MIDL 2026), 2D and 3D, from one class."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tttunet.layers.block import PaperMixer, ReleasedMixer, TTTBuildingBlock
from tttunet.layers.residual import (
    ResidualStage,
    initialise,
    pointwise_conv,
    to_channels_last,
    up_conv,
)
from tttunet.layers.ttt import InnerLoop
from tttunet.networks.config import NetworkConfig
from tttunet.networks.shape import check_input


def ttt_stages(config: NetworkConfig) -> tuple[int, ...]:
    """Stages that carry a TTT layer: the last, or every second one up to the last."""
    if config.ttt is None:
        return ()
    if config.placement == "bottleneck":
        return (config.stages - 1,)
    return tuple(s for s in range(config.stages) if (s % 2) ^ (config.stages % 2))


def channel_token_size(config: NetworkConfig, stage: int) -> int | None:
    """Positions in the map of a stage whose tokens are its channels, else None.

    The authors' encoder network takes channels as tokens where the map has no more positions
    than the stage has channels. Our own flavour never does: it would fix the patch size.
    """
    if config.flavour == "paper" or config.placement == "bottleneck" or config.patch_size is None:
        return None
    size = list(config.patch_size)
    for stride in config.strides[: stage + 1]:
        size = [length // step for length, step in zip(size, stride, strict=True)]
    positions = math.prod(size)
    return positions if positions <= config.features[stage] else None


class Encoder(nn.Module):
    """Stem and stages; returns the output of every stage, highest resolution first."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        dim, channels = config.dim, config.input_channels
        self.stem: nn.Module = nn.Identity()
        if config.stem_blocks:
            kernel, features = config.kernel_sizes[0], config.features[0]
            self.stem = ResidualStage(dim, channels, features, kernel, 1, config.stem_blocks)
            channels = features
        with_ttt = ttt_stages(config)
        self.stages = nn.ModuleList()
        for s, features in enumerate(config.features):
            block = TTTBuildingBlock(
                dim,
                channels,
                features,
                config.kernel_sizes[s],
                config.strides[s],
                config.encoder_blocks[s],
                config.flavour,
                config.ttt if s in with_ttt else None,
                channel_token_size(config, s),
            )
            self.stages.append(block)
            channels = features

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(to_channels_last(x))
        outputs = []
        for stage in self.stages:
            x = to_channels_last(stage(x))
            outputs.append(x)
        return outputs


class NearestUpsample(nn.Module):
    """Nearest-neighbour upsampling followed by a 1x1 convolution (the authors' code)."""

    def __init__(
        self, dim: int, in_channels: int, out_channels: int, stride: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.stride = stride
        self.conv = pointwise_conv(dim, in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=[float(s) for s in self.stride]))


class Decoder(nn.Module):
    """Upsampling, skips and residual blocks; predictions at one or all resolutions."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        dim, n = config.dim, config.stages
        self.skip_full_resolution = config.skip_full_resolution
        self.upsample = nn.ModuleList()
        self.stages = nn.ModuleList()
        self.heads = nn.ModuleList()
        for depth, blocks in enumerate(config.decoder_blocks):
            level = n - 2 - depth
            below, features, stride = (
                config.features[level + 1],
                config.features[level],
                config.strides[level + 1],
            )
            upsample: nn.Module
            if config.flavour == "paper":
                upsample = up_conv(dim, below, features, stride)
            else:
                upsample = NearestUpsample(dim, below, features, stride)
            self.upsample.append(upsample)
            channels = 2 * features if self.has_skip(level) else features
            kernel = config.kernel_sizes[level]
            self.stages.append(ResidualStage(dim, channels, features, kernel, 1, blocks))
            if config.deep_supervision or level == 0:
                self.heads.append(pointwise_conv(dim, features, config.output_channels))

    def has_skip(self, level: int) -> bool:
        """Whether the decoder reads the encoder's map of a level."""
        return level > 0 or self.skip_full_resolution

    def rise(self, depth: int, x: Tensor, skips: list[Tensor]) -> Tensor:
        """The `depth`-th upsampling with what follows it.

        Args:
            depth: 0 for the lowest resolution.
            x: [batch, C, *spatial], of the level below.
            skips: the encoder's maps, of which this takes its own.
        """
        upsample, stage = self.upsample[depth], self.stages[depth]
        level = len(self.stages) - 1 - depth
        skip = skips[level] if self.has_skip(level) else None
        if isinstance(upsample, NearestUpsample) and not x.is_meta:
            # The convolution first: the same numbers from a fraction of the positions. Costs are
            # counted as the authors' code has it.
            return stage.forward_upsampled(  # type: ignore[operator]
                upsample.conv(x), upsample.stride, skip
            )
        x = upsample(x)
        return stage(x if skip is None else torch.cat((x, skip), dim=1))

    def forward(self, skips: list[Tensor], all_resolutions: bool) -> list[Tensor]:
        x, last = skips[-1], len(self.stages) - 1
        predictions = []
        for depth in range(len(self.stages)):
            x = self.rise(depth, x, skips)
            if all_resolutions and len(self.heads) > 1:
                predictions.append(self.heads[depth](x))
            elif depth == last:
                predictions.append(self.heads[-1](x))
        return predictions[::-1]


class TTTUNet(nn.Module):
    """U-Net with test-time-training layers in the bottleneck or in the encoder.

    Args:
        config: see `NetworkConfig`. `config.ttt = None` gives the same U-Net without TTT.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, *spatial] -> logits [batch, outputs, *spatial].

        Spatial sizes must be multiples of `config.total_stride`; `inference` pads.

        Raises:
            ModelError: x has another number of channels or a size that does not fit.
        """
        check_input(self.config, x)
        return self.decoder(self.encoder(x), all_resolutions=False)[0]

    def forward_all(self, x: Tensor) -> list[Tensor]:
        """Logits at every decoder resolution, highest first (deep supervision)."""
        check_input(self.config, x)
        return self.decoder(self.encoder(x), all_resolutions=True)

    def token_maps(self, size: Sequence[int]) -> list[tuple[InnerLoop, tuple[int, ...]]]:
        """The TTT layers whose tokens are positions, with the sizes of their maps.

        Args:
            size: spatial size of the input, a multiple of `config.total_stride`.
        """
        found, shape = [], tuple(size)
        for stage, stride in zip(self.encoder.stages, self.config.strides, strict=True):
            shape = tuple(length // step for length, step in zip(shape, stride, strict=True))
            mixer = stage.ttt
            if isinstance(mixer, PaperMixer):
                found.append((mixer.inner, shape))
            elif isinstance(mixer, ReleasedMixer) and mixer.map_size is None:
                found.append((mixer.layer.inner, shape))
        return found
