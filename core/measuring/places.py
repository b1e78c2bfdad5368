"""Places that a person should look at, and how to rank what they lie in; found by `review`."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

Group = TypeVar("Group", bound=Hashable)
#: So many places, the most doubtful of a group, are added up.
ADDED_UP = 5


@dataclass(frozen=True)
class Place:
    """Somewhere to look.

    Attributes:
        kind: `object`, or `gap`: perhaps a missed object.
        label: of the object, or of its class; 0 for a gap.
        centre: in pixels, one number per axis.
        bounds: [start, stop) per axis.
        doubt: higher is more doubtful.
    """

    kind: Literal["object", "gap"]
    label: int
    centre: tuple[float, ...]
    bounds: tuple[tuple[int, int], ...]
    doubt: float


def rank_groups(
    places: Iterable[tuple[Group, Place]], count: int = ADDED_UP
) -> list[tuple[Group, float]]:
    """Regions, slices or images, those with the most doubtful places first.

    Args:
        places: the group of each place, and the place.
        count: so many places, the most doubtful of a group, are added up.
    """
    doubts: dict[Group, list[float]] = {}
    for group, place in places:
        doubts.setdefault(group, []).append(place.doubt)
    sums = {group: sum(sorted(found)[-count:]) for group, found in doubts.items()}
    return sorted(sums.items(), key=lambda item: -item[1])
