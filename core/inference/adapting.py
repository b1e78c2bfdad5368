"""The loss of the TTT layers beside the network's maps, through the same tiles."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tttunet.errors import ModelError
from tttunet.inference.tiled import Activation, TileDone
from tttunet.layers.adaptation import Adaptation
from tttunet.networks.ttt_unet import TTTUNet

#: Before the TTT layers adapted, and after.
CHANNELS = 2


class LossMaps(nn.Module):
    """A network with `CHANNELS` more output channels: [batch, C, *] -> [batch, K + 2, *].

    Args:
        network: a TTT-UNet.
        adaptation: of that network, entered, with `keep_losses`.

    Raises:
        ModelError: the network is another one.
    """

    def __init__(self, network: nn.Module, adaptation: Adaptation) -> None:
        super().__init__()
        if not isinstance(network, TTTUNet):
            raise ModelError(
                "Only TTT-UNets can tell where they adapted.",
                "Segment without the adaptation map.",
            )
        self._network, self._adaptation = network, adaptation

    def forward(self, x: Tensor) -> Tensor:
        y = self._network(x)
        size = x.shape[2:]
        losses = self._adaptation.loss_maps(self._network.token_maps(size), size)
        return torch.cat((y, losses.to(y.dtype)), dim=1)

    @staticmethod
    def activation(activation: Activation) -> Activation:
        """The network's activation, which leaves the losses alone."""

        def apply(y: Tensor) -> Tensor:
            return torch.cat((activation(y[:, :-CHANNELS]), y[:, -CHANNELS:]), dim=1)

        return apply

    @staticmethod
    def without(tile_done: TileDone | None) -> TileDone | None:
        """A listener that gets the network's own channels."""
        if tile_done is None:
            return None
        return lambda place, maps: tile_done(place, maps[:-CHANNELS])
