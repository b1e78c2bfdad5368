"""What napari's history of a Labels layer says about an edit.

An edit is a list of atoms: pixels of a box under a mask with their old values and one new value
(napari 0.9), or lists of indices with old and new values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tttunet.projects.schema import Bounds


class Stroke(NamedTuple):
    """What an edit did to the marks (uint8) of a box."""

    bounds: Bounds
    before: np.ndarray
    after: np.ndarray


def bounds_of(item: Sequence[Any]) -> Bounds:
    """The box that holds all changed pixels, per axis of the layer's data."""
    boxes = [_atom_bounds(atom) for atom in item]
    return tuple(
        (min(start for start, _ in axis), max(stop for _, stop in axis))
        for axis in zip(*boxes, strict=True)
    )


def _atom_bounds(atom: Any) -> Bounds:
    if hasattr(atom, "slice_key"):
        return tuple((part.start, part.stop) for part in atom.slice_key)
    return tuple((int(axis.min()), int(axis.max()) + 1) for axis in map(np.asarray, atom[0]))


def apply(item: Sequence[Any], data: np.ndarray) -> None:
    """Do the edit, as napari does."""
    for atom in item:
        if hasattr(atom, "slice_key"):
            _put(data[atom.slice_key], atom.mask, atom.new_value)
        else:
            data[atom[0]] = atom[2]


def old_labels(item: Sequence[Any], data: np.ndarray, bounds: Bounds) -> np.ndarray:
    """A copy of a box of the data, as it was before the edit."""
    box = data[tuple(slice(start, stop) for start, stop in bounds)].copy()
    for atom in reversed(item):
        if hasattr(atom, "slice_key"):
            place = tuple(
                slice(part.start - start, part.stop - start)
                for part, (start, _) in zip(atom.slice_key, bounds, strict=True)
            )
            _put(box[place], atom.mask, atom.old_values)
        else:
            axes = zip(atom[0], bounds, strict=True)
            box[tuple(np.asarray(axis) - start for axis, (start, _) in axes)] = atom[1]
    return box


def _put(part: np.ndarray, mask: np.ndarray | None, values: Any) -> None:
    if mask is None:
        part[...] = values
    else:
        part[mask] = values
