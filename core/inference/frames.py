"""Frames of a video or a stack one after the other: constant memory, however many there are."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tttunet.errors import Cancelled, ModelError
from tttunet.imaging import Image
from tttunet.imaging.frames import Frames, open_frames
from tttunet.imaging.label_stack import label_stack
from tttunet.imaging.preprocess import place_of, preprocess
from tttunet.inference.accelerate import accelerated
from tttunet.inference.allocator import tune_allocator
from tttunet.inference.device import pick_device
from tttunet.inference.segment import Result, automatic_tile, decode_maps, label_dtype, segment
from tttunet.inference.tiled import (
    BATCH_PIXELS,
    BATCH_TILES,
    Cancel,
    Progress,
    activation_of,
    padded_shape,
    predict_together,
)
from tttunet.models.config import InstanceDecoding, ModelConfig
from tttunet.models.model import Model

Item = TypeVar("Item")
#: Maps of a frame: the place of every plane on the leading axes, and [K, *plane] or None for a
#: constant plane, which is background.
_Maps = dict[tuple[int, ...], np.ndarray | None]
#: Pixels of frames that go through the network together on a GPU.
_DEVICE_PIXELS = 4 * 512**2
#: More frames than this make no steadier labels, and need their maps in memory.
LARGEST_WINDOW = 15


@dataclass(frozen=True)
class FramesResult:
    """What was written.

    Attributes:
        frames: their number.
        count: objects in all frames together, or classes that occur.
        seconds: wall time.
        model: name and version.
        path: the labels.
    """

    frames: int
    count: int
    seconds: float
    model: str
    path: Path


def check_smoothing(smoothing: int, config: ModelConfig) -> None:
    """Whether labels of this model can be smoothed over so many frames.

    Raises:
        ModelError: the number is even or out of range, or the model finds objects.
    """
    if smoothing == 1:
        return
    if config.task == "instance":
        raise ModelError(
            f"'{config.name}' finds objects, which are numbered anew in every frame: averaging "
            "over frames would join different ones that move past each other.",
            "Leave the smoothing away; it is for models of classes.",
        )
    if smoothing % 2 == 0 or not 1 <= smoothing <= LARGEST_WINDOW:
        raise ModelError(
            f"Smoothing over {smoothing} frames is not possible.",
            f"Give an odd number up to {LARGEST_WINDOW}, such as 3: a frame and its neighbours.",
        )


def segment_frames(
    frames: Iterable[Image],
    model: Model,
    *,
    smoothing: int = 1,
    compute: Callable[..., Result] = segment,
    progress: Callable[[float], None] | None = None,
    cancel: Cancel | None = None,
    **options: Any,
) -> Generator[tuple[Image, np.ndarray], None, None]:
    """Segment frames one by one, as `segment` does the time points of an image.

    The next frame is read while one is segmented. Small frames (of one tile, on their own grid) go
    through the network together. In memory are these frames, the one that is read, and with
    smoothing the maps of so many.

    Args:
        frames: of one size, without T axis.
        model: from `load_model`.
        smoothing: average the probabilities of so many frames around each (fewer at both ends)
            before the likeliest class is taken: single frames that flicker are outvoted, but what
            moves by more than its size from frame to frame is smeared. 1: every frame by itself.
        compute: in place of `segment`.
        progress: called with the number of frames done, fractions included.
        cancel: asked before every tile.
        options: those of `segment`, without `maps_done`.

    Yields:
        Every frame with its labels, as `Result.labels`; objects are numbered on.

    Raises:
        ModelError: see `check_smoothing`.
        Cancelled: `cancel` returned True.
    """
    check_smoothing(smoothing, model.config)
    options["cancel"] = cancel
    window: deque[tuple[Image, _Maps]] = deque(maxlen=smoothing)
    half, highest, count = smoothing // 2, 0, 0
    for image, labels, maps in _segmented(frames, model, compute, smoothing > 1, progress, options):
        count += 1
        if smoothing > 1:
            window.append((image, maps))
            if count > half:
                yield window[-1 - half][0], _mean_labels(window, model.config)
            continue
        if model.config.task == "instance" and highest:
            labels = np.where(labels > 0, labels + np.uint32(highest), np.uint32(0))
        highest = max(highest, int(labels.max(initial=0)))
        yield image, labels
    for number in range(max(0, count - half), count if smoothing > 1 else 0):
        while count - len(window) < number - half:
            window.popleft()
        yield window[number - count][0], _mean_labels(window, model.config)


def segment_frames_file(
    source: Path,
    output: Path,
    model: Model,
    *,
    axes: str | None = None,
    channel: str | None = None,
    smoothing: int = 1,
    overwrite: bool = False,
    note: Callable[[str], None] = lambda text: None,
    progress: Progress | None = None,
    **options: Any,
) -> FramesResult:
    """Segment a video, a TIFF stack or a folder of pictures into a stack of labels.

    Args:
        source: see `open_frames`.
        output: an OME-TIFF file, which appears when all frames are done.
        model: from `load_model`.
        axes: as for `open_frames`.
        channel: name or number of the one channel.
        smoothing: see `segment_frames`.
        overwrite: replace an existing file.
        note: told what the user may not expect.
        progress: called with frames done (fractions included) and frames in all.
        options: those of `segment_frames`.
    """
    start = time.perf_counter()
    check_smoothing(smoothing, model.config)
    frames = open_frames(source, axes)
    for text in frames.notes:
        note(text)
    tell = None if progress is None else _of(progress, frames)
    several = _Counting(model.config)
    with label_stack(output, interval=frames.interval, overwrite=overwrite) as stack:
        images = iter(frames)
        if channel is not None:
            images = (image.select_channel(channel) for image in images)
        found = segment_frames(images, model, smoothing=smoothing, progress=tell, **options)
        with contextlib.closing(found):
            for image, labels in found:
                several.add(labels)
                stack.add(labels, image)
    name = f"{model.config.name} {model.config.version}"
    return FramesResult(
        stack.frames, several.count, time.perf_counter() - start, name, Path(output)
    )


def _segmented(
    frames: Iterable[Image],
    model: Model,
    compute: Callable[..., Result],
    keep_maps: bool,
    progress: Callable[[float], None] | None,
    options: dict[str, Any],
) -> Iterator[tuple[Image, np.ndarray, _Maps]]:
    """Every frame with its labels and, if they shall be kept, its maps."""
    cancel, count = options["cancel"], 0
    reading = _read_ahead(frames)
    with contextlib.closing(reading):
        while group := list(itertools.islice(reading, 1)):
            if compute is segment:
                group += itertools.islice(reading, _batch_size(group[0], model, options) - 1)
            if cancel is not None and cancel():
                raise Cancelled("Segmentation was cancelled.")
            together = _together(group, model, options) if len(group) > 1 else None
            for place, image in enumerate(group):
                maps: _Maps = {}
                if together is not None:
                    maps[()] = together[place]
                    labels = _labels_of(
                        image, together[place], model.config, options.get("decoding")
                    )
                    count += 1
                    if progress is not None:
                        progress(count)
                else:
                    if keep_maps:
                        options["maps_done"] = maps.__setitem__
                    tell = None if progress is None else _after(progress, count)
                    labels = compute(image, model, progress=tell, **options).labels
                    count += 1
                yield image, labels, maps


def _batch_size(image: Image, model: Model, options: dict[str, Any]) -> int:
    """Frames that go through the network together: small ones, in one tile, as they are."""
    config = model.config
    stride, tile = config.network.total_stride, options.get("tile") or automatic_tile(config)
    padded = padded_shape(image.spatial_shape, stride)
    geometry = (image.spatial_shape, image.spacing, image.direction, image.unit)
    if (
        image.ndim_spatial != config.network.dim
        or any(size > most for size, most in zip(padded, tile, strict=True))
        or options.get("adaptation", "tile") != "tile"
        or config.plan.crop != "none"
        or not place_of(*geometry, config.plan)[0].unchanged
    ):
        return 1
    on_cpu = pick_device(options.get("device", "auto")).type == "cpu"
    pixels = BATCH_PIXELS if on_cpu else _DEVICE_PIXELS
    return max(1, min(BATCH_TILES, pixels // math.prod(padded)))


def _together(
    group: Sequence[Image], model: Model, options: dict[str, Any]
) -> list[np.ndarray | None]:
    """The maps of frames, see `_batch_size`; None for constant ones."""
    tune_allocator()
    config = model.config
    arrays = [
        preprocess(image, config.plan, config.network.input_channels).array for image in group
    ]
    device = pick_device(options.get("device", "auto"))
    seen = [place for place, array in enumerate(arrays) if np.ptp(array) > 0]
    found: list[np.ndarray | None] = [None] * len(group)
    if seen:
        maps = predict_together(
            accelerated(model.network.to(device).eval()),
            [arrays[place] for place in seen],
            activation_of(config),
            stride=config.network.total_stride,
            mirror_axes=config.plan.mirror_axes if options.get("mirror") else (),
            device=device,
        )
        for place, one in zip(seen, maps, strict=True):
            found[place] = one
    return found


def _labels_of(
    image: Image,
    maps: np.ndarray | None,
    config: ModelConfig,
    decoding: InstanceDecoding | None = None,
) -> np.ndarray:
    """Labels of a frame from its maps."""
    if maps is None:
        return np.zeros(image.spatial_shape, label_dtype(config))
    return decode_maps(maps, config, decoding)


class _Counting:
    """Objects in all frames, or classes that occur in any."""

    def __init__(self, config: ModelConfig) -> None:
        self._instances = config.task == "instance"
        self._classes: set[int] = set()
        self._objects = 0

    def add(self, labels: np.ndarray) -> None:
        if self._instances:
            self._objects = max(self._objects, int(labels.max(initial=0)))
        else:
            self._classes.update(np.unique(labels).tolist())

    @property
    def count(self) -> int:
        return self._objects if self._instances else len(self._classes - {0})


def _mean_labels(frames: Iterable[tuple[Image, _Maps]], config: ModelConfig) -> np.ndarray:
    """The likeliest classes of one frame from the mean of the maps of several."""
    several = [maps for _, maps in frames]
    image = next(iter(frames))[0]
    shape = tuple(
        size for size, letter in zip(image.array.shape, image.axes, strict=True) if letter != "C"
    )
    labels = np.zeros(shape, label_dtype(config))
    for index in several[0]:
        planes = [maps.get(index) for maps in several]
        known = [plane for plane in planes if plane is not None]
        if not known:
            continue
        total = known[0].astype(np.float32)  # has the same largest class as the mean
        for plane in known[1:]:
            total += plane
        total[0] += len(planes) - len(known)  # a constant plane is background for certain
        labels[index] = decode_maps(total, config)
    return labels


def _read_ahead(items: Iterable[Item]) -> Generator[Item, None, None]:
    """The same, the next one read in a thread meanwhile."""
    end = object()
    reading = iter(items)
    try:
        with ThreadPoolExecutor(1) as helper:
            coming = helper.submit(next, reading, end)
            while (item := coming.result()) is not end:
                coming = helper.submit(next, reading, end)
                yield item  # type: ignore[misc]
    finally:
        if isinstance(reading, Generator):
            reading.close()


def _after(progress: Callable[[float], None], number: int) -> Progress:
    return lambda done, total: progress(number + done / total)


def _of(progress: Progress, frames: Frames) -> Callable[[float], None]:
    """Of some videos the number of frames is an estimate."""
    return lambda done: progress(done, max(frames.count, done))  # type: ignore[arg-type]
