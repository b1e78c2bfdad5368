"""Where to correct next: places of a segmentation, the most doubtful ones first.

Two kinds of places. An *object* is doubtful where the network was undecided (mean entropy of its
class probabilities, 0 to 1) and where its outline has dents, as objects that stick together or fall
apart have:

    doubt = entropy + 2 (1 - solidity)         without the second term in 3D

A *gap* is a patch without label in which the network saw some foreground: its doubt is the highest
foreground probability there. The scale of the two is the share of places that turned out wrong
on validation images of nuclei (`benchmarks/review.py`). Regions, slices and images are as doubtful
as the places in them: see `tttunet.measuring.places.rank_groups`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
from scipy import ndimage

from tttunet.imaging import Image
from tttunet.inference.segment import MapsDone, Result, segment
from tttunet.measuring.objects import Grid, finish, measure
from tttunet.measuring.places import Place
from tttunet.models.model import Model

#: Weight of an object's dents beside its entropy.
DENTS = 2.0
#: Foreground probability from which a patch without label is a gap.
GAP_FOREGROUND = 0.2
#: Smaller gaps than this share of the median object are noise.
GAP_SIZE = 0.25


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """How undecided the network is at every pixel, 0 (certain) to 1 (all classes alike).

    Args:
        probabilities: [K, *spatial], K > 1, sum 1 along K.
    """
    p = np.clip(probabilities.astype(np.float32), 1e-6, 1.0)
    return -(p * np.log(p)).sum(0) / np.log(np.float32(len(p)))


def rank_places(maps: np.ndarray, labels: np.ndarray, task: str) -> list[Place]:
    """The places of one 2D image or one volume, the most doubtful first.

    Args:
        maps: [K, *spatial] the network's maps, see `predict_maps`.
        labels: [*spatial] what was made of them (and perhaps corrected since); of `semantic`
            models, connected parts of one class count as objects.
        task: `instance` or `semantic`.
    """
    probabilities = maps[:-1] if task == "instance" else maps
    objects = labels if task == "instance" else _parts(labels)
    found = _objects(entropy(probabilities), objects, labels)
    size = np.median([_size(place) for place in found]) if found else 0.0
    found += _gaps(1 - probabilities[0].astype(np.float32), labels, GAP_SIZE * size)
    return sorted(found, key=lambda place: -place.doubt)


def review_image(
    image: Image, model: Model, *, run: Callable[..., Result] = segment, **options: Any
) -> list[tuple[tuple[int, ...], Place]]:
    """Segment an image, and say where the labels are doubtful.

    Args:
        image: see `segment`.
        model: likewise.
        run: takes `segment`'s place; of planes that it tells twice, the last one counts.
        options: those of `run`, without `maps_done`.

    Returns:
        Places with the number of their frame and slice, as far as the model sees these one by one;
        the most doubtful first.
    """
    planes: dict[tuple[int, ...], np.ndarray | None] = {}
    keep: MapsDone = planes.__setitem__
    labels = run(image, model, maps_done=keep, **options).labels
    found = [
        (index, place)
        for index, maps in planes.items()
        if maps is not None
        for place in rank_places(maps, labels[index], model.config.task)
    ]
    return sorted(found, key=lambda one: -one[1].doubt)


def _objects(undecided: np.ndarray, objects: np.ndarray, labels: np.ndarray) -> list[Place]:
    if not objects.any():
        return []
    axes = "ZYX"[-labels.ndim :]
    grid = Grid(axes, axes, np.eye(labels.ndim, labels.ndim + 1))
    table = finish(measure(objects, grid, [("entropy", undecided)]))
    doubt = table.values["mean_0"].copy()
    if "solidity" in table.values:
        doubt += DENTS * (1 - np.nan_to_num(table.values["solidity"], nan=1.0))
    # Of a part of a class, the label of the class.
    numbers = ndimage.maximum(labels, objects, table.values["label"])
    return [
        _place("object", int(number), centre, box.T, value)
        for number, centre, box, value in zip(
            numbers, table.centres, table.boxes, doubt, strict=True
        )
    ]


def _gaps(foreground: np.ndarray, labels: np.ndarray, least: float) -> list[Place]:
    patches, count = ndimage.label((foreground >= GAP_FOREGROUND) & (labels == 0))
    numbers = np.arange(1, count + 1)
    sizes = np.bincount(patches.ravel(), minlength=count + 1)[1:]
    numbers = numbers[sizes >= max(least, 1)]
    if not len(numbers):
        return []
    centres = ndimage.center_of_mass(foreground, patches, numbers)
    doubts = ndimage.maximum(foreground, patches, numbers)
    boxes = ndimage.find_objects(patches)
    return [
        _place("gap", 0, centre, [(s.start, s.stop) for s in boxes[number - 1]], doubt)
        for number, centre, doubt in zip(numbers, centres, doubts, strict=True)
    ]


def _parts(labels: np.ndarray) -> np.ndarray:
    """Connected parts of every class, numbered."""
    parts, highest = np.zeros(labels.shape, np.int32), 0
    for value in np.unique(labels[labels > 0]):
        found, count = ndimage.label(labels == value)
        parts = np.where(found > 0, found + highest, parts)
        highest += count
    return parts


def _place(
    kind: Literal["object", "gap"],
    label: int,
    centre: Sequence[float],
    box: Iterable[Sequence[int]],
    doubt: float,
) -> Place:
    bounds = tuple((int(start), int(stop)) for start, stop in box)
    return Place(kind, label, tuple(float(x) for x in centre), bounds, float(doubt))


def _size(place: Place) -> float:
    return float(np.prod([stop - start for start, stop in place.bounds]))
