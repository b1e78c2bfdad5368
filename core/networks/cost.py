"""Parameters and multiply-accumulates of a network, without computing anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tttunet.networks import build_network
from tttunet.networks.config import NetworkConfig, uniform_config
from tttunet.networks.released import released_config

#: What fvcore counts per element of an affine normalisation.
NORM_OPERATIONS = 5

_PAPER_FEATURES = (32, 64, 128, 256, 320)
_PAPER_INPUTS: tuple[tuple[str, tuple[int, ...], int], ...] = (
    ("abdomen MR, 2D", (1, 320, 320), 14),
    ("endoscopy", (3, 384, 640), 8),
    ("microscopy", (3, 512, 512), 3),
    ("abdomen CT, 3D", (1, 64, 224, 192), 14),
    ("abdomen MR, 3D", (1, 64, 160, 224), 14),
)
#: Parameters in millions and FLOPs in 1e9 for every input.
_PAPER_BOT = ((8.01, 33.69), (8.01, 80.96), (8.01, 86.32), (22.32, 1345.90), (22.32, 1121.58))
_PAPER_NNUNET = ((5.69, 18.14), (5.69, 43.63), (5.69, 46.49), (16.55, 623.66), (16.55, 519.72))


@dataclass(frozen=True)
class Cost:
    """Cost of one forward pass at full resolution, batch size 1.

    Attributes:
        parameters: of the network as built, deep supervision heads included.
        conv_macs: multiply-accumulates of convolutions.
        macs: multiply-accumulates of convolutions and matrix products.
        fvcore_total: `macs` and the normalisations as fvcore counts them, which is what papers
            print as FLOPs.
    """

    parameters: int
    conv_macs: int
    macs: int
    fvcore_total: int


@dataclass(frozen=True)
class CostRow:
    """A row of the paper's Tables 3 and 4, recounted.

    Attributes:
        network: the paper's name.
        data: the paper's data set.
        input_shape: channels, then spatial size.
        output_channels: classes with background.
        cost: our count.
        paper_parameters: in millions, as printed.
        paper_flops: in units of 1e9, as printed.
    """

    network: str
    data: str
    input_shape: tuple[int, ...]
    output_channels: int
    cost: Cost
    paper_parameters: float
    paper_flops: float


def count_cost(config: NetworkConfig, input_size: Sequence[int]) -> Cost:
    """Count on PyTorch's meta device: no memory, no arithmetic, any size in about a second.

    Args:
        config: the network.
        input_size: spatial size, a multiple of `config.total_stride`.

    Raises:
        ModelError: the size does not fit the network.
    """
    normalised = 0

    def count_norm(_module: nn.Module, inputs: tuple[torch.Tensor, ...], _output: object) -> None:
        nonlocal normalised
        normalised += inputs[0].numel()

    with torch.device("meta"):
        network = build_network(config).eval()
        x = torch.empty(1, config.input_channels, *input_size)
    for module in network.modules():
        if isinstance(module, (nn.InstanceNorm2d, nn.InstanceNorm3d, nn.LayerNorm)):
            module.register_forward_hook(count_norm)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(x)
    macs = counter.get_total_flops() // 2
    conv_macs = counter.get_flop_counts()["Global"][torch.ops.aten.convolution] // 2
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Cost(parameters, conv_macs, macs, macs + NORM_OPERATIONS * normalised)


def paper_cost_table() -> list[CostRow]:
    """The paper's Tables 3 and 4 (TTT-UNet_Bot and nnU-Net), recounted.

    They are reproduced by a generic network of five stages with the input sizes below, not by
    the configurations of the paper's Table 6.
    """
    rows = []
    for network, configure, published in (
        ("TTT-UNet_Bot", _ttt_unet, _PAPER_BOT),
        ("nnU-Net", _plain_unet, _PAPER_NNUNET),
    ):
        for (data, shape, classes), (parameters, flops) in zip(
            _PAPER_INPUTS, published, strict=True
        ):
            cost = count_cost(configure(shape, classes), shape[1:])
            rows.append(CostRow(network, data, shape, classes, cost, parameters, flops))
    return rows


def _plain_unet(shape: tuple[int, ...], classes: int) -> NetworkConfig:
    dim: Literal[2, 3] = 2 if len(shape) == 3 else 3
    return uniform_config(dim, shape[0], classes, _PAPER_FEATURES, architecture="plain_unet")


def _ttt_unet(shape: tuple[int, ...], classes: int) -> NetworkConfig:
    plain = _plain_unet(shape, classes)
    return released_config(
        dim=plain.dim,
        input_channels=shape[0],
        output_channels=classes,
        features=plain.features,
        kernel_sizes=plain.kernel_sizes,
        strides=plain.strides,
    )
