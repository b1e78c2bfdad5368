"""What the network computed beside the labels, as volumes: how sure it is, and where it adapted."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from slicer.i18n import tr as _

from TTTUNetLib import Results
from TTTUNetLib.Volumes import RequestError, VolumeImage

PROBABILITY, UNCERTAINTY, ADAPTATION = KINDS = ("probability", "uncertainty", "adaptation")
#: Of the values of an adaptation map, the share between which its grey values lie.
_SHOWN_SHARE = (1.0, 99.8)


@dataclass(frozen=True, eq=False)
class Map:
    """A volume to be made.

    Attributes:
        name: what it shows.
        array: [k, j, i] float32; 0 outside a region of interest.
        limits: of the values that are shown.
    """

    name: str
    array: np.ndarray
    limits: tuple[float, float] = (0.0, 1.0)


def check(wanted: Collection[str], image: VolumeImage) -> None:
    """Refuse what cannot be shown.

    Raises:
        RequestError: such maps are unknown, or not made of sequences.
    """
    for name in wanted:
        if name not in KINDS:
            raise RequestError(
                _("There is no map '{0}'.").format(name),
                _("There are {0}.").format(", ".join(KINDS)),
            )
    if wanted and image.axes.startswith("T"):
        raise RequestError(
            _("Of sequences there are labels only."), _("Segment one of its volumes.")
        )


def read(
    result: Mapping[str, Any],
    wanted: Collection[str],
    image: VolumeImage,
    classes: Sequence[Mapping[str, Any]],
    task: str,
) -> list[Map]:
    """Maps of a result of the engine. Meant for a background thread.

    Args:
        result: has `maps` and `adaptation_map`, if these are needed.
        wanted: some of `KINDS`. The probability of every class, or of objects; the entropy of the
            probabilities, from 0 (certain) to 1 (all alike); by how much the loss of the TTT layers
            fell when they adapted.
        image: what was segmented.
        classes: of the model.
        task: of the model; an instance model's maps are background, interior, boundary, distance.
    """
    found = []
    maps = result.get("maps")
    if maps is not None:
        maps = maps.reshape(-1, *image.shape)
        maps = maps[:3] if task == "instance" else maps
        if PROBABILITY in wanted and task == "instance":
            found.append(Map(f"object {PROBABILITY}", image.placed(1.0 - maps[0])))
        elif PROBABILITY in wanted:
            names = [str(one["name"]) for one in classes] or [f"class {n}" for n in range(1, 999)]
            found += [
                Map(f"{name} {PROBABILITY}", image.placed(np.array(one)))
                for name, one in zip(names, maps[1:], strict=False)
            ]
        if UNCERTAINTY in wanted:
            found.append(Map(UNCERTAINTY, image.placed(_entropy(maps))))
    losses = result.get("adaptation_map")
    if losses is not None:
        before, after = losses.reshape(2, *image.shape)
        low, high = np.percentile(before - after, _SHOWN_SHARE).tolist()
        limits = (low, max(high, low + 1e-6))
        found.append(Map(ADAPTATION, image.placed(before - after), limits))
    return found


def _entropy(maps: np.ndarray) -> np.ndarray:
    """[k, j, i] of the probabilities [K, k, j, i], in units of the largest possible one."""
    entropy = np.zeros(maps.shape[1:], np.float32)
    for one in maps:
        entropy -= one * np.log(np.maximum(one, 1e-12))
    return np.clip(entropy / math.log(len(maps)), 0.0, 1.0)


def create(volume: Any, found: Sequence[Map]) -> list[Any]:
    """A scalar volume node of every map, on the volume's grid and beside it."""
    nodes = []
    for one in found:
        array = np.ascontiguousarray(one.array, np.float32)
        node = Results.create_volume(volume, array, f"{volume.GetName()} {one.name}")
        display = node.GetDisplayNode()
        display.SetAutoWindowLevel(False)
        display.SetWindowLevelMinMax(*one.limits)
        nodes.append(node)
    return nodes
