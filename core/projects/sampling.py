"""From vouched pixels to pieces of images that training reads."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tttunet.projects.annotate import training_labels
from tttunet.projects.corrections import Corrections
from tttunet.projects.schema import Bounds, ImageReference

if TYPE_CHECKING:
    from tttunet.projects.project import Project

#: Context around the vouched pixels: in Y and X, and in Z of a volume.
MARGIN_YX, MARGIN_Z = 32, 8
#: Parts that lie near each other become one sample up to this many pixels, more if at least
#: half of it is needed: a few scattered objects never cost a whole volume.
SMALL = {2: 512 * 512, 3: 64 * 256 * 256}


class Sample(NamedTuple):
    """A part of an image around vouched pixels.

    Attributes:
        name: unique in the project.
        image: which; `Project.crop(image, bounds)` reads its pixels.
        bounds: per axis of `image.label_axes`; one index thick in the axes that a model of the
            project's dimension does not see (T, and Z in 2D).
        labels: int32 [*spatial] with as many axes as the project has dimensions; -1 where
            nobody vouches for anything.
    """

    name: str
    image: ImageReference
    bounds: Bounds
    labels: np.ndarray


def samples(project: Project, *, margin: int | tuple[int, ...] | None = None) -> Iterator[Sample]:
    """All that the project can train on, image by image, in a fixed order.

    Every vouched pixel is in exactly one sample: where two samples overlap in their margins, it
    is -1 in the other one. Only the files of corrections are read, no image.

    Args:
        project: an open project.
        margin: pixels of context around the vouched part, for all axes or one per axis; cut off
            at the image's edge. By default 32 in Y and X, 8 in Z of a volume.
    """
    if margin is None:
        margin = (MARGIN_Z, MARGIN_YX, MARGIN_YX)[-project.dim :]
    elif isinstance(margin, int):
        margin = (margin,) * project.dim
    for image in project.images:
        corrections = project.corrections(image.id)
        for group in _groups(corrections, margin):
            yield _sample(corrections, group, margin)


class _Group(NamedTuple):
    """Boxes that go into one sample, what holds them all, and how many pixels they have."""

    hull: Bounds
    pixels: int
    boxes: list[Bounds]


def _groups(corrections: Corrections, margin: tuple[int, ...]) -> list[_Group]:
    """Boxes of vouched pixels, one per chunk, joined where they lie near each other."""
    leading = len(corrections.image.label_shape) - corrections.dim
    by_slice: dict[Bounds, list[_Group]] = {}
    for _, summary in corrections.summaries():
        if summary.bounds is not None:
            group = _Group(summary.bounds, _size(summary.bounds), [summary.bounds])
            by_slice.setdefault(summary.bounds[:leading], []).append(group)
    return [
        group
        for _, groups in sorted(by_slice.items())
        for group in _join(groups, (0,) * leading + margin, SMALL[corrections.dim])
    ]


def _join(groups: list[_Group], margin: tuple[int, ...], small: int) -> list[_Group]:
    joined: list[_Group] = []
    for group in groups:
        while True:
            near = (i for i, g in enumerate(joined) if _belong_together(group, g, margin, small))
            place = next(near, None)
            if place is None:
                break
            other = joined.pop(place)
            hull, pixels = _hull([group.hull, other.hull]), group.pixels + other.pixels
            group = _Group(hull, pixels, sorted(other.boxes + group.boxes))
        joined.append(group)
    return sorted(joined)


def _belong_together(one: _Group, other: _Group, margin: tuple[int, ...], small: int) -> bool:
    axes = zip(one.hull, other.hull, margin, strict=True)
    if not all(a0 - m <= b1 + m and b0 - m <= a1 + m for (a0, a1), (b0, b1), m in axes):
        return False
    size = _size(_hull([one.hull, other.hull]))
    return size <= max(small, 2 * (one.pixels + other.pixels))


def _hull(boxes: list[Bounds]) -> Bounds:
    return tuple(
        (min(start for start, _ in axis), max(stop for _, stop in axis))
        for axis in zip(*boxes, strict=True)
    )


def _size(bounds: Bounds) -> int:
    return prod(stop - start for start, stop in bounds)


def _sample(corrections: Corrections, group: _Group, margin: tuple[int, ...]) -> Sample:
    image = corrections.image
    leading = len(image.label_shape) - corrections.dim
    widths = zip(group.hull, (0,) * leading + margin, image.label_shape, strict=True)
    bounds = tuple((max(0, a - m), min(b + m, size)) for (a, b), m, size in widths)
    result = np.full([stop - start for start, stop in bounds], -1, np.int32)
    for box in group.boxes:
        place = tuple(
            slice(a - start, b - start) for (a, b), (start, _) in zip(box, bounds, strict=True)
        )
        result[place] = training_labels(*corrections.read(box))
    labels = result.reshape(result.shape[leading:])
    return Sample(_name(image, group.hull), image, bounds, labels)


def _name(image: ImageReference, bounds: Bounds) -> str:
    parts = [
        f"{axis.lower()}{start}" if stop - start == 1 else f"{axis.lower()}{start}-{stop}"
        for axis, (start, stop) in zip(image.label_axes, bounds, strict=True)
    ]
    return "_".join([image.id, *parts])
