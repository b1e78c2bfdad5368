"""Whether an image and its label lie on the same voxels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tttunet.imaging.image import Image
from tttunet.training.dataset import Case, Problem

#: Differences between the grids of image and label that are rounding: of the spacing as a share,
#: of the origin in voxels, of the direction's cosines.
_SPACING, _ORIGIN, _DIRECTION = 1e-3, 0.05, 1e-3
#: A label that is shifted by less is used, with a warning.
_SMALL_SHIFT = 0.5


def grid_problems(image: Image, label: Image, case: Case) -> list[Problem]:
    """What is wrong with where a label lies; nothing is known where one file has no geometry."""
    files = f"{case.images[0]} and {case.label}"
    if image.spatial_shape != label.spatial_shape:
        text = (
            f"{files} differ in shape: {_list(image.spatial_shape)}, {_list(label.spatial_shape)}."
        )
        return [Problem(case.name, text)]
    if image.unit != label.unit:
        return []
    found = []
    if not np.allclose(image.spacing, label.spacing, rtol=_SPACING):
        text = f"{files} differ in spacing: {_list(image.spacing)}, {_list(label.spacing)}."
        found.append(Problem(case.name, text))
    if not np.allclose(image.direction, label.direction, atol=_DIRECTION):
        found.append(Problem(case.name, f"{files} differ in direction."))
    steps = image.direction * image.spacing
    shift = np.abs(np.linalg.solve(steps, np.subtract(image.origin, label.origin))).max()
    if not found and shift > _ORIGIN:
        text = f"{files} differ in origin, by {shift:.2g} voxels."
        found.append(Problem(case.name, text, fatal=bool(shift > _SMALL_SHIFT)))
    return found


def _list(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.5g}" for value in values)
