"""Slices of a DICOM series that are no straight grid: a tilted gantry, or some are missing.

What is resampled is said: labels of it are on the straight grid, in the place of the patient where
the slices are.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tttunet.errors import ImageError

if TYPE_CHECKING:
    import SimpleITK

#: Largest deviation of a slice from its place, in distances between slices.
UNEVEN = 0.05
#: Where so many slices in a row are missing, what lies between is a guess.
MOST_MISSING = 2
#: More of a series than this share is not made up.
_MOST_SHARE = 0.2
#: Slices nearer than this are the same.
_SAME = 1e-3
_RESAMPLE = "Export the series again, or resample it to a regular grid, e.g. in 3D Slicer."


def straightened(
    picture: SimpleITK.Image, places: np.ndarray, path: Path
) -> tuple[SimpleITK.Image, tuple[str, ...]]:
    """The slices of a series on a straight grid.

    Uneven slices are interpolated linearly along their normal, at their most usual distance; those
    that lie on the new grid stay as they are. Shifted slices (a tilted gantry) are resampled
    linearly to voxels at right angles; what no slice covers gets the smallest value.

    Args:
        picture: as ITK read the slices, with axes at right angles.
        places: [n, 3], the position of every slice, x, y, z in millimeters.
        path: named in messages.

    Returns:
        The picture itself where there is nothing to do, and sentences on what was done.

    Raises:
        ImageError: slices are in the same place, too many are missing, or they are shifted in no
            straight line.
    """
    normal = np.array(picture.GetDirection()).reshape(3, 3)[:, 2]
    along = (places - places[0]) @ normal
    steps = np.diff(along)
    distance = float(np.median(np.abs(steps)))
    if np.abs(steps).min() < _SAME or (steps > 0).any() == (steps < 0).any():
        raise ImageError(
            f"'{path}' has several slices in the same place.",
            "Export one phase, echo or time point of the series.",
        )
    # ITK takes the way from the first slice to the second, aside included.
    picture.SetSpacing((*picture.GetSpacing()[:2], distance))
    notes: list[str] = []
    uneven = np.abs(np.abs(steps) - distance).max() > UNEVEN * distance
    aside = places - places[0] - np.outer(along, normal)
    shift = aside.T @ along / (along @ along)  # mm aside per mm along the normal
    residual = np.linalg.norm(aside - np.outer(along, shift), axis=1).max()
    tilted = np.linalg.norm(np.diff(aside, axis=0), axis=1).max() > UNEVEN * distance
    if tilted and residual > UNEVEN * distance:
        raise ImageError(f"The slices of '{path}' are shifted irregularly.", _RESAMPLE)
    if uneven:
        picture, note = _even(picture, along, distance, path)
        notes.append(note)
    if tilted:
        picture = _upright(picture, normal, shift)
        angle = np.rad2deg(np.arctan(np.linalg.norm(shift)))
        notes.append(
            f"'{path}' was taken with a gantry tilted by {angle:.0f} degrees: it was resampled to "
            "a straight grid."
        )
    return picture, tuple(notes)


def _even(
    picture: SimpleITK.Image, along: np.ndarray, distance: float, path: Path
) -> tuple[SimpleITK.Image, str]:
    """Slices at even distances."""
    import SimpleITK

    along = np.abs(along)
    steps = np.diff(along)
    count = round(along[-1] / distance) + 1
    made = count - len(along)
    low, high = steps.min(), steps.max()
    between = f"the distances between them are {low:.3g} to {high:.3g} mm"
    if high > (MOST_MISSING + 1 + UNEVEN) * distance or made > _MOST_SHARE * len(along):
        raise ImageError(f"'{path}' lacks too many slices: {between}.", _RESAMPLE)
    array = SimpleITK.GetArrayFromImage(picture)
    result = np.empty((count, *array.shape[1:]), array.dtype)
    for number in range(count):
        target = min(number * distance, along[-1])
        after = int(np.clip(np.searchsorted(along, target), 1, len(along) - 1))
        share = (target - along[after - 1]) / steps[after - 1]
        if min(share, 1 - share) * steps[after - 1] <= UNEVEN * distance:
            result[number] = array[after - 1 + round(share)]
            continue
        values = (1 - share) * array[after - 1] + share * array[after]
        result[number] = np.rint(values) if array.dtype.kind in "iu" else values
    even = SimpleITK.GetImageFromArray(result, isVector=picture.GetNumberOfComponentsPerPixel() > 1)
    even.SetSpacing((*picture.GetSpacing()[:2], distance))
    even.SetOrigin(picture.GetOrigin())
    even.SetDirection(picture.GetDirection())
    return even, f"'{path}' lacks slices: {between}; they were interpolated."


def _upright(picture: SimpleITK.Image, normal: np.ndarray, shift: np.ndarray) -> SimpleITK.Image:
    """Voxels at right angles from slices, each of which is shifted by `shift` per mm."""
    import SimpleITK

    # A point of the patient lies where ITK, which knows no shift, has it without its shift.
    origin = np.array(picture.GetOrigin())
    transform = SimpleITK.AffineTransform(3)
    transform.SetMatrix((np.eye(3) - np.outer(shift, normal)).ravel().tolist())
    transform.SetCenter(origin.tolist())
    direction = np.array(picture.GetDirection()).reshape(3, 3)
    spacing, size = np.array(picture.GetSpacing()), np.array(picture.GetSize())
    height = (size[2] - 1) * spacing[2]
    # The last slice reaches so many voxels beyond the first one.
    beyond = direction[:, :2].T @ shift * height / spacing[:2]
    before = np.floor(np.minimum(beyond, 0)).astype(int)
    size[:2] += np.ceil(np.abs(beyond)).astype(int)
    grid = SimpleITK.ResampleImageFilter()
    grid.SetSize(size.tolist())
    grid.SetOutputSpacing(spacing.tolist())
    grid.SetOutputDirection(picture.GetDirection())
    grid.SetOutputOrigin((origin + direction[:, :2] @ (before * spacing[:2])).tolist())
    grid.SetTransform(transform)
    grid.SetInterpolator(SimpleITK.sitkLinear)
    grid.SetDefaultPixelValue(float(SimpleITK.GetArrayViewFromImage(picture).min()))
    return grid.Execute(picture)
