"""Segment, decode again, and estimate: what the worker does with an image."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any
from uuid import uuid4

import numpy as np

from tttunet.engine.grid import Grid, open_image
from tttunet.engine.ladder import Rung, climb_down, rungs
from tttunet.engine.memory import (
    Estimate,
    NotEnoughMemory,
    device_memory,
    estimate,
    host_memory,
    swap_memory,
)
from tttunet.engine.messages import Decode, Partial, Segment, package_version
from tttunet.engine.messages import Estimate as EstimateRequest
from tttunet.engine.models import Folders, LoadedModels
from tttunet.engine.worker import Reporter
from tttunet.errors import Cancelled, ImageError
from tttunet.imaging import Image
from tttunet.imaging.preprocess import Place, place_of
from tttunet.imaging.readers import check_numbers
from tttunet.inference.allocator import release_memory
from tttunet.inference.device import pick_device
from tttunet.inference.segment import (
    Result,
    automatic_tile,
    changed_decoding,
    decode_maps,
    label_dtype,
    leading_shape,
    place_labels,
    segment,
    tile_size,
)
from tttunet.kernels import available_backends
from tttunet.models.card import read_config
from tttunet.models.config import InstanceDecoding, ModelConfig
from tttunet.models.library import resolve
from tttunet.models.model import Model

#: Maps of a segmentation are kept for `Decode` up to this share of the available memory; those of
#: classes up to so many bytes.
KEPT_SHARE = 0.25
KEPT_CLASSES = 2**30
#: Finished tiles are told at most this often, in seconds.
PREVIEW_EVERY = 0.1


@dataclass
class KeptMaps:
    """The network's maps of the last segmentation.

    Attributes:
        id: told to the client with the result.
        planes: place on the leading axes of the labels, and [K, *spatial]; None for a constant
            plane.
    """

    id: str
    config: ModelConfig
    grid: Grid
    planes: list[tuple[tuple[int, ...], np.ndarray | None]] = field(default_factory=list)


def run_segment(
    request: Segment, reporter: Reporter, models: LoadedModels
) -> tuple[dict[str, Any], KeptMaps | None]:
    """Segment into the files that the request names.

    Returns:
        The result for the client, and the maps if there is room to keep them.
    """
    reporter.stage("loading the model")
    folders, model = models.get(request.model)
    decoding = changed_decoding(model.config, request.decoding)
    reporter.stage("reading the image")
    image, grid = open_image(request.image, request.channel)
    check_numbers(image.array, "The image", "Choose another part of it, or look how it was made.")
    for note in image.notes:
        reporter.log(note, "warning")
    maps = _Maps(request, model.config, image, grid)
    preview = _Preview(request, model.config, grid, reporter) if request.preview else None

    result = segment_in_memory(
        image,
        model,
        reporter=reporter,
        models=models,
        folders=folders,
        progress=lambda done, total: _tell(reporter, done, total),
        cancel=reporter.is_cancelled,
        device=request.device,
        tile=tile_size(model.config, request.tile),
        overlap=request.overlap,
        mirror=request.mirror,
        decoding=decoding,
        adaptation=request.adaptation,
        adaptation_map=bool(request.adaptation_map),
        tile_done=None if preview is None else preview.add,
        maps_done=maps.add if maps.wanted else None,
    )
    _, labels = grid.create(request.output, result.labels.dtype)
    labels[...] = result.labels
    if result.adaptation_map is not None:
        losses = result.adaptation_map
        grid.create(request.adaptation_map, losses.dtype, losses.shape[:1])[1][...] = losses
    record = provenance(result, model, decoding)
    record |= {"axes": grid.axes, "maps_id": maps.kept.id if maps.kept else ""}
    return record, maps.kept


def segment_in_memory(
    image: Image,
    model: Model,
    *,
    reporter: Reporter,
    models: LoadedModels,
    folders: Folders,
    device: str = "auto",
    tile: tuple[int, ...] | None = None,
    **options: Any,
) -> Result:
    """`segment` that goes on with less memory where it runs out, and measures the rate."""
    target = str(pick_device(device))
    lead = leading_shape(image, model.config)
    spatial = image.spatial_shape[-model.config.network.dim :]
    geometry = (image.spatial_shape, image.spacing, image.direction, image.unit)
    place, _ = place_of(*geometry, model.config.plan)
    how = options.get("adaptation", "tile"), options.get("adaptation_map", False)

    def need(way: Rung) -> Estimate:
        return estimate(
            model.config,
            spatial,
            math.prod(lead),
            tile=way.tile,
            overlap=options["overlap"],
            mirror=options["mirror"],
            itemsize=image.array.dtype.itemsize,
            on_gpu=way.device != "cpu",
            place=place,
            keep_maps=options.get("maps_done") is not None,
            adaptation_map=options.get("adaptation_map", False),
        )

    def compute(way: Rung) -> Result:
        result = segment(
            image,
            model,
            device=way.device,
            tile=way.tile,
            stitch_on_cpu=way.stitch_on_cpu,
            **options,
        )
        key = folders, way.device, *how
        if key in models.rates:
            models.warm.add(key)
        models.rates[key] = result.seconds / need(way).work
        return result

    ways = rungs(model.config, target, tile or automatic_tile(model.config))
    _check_possible(need(ways[-1]))
    return climb_down(
        compute,
        ways,
        model=model,
        log=lambda text: reporter.log(text, "warning"),
        # A GPU says itself that its memory is full; the system would end this process.
        fits=lambda way: way.device != "cpu" or _fits_host(need(way)),
    )


def _check_possible(least: Estimate) -> None:
    """Say it at once, not after minutes, if even closing every other program would not help.

    Raises:
        NotEnoughMemory: so it is.
    """
    total, needed = host_memory()[0], least.host - least.mapped
    if total is not None and needed > total + swap_memory():
        raise NotEnoughMemory(needed, total)


def _fits_host(need: Estimate) -> bool:
    available = host_memory()[1]
    if available is not None and need.host > available and release_memory():
        available = host_memory()[1]  # with what this process had kept for the next tensor
    return available is None or need.host <= available


def provenance(result: Result, model: Model, decoding: InstanceDecoding | None) -> dict[str, Any]:
    """Everything that decides the labels, for the record."""
    config = model.config
    device = result.settings["device"]
    return {
        "count": result.count,
        "seconds": result.seconds,
        "model": {
            "name": config.name,
            "version": config.version,
            "sha256": config.weights.sha256 if config.weights else "",
            "task": config.task,
        },
        "software": f"tttunet {package_version()}",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": device,
        "backend": available_backends(device)[0] if config.network.ttt else "",
        "tile": result.settings["tile"],
        "overlap": result.settings["overlap"],
        "mirror": result.settings["mirror"],
        "adaptation": result.settings["adaptation"],
        "decoding": decoding.model_dump() if decoding else {},
        "axes": result.axes,
        "shape": list(result.labels.shape),
        "dtype": str(result.labels.dtype),
    }


def run_decode(request: Decode, reporter: Reporter, kept: KeptMaps | None) -> dict[str, Any]:
    """Labels from the maps of the last segmentation.

    Raises:
        ImageError: there are none, or they are of another image.
    """
    kept = still_kept(kept, request.maps_id)
    start = time.perf_counter()
    config, grid = kept.config, kept.grid
    decoding = changed_decoding(config, request.decoding)
    _, labels = grid.create(request.output, label_dtype(config))
    highest = 0
    for number, (index, maps) in enumerate(kept.planes):
        reporter.progress("finding objects", number, len(kept.planes))
        if reporter.is_cancelled():
            raise Cancelled("Decoding was cancelled.")
        if maps is not None:
            found = decode_maps(maps, config, decoding)
            highest = place_labels(labels, index, found, config, highest)
    instances = config.task == "instance"
    return {
        "count": highest if instances else len(np.unique(labels[labels > 0])),
        "seconds": time.perf_counter() - start,
        "decoding": decoding.model_dump() if decoding else {},
        "axes": grid.axes,
        "maps_id": kept.id,
    }


def still_kept(kept: KeptMaps | None, maps_id: str) -> KeptMaps:
    """The maps of the last segmentation, if they are those that are meant.

    Raises:
        ImageError: they are gone.
    """
    if kept is None or (maps_id and maps_id != kept.id):
        raise ImageError(
            "The network's output for this image is not in memory any more.",
            "Segment it again.",
        )
    return kept


def run_estimate(request: EstimateRequest, models: LoadedModels) -> dict[str, Any]:
    """What a segmentation would need, without reading weights or image."""
    folder = resolve(request.model).resolve()
    config = read_config(folder)
    device = str(pick_device(request.device))
    dim = config.network.dim
    sizes = dict(zip(request.axes, request.shape, strict=True))
    grid = [sizes[letter] for letter in "TZYX" if letter in sizes]
    tile = tile_size(config, request.tile) or automatic_tile(config)
    need = estimate(
        config,
        grid[-dim:],
        math.prod(grid[:-dim]),
        tile=tile,
        overlap=request.overlap,
        mirror=request.mirror,
        itemsize=np.dtype(request.dtype).itemsize,
        on_gpu=device != "cpu",
        place=_place(request, config, sizes),
        adaptation_map=request.adaptation_map,
    )
    available, device_available = host_memory()[1], device_memory(device)[1]
    rate = models.rates.get(((folder,), device, request.adaptation, request.adaptation_map))
    return {
        "device": device,
        "tile": list(need.tile),
        "tiles": need.tiles,
        "bytes": need.host,
        "device_bytes": need.device,
        "available": available,
        "device_available": device_available if device != "cpu" else None,
        "seconds": None if rate is None else rate * need.work,
        "fits": available is None or need.host <= available,
    }


def _place(request: EstimateRequest, config: ModelConfig, sizes: dict[str, int]) -> Place | None:
    """Where the network's grid will be, if the request says enough of the image's."""
    shape = [sizes[letter] for letter in "ZYX" if letter in sizes]
    direction = np.array(request.direction or np.eye(len(shape)))
    if len(request.spacing) != len(shape) or direction.shape != (len(shape),) * 2:
        return None
    try:
        return place_of(shape, request.spacing, direction, request.unit, config.plan)[0]
    except ImageError:
        return None  # the segmentation will say it


def _tell(reporter: Reporter, done: int, total: int) -> None:
    reporter.progress("tiles", done, total)
    if done == total:
        reporter.stage("finding objects")


class _Maps:
    """Receives the network's maps: keeps them if there is room, and writes them if wanted."""

    def __init__(self, request: Segment, config: ModelConfig, image: Image, grid: Grid) -> None:
        channels = config.maps
        size = 4 * channels * math.prod(grid.shape)
        available = host_memory()[1]
        keep = available is None or size <= KEPT_SHARE * available
        # Those of classes serve only the search for doubtful places; without them the labels come
        # to the image's grid in slabs.
        keep = keep and (config.task == "instance" or size <= KEPT_CLASSES)
        self.wanted = keep or bool(request.maps)
        self.kept = KeptMaps(uuid4().hex, config, grid) if keep else None
        self._file: np.ndarray | None = None
        if request.maps:
            self._file = grid.create(request.maps, np.float32, (channels,))[1]

    def add(self, index: tuple[int, ...], maps: np.ndarray | None) -> None:
        if self.kept is not None:
            if not any(index):  # the first plane, once more if an attempt ran out of memory
                self.kept.planes.clear()
            self.kept.planes.append((index, maps))
        if self._file is not None:
            plane = self._file[np.index_exp[:] + index]
            if maps is None:
                plane[0], plane[1:] = 1.0, 0.0  # a constant plane is background
            else:
                plane[...] = maps


class _Preview:
    """Writes finished tiles to a file and tells of them: foreground, or the likeliest class."""

    def __init__(
        self, request: Segment, config: ModelConfig, grid: Grid, reporter: Reporter
    ) -> None:
        self._config, self._grid, self._reporter = config, grid, reporter
        self._path = request.preview
        dtype = np.uint8 if config.task == "instance" else label_dtype(config)
        self._labels = grid.create(request.preview, dtype)[1]
        self._waiting: list[tuple[slice, ...]] = []
        self._last = 0.0

    def add(self, place: tuple[slice, ...], maps: np.ndarray) -> None:
        if self._config.task == "instance":
            rules = self._config.plan.decoding
            assert rules is not None
            self._labels[place] = (1 - maps[0]) > rules.foreground
        else:
            self._labels[place] = decode_maps(maps, self._config)
        self._waiting.append(place)
        if time.monotonic() - self._last >= PREVIEW_EVERY:
            self._last = time.monotonic()
            self._reporter.send(Partial(self._grid.bounds(_around(self._waiting)), self._path))
            self._waiting.clear()


def _around(places: list[tuple[slice, ...]]) -> tuple[slice, ...]:
    """The box around several; what is not finished in it is background."""
    return tuple(
        slice(min(one.start for one in along), max(one.stop for one in along))
        for along in zip(*places, strict=True)
    )
