"""The configurations of the authors' code (github.com/rongzhou7/TTT-Unet) as ours."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

from tttunet.networks.config import NetworkConfig, Placement, TTTConfig


def released_config(
    *,
    dim: Literal[2, 3],
    input_channels: int,
    output_channels: int,
    features: Iterable[int],
    kernel_sizes: Iterable[Iterable[int]],
    strides: Iterable[Iterable[int]],
    blocks: int | Iterable[int] = 2,
    decoder_blocks: int | Iterable[int] = 2,
    placement: Placement = "bottleneck",
    patch_size: Iterable[int] | None = None,
    deep_supervision: bool = True,
) -> NetworkConfig:
    """The network that the authors' constructors build from these arguments.

    They force one block per stage in the deeper half, put a stem with the blocks of stage 0 in
    front, and leave out the skip at full resolution in 2D. Their encoder network is 2D only; in
    3D this is the same rule.

    Args:
        dim: 2 or 3.
        input_channels, output_channels: channels.
        features: channels of every stage, highest resolution first.
        kernel_sizes, strides: per stage, one number per axis.
        blocks, decoder_blocks: as given to the authors' constructor (before it changes them): one
            number, or one per stage (decoder: deepest first).
        placement: `bottleneck` for Bot, `encoder` for Enc.
        patch_size: needed for Enc, whose small maps take channels as tokens.
        deep_supervision: as in the constructor. The authors' network has all heads even without;
            ours has those it uses.
    """
    features = tuple(features)
    n = len(features)
    encoder = _shallow_only(_per_stage(blocks, n), math.ceil(n / 2))
    decoder = _shallow_only(_per_stage(decoder_blocks, n - 1), math.ceil(n / 2))
    return NetworkConfig(
        flavour="released",
        placement=placement,
        dim=dim,
        input_channels=input_channels,
        output_channels=output_channels,
        features=features,
        kernel_sizes=tuple(tuple(row) for row in kernel_sizes),
        strides=tuple(tuple(row) for row in strides),
        stem_blocks=encoder[0],
        encoder_blocks=encoder,
        decoder_blocks=decoder,
        patch_size=None if patch_size is None else tuple(patch_size),
        ttt=TTTConfig(heads=16 if placement == "bottleneck" else 8, conv_kernel=4),
        deep_supervision=deep_supervision,
        skip_full_resolution=dim == 3,
    )


def _per_stage(value: int | Iterable[int], stages: int) -> tuple[int, ...]:
    return (value,) * stages if isinstance(value, int) else tuple(value)


def _shallow_only(blocks: tuple[int, ...], first_forced: int) -> tuple[int, ...]:
    """One block for every entry from `first_forced` on."""
    return tuple(1 if s >= first_forced else count for s, count in enumerate(blocks))
