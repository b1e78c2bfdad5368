"""From a volume node to what the engine takes: voxels, axes and geometry.

Slicer counts i, j, k from the fastest axis and has RAS as world; the engine has array order
(z, y, x) and LPS. Both are reversed here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util.numpy_support import vtk_to_numpy

#: A direction matrix may deviate from orthogonal by so much: NIfTI headers have float32.
_ORTHOGONAL = 1e-3
#: A voxel whose centre lies on the border of a region belongs to it.
_ROUNDING = 1e-6
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


class RequestError(RuntimeError):
    """What was asked for cannot be done; one sentence, and a hint."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message} {hint}".strip())
        self.message, self.hint = message, hint


@dataclass(frozen=True, eq=False)
class VolumeImage:
    """The voxels of a volume node and where they are.

    Attributes:
        array: [k, j, i], or [k, j, i, components]: the node's own memory, not to be written; or
            all frames of a sequence, [t, k, j, i].
        axes: ZYX, ZYXS for colours, ZYXC for other components, TZYX.
        spacing, origin: millimetres, in the order z, y, x, in LPS; after the parent transform.
        direction: [3, 3], the same order, columns are the directions of the axes.
        box: which voxels of the node these are.
        whole: shape of the labels of the whole node.
    """

    array: Any
    axes: str
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: np.ndarray
    box: tuple[slice, ...]
    whole: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the labels."""
        return tuple(self.array.shape[: len(self.whole)])

    def cropped(self, box: tuple[slice, ...]) -> VolumeImage:
        """A part of a whole volume, with its own origin."""
        start = np.array([along.start for along in box]) * self.spacing
        origin = np.array(self.origin) + self.direction @ start
        return replace(self, array=self.array[box], origin=tuple(origin.tolist()), box=box)

    def placed(self, labels: np.ndarray) -> np.ndarray:
        """Labels of this part on the grid of the whole volume; 0 outside."""
        if self.shape == self.whole:
            return labels
        whole = np.zeros(self.whole, labels.dtype)
        whole[self.box] = labels
        return whole

    def reference(self) -> dict[str, Any]:
        """Fields of the engine's `ImageRef`."""
        return {
            "spacing": self.spacing,
            "origin": self.origin,
            "direction": tuple(tuple(row) for row in self.direction.tolist()),
            "unit": "millimeter",
            "rgb": self.axes.endswith("S"),
        }


def read_volume(node: Any) -> VolumeImage:
    """Describe the voxels of a volume node; nothing is copied, the node is not changed.

    A linear parent transform counts as if it were hardened. The labels belong on the node's own
    grid, under the same transform.

    Args:
        node: scalar or vector volume.

    Raises:
        RequestError: it has no voxels, or its axes are bent or oblique to each other.
    """
    if node is None or not node.IsA("vtkMRMLVolumeNode"):
        raise RequestError(_("No volume is chosen."), _("Load a CT or MRI volume."))
    name = node.GetName()
    image = node.GetImageData()
    if image is None or image.GetNumberOfPoints() == 0 or image.GetPointData().GetScalars() is None:
        raise RequestError(_("The volume '{0}' has no voxels.").format(name), _("Load it again."))
    array = slicer.util.arrayFromVolume(node)
    if array.ndim not in (3, 4):
        raise RequestError(
            _("'{0}' holds tensors.").format(name), _("Choose a scalar or a colour volume.")
        )
    world = _to_world(node) @ matrix_of(node.GetIJKToRASMatrix)
    spacing, direction = _axes_of(world, name)
    if node.GetParentTransformNode() is None:
        spacing = np.array(node.GetSpacing())  # not rounded by the way through the matrix
    lps = _RAS_TO_LPS @ world
    colour = array.ndim == 4 and array.shape[-1] in (3, 4) and array.dtype == np.uint8
    return VolumeImage(
        array=array,
        axes="ZYX" + ("" if array.ndim == 3 else "S" if colour else "C"),
        spacing=tuple(spacing[::-1].tolist()),
        origin=tuple(lps[2::-1, 3].tolist()),
        direction=direction[::-1, ::-1].copy(),
        box=tuple(slice(0, size) for size in array.shape[:3]),
        whole=array.shape[:3],
    )


def box_of(region: Any, volume: Any, segment: str = "") -> tuple[slice, ...]:
    """The voxels [k, j, i] around a region of interest; it may be oblique to the volume.

    Args:
        region: a Markups ROI, or a segmentation: the box around its segments.
        volume: a volume that `read_volume` takes.
        segment: name of the one segment that counts; empty: all of them.

    Raises:
        RequestError: it is no region, is empty, or lies outside.
    """
    if region is not None and region.IsA("vtkMRMLMarkupsROINode"):
        corners = corners_of(-np.array(region.GetSize()) / 2, np.array(region.GetSize()) / 2)
        points = slicer.util.arrayFromVTKMatrix(region.GetObjectToWorldMatrix()) @ corners
    elif region is not None and region.IsA("vtkMRMLSegmentationNode"):
        points = _corners_of_segments(region, segment)
    else:
        raise RequestError(_("The region of interest is no ROI of the module Markups."))
    ijk_to_world = _to_world(volume) @ matrix_of(volume.GetIJKToRASMatrix)
    ijk = np.linalg.inv(ijk_to_world) @ points
    sizes = slicer.util.arrayFromVolume(volume).shape[:3]
    low = np.clip(np.ceil(ijk[2::-1].min(1) - _ROUNDING), 0, sizes).astype(int).tolist()
    high = np.clip(np.floor(ijk[2::-1].max(1) + _ROUNDING) + 1, 0, sizes).astype(int).tolist()
    if any(a >= b for a, b in zip(low, high, strict=True)):
        raise RequestError(
            _("'{0}' does not touch '{1}'.").format(region.GetName(), volume.GetName()),
            _("Move it onto the volume."),
        )
    return tuple(slice(a, b) for a, b in zip(low, high, strict=True))


def corners_of(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """[4, 8] homogeneous corners of a box."""
    corners = np.ones((4, 8))
    corners[:3] = np.stack(np.meshgrid(*zip(low, high, strict=True))).reshape(3, 8)
    return corners


def _corners_of_segments(node: Any, name: str) -> np.ndarray:
    """[4, n] points in the world, between which the voxels of the segments lie."""
    content, found = node.GetSegmentation(), []
    for number in range(content.GetNumberOfSegments()):
        image = slicer.vtkOrientedImageData()
        if name and content.GetNthSegment(number).GetName() != name:
            continue
        node.GetBinaryLabelmapRepresentation(content.GetNthSegmentID(number), image)
        if image.IsEmpty():
            continue
        scalars = vtk_to_numpy(image.GetPointData().GetScalars())
        filled = scalars.reshape(image.GetDimensions()[::-1]) > 0
        spans = [np.flatnonzero(filled.any(axis=axes)) for axes in ((0, 1), (0, 2), (1, 2))]
        if len(spans[0]):
            first = np.array(image.GetExtent()[::2])
            low, high = (np.array([span[end] for span in spans]) + first for end in (0, -1))
            found.append(matrix_of(image.GetImageToWorldMatrix) @ corners_of(low, high))
    if not found:
        what = _("segment '{0}'").format(name) if name else _("segments")
        raise RequestError(
            _("'{0}' has no {1} with voxels.").format(node.GetName(), what),
            _("Choose another one."),
        )
    return _to_world(node) @ np.concatenate(found, axis=1)


def matrix_of(fill: Any) -> np.ndarray:
    """The [4, 4] matrix that a method such as `GetIJKToRASMatrix` fills in."""
    matrix = vtk.vtkMatrix4x4()
    fill(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def _to_world(node: Any) -> np.ndarray:
    """[4, 4] of the parent transform."""
    transform = node.GetParentTransformNode()
    if transform is None:
        return np.eye(4)
    if not transform.IsTransformToWorldLinear():
        raise RequestError(
            _("'{0}' is under the non-linear transform '{1}'.").format(
                node.GetName(), transform.GetName()
            ),
            _("Harden the transform on a copy (module Transforms), and segment that."),
        )
    return matrix_of(transform.GetMatrixTransformToWorld)


def _axes_of(ijk_to_world: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Spacing [3] and direction [3, 3] in LPS, both in the order i, j, k."""
    columns = (_RAS_TO_LPS @ ijk_to_world)[:3, :3]
    spacing = np.linalg.norm(columns, axis=0)
    direction = columns / np.where(spacing > 0, spacing, 1)
    if not np.allclose(direction.T @ direction, np.eye(3), atol=_ORTHOGONAL):
        raise RequestError(
            _(
                "The axes of '{0}' are not at right angles: a tilted gantry, or a transform "
                "that shears."
            ).format(name),
            _("Resample it to a regular grid (module Resample Scalar Volume)."),
        )
    return spacing, direction
