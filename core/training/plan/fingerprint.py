"""What a data set is like: sizes, spacings, intensities where something is labelled."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ValidationError

from tttunet.errors import DatasetError
from tttunet.files import atomic_write
from tttunet.imaging.image import MILLIMETERS
from tttunet.imaging.orientation import orientation_of, towards
from tttunet.imaging.resample import box_around
from tttunet.models.nnunet import slug
from tttunet.networks.config import StrictModel
from tttunet.training.dataset import Case, Dataset
from tttunet.training.prepare import read_pair

#: Raise it when the fingerprint of the same files changes.
_VERSION = 1
#: Labelled voxels drawn from the whole data set for the statistics of every channel. Every case
#: gives as many, so that one large organ does not decide for all.
SAMPLED_VOXELS = 10_000_000
_MOST_PER_CASE = 1_000_000

Progress = Callable[[int, int], None]


class ChannelStatistics(StrictModel):
    """Intensities of one channel where something is labelled, over all training images.

    Attributes:
        low, high: percentiles 0.5 and 99.5.
    """

    mean: float
    deviation: float
    median: float
    minimum: float
    maximum: float
    low: float
    high: float


class Fingerprint(StrictModel):
    """What planning needs to know of a data set; axes are in array order (Z, Y, X).

    Attributes:
        dim: spatial dimensions of the images.
        unit: of the spacings; None: pixels.
        names: of the training cases.
        shapes: spatial shapes, volumes cropped to where any channel is not zero, and with their
            axes as `orientation` has them.
        spacings: likewise.
        relative_size: median share of a volume that is left by the crop.
        orientation: that of most volumes; None for 2D images and where none is known.
        channels: names, or numbers where they have no names.
        rgb: the channels are red, green and blue.
        statistics: per channel; None where nothing is labelled.
    """

    dim: Literal[2, 3]
    unit: str | None
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    spacings: tuple[tuple[float, ...], ...]
    relative_size: float
    orientation: str | None
    channels: tuple[str, ...]
    rgb: bool
    statistics: tuple[ChannelStatistics, ...] | None


class _CaseFacts(StrictModel):
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    direction: tuple[tuple[float, ...], ...]
    share: float
    channels: int
    rgb: bool
    unit: str | None


def take_fingerprint(
    dataset: Dataset, cache: str | Path | None = None, progress: Progress | None = None
) -> Fingerprint:
    """Read the training images one after the other; only one is in memory.

    Args:
        dataset: from `open_dataset`.
        cache: folder of the result, which is used again as long as no file changes; None: none.
        progress: called with (images done, images in all).

    Raises:
        DatasetError: the images differ in their channels or dimensions, or do not fit their
            labels.
        ImageError: a file cannot be read.
    """
    path = (
        None
        if cache is None
        else Path(cache) / slug(dataset.name) / f"fingerprint-{_key(dataset)}.json"
    )
    if path is not None and path.exists():
        try:
            return Fingerprint.model_validate_json(path.read_text())
        except (OSError, ValidationError):
            pass  # damaged: taken again
    found = _take(dataset, progress)
    if path is not None:
        with atomic_write(path, overwrite=True) as temporary:
            temporary.write_text(found.model_dump_json(indent=1))
    return found


def _key(dataset: Dataset) -> str:
    files = [path for case in dataset.cases["train"] for path in (*case.images, case.label)]
    states = [(str(path.resolve()), (s := path.stat()).st_mtime_ns, s.st_size) for path in files]
    content = (_VERSION, states, dataset.dim, dataset.ignore, dataset.channels)
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _take(dataset: Dataset, progress: Progress | None) -> Fingerprint:
    cases = dataset.cases["train"]
    count = min(_MOST_PER_CASE, max(1, SAMPLED_VOXELS // len(cases)))
    facts: list[_CaseFacts] = []
    drawn: list[np.ndarray] = []
    for number, case in enumerate(cases, start=1):
        one, values = _look_at(case, dataset, count)
        facts.append(one)
        if one.channels != facts[0].channels:
            raise DatasetError(
                f"'{case.name}' has {one.channels} channels, '{cases[0].name}' "
                f"{facts[0].channels}.",
                "All images of a data set need the same channels.",
            )
        if values is not None:
            drawn.append(values)
        if progress is not None:
            progress(number, len(cases))
    facts = _in_one_unit(facts)
    orientation = _orientation(facts, dataset.dim)
    placed = [_placed(one, orientation) for one in facts]
    return Fingerprint(
        dim=2 if dataset.dim == 2 else 3,
        unit=facts[0].unit,
        names=tuple(case.name for case in cases),
        shapes=tuple(shape for shape, _ in placed),
        spacings=tuple(spacing for _, spacing in placed),
        relative_size=float(np.median([one.share for one in facts])),
        orientation=orientation,
        channels=dataset.channels or tuple(str(i) for i in range(facts[0].channels)),
        rgb=all(one.rgb for one in facts),
        statistics=_statistics(np.concatenate(drawn, axis=1)) if drawn else None,
    )


def _look_at(case: Case, dataset: Dataset, count: int) -> tuple[_CaseFacts, np.ndarray | None]:
    """Facts of one case, and [C, count] float32 of its labelled voxels."""
    image, label = read_pair(case, dataset)
    shape = image.spatial_shape
    if len(shape) != dataset.dim:
        raise DatasetError(f"{case.images[0]} is {len(shape)}D, but the data set {dataset.dim}D.")
    pixels = image.array if "C" in image.axes else image.array[None]
    found = box_around((pixels != 0).any(0)) if dataset.dim == 3 else None
    inside = found or tuple(slice(0, n) for n in shape)
    cropped = tuple(s.stop - s.start for s in inside)
    facts = _CaseFacts(
        shape=cropped,
        spacing=image.spacing,
        direction=tuple(tuple(row) for row in image.direction.tolist()),
        share=float(np.prod(cropped) / np.prod(shape)),
        channels=len(pixels),
        rgb=image.rgb,
        unit=image.unit,
    )
    places = np.flatnonzero(label > 0)
    if not places.size:
        return facts, None
    # With replacement: a case with fewer voxels counts as much as the others.
    seed = int(hashlib.sha256(case.name.encode()).hexdigest()[:8], 16)
    places = np.random.default_rng(seed).choice(places, count)
    values = np.stack([channel.ravel()[places] for channel in pixels])
    return facts, values.astype(np.float32)


def _in_one_unit(facts: list[_CaseFacts]) -> list[_CaseFacts]:
    """Spacings of all images in the unit of the first.

    Where some images do not say how large their pixels are, flat ones are all taken as they are.

    Raises:
        DatasetError: some volumes do not say how large their voxels are.
    """
    units = {one.unit for one in facts}
    if len(units) == 1:
        return facts
    if not units <= MILLIMETERS.keys():
        if len(facts[0].shape) == 3:
            raise DatasetError(
                "Some volumes of the data set say how large their voxels are, others do not.",
                "Save the voxel size in all of them.",
            )
        flat = {"unit": None, "spacing": (1.0,) * len(facts[0].shape)}
        return [one.model_copy(update=flat) for one in facts]
    unit = facts[0].unit
    scales = [MILLIMETERS[str(one.unit)] / MILLIMETERS[str(unit)] for one in facts]
    return [
        one.model_copy(update={"unit": unit, "spacing": tuple(scale * s for s in one.spacing)})
        for one, scale in zip(facts, scales, strict=True)
    ]


def _orientation(facts: list[_CaseFacts], dim: int) -> str | None:
    """That of most volumes, so that others are turned to it."""
    if dim == 2 or any(one.unit != "millimeter" for one in facts):
        return None
    names = Counter(orientation_of(np.array(one.direction)) for one in facts)
    return min(names, key=lambda name: (-names[name], name))


def _placed(
    facts: _CaseFacts, orientation: str | None
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Shape and spacing with the axes in the common order."""
    if orientation is None:
        return facts.shape, facts.spacing
    order, _ = towards(np.array(facts.direction), orientation)
    return tuple(facts.shape[a] for a in order), tuple(facts.spacing[a] for a in order)


def _statistics(values: np.ndarray) -> tuple[ChannelStatistics, ...]:
    """Of [C, n]."""
    found = []
    for channel in values:
        finite = channel[np.isfinite(channel)]
        if not finite.size:
            raise DatasetError("A channel has no finite number where something is labelled.")
        low, median, high = np.percentile(finite, (0.5, 50, 99.5))
        found.append(
            ChannelStatistics(
                mean=float(finite.mean(dtype=np.float64)),
                deviation=float(finite.std(dtype=np.float64)),
                median=float(median),
                minimum=float(finite.min()),
                maximum=float(finite.max()),
                low=float(low),
                high=float(high),
            )
        )
    return tuple(found)
