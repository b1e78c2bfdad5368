"""From an `Image` to labels on the same grid."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tttunet.errors import ImageError, ModelError
from tttunet.imaging import Image, normalise, prepare_channels
from tttunet.inference.accelerate import accelerated
from tttunet.inference.allocator import tune_allocator
from tttunet.inference.device import pick_device
from tttunet.inference.instances import decode_instances
from tttunet.inference.tiled import (
    Cancel,
    Progress,
    instance_activation,
    predict,
    semantic_activation,
)
from tttunet.models.config import InstanceDecoding
from tttunet.models.model import Model

#: Automatic tiles are at most this many times the training patch along every axis.
TILE_FACTOR = 2


@dataclass(frozen=True)
class Result:
    """Labels with what they were made from.

    Attributes:
        labels: [(T,) *spatial], uint32 for instances, uint8 (or uint16) for classes; the axes of
            `image` without its channels.
        image: what was segmented.
        model: name and version.
        seconds: wall time.
        settings: everything that decides the result, for the record.
    """

    labels: np.ndarray
    image: Image
    model: str
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def axes(self) -> str:
        return self.image.axes.replace("C", "")

    @property
    def count(self) -> int:
        """Number of objects (instances) or of classes that occur."""
        return len(np.unique(self.labels[self.labels > 0]))


def segment(
    image: Image,
    model: Model,
    *,
    device: str = "auto",
    tile: Sequence[int] | None = None,
    overlap: float = 0.25,
    mirror: bool = False,
    decoding: InstanceDecoding | None = None,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Result:
    """Segment an image of any size.

    Time points are segmented one by one. A 2D model takes a stack slice by slice; the objects of
    different slices then have different numbers.

    Args:
        image: from `load_image`.
        model: from `load_model`.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        tile: tile size in pixels; None: chosen from the model's patch size.
        overlap: share of a tile that neighbours share, 0 to 0.9.
        mirror: average over flips (test-time augmentation), 4 times slower in 2D, 8 in 3D.
        decoding: replaces the model's thresholds for instances.
        progress: called with (tiles done, tiles in all).
        cancel: asked before every tile; True raises `Cancelled`.

    Returns:
        Labels on the image's grid.

    Raises:
        ImageError: the image has other dimensions or channels than the model takes, or a single
            pixel.
        Cancelled: `cancel` returned True.
    """
    start = time.perf_counter()
    config = model.config
    dim = config.network.dim
    if len(image.spatial_axes) < dim:
        raise ImageError(
            f"'{image.name}' has the axes {image.axes}, but '{config.name}' takes volumes.",
            "Choose a 2D model, or state the axes if the first one is Z (--axes ZYX).",
        )
    if math.prod(image.spatial_shape) == 1:
        raise ImageError(
            f"'{image.name}' has a single pixel: there is nothing to segment.",
            "Check the axes and the file.",
        )
    target = pick_device(device)
    planes = _planes(image, model)
    lead = planes.shape[: planes.ndim - 1 - dim]
    planes = planes.reshape(-1, *planes.shape[-1 - dim :])
    labels = []
    for index, plane in enumerate(planes):
        report = None if progress is None else _shifted(progress, index, len(planes))
        labels.append(
            predict_labels(
                model,
                plane,
                device=target,
                tile=tile,
                overlap=overlap,
                mirror=mirror,
                decoding=decoding,
                progress=report,
                cancel=cancel,
            )
        )
    if config.task == "instance":
        labels = _distinct(labels)
    settings = {
        "device": str(target),
        "tile": list(tile or automatic_tile(model)),
        "overlap": overlap,
        "mirror": mirror,
    }
    stacked = np.stack(labels).reshape(*lead, *labels[0].shape)
    name = f"{config.name} {config.version}"
    return Result(stacked, image, name, time.perf_counter() - start, settings)


def predict_maps(
    model: Model,
    array: np.ndarray,
    *,
    device: torch.device | str = "cpu",
    tile: Sequence[int] | None = None,
    overlap: float = 0.25,
    mirror: bool = False,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> np.ndarray:
    """The network's maps of one normalised array.

    Args:
        array: [C, *spatial] float32, normalised by the model's plan.
        The others are those of `segment`.

    Returns:
        [K, *spatial] float32: class probabilities; for instances the channels of
        `models.config.INSTANCE_CHANNELS`.
    """
    tune_allocator()
    config = model.config
    return predict(
        accelerated(model.network.to(device).eval()),
        array,
        instance_activation if config.task == "instance" else semantic_activation,
        tile=tile or automatic_tile(model),
        stride=config.network.total_stride,
        overlap=overlap,
        mirror_axes=config.plan.mirror_axes if mirror else (),
        device=device,
        progress=progress,
        cancel=cancel,
    )


def predict_labels(
    model: Model, array: np.ndarray, *, decoding: InstanceDecoding | None = None, **options: Any
) -> np.ndarray:
    """Labels of one normalised array; a constant one is background everywhere.

    Args:
        array: [C, *spatial] float32, normalised by the model's plan.
        decoding: replaces the model's thresholds for instances.
        options: those of `predict_maps`.

    Returns:
        [*spatial] uint32 instances, or classes as uint8 (uint16 above 255 classes).
    """
    config = model.config
    values = np.array([0, *(label.value for label in config.labels)])
    values = values.astype(np.uint8 if values.max() < 256 else np.uint16)
    if np.ptp(array) == 0:
        dtype = np.uint32 if config.task == "instance" else values.dtype
        return np.zeros(array.shape[1:], dtype)
    maps = predict_maps(model, array, **options)
    if config.task == "instance":
        rules = decoding or config.plan.decoding
        assert rules is not None
        return decode_instances(maps, rules)
    return values[maps.argmax(0)]


def tile_size(model: Model, size: Sequence[int] | None) -> tuple[int, ...] | None:
    """A tile with a number for every axis of the model; None if no size is given.

    Raises:
        ModelError: neither one number nor one for every axis.
    """
    if not size:
        return None
    dim = model.config.network.dim
    if len(size) not in (1, dim):
        raise ModelError(
            f"--tile has {len(size)} numbers, but '{model.config.name}' is a {dim}D model.",
            f"Give one number, or {dim}.",
        )
    return tuple(size) * (dim if len(size) == 1 else 1)


def automatic_tile(model: Model) -> tuple[int, ...]:
    """Twice the training patch along every axis: fewer seams, memory still bounded."""
    return tuple(TILE_FACTOR * size for size in model.config.plan.patch_size)


def _planes(image: Image, model: Model) -> np.ndarray:
    """[(T,) (Z,) C, *spatial] float32: every entry of the leading axes is one network input.

    Percentiles are those of the whole time point or stack, so that slices stay comparable.
    """
    plan, network = model.config.plan, model.config.network
    channels = prepare_channels(image, plan.channels, network.input_channels)
    frames = channels if "T" in image.axes else channels[None]
    frames = np.stack([normalise(f, plan.normalisation, plan.percentiles) for f in frames])
    if len(image.spatial_axes) > network.dim:
        frames = frames.swapaxes(1, 2)
    return frames if "T" in image.axes else frames[0]


def _shifted(progress: Progress, index: int, count: int) -> Progress:
    """Progress over all planes from the progress in one of them."""
    return lambda done, total: progress(index * total + done, count * total)


def _distinct(labels: list[np.ndarray]) -> list[np.ndarray]:
    """Number the objects of all planes consecutively."""
    shifted, highest = [], 0
    for plane in labels:
        shifted.append(np.where(plane > 0, plane + np.uint32(highest), 0).astype(np.uint32))
        highest = max(highest, int(shifted[-1].max(initial=0)))
    return shifted
