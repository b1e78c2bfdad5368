"""Places of images that nobody checked, and the image that has the most doubtful ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from napari_tttunet.annotation import UNKNOWN, Annotation
from napari_tttunet.objects import DOUBTFUL_FIRST, Objects, odd_first
from tttunet.measuring.places import Place, rank_groups
from tttunet.projects import Corrections

#: A point in pixels of a project's labels.
Point = Sequence[float]


def unchecked(annotation: Annotation, places: Objects) -> Objects:
    """Without the objects of which all is checked, and without gaps that are."""
    left = np.unique(annotation.labels[annotation.marks == UNKNOWN])
    instances = annotation.task == "instance"
    shape = annotation.layer.data.shape

    def counts(number: int, centre: np.ndarray) -> bool:
        if number and instances:
            return bool(np.isin(number, left))
        place = np.clip(np.round(centre).astype(int), 0, np.array(shape) - 1)
        return bool(annotation.state[tuple(place)] == UNKNOWN)

    pairs = zip(places.numbers.tolist(), places.centres, strict=True)
    return places.chosen(np.array([counts(number, centre) for number, centre in pairs], bool))


def odd(annotation: Annotation) -> Objects:
    """What is labelled but not checked, unusual sizes first."""
    found = odd_first(np.where(annotation.marks == UNKNOWN, annotation.labels, 0))
    return Objects(found.numbers, _in_layer(annotation, found.centres), found.order)


def in_labels(annotation: Annotation, places: Sequence[Place]) -> Objects:
    """Doubtful places of an image with the numbers that its labels have there."""
    centres = [place.centre for place in places]
    pixels = [annotation.index_at(one) for one in _in_layer(annotation, centres)]
    numbers = [0 if pixel is None else int(annotation.labels[pixel]) for pixel in pixels]
    doubts = np.array([place.doubt for place in places], float)
    return Objects(
        np.array(numbers, np.int64), _in_layer(annotation, centres), DOUBTFUL_FIRST, doubts
    )


def _in_layer(annotation: Annotation, centres: Iterable[Point]) -> np.ndarray:
    found = [annotation.in_layer(centre) for centre in centres]
    return np.array(found, float).reshape(len(found), annotation.layer.ndim)


def as_places(objects: Objects) -> list[Place]:
    """The same, to be ranked with those of other images; without doubts, there are none."""
    if objects.doubts is None:
        return []
    rows = zip(objects.numbers.tolist(), objects.centres, objects.doubts.tolist(), strict=True)
    return [Place("object", number, tuple(at.tolist()), (), doubt) for number, at, doubt in rows]


def not_seen(places: Iterable[Place], points: Sequence[Point]) -> list[Place]:
    """Without those whose middle somebody looked at."""
    return [place for place in places if not _near(place.centre, points)]


def fresh(
    annotation: Annotation, places: Objects, numbers: set[int], points: Sequence[Point]
) -> np.ndarray:
    """Boolean per place: nobody looked at it yet.

    Args:
        annotation: of the labels.
        places: in them.
        numbers: of objects that were looked at; since then they may have got another shape.
        points: that were looked at.
    """
    objects = numbers - {0} if annotation.task == "instance" else set[int]()
    pairs = zip(places.numbers.tolist(), places.centres, strict=True)
    seen = [
        number in objects or _near(annotation.in_image(centre), points) for number, centre in pairs
    ]
    return ~np.array(seen, bool)


def _near(point: Point, points: Sequence[Point]) -> bool:
    return any(np.abs(np.subtract(point, one)).max() <= 1 for one in points)


def not_vouched(corrections: Corrections, places: Iterable[Place]) -> Iterator[Place]:
    """Without those of which the project's files have half or more; reads files."""
    for place in places:
        if corrections.read(place.bounds)[1].mean() < 0.5:
            yield place


def most_doubtful(images: Mapping[str, Sequence[Place]]) -> str:
    """The image whose places are the most doubtful, see `rank_groups`; empty: there are none."""
    ranked = rank_groups((image, place) for image, places in images.items() for place in places)
    return ranked[0][0] if ranked else ""
