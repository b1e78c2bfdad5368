"""Tiled prediction: overlapping tiles, Gaussian weights, optional mirroring."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tttunet.errors import Cancelled, ModelError
from tttunet.imaging.tiles import gaussian_weight, tile_grid

#: progress(done, total), in tiles.
Progress = Callable[[int, int], None]
Cancel = Callable[[], bool]
Activation = Callable[[Tensor], Tensor]


def semantic_activation(logits: Tensor) -> Tensor:
    """[batch, C, *spatial] logits -> class probabilities."""
    return logits.softmax(1)


def instance_activation(logits: Tensor) -> Tensor:
    """Probabilities of background, interior, boundary; the distance map as it is."""
    return torch.cat((logits[:, :-1].softmax(1), logits[:, -1:]), dim=1)


@torch.inference_mode()
def predict(
    network: nn.Module,
    image: np.ndarray,
    activation: Activation,
    *,
    tile: Sequence[int],
    stride: Sequence[int],
    overlap: float = 0.25,
    mirror_axes: Sequence[int] = (),
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> np.ndarray:
    """Run the network over an image of any size.

    Args:
        network: [batch, C, *spatial] -> [batch, K, *spatial] logits, on `device`, in eval mode.
        image: [C, *spatial] float32, normalised.
        activation: applied to the logits of every tile before tiles are blended.
        tile: tile size; axes shorter than it take one tile.
        stride: sizes are padded (by reflection) to multiples of it: the network's total stride.
        overlap: share of a tile that neighbours share.
        mirror_axes: spatial axes whose flips are averaged (all combinations).
        device: where the tiles are computed; the result is gathered on the CPU.
        progress: called after every tile.
        cancel: asked before every tile.

    Returns:
        [K, *spatial] float32, the blended activations.

    Raises:
        Cancelled: `cancel` returned True.
        ModelError: the network produced NaN or infinity.
    """
    spatial = image.shape[1:]
    padded = pad_to_multiple(image, stride)
    size = [min(_round_up(t, s), n) for t, s, n in zip(tile, stride, padded.shape[1:], strict=True)]
    tiles = tile_grid(padded.shape[1:], size, overlap)
    weight = gaussian_weight(size)
    total: np.ndarray | None = None
    norm = np.zeros(padded.shape[1:], np.float32)
    for done, place in enumerate(tiles, start=1):
        if cancel is not None and cancel():
            raise Cancelled("Segmentation was cancelled.")
        crop = torch.from_numpy(padded[(slice(None), *place)]).to(device)[None]
        output = _predict_mirrored(network, crop, activation, mirror_axes)[0].cpu().numpy()
        if not np.isfinite(output).all():
            raise ModelError(
                "The network produced NaN or infinity.",
                "The image or the model is damaged; nothing was segmented.",
            )
        if total is None:
            total = np.zeros((output.shape[0], *padded.shape[1:]), np.float32)
        total[(slice(None), *place)] += output * weight
        norm[place] += weight
        if progress is not None:
            progress(done, len(tiles))
    assert total is not None
    inside = tuple(slice(0, n) for n in spatial)
    return total[(slice(None), *inside)] / norm[inside]


def pad_to_multiple(image: np.ndarray, stride: Sequence[int]) -> np.ndarray:
    """Pad the end of every spatial axis by reflection to a multiple of `stride`.

    At least two strides, because InstanceNorm needs more than one position at the bottleneck.
    """
    padding = [(0, 0)]
    for length, step in zip(image.shape[1:], stride, strict=True):
        padding.append((0, max(_round_up(length, step), 2 * step) - length))
    return np.pad(image, padding, mode="symmetric")


def _round_up(length: int, step: int) -> int:
    return -(-length // step) * step


def _predict_mirrored(
    network: nn.Module, x: Tensor, activation: Activation, mirror_axes: Sequence[int]
) -> Tensor:
    subsets = [
        [axis + 2 for axis in chosen]
        for n in range(len(mirror_axes) + 1)
        for chosen in itertools.combinations(mirror_axes, n)
    ]
    mean = torch.zeros(())
    for axes in subsets:
        output = activation(network(x.flip(axes)).float()).flip(axes)
        mean = mean.to(output.device) + output / len(subsets)
    return mean
