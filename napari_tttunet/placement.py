"""Where a layer's grid lies in the world of the file it belongs to; `convert` says what that is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from napari_tttunet.geometry import Transform

SPATIAL = "ZYX"
#: Two placements that differ by less (relative to the spacing) are the same.
_SAME = 1e-6


@dataclass(frozen=True, eq=False)
class Placement:
    """A grid in the world of its file; attributes as those of `tttunet.imaging.Image`."""

    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: np.ndarray
    unit: str | None


def world_matrix(world: Sequence[str], axes: Iterable[str]) -> np.ndarray:
    """Turns coordinates of patient axes (in the order `axes`) into those of napari's world.

    Args:
        world: per axis of napari's world, the patient axis that it is: x, y, z or -z.
        axes: the letters Z, Y, X that there are.

    Raises:
        ValueError: `world` does not name each of `axes` once.
    """
    letters = [letter.lower() for letter in axes]
    names = [str(name).removeprefix("-") for name in world]
    if sorted(names) != sorted(letters):
        raise ValueError(f"{world} does not name the axes {letters}")
    matrix = np.zeros((len(letters), len(letters)))
    for row, name in enumerate(world):
        matrix[row, letters.index(names[row])] = -1 if name.startswith("-") else 1
    return matrix


def common_unit(units: Sequence[Any]) -> tuple[str | None, list[float]]:
    """One unit for all axes: millimeters if none is finer, else micrometers, else None.

    Args:
        units: of pint, as layers have them.

    Returns:
        The unit and what the numbers of each axis must be multiplied by.
    """
    if any(dict(unit.dimensionality) != {"[length]": 1} for unit in units):
        return None, [1.0] * len(units)
    in_millimeters = [float((1 * unit).to("millimeter").magnitude) for unit in units]
    if min(in_millimeters) > 0.999:
        return "millimeter", in_millimeters
    return "micrometer", [float((1 * unit).to("micrometer").magnitude) for unit in units]


def world_placement(
    transform: Transform, axes: str, units: Sequence[Any], metadata: Any
) -> Placement | None:
    """The placement of a layer's grid in the world of its file; spatial axes as Z, Y, X.

    Args:
        transform: of the layer, or of a part of it.
        axes: one letter per axis of the transform (further letters are ignored).
        units: of the layer's axes.
        metadata: of the layer; `convert.image_layers` leaves there what the file says.

    Returns:
        None if the axes are not at right angles, or space depends on time or channel.
    """
    places = [axes.index(letter) for letter in SPATIAL if letter in axes[: transform.ndim]]
    others = [i for i in range(transform.ndim) if i not in places]
    matrix = transform.matrix
    linear, shift = matrix[np.ix_(places, places)], matrix[places, -1]
    steps = np.linalg.norm(linear, axis=0)
    if matrix[np.ix_(places, others)].any() or not steps.all():
        return None
    direction = linear / steps
    if not np.allclose(direction.T @ direction, np.eye(len(places)), atol=1e-5):
        return None
    unit, factors = common_unit([units[i] for i in places])
    # A world of two units has no one scale: then the numbers are taken as they are.
    factor = factors[0] if len(set(factors)) == 1 else 1.0
    geometry = file_geometry(metadata)
    letters = [axes[i] for i in places]
    try:
        back = world_matrix(geometry.get("world", ()), letters).T
    except ValueError:
        back = np.eye(len(places))
    direction, shift = back @ direction, back @ shift
    found = Placement(
        tuple(float(step) * factor for step in steps),
        tuple(float(value) * factor for value in shift),
        direction,
        unit if len(set(factors)) == 1 else None,
    )
    return _as_in_file(found, geometry)


def _as_in_file(found: Placement, geometry: dict[str, Any]) -> Placement:
    """The placement that the file says, if the found one differs from it by rounding only."""
    try:
        stored = Placement(
            tuple(map(float, geometry["spacing"])),
            tuple(map(float, geometry["origin"])),
            np.array(geometry["direction"], float),
            geometry["unit"],
        )
        close = _SAME * min(stored.spacing)
        same = (
            stored.unit == found.unit
            and np.allclose(stored.spacing, found.spacing, rtol=_SAME, atol=0)
            and np.allclose(stored.origin, found.origin, rtol=0, atol=close)
            and np.allclose(stored.direction, found.direction, rtol=0, atol=_SAME)
        )
    except (KeyError, TypeError, ValueError):
        return found
    if same:
        return stored
    if stored.direction.shape == found.direction.shape and np.allclose(
        stored.direction, found.direction, rtol=0, atol=_SAME
    ):
        return replace(found, direction=stored.direction)
    return found


def file_geometry(metadata: Any) -> dict[str, Any]:
    """What `convert.image_layers` left in a layer's metadata about its file; else empty."""
    own = metadata.get("tttunet") if isinstance(metadata, dict) else None
    geometry = own.get("geometry") if isinstance(own, dict) else None
    return geometry if isinstance(geometry, dict) else {}
