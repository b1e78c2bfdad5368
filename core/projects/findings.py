"""What a project holds, in words: how much will be used, and what makes no sense."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tttunet.projects.annotate import grow, pieces
from tttunet.projects.sampling import samples
from tttunet.projects.schema import Bounds

if TYPE_CHECKING:
    from tttunet.projects.project import Project

#: Smaller objects are slips of the pen.
SMALLEST_OBJECT = 4
#: Pieces of an object closer than this (in pixels) may belong together.
NEAR = 10
#: More sentences of the same kind help nobody.
_AT_MOST = 5


class Finding(NamedTuple):
    """A sentence for the user.

    Attributes:
        text: what makes no sense, where, and what to do.
        stops: nothing can be trained before it is mended.
    """

    text: str
    stops: bool


class Piece(NamedTuple):
    """A connected piece of an object: its box, its pixels, and whether it may go on outside."""

    bounds: Bounds
    pixels: int
    open: bool


def describe(project: Project) -> str:
    """What will be used, e.g. "23 objects and 2 complete regions on 3 images".

    What there is nothing of is not named.
    """
    objects = pixels = regions = images = 0
    classes: set[int] = set()
    for image in project.images:
        summary = project.corrections(image.id).summary()
        images += summary.vouched_pixels > 0
        objects, regions = objects + summary.objects, regions + summary.regions
        pixels += summary.vouched_pixels
        classes |= set(summary.classes) - {0}
    if not images:
        return "nothing is checked yet"
    if project.task == "instance":
        parts = [_count(objects, "object")] if objects else []
    else:
        known = _count(len(classes), "class", "classes") if classes else "background"
        parts = [f"{_count(pixels, 'pixel')} of {known}"]
    if regions:
        parts.append(_count(regions, "complete region"))
    parts = parts or [f"{_count(pixels, 'pixel')} of background"]
    return f"{' and '.join(parts)} on {_count(images, 'image')}"


def _count(number: int, noun: str, plural: str = "") -> str:
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def check(project: Project, model_classes: Mapping[int, str] | None = None) -> list[Finding]:
    """Look for empty and absurd annotations.

    Args:
        project: an open project.
        model_classes: names of the label numbers that the model to start from knows; None: not
            asked.

    Returns:
        Those that stop the training first.
    """
    summaries = [project.corrections(image.id).summary() for image in project.images]
    vouched = sum(summary.vouched_pixels for summary in summaries)
    foreground = sum(summary.foreground_pixels for summary in summaries)
    if not vouched:
        return [
            Finding(
                "Nothing is checked yet, so there is nothing to learn from. Mark objects as "
                "checked, or a region as complete.",
                True,
            )
        ]
    found = list(_extremes(project, vouched, foreground))
    if project.task == "semantic":
        numbers = {number for summary in summaries for number in summary.classes} - {0}
        found += _unknown_classes(project.classes, numbers, model_classes)
    else:
        found += _objects(project)
    return sorted(found, key=lambda finding: not finding.stops)


def _extremes(project: Project, vouched: int, foreground: int) -> Iterator[Finding]:
    thing = "object" if project.task == "instance" else "pixel of a class"
    if not foreground:
        yield Finding(
            f"Only background is checked: no {thing}. Mark some, or a region that holds some.", True
        )
    several = project.task == "semantic" and len(project.classes) > 1
    if foreground == vouched and not several:
        yield Finding(
            "No background is checked, so the model cannot learn where things end. Mark a region "
            "with some background as complete.",
            False,
        )


def _unknown_classes(
    classes: Mapping[int, str], numbers: set[int], model_classes: Mapping[int, str] | None
) -> Iterator[Finding]:
    for number in sorted(numbers - set(classes)):
        yield Finding(
            f"Class {number} is painted, but the project has no such class. Add it to the classes "
            "of the project, or paint it over.",
            True,
        )
    if model_classes is None:
        return
    for number in sorted(numbers & set(classes)):
        name = classes[number]
        if number not in model_classes:
            yield Finding(
                f"The model does not know class {number} ('{name}'); its last layer will be "
                "trained anew.",
                False,
            )
        elif model_classes[number].casefold() != name.casefold():
            yield Finding(
                f"Class {number} is '{name}' in the project but '{model_classes[number]}' in the "
                "model.",
                False,
            )


def _objects(project: Project) -> Iterator[Finding]:
    small: list[str] = []
    torn: list[str] = []
    for where, objects in _objects_by_slice(project):
        for number, parts in sorted(objects.items()):
            fault = _object_fault(f"Object {number} {where}", parts)
            if fault:
                (torn if len(parts) > 1 else small).append(fault)
    for sentences in (torn, small):
        yield from (Finding(sentence, False) for sentence in sentences[:_AT_MOST])
        if len(sentences) > _AT_MOST:
            more = _count(len(sentences) - _AT_MOST, "more object")
            yield Finding(f"The same goes for {more}.", False)


def _object_fault(name: str, parts: list[Piece]) -> str:
    """A sentence about an absurd object, or an empty text."""
    if any(part.open for part in parts):
        return ""  # what is missing may lie where nobody looked
    if far_apart([part.bounds for part in parts]):
        return f"{name} is in {len(parts)} pieces far apart; objects need different numbers."
    pixels = sum(part.pixels for part in parts)
    return f"{name} has only {_count(pixels, 'pixel')}." if pixels < SMALLEST_OBJECT else ""


def _objects_by_slice(project: Project) -> Iterator[tuple[str, dict[int, list[Piece]]]]:
    """Pieces of all objects per image and slice; a slice's samples follow each other."""
    current, objects = None, dict[int, list[Piece]]()
    for sample in samples(project):
        leading = len(sample.bounds) - sample.labels.ndim
        axes = zip(sample.image.label_axes, sample.bounds[:leading], strict=False)
        place = "".join(f", {axis} = {start}" for axis, (start, _) in axes)
        where = f"in '{sample.image.name}'{place}"
        key = sample.image.id, place
        if current is not None and key != current[0]:
            yield current[1], objects
            objects = {}
        current = key, where
        origin = tuple(start for start, _ in sample.bounds[leading:])
        for number, parts in object_pieces(sample.labels, origin).items():
            objects.setdefault(number, []).extend(parts)
    if current is not None:
        yield current[1], objects


def object_pieces(
    labels: np.ndarray, origin: tuple[int, ...] | None = None
) -> dict[int, list[Piece]]:
    """The connected pieces of every object.

    Args:
        labels: [*spatial] integers, negative where nothing is known.
        origin: added to the boxes; by default 0.
    """
    origin = origin or (0,) * labels.ndim
    numbered = pieces(labels)
    places = np.flatnonzero(numbered)
    if not len(places):
        return {}
    places = places[np.argsort(numbered.ravel()[places], kind="stable")]
    _, first, pixels = np.unique(
        numbered.ravel()[places], return_index=True, return_counts=True
    )  # fmt: skip
    near_unknown = grow(labels < 0, 1).ravel()[places]
    is_open = np.logical_or.reduceat(near_unknown, first)
    low, high = [], []
    for axis, start in zip(np.unravel_index(places, labels.shape), origin, strict=True):
        low.append(np.minimum.reduceat(axis, first) + start)
        high.append(np.maximum.reduceat(axis, first) + start + 1)
    boxes = np.stack([low, high], axis=-1).transpose(1, 0, 2).tolist()
    objects: dict[int, list[Piece]] = {}
    rows = zip(labels.ravel()[places[first]], boxes, pixels, is_open, strict=True)
    for number, box, count, opened in rows:
        piece = Piece(tuple((a, b) for a, b in box), int(count), bool(opened))
        objects.setdefault(int(number), []).append(piece)
    return objects


def far_apart(boxes: list[Bounds]) -> bool:
    """Whether some piece lies further from all others than the largest piece is long."""
    if len(boxes) < 2:
        return False
    longest = max(max(stop - start for start, stop in box) for box in boxes)
    limit = max(NEAR, longest)
    return any(
        min(_gap(box, other) for other in boxes if other is not box) > limit for box in boxes
    )


def _gap(a: Bounds, b: Bounds) -> int:
    """Pixels between two boxes along the axis where they are furthest apart; 0 if they touch."""
    axes = zip(a, b, strict=True)
    return max(0, *(max(a0 - b1, b0 - a1) for (a0, a1), (b0, b1) in axes))


def contradictions(
    labels: np.ndarray,
    *,
    task: str = "instance",
    classes: Mapping[int, str] | None = None,
) -> list[str]:
    """`check` for one array, e.g. before it is saved.

    Args:
        labels: [*spatial] integers, negative: not labelled.
        task: `instance` or `semantic`.
        classes: the class numbers that there are, for `semantic`.

    Returns:
        One sentence per finding.
    """
    if not (labels >= 0).any():
        return ["Nothing is checked yet, so there is nothing to learn from."]
    if not (labels > 0).any():
        return ["Only background is checked."]
    if task == "semantic":
        numbers = {int(n) for n in np.unique(labels) if n > 0}
        return [f.text for f in _unknown_classes(classes or {}, numbers, None)]
    objects = sorted(object_pieces(labels).items())
    faults = (_object_fault(f"Object {number}", parts) for number, parts in objects)
    return [fault for fault in faults if fault]
