"""The one check of what goes into a network."""

from __future__ import annotations

import math

from torch import Tensor

from tttunet.errors import ModelError
from tttunet.networks.config import NetworkConfig


def check_input(config: NetworkConfig, x: Tensor) -> None:
    """Refuse an input that would fail deep inside the network with an obscure message.

    Args:
        config: of the network.
        x: [batch, channels, *spatial].

    Raises:
        ModelError: wrong number of axes or channels, a size that is no multiple of the total
            stride, or so small that the bottleneck has one position (InstanceNorm needs two).
    """
    if x.ndim != config.dim + 2 or x.shape[1] != config.input_channels:
        raise ModelError(
            f"This network takes [batch, {config.input_channels}, {config.dim} spatial axes], "
            f"not {tuple(x.shape)}."
        )
    size, stride = tuple(x.shape[2:]), config.total_stride
    if any(n % s for n, s in zip(size, stride, strict=True)) or math.prod(size) == 0:
        raise ModelError(f"This network takes sizes that are multiples of {stride}, not {size}.")
    if math.prod(size) == math.prod(stride):
        raise ModelError(f"An input of {size} is too small for a network with stride {stride}.")
