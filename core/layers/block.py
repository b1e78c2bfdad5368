"""TTT on feature maps: the token mixers of both flavours and the TTT building block."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tttunet.errors import ModelError
from tttunet.layers.config import Flavour, TTTConfig
from tttunet.layers.residual import ResidualStage, same_conv
from tttunet.layers.ttt import InnerLoop, TTTLayer


def map_to_tokens(x: Tensor) -> Tensor:
    """[batch, C, *spatial] -> [batch, positions, C] in raster order, last axis fastest."""
    return x.flatten(2).transpose(1, 2)


def tokens_to_map(tokens: Tensor, spatial: torch.Size) -> Tensor:
    """Inverse of `map_to_tokens`."""
    return tokens.transpose(1, 2).unflatten(2, spatial)


class ReleasedMixer(nn.Module):
    """LayerNorm and TTT layer on the pixels of a map, as the authors' code has it.

    Args:
        channels: channels of the map.
        config: the TTT layer.
        map_size: positions in the map if tokens are its channels (the encoder network's small
            maps), else None. Only then the size of the input is fixed, and `forward` raises
            `ModelError` for another.
    """

    def __init__(self, channels: int, config: TTTConfig, map_size: int | None = None) -> None:
        super().__init__()
        self.map_size = map_size
        self.residual = config.residual
        self.norm = nn.LayerNorm(map_size or channels)
        self.layer = TTTLayer(map_size or channels, config)

    def forward(self, x: Tensor) -> Tensor:
        if self.map_size is None:
            y = tokens_to_map(self.layer(self._normalise(map_to_tokens(x))), x.shape[2:])
        else:
            positions = math.prod(x.shape[2:])
            if positions != self.map_size:
                raise ModelError(
                    f"This network has channel tokens of {self.map_size} positions, the map has "
                    f"{positions}.",
                    "Give it patches of exactly its configured patch_size.",
                )
            y = self.layer(self._normalise(x.flatten(2))).reshape(x.shape)
        y = y.to(x.dtype)
        return x + y if self.residual else y

    def _normalise(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens.to(self.norm.weight.dtype))


class PaperMixer(nn.Module):
    """The TTT part of Figure 1b (section 3.2).

    LayerNorm; linear V, K and Q; depthwise spatial convolutions on K and Q; TTT; LayerNorm;
    Hadamard product with a linear + SiLU branch; output linear map. The figure draws no inner
    LayerNorm, skip or rotary embedding: the inner loop is the one of the authors' code.

    [batch, channels, *spatial] -> the same shape and dtype, for any spatial size.

    Args:
        dim: 2 or 3.
        channels: channels of the map, the token width.
        config: the TTT layer; `conv_kernel` is odd.
    """

    def __init__(self, dim: int, channels: int, config: TTTConfig) -> None:
        super().__init__()
        kernel = (config.conv_kernel,) * dim
        self.residual = config.residual
        self.norm = nn.LayerNorm(channels)
        self.value = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(channels, channels, bias=False)
        self.query = nn.Linear(channels, channels, bias=False)
        self.conv_key = same_conv(dim, channels, channels, kernel, groups=channels)
        self.conv_query = same_conv(dim, channels, channels, kernel, groups=channels)
        self.gate = nn.Linear(channels, channels)
        self.inner = InnerLoop(channels, config, bidirectional=config.bidirectional)
        self.post_norm = nn.LayerNorm(channels)
        self.output = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        spatial = x.shape[2:]
        tokens = self.norm(map_to_tokens(x).to(self.norm.weight.dtype))
        key = map_to_tokens(self.conv_key(tokens_to_map(self.key(tokens), spatial)))
        query = map_to_tokens(self.conv_query(tokens_to_map(self.query(tokens), spatial)))
        y = self.inner(tokens, query, key, self.value(tokens))
        y = self.output(self.post_norm(y) * F.silu(self.gate(tokens)))
        y = tokens_to_map(y, spatial).to(x.dtype)
        return x + y if self.residual else y


def build_mixer(
    dim: int, channels: int, flavour: Flavour, config: TTTConfig | None, map_size: int | None = None
) -> nn.Module:
    """The TTT part of a building block; the identity if config is None.

    Args:
        dim: 2 or 3.
        channels: channels of the map.
        flavour: `paper` or `released`.
        config: the TTT layer.
        map_size: see `ReleasedMixer`; `paper` has no channel tokens.
    """
    if config is None:
        return nn.Identity()
    if flavour == "released":
        return ReleasedMixer(channels, config, map_size)
    return PaperMixer(dim, channels, config)


class TTTBuildingBlock(nn.Module):
    """Residual blocks (two in the paper's figure) followed by TTT: a stage of the U-Net.

    Args:
        dim: 2 or 3.
        in_channels, out_channels: channels.
        kernel, stride: per axis.
        blocks: residual blocks.
        flavour: `paper` or `released`.
        config: the TTT layer; None leaves the residual blocks alone.
        map_size: see `ReleasedMixer`.
    """

    def __init__(
        self,
        dim: int,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        blocks: int,
        flavour: Flavour,
        config: TTTConfig | None,
        map_size: int | None = None,
    ) -> None:
        super().__init__()
        self.blocks = ResidualStage(dim, in_channels, out_channels, kernel, stride, blocks)
        self.ttt = build_mixer(dim, out_channels, flavour, config, map_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.ttt(self.blocks(x))
