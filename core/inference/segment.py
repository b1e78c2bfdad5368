"""From an `Image` to labels on the same grid."""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from tttunet.errors import ImageError, ModelError
from tttunet.imaging import Image
from tttunet.imaging.normalise import Scales
from tttunet.imaging.preprocess import Prepared, frames, preprocess
from tttunet.inference.accelerate import accelerated
from tttunet.inference.adapting import LossMaps
from tttunet.inference.allocator import tune_allocator
from tttunet.inference.components import keep_largest
from tttunet.inference.device import pick_device
from tttunet.inference.instances import decode_instances
from tttunet.inference.regrid import labels_on_image, maps_on_image
from tttunet.inference.tiled import (
    Cancel,
    Progress,
    TileDone,
    activation_of,
    predict,
)
from tttunet.layers.adaptation import Adaptation, Mode
from tttunet.models.card import first_problem
from tttunet.models.config import InstanceDecoding, ModelConfig
from tttunet.models.model import Model

#: Automatic tiles are at most this many times the training patch along every axis.
TILE_FACTOR = 2

#: maps_done(index, maps): the plane's place on the leading axes of the labels, [K, *spatial]
#: float32, or None for a constant plane, which the network does not see.
MapsDone = Callable[[tuple[int, ...], np.ndarray | None], None]


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
        adaptation_map: [2, *labels] float32, the TTT layers' own loss per channel before they
            adapted to a tile and after, if it was asked for.
    """

    labels: np.ndarray
    image: Image
    model: str
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)
    adaptation_map: np.ndarray | None = None

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
    adaptation: Mode = "tile",
    adaptation_map: bool = False,
    scales: Scales | None = None,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    tile_done: TileDone | None = None,
    maps_done: MapsDone | None = None,
    stitch_on_cpu: bool = False,
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
        adaptation: how TTT layers adapt, see `tttunet.layers.adaptation.Mode`: `off`, per `tile`,
            carried over the tiles of an `image` (each slice or time point anew), or `both`.
        adaptation_map: also return where they had to adapt.
        scales: by which intensities are normalised, of the whole image that this is a part of (see
            `tttunet.imaging.preprocess.image_scales`); None: its own, of each time point.
        progress: called with (tiles done, tiles in all).
        cancel: asked before every tile; True raises `Cancelled`.
        tile_done: receives every tile's place in the labels and the network's maps, as for
            `predict`.
        maps_done: receives the blended maps of every plane.
        stitch_on_cpu: keep the maps out of the GPU's memory.

    Returns:
        Labels on the image's grid.

    Raises:
        ImageError: the image has other dimensions or channels than the model takes, or a single
            pixel.
        ModelError: there is no such adaptation, or no TTT layer for the map.
        Cancelled: `cancel` returned True.
    """
    start = time.perf_counter()
    config = model.config
    _check_dimensions(image, config)
    target = pick_device(device)
    lead = leading_shape(image, config)
    labels = np.zeros((*lead, *image.spatial_shape[-config.network.dim :]), label_dtype(config))
    losses = np.zeros((2, *labels.shape), np.float32) if adaptation_map else None
    options: dict[str, Any] = {
        "device": target,
        "tile": tile,
        "overlap": overlap,
        "mirror": mirror,
        "adaptation": adaptation,
        "cancel": cancel,
        "stitch_on_cpu": stitch_on_cpu,
    }
    highest = 0
    times = len(image.array) if "T" in image.axes else 1
    for number, frame in enumerate(frames(image)):
        when = (number,) if "T" in image.axes else ()
        prepared = preprocess(frame, config.plan, config.network.input_channels, scales)
        for index, found in _frame_labels(
            model,
            prepared,
            decoding=decoding,
            losses=None if losses is None else losses[(slice(None), *when)],
            progress=None if progress is None else _shifted(progress, number, times),
            tile_done=None if tile_done is None else _placed(tile_done, when),
            maps_done=None if maps_done is None else _at(maps_done, when),
            options=options,
        ):
            highest = place_labels(labels, (*when, *index), found, config, highest)
    settings = {
        "device": str(target),
        "tile": list(tile or automatic_tile(config)),
        "overlap": overlap,
        "mirror": mirror,
        "adaptation": adaptation,
    }
    name = f"{config.name} {config.version}"
    return Result(labels, image, name, time.perf_counter() - start, settings, losses)


def predict_maps(
    model: Model,
    array: np.ndarray,
    *,
    device: torch.device | str = "cpu",
    tile: Sequence[int] | None = None,
    overlap: float = 0.25,
    mirror: bool = False,
    adaptation: Mode = "tile",
    losses: np.ndarray | None = None,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    tile_done: TileDone | None = None,
    stitch_on_cpu: bool = False,
) -> np.ndarray:
    """The network's maps of one normalised array.

    Args:
        array: [C, *spatial] float32, normalised by the model's plan.
        losses: [2, *spatial] float32, receives the adaptation map.
        tile_done: as for `predict`.
        The others are those of `segment`.

    Returns:
        [K, *spatial] float32: class probabilities; for instances the channels of
        `models.config.INSTANCE_CHANNELS`.
    """
    tune_allocator()
    config = model.config
    activation = activation_of(config)
    network = model.network.to(device).eval()
    options: dict[str, Any] = {
        "tile": tile or automatic_tile(config),
        "stride": config.network.total_stride,
        "overlap": overlap,
        "mirror_axes": config.plan.mirror_axes if mirror else (),
        "device": device,
        "progress": progress,
        "cancel": cancel,
        "stitch_on_cpu": stitch_on_cpu,
    }
    if adaptation == "tile" and losses is None:
        return predict(accelerated(network), array, activation, tile_done=tile_done, **options)
    with Adaptation(network, adaptation, keep_losses=losses is not None) as adapting:
        if losses is None:
            return predict(network, array, activation, tile_done=tile_done, **options)
        with_losses = LossMaps(network, adapting)
        maps = predict(
            with_losses,
            array,
            with_losses.activation(activation),
            tile_done=with_losses.without(tile_done),
            **options,
        )
    losses[...] = maps[-2:]
    return maps[:-2]


def predict_labels(
    model: Model,
    array: np.ndarray,
    *,
    decoding: InstanceDecoding | None = None,
    maps_done: Callable[[np.ndarray | None], None] | None = None,
    **options: Any,
) -> np.ndarray:
    """Labels of one normalised array; a constant one is background everywhere.

    Args:
        array: [C, *spatial] float32, normalised by the model's plan.
        decoding: replaces the model's thresholds for instances.
        maps_done: receives the maps; None for a constant array.
        options: those of `predict_maps`.

    Returns:
        [*spatial] uint32 instances, or classes as uint8 (uint16 above 255 classes).
    """
    maps = None if np.ptp(array) == 0 else predict_maps(model, array, **options)
    if maps_done is not None:
        maps_done(maps)
    if maps is None:
        return np.zeros(array.shape[1:], label_dtype(model.config))
    return decode_maps(maps, model.config, decoding)


def decode_maps(
    maps: np.ndarray, config: ModelConfig, decoding: InstanceDecoding | None = None
) -> np.ndarray:
    """Labels from the network's maps.

    Args:
        maps: [K, *spatial] float32, see `predict_maps`.
        config: of the model.
        decoding: replaces the model's thresholds for instances.

    Returns:
        [*spatial] of `label_dtype`.
    """
    if config.task == "instance":
        rules = decoding or config.plan.decoding
        assert rules is not None
        return decode_instances(maps, rules)
    return keep_largest(class_values(config)[maps.argmax(0)], config.plan.keep_largest)


def label_dtype(config: ModelConfig) -> np.dtype:
    """uint32 for instances, uint8 for classes (uint16 above 255)."""
    return np.dtype(np.uint32) if config.task == "instance" else class_values(config).dtype


def class_values(config: ModelConfig) -> np.ndarray:
    """The label of every map of a semantic model, background first."""
    values = np.array([0, *(label.value for label in config.labels)])
    return values.astype(np.uint8 if values.max() < 256 else np.uint16)


def place_labels(
    labels: np.ndarray, index: tuple[int, ...], found: np.ndarray, config: ModelConfig, highest: int
) -> int:
    """Put the labels of one plane among the others, objects numbered on from `highest`.

    Returns:
        The highest number so far.
    """
    if config.task == "instance" and highest:
        found = np.where(found > 0, found + np.uint32(highest), np.uint32(0))
    labels[index] = found
    return max(highest, int(found.max(initial=0)))


def changed_decoding(config: ModelConfig, changes: Mapping[str, Any]) -> InstanceDecoding | None:
    """The model's thresholds with some of them changed.

    Raises:
        ModelError: the model finds classes, or a threshold is unknown or out of range.
    """
    rules = config.plan.decoding
    if not changes:
        return rules
    if rules is None:
        raise ModelError(
            f"'{config.name}' finds classes, not objects, so {', '.join(changes)} has no meaning.",
            "Leave it away.",
        )
    try:
        return InstanceDecoding.model_validate(rules.model_dump() | dict(changes))
    except ValidationError as error:
        known = ", ".join(InstanceDecoding.model_fields)
        raise ModelError(
            f"A threshold is wrong: {first_problem(error)}.", f"There are {known}."
        ) from error


def tile_size(config: ModelConfig, size: Sequence[int]) -> tuple[int, ...] | None:
    """A tile with a number for every axis of the model; None if `size` is empty.

    Raises:
        ModelError: neither one number nor one for every axis.
    """
    dim = config.network.dim
    if len(size) not in (0, 1, dim):
        raise ModelError(
            f"The tile has {len(size)} numbers, but '{config.name}' is a {dim}D model.",
            f"Give one number, or {dim}.",
        )
    return tuple(size) * (dim if len(size) == 1 else 1) or None


def automatic_tile(config: ModelConfig) -> tuple[int, ...]:
    """Twice the training patch along every axis: fewer seams, memory still bounded."""
    return tuple(TILE_FACTOR * size for size in config.plan.patch_size)


def leading_shape(image: Image, config: ModelConfig) -> tuple[int, ...]:
    """Sizes of the axes of the labels that are taken one by one: frames, and slices in 2D."""
    frames = (image.array.shape[0],) if "T" in image.axes else ()
    slices = image.spatial_shape[: image.ndim_spatial - config.network.dim]
    return (*frames, *slices)


def _check_dimensions(image: Image, config: ModelConfig) -> None:
    if image.ndim_spatial < config.network.dim:
        raise ImageError(
            f"'{image.name}' has the axes {image.axes}, but '{config.name}' takes volumes.",
            "Choose a 2D model, or state the axes if the first one is Z (--axes ZYX).",
        )
    if math.prod(image.spatial_shape) == 1:
        raise ImageError(
            f"'{image.name}' has a single pixel: there is nothing to segment.",
            "Check the axes and the file.",
        )


def _frame_labels(
    model: Model,
    prepared: Prepared,
    *,
    decoding: InstanceDecoding | None,
    losses: np.ndarray | None,
    progress: Progress | None,
    tile_done: TileDone | None,
    maps_done: MapsDone | None,
    options: dict[str, Any],
) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """Labels of one time point, and their place on its leading axes.

    Statistics are those of the whole time point or stack, so that slices stay comparable.
    """
    config, dim = model.config, model.config.network.dim
    lead = prepared.array.shape[1 : prepared.array.ndim - dim]
    steps, count = itertools.count(), math.prod(lead)
    place = prepared.place

    def tell() -> Progress | None:
        return None if progress is None else _shifted(progress, next(steps), count)

    if place.unchanged:
        for index in np.ndindex(lead):
            here = (slice(None), *index)
            found = predict_labels(
                model,
                prepared.array[here],
                decoding=decoding,
                maps_done=None if maps_done is None else functools.partial(maps_done, index),
                losses=None if losses is None else losses[here],
                progress=tell(),
                tile_done=None if tile_done is None else _placed(tile_done, index),
                **options,
            )
            yield index, found
        return

    def maps_of(
        plane: np.ndarray, losses: np.ndarray | None, tile_done: TileDone | None
    ) -> np.ndarray | None:
        told = tell()
        if np.ptp(plane) == 0:
            return None
        return predict_maps(
            model, plane, losses=losses, progress=told, tile_done=tile_done, **options
        )

    if config.task == "semantic" and maps_done is None:
        values = class_values(config)
        labels = labels_on_image(prepared, dim, maps_of, values, losses, tile_done)
        for index in np.ndindex(labels.shape[:-dim]):
            labels[index] = keep_largest(labels[index], config.plan.keep_largest)
        yield (), labels
        return
    whole = maps_on_image(prepared, dim, maps_of, config.maps, losses, tile_done)
    for index in np.ndindex(place.shape[: len(lead)]):
        maps = None if whole is None else whole[(slice(None), *index)]
        if maps_done is not None:
            maps_done(index, maps)
        if maps is not None:
            yield index, decode_maps(maps, config, decoding)


def _shifted(progress: Progress, index: int, count: int) -> Progress:
    """Progress over all planes from the progress in one of them."""
    return lambda done, total: progress(index * total + done, count * total)


def _at(maps_done: MapsDone, index: tuple[int, ...]) -> MapsDone:
    return lambda place, maps: maps_done((*index, *place), maps)


def _placed(tile_done: TileDone, index: tuple[int, ...]) -> TileDone:
    """From a place in one plane to the place in the labels."""
    lead = tuple(slice(i, i + 1) for i in index)
    return lambda place, maps: tile_done((*lead, *place), maps)
