"""Corrections of a project that come into labels of the viewer: what is to be done, in a thread.

Looking through the labels of a volume takes long; doing what was found does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tttunet.projects.regions import Region
from tttunet.projects.schema import Bounds


class Stored(NamedTuple):
    """A part of the corrections that a project has.

    Attributes:
        bounds, labels, vouched: see `tttunet.projects.Corrections.read`.
        own: see `tttunet.projects.Corrections.own`; None: all that is vouched for.
    """

    bounds: Bounds
    labels: np.ndarray
    vouched: np.ndarray
    own: np.ndarray | None = None


class Renumbered(NamedTuple):
    """Pixels that get another number.

    Attributes:
        part: index of the slice or volume along the first axis; empty: the whole image.
        where: of the pixels in that part, as from `numpy.nonzero`.
        old, new: their numbers.
    """

    part: tuple[int, ...]
    where: tuple[np.ndarray, ...]
    old: np.ndarray
    new: np.ndarray


@dataclass(frozen=True, eq=False)
class Plan:
    """What `Annotation.restoring` does.

    Attributes:
        edits: `Annotation.edits` when it was made: later it may not be right any more.
        stored: goes into the labels.
        regions: the complete regions of the project.
        renumbered: objects that make room.
    """

    edits: int
    stored: Sequence[Stored] = ()
    regions: Sequence[Region] = ()
    renumbered: list[Renumbered] = field(default_factory=list)

    @property
    def largest(self) -> int:
        """The largest number that comes into the labels."""
        theirs = [part.labels[part.vouched != 0] for part in self.stored]
        numbers = [*theirs, *(part.new for part in self.renumbered)]
        return max((int(some.max(initial=0)) for some in numbers), default=0)


def make_room(labels: np.ndarray, mine: np.ndarray, stored: Sequence[Stored]) -> list[Renumbered]:
    """New numbers for objects that have the number of a stored one.

    Args:
        labels: [*spatial] integers; negative: not labelled.
        mine: numbers that stay: the objects that were checked in `labels`.
        stored: vouched pixels count.
    """
    none = np.zeros(0, np.int64)
    found = [np.unique(part.labels[part.vouched != 0]) for part in stored]
    theirs = np.unique(np.concatenate([none, *found]))
    clash = np.setdiff1d(theirs[theirs > 0], mine)
    if not len(clash):
        return []
    largest, places = int(theirs.max()), []
    for part in parts(labels):
        inside = labels[part]
        largest = max(largest, int(inside.max(initial=0)))
        where = np.nonzero(np.isin(inside, clash))
        if len(where[0]):
            places.append((part, where, inside[where]))
    present = np.unique(np.concatenate([none, *(np.unique(old) for _, _, old in places)]))
    return [
        Renumbered(part, where, old, largest + 1 + np.searchsorted(present, old))
        for part, where, old in places
    ]


def parts(labels: np.ndarray) -> Iterator[tuple[int, ...]]:
    """Indices of the parts in which a stack or volume is looked through, to need little memory."""
    return iter([()] if labels.ndim < 3 else [(i,) for i in range(len(labels))])
