"""Tiled prediction: overlapping tiles, Gaussian weights, optional mirroring.

While the network computes a tile, a helper thread adds the one before to the result and reads the
next one. It has one thread and uses NumPy, not PyTorch, whose operations would start a second
team of threads beside the network's.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from tttunet.errors import Cancelled, ModelError
from tttunet.imaging.tiles import gaussian_weight, read_reflected, tile_grid
from tttunet.models.config import ModelConfig

#: progress(done, total), in tiles.
Progress = Callable[[int, int], None]
Cancel = Callable[[], bool]
Activation = Callable[[Tensor], Tensor]
Forward = Callable[[Tensor], Tensor]
Place = tuple[slice, ...]
#: tile_done(place, activations): a tile's place in the image, [K, *size of the place] float32.
TileDone = Callable[[Place, np.ndarray], None]
Shape = tuple[int, ...]

#: Small tiles go through the network together, up to this many pixels and tiles: on the CPU 1.3
#: times faster for four tiles of 128^2, 1.5 for eight of 64^2, 3.7 for two of 32^3.
BATCH_PIXELS = 256**2
BATCH_TILES = 8

#: Share of a GPU's free memory that the result may take; the network needs the rest.
_DEVICE_SHARE = 0.5
#: Pixels that are weighed and added at a time: the product stays in a core's cache.
_STRIP_PIXELS = 2**16


def semantic_activation(logits: Tensor) -> Tensor:
    """[batch, C, *spatial] logits -> class probabilities."""
    return logits.softmax(1)


def region_activation(logits: Tensor) -> Tensor:
    """[batch, R, *spatial] logits of overlapping regions -> [batch, R + 1, *spatial].

    nnU-Net writes the number of one region after the other where its probability p exceeds 0.5, so
    the last such region i counts. With the margins m_j = p_j - 0.5 that is the largest of

        s_i = min(m_i, -m_j for all j > i),    s_0 = min(-m_j for all j),

    which are here shifted to 0..1 and divided by their sum, so that they can be averaged over
    tiles and interpolated as probabilities are.
    """
    margins = logits.sigmoid() - 0.5
    scores = [margins.new_empty(0)] * (margins.shape[1] + 1)
    least = torch.full_like(margins[:, 0], 0.5)
    for region in reversed(range(margins.shape[1])):
        scores[region + 1] = torch.minimum(margins[:, region], least)
        least = torch.minimum(least, -margins[:, region])
    scores[0] = least
    shifted = torch.stack(scores, 1) + 0.5
    return shifted / shifted.sum(1, keepdim=True)


def instance_activation(logits: Tensor) -> Tensor:
    """Probabilities of background, interior, boundary; the distance map as it is."""
    return torch.cat((logits[:, :-1].softmax(1), logits[:, -1:]), dim=1)


def activation_of(config: ModelConfig) -> Activation:
    """What makes maps of the outputs of a model's network."""
    if config.task == "instance":
        return instance_activation
    return region_activation if config.regions else semantic_activation


@torch.inference_mode()
def predict(
    network: Forward,
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
    tile_done: TileDone | None = None,
    stitch_on_cpu: bool = False,
) -> np.ndarray:
    """Run the network over an image of any size.

    Peak memory beside the image and the network's own, for N pixels in the image, T in a tile
    (B T in a batch of small tiles, B T <= BATCH_PIXELS): 4 bytes times

        (K + 1) N + 2 (C + K) B T + T

    of which (K + 1) N lies on a GPU that has room for it. One tile that covers the whole image
    needs (C + 2 K) T.

    Args:
        network: [batch, C, *spatial] -> [batch, K, *spatial] logits, on `device`, in eval mode.
        image: [C, *spatial] float32, normalised; it is read tile by tile, so a memory map will do.
        activation: applied to the logits of every tile before tiles are blended.
        tile: tile size; axes shorter than it take one tile.
        stride: sizes are padded (by reflection) to multiples of it: the network's total stride.
        overlap: share of a tile that neighbours share.
        mirror_axes: spatial axes whose flips are averaged (all combinations).
        device: where the tiles are computed.
        progress: called after every tile.
        cancel: asked before every tile (of a batch: before the first of them is computed).
        tile_done: receives the activations of every tile before they are blended; read-only, and
            only valid during the call.
        stitch_on_cpu: do not add tiles up on a GPU, even if it has room.

    Returns:
        [K, *spatial] float32, the blended activations.

    Raises:
        Cancelled: `cancel` returned True.
        ModelError: the network produced NaN or infinity.
    """
    spatial, padded = image.shape[1:], padded_shape(image.shape[1:], stride)
    size = tuple(min(_round_up(t, s), n) for t, s, n in zip(tile, stride, padded, strict=True))
    # A tiny image may be padded by more than a tile.
    tiles = [
        place
        for place in tile_grid(padded, size, overlap)
        if all(along.start < length for along, length in zip(place, spatial, strict=True))
    ]
    target = torch.device(device)
    run = functools.partial(
        _predict_mirrored, network, activation=activation, mirror_axes=mirror_axes
    )
    if len(tiles) == 1:
        _ask(cancel)
        maps = run(_read(image, tiles, target).to(target)).cpu().numpy()[0]
        _check_finite(maps)
        if tile_done is not None:
            tile_done(*_inside(tiles[0], maps, spatial))
        _tell(progress, 1, 1)
        return _own(_inside(tiles[0], maps, spatial)[1], image)

    done, canvas, stitching = 0, None, Future[None]()
    stitching.set_result(None)
    batches = list(_batches(tiles, math.prod(size)))
    with ThreadPoolExecutor(1) as helper:
        reading = helper.submit(_read, image, batches[0], target)
        for batch, following in itertools.zip_longest(batches, batches[1:]):
            for _ in batch:
                _ask(cancel)
            x = reading.result().to(target, non_blocking=True)
            if following is not None:
                reading = helper.submit(_read, image, following, target)
            outputs = run(x)
            stitching.result()  # no more than one batch waits
            if canvas is None:
                canvas = _make_canvas(outputs, spatial, size, stitch_on_cpu)
            stitching = canvas.add(outputs, batch, helper)
            for index, place in enumerate(batch):
                if tile_done is not None:
                    maps = outputs[index].cpu().numpy()
                    _check_finite(maps)
                    tile_done(*_inside(place, maps, spatial))
                done += 1
                _tell(progress, done, len(tiles))
        stitching.result()
    assert canvas is not None
    return canvas.finish()


@torch.inference_mode()
def predict_together(
    network: Forward,
    images: Sequence[np.ndarray],
    activation: Activation,
    *,
    stride: Sequence[int],
    mirror_axes: Sequence[int] = (),
    device: torch.device | str = "cpu",
) -> list[np.ndarray]:
    """As `predict` with a tile that covers the image, for several images in one batch.

    Args:
        images: [C, *spatial] float32 each, of one shape.
        The others are those of `predict`.

    Returns:
        [K, *spatial] float32 for every image.
    """
    spatial, target = images[0].shape[1:], torch.device(device)
    place = tuple(slice(0, size) for size in padded_shape(spatial, stride))
    x = torch.cat([_read(image, [place], target) for image in images]).to(target)
    outputs = _predict_mirrored(network, x, activation, mirror_axes).cpu().numpy()
    _check_finite(outputs)
    return [
        _own(_inside(place, maps, spatial)[1], image)
        for maps, image in zip(outputs, images, strict=True)
    ]


class HostCanvas:
    """The result in the computer's memory, added up by the helper thread.

    Args:
        channels: K.
        spatial: of the image.
        size: of a tile.
    """

    def __init__(self, channels: int, spatial: Shape, size: Shape) -> None:
        self.spatial, self.weight = spatial, gaussian_weight(size)
        self.total = np.zeros((channels, *spatial), np.float32)
        self.norm = np.zeros(spatial, np.float32)
        rows = max(1, _STRIP_PIXELS // math.prod(size[1:]))
        self._strip = np.empty((min(rows, size[0]), *size[1:]), np.float32)

    def add(
        self, outputs: Tensor, places: Sequence[Place], helper: ThreadPoolExecutor
    ) -> Future[None]:
        """Begin to add tiles.

        Args:
            outputs: [tiles, K, *size] on any device.
            places: where they belong; may reach beyond the image.
            helper: the thread to do it in.
        """
        copied = None
        if outputs.is_cuda:
            host = torch.empty(outputs.shape, dtype=outputs.dtype, pin_memory=True)
            outputs = host.copy_(outputs, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        return helper.submit(self._add, outputs.cpu().contiguous().numpy(), places, copied)

    def _add(
        self, outputs: np.ndarray, places: Sequence[Place], copied: torch.cuda.Event | None
    ) -> None:
        if copied is not None:
            copied.synchronize()
        _check_finite(outputs)
        for maps, place in zip(outputs, places, strict=True):
            there, here = _clip(place, self.spatial)
            self.norm[there] += self.weight[here]
            for channel, total in zip(maps, self.total, strict=True):
                self._add_channel(total[there], channel[here], self.weight[here])

    def _add_channel(self, total: np.ndarray, values: np.ndarray, weight: np.ndarray) -> None:
        for start in range(0, len(total), len(self._strip)):
            rows = slice(start, min(start + len(self._strip), len(total)))
            part = total[rows]
            product = self._strip[tuple(map(slice, part.shape))]
            np.multiply(values[rows], weight[rows], out=product)
            np.add(part, product, out=part)

    def finish(self) -> np.ndarray:
        """[K, *spatial] float32, the weighted mean."""
        torch.from_numpy(self.total).div_(torch.from_numpy(self.norm))
        return self.total


class DeviceCanvas:
    """The result in the memory of the device that computes the tiles; arguments as `HostCanvas`.

    Args:
        device: of the tiles.
    """

    def __init__(
        self, channels: int, spatial: Shape, size: Shape, device: torch.device | str
    ) -> None:
        self.spatial = spatial
        self.weight = torch.tensor(gaussian_weight(size), device=device)
        self.total = torch.zeros((channels, *spatial), device=device)
        self.norm = torch.zeros(spatial, device=device)
        self.finite = torch.ones((), dtype=torch.bool, device=device)

    def add(
        self, outputs: Tensor, places: Sequence[Place], helper: ThreadPoolExecutor
    ) -> Future[None]:
        """As `HostCanvas.add`; the device keeps the order, so the helper has nothing to do."""
        # Asking the device now would make it wait: NaN is reported at the end.
        self.finite &= outputs.isfinite().all()
        for maps, place in zip(outputs, places, strict=True):
            there, here = _clip(place, self.spatial)
            weight = self.weight[here]
            self.total[(slice(None), *there)].addcmul_(maps[(slice(None), *here)], weight)
            self.norm[there] += weight
        finished = Future[None]()
        finished.set_result(None)
        return finished

    def finish(self) -> np.ndarray:
        """[K, *spatial] float32 in the computer's memory, the weighted mean."""
        if not self.finite.item():
            raise _not_finite()
        return self.total.div_(self.norm).cpu().numpy()


def _make_canvas(
    outputs: Tensor, spatial: Shape, size: Shape, on_cpu: bool
) -> HostCanvas | DeviceCanvas:
    """On the GPU if it has room."""
    channels = outputs.shape[1]
    if outputs.is_cuda and not on_cpu:
        free, _ = torch.cuda.mem_get_info(outputs.device)
        if 4 * (channels + 1) * math.prod(spatial) <= _DEVICE_SHARE * free:
            return DeviceCanvas(channels, spatial, size, outputs.device)
    return HostCanvas(channels, spatial, size)


def padded_shape(spatial: Sequence[int], stride: Sequence[int]) -> Shape:
    """The next multiple of `stride` along every axis.

    At least two strides, because InstanceNorm needs more than one position at the bottleneck.
    """
    return tuple(max(_round_up(n, s), 2 * s) for n, s in zip(spatial, stride, strict=True))


def _round_up(length: int, step: int) -> int:
    return -(-length // step) * step


def _batches(tiles: list[Place], pixels: int) -> Iterator[list[Place]]:
    """Cut the list of tiles of so many pixels each into batches."""
    count = max(1, min(BATCH_TILES, BATCH_PIXELS // pixels))
    for start in range(0, len(tiles), count):
        yield tiles[start : start + count]


def _read(image: np.ndarray, places: Sequence[Place], device: torch.device) -> Tensor:
    """[tiles, C, *size] float32 in the computer's memory, ready for an asynchronous copy."""
    size = tuple(along.stop - along.start for along in places[0])
    shape = (len(places), len(image), *size)
    crops = torch.empty(shape, dtype=torch.float32, pin_memory=device.type == "cuda")
    for place, crop in zip(places, crops.numpy(), strict=True):
        read_reflected(image, place, crop)
    return crops


def _clip(place: Place, spatial: Shape) -> tuple[Place, Place]:
    """The part of a place that lies in the image, in the image and in the tile."""
    there = tuple(slice(p.start, min(p.stop, n)) for p, n in zip(place, spatial, strict=True))
    return there, tuple(slice(0, t.stop - t.start) for t in there)


def _inside(place: Place, maps: np.ndarray, spatial: Shape) -> tuple[Place, np.ndarray]:
    """The part of a tile that lies in the image."""
    there, here = _clip(place, spatial)
    return there, maps[(slice(None), *here)]


def _own(maps: np.ndarray, image: np.ndarray) -> np.ndarray:
    """`maps` as an array that is neither a view of a larger one nor of the image."""
    aliased = not maps.flags.c_contiguous or np.may_share_memory(maps, image)
    return maps.copy() if aliased else maps


def _check_finite(maps: np.ndarray) -> None:
    # The sum is cheaper than a mask, but may overflow where all values are finite.
    with np.errstate(over="ignore", invalid="ignore"):
        total = maps.sum()
    if not math.isfinite(total) and not np.isfinite(maps).all():
        raise _not_finite()


def _not_finite() -> ModelError:
    return ModelError(
        "The network produced NaN or infinity.",
        "The image or the model is damaged; nothing was segmented.",
    )


def _ask(cancel: Cancel | None) -> None:
    if cancel is not None and cancel():
        raise Cancelled("Segmentation was cancelled.")


def _tell(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)


def _predict_mirrored(
    network: Forward, x: Tensor, activation: Activation, mirror_axes: Sequence[int]
) -> Tensor:
    """[batch, K, *spatial] float32, the mean over all flips."""
    outputs = activation(network(x).float())
    if not mirror_axes:
        return outputs
    axes = [axis + 2 for axis in mirror_axes]
    subsets = [c for n in range(1, len(axes) + 1) for c in itertools.combinations(axes, n)]
    share = 1 / (len(subsets) + 1)
    mean = outputs * share
    for subset in subsets:
        mean.add_(activation(network(x.flip(subset)).float()).flip(subset), alpha=share)
    return mean
