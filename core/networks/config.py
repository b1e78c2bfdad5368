"""Configuration of a network: everything `build_network` needs, as validated JSON."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tttunet.layers.config import Flavour, StrictModel, TTTConfig

__all__ = [
    "Flavour",
    "NetworkConfig",
    "Placement",
    "StrictModel",
    "TTTConfig",
    "uniform_config",
]

Placement = Literal["bottleneck", "encoder"]
Positive = Annotated[int, Field(ge=1)]


class NetworkConfig(StrictModel):
    """A U-Net with or without TTT layers, in 2 or 3 dimensions.

    Attributes:
        architecture: `ttt_unet`, or `plain_unet`: nnU-Net's PlainConvUNet, to which `flavour`,
            `placement`, `stem_blocks`, `ttt` and `skip_full_resolution` do not apply.
        flavour: `paper` follows Figure 1b and section 3.2; `released` computes exactly what the
            authors' code computes and takes their weights.
        placement: `bottleneck` is TTT-UNet_Bot, `encoder` is TTT-UNet_Enc.
        dim: spatial dimensions, 2 or 3.
        features: channels of every stage, highest resolution first.
        kernel_sizes, strides: per stage, one number per axis; kernels are odd.
        stem_blocks: residual blocks at full resolution before stage 0 (`released` has as many as
            stage 0).
        encoder_blocks, decoder_blocks: residual blocks (convolutions in `plain_unet`) per stage
            (decoder: deepest first).
        patch_size: spatial size the network is configured for; only `released` encoder networks
            with channel tokens are restricted to it.
        ttt: None replaces every TTT layer by the identity (the ablation).
        deep_supervision: predictions at every decoder resolution while training.
        skip_full_resolution: whether the last decoder stage receives the encoder's features.
    """

    architecture: Literal["ttt_unet", "plain_unet"] = "ttt_unet"
    flavour: Flavour = "paper"
    placement: Placement = "bottleneck"
    dim: Literal[2, 3] = 2
    input_channels: int = Field(ge=1)
    output_channels: int = Field(ge=1)
    features: tuple[Positive, ...]
    kernel_sizes: tuple[tuple[Positive, ...], ...]
    strides: tuple[tuple[Positive, ...], ...]
    stem_blocks: int = Field(0, ge=0)
    encoder_blocks: tuple[Positive, ...]
    decoder_blocks: tuple[Positive, ...]
    patch_size: tuple[Positive, ...] | None = None
    ttt: TTTConfig | None = TTTConfig()
    deep_supervision: bool = True
    skip_full_resolution: bool = True

    @property
    def stages(self) -> int:
        """Resolutions of the encoder, the bottleneck included."""
        return len(self.features)

    @property
    def total_stride(self) -> tuple[int, ...]:
        """Product of the strides per axis: inputs are padded to a multiple of it."""
        total = [1] * self.dim
        for stride in self.strides:
            total = [a * b for a, b in zip(total, stride, strict=True)]
        return tuple(total)

    @model_validator(mode="after")
    def _consistent(self) -> NetworkConfig:
        n = self.stages
        if n < 2:
            raise ValueError("a U-Net needs at least two stages")
        for name, value, length in (
            ("kernel_sizes", self.kernel_sizes, n),
            ("strides", self.strides, n),
            ("encoder_blocks", self.encoder_blocks, n),
            ("decoder_blocks", self.decoder_blocks, n - 1),
        ):
            if len(value) != length:
                raise ValueError(f"{name} has {len(value)} entries, {length} expected")
        for name, rows in (("kernel_sizes", self.kernel_sizes), ("strides", self.strides)):
            if any(len(row) != self.dim for row in rows):
                raise ValueError(f"every entry of {name} needs {self.dim} numbers")
        if any(k % 2 == 0 for row in self.kernel_sizes for k in row):
            raise ValueError("kernel_sizes must be odd")
        if self.patch_size is not None and len(self.patch_size) != self.dim:
            raise ValueError(f"patch_size needs {self.dim} numbers")
        return self

    @model_validator(mode="after")
    def _options_of_the_flavour(self) -> NetworkConfig:
        ttt = self.ttt
        if ttt is None or self.architecture != "ttt_unet":
            return self
        if self.flavour == "paper":
            if ttt.share_qk or ttt.gate:
                raise ValueError("ttt.share_qk and ttt.gate are options of the released flavour")
            if ttt.conv_kernel % 2 == 0:
                raise ValueError("ttt.conv_kernel must be odd in the paper flavour")
        elif ttt.bidirectional:
            raise ValueError("ttt.bidirectional is an option of the paper flavour")
        return self


def uniform_config(
    dim: Literal[2, 3],
    input_channels: int,
    output_channels: int,
    features: tuple[int, ...],
    blocks: int = 2,
    **options: Any,
) -> NetworkConfig:
    """A network with 3-wide kernels and stride 2 in every axis at every stage but the first.

    Args:
        dim: 2 or 3.
        input_channels, output_channels: channels.
        features: channels of every stage, highest resolution first.
        blocks: residual blocks (convolutions in `plain_unet`) of every stage.
        options: further fields of `NetworkConfig`.
    """
    n = len(features)
    return NetworkConfig(
        dim=dim,
        input_channels=input_channels,
        output_channels=output_channels,
        features=features,
        kernel_sizes=((3,) * dim,) * n,
        strides=((1,) * dim,) + ((2,) * dim,) * (n - 1),
        encoder_blocks=(blocks,) * n,
        decoder_blocks=(blocks,) * (n - 1),
        **options,
    )
