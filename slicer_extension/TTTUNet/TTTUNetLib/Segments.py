"""Segments as class numbers on the grid of a volume.

Copying the segments needs the scene and takes milliseconds. The rest may be done in any thread,
while the segments are edited on or deleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer
from slicer.i18n import tr as _
from vtk.util.numpy_support import vtk_to_numpy

from TTTUNetLib import Results
from TTTUNetLib.Volumes import RequestError, corners_of, matrix_of

#: Voxels that are resampled at once: VTK lets no other Python run meanwhile.
_AT_ONCE = 2**19
#: A segment lies on the volume's grid if no voxel of it deviates by more, in voxels.
_SAME_GRID = 0.01

Box = tuple[slice, ...]


@dataclass(frozen=True, eq=False)
class _Layer:
    """A copy of an image that holds one segment or several.

    Attributes:
        image: `vtkOrientedImageData`.
        first: where on the volume's grid its first voxel is, [k, j, i]; None: on no voxel of it.
    """

    image: Any
    first: np.ndarray | None

    def on(self, grid: Any, slices: slice) -> tuple[Box, np.ndarray]:
        """The part of it that lies in some slices of a grid: where, and its voxels."""
        begin = np.array((slices.start, 0, 0))
        end = np.array((slices.stop, *grid.GetDimensions()[1::-1]))
        if self.first is None:
            return _box(begin, end), self._resampled(grid, slices)
        voxels = _voxels(self.image)
        low = np.maximum(begin, self.first)
        high = np.maximum(low, np.minimum(end, self.first + voxels.shape))
        return _box(low, high), voxels[_box(low - self.first, high - self.first)]

    def _resampled(self, grid: Any, slices: slice) -> np.ndarray:
        part, found = slicer.vtkOrientedImageData(), slicer.vtkOrientedImageData()
        part.DeepCopy(grid)
        part.SetExtent(*grid.GetExtent()[:4], slices.start, slices.stop - 1)
        resample = slicer.vtkOrientedImageDataResample
        if not resample.ResampleOrientedImageToReferenceOrientedImage(self.image, part, found):
            raise RequestError(_("The segments cannot be put on the grid of the volume."))
        return _voxels(found)


@dataclass(frozen=True, eq=False)
class Segments:
    """Copies of segments.

    Attributes:
        grid: `vtkOrientedImageData` without voxels, as the volume.
        copies: number of the class, layer, and the value of the segment's voxels in it.
    """

    grid: Any
    copies: tuple[tuple[int, _Layer, int], ...]

    def labels(self) -> np.ndarray:
        """Class numbers [k, j, i]; the last segment wins where they overlap.

        Raises:
            RequestError: they have voxels, but none of them lies on the grid.
        """
        shape = self.grid.GetDimensions()[::-1]
        labels = np.zeros(shape, np.int32)
        thick = max(1, _AT_ONCE // (shape[1] * shape[2]))
        layers = {layer for _number, layer, _value in self.copies}
        for start in range(0, shape[0], thick):
            slices = slice(start, min(start + thick, shape[0]))
            parts = {layer: layer.on(self.grid, slices) for layer in layers}
            for number, layer, value in self.copies:
                box, voxels = parts[layer]
                np.copyto(labels[box], number, where=voxels == value)
        if not labels.any() and any(
            (_voxels(layer.image) == value).any() for _number, layer, value in self.copies
        ):
            raise RequestError(
                _("The segments lie outside of the volume."),
                _("Choose the volume that they were made of as input."),
            )
        return labels


def copy_segments(volume: Any, segmentation: Any, numbers: Mapping[str, int]) -> Segments:
    """Take the segments from the scene.

    Args:
        volume: whose grid counts.
        segmentation: under the same transform.
        numbers: of the classes, by name.

    Raises:
        RequestError: a segment is no class, or the transforms differ.
    """
    if segmentation.GetParentTransformNode() is not volume.GetParentTransformNode():
        raise RequestError(
            _("Volume and segmentation are not under the same transform."),
            _("Put both under the same one, or harden them."),
        )
    content, kind = segmentation.GetSegmentation(), Results.binary_labelmap()
    segments = [content.GetNthSegment(n) for n in range(content.GetNumberOfSegments())]
    for segment in segments:
        if segment.GetName() not in numbers:
            raise RequestError(
                _("The segment '{0}' is no class of the project.").format(segment.GetName()),
                _("Call it one of {0}, or delete it.").format(", ".join(numbers)),
            )
    if segments and not content.ContainsRepresentation(kind):  # surfaces from a file
        segmentation.CreateBinaryLabelmapRepresentation()
    grid = Results.oriented_grid(volume, slicer.util.arrayFromVolume(volume).shape)
    layers: dict[Any, _Layer] = {}
    copies = []
    for segment in segments:
        image = segment.GetRepresentation(kind)
        if image is None:
            raise RequestError(
                _("The segment '{0}' cannot be made of voxels.").format(segment.GetName()),
                _("Open it in Segment Editor."),
            )
        if image.IsEmpty():
            continue
        if image not in layers:
            copy = slicer.vtkOrientedImageData()
            copy.DeepCopy(image)
            layers[image] = _Layer(copy, _first(copy, grid))
        copies.append((numbers[segment.GetName()], layers[image], segment.GetLabelValue()))
    return Segments(grid, tuple(copies))


def _first(image: Any, grid: Any) -> np.ndarray | None:
    """Where on a grid the first voxel of an image is; None if its voxels are not those."""
    to_grid = np.linalg.inv(matrix_of(grid.GetImageToWorldMatrix)) @ matrix_of(
        image.GetImageToWorldMatrix
    )
    extent = np.array(image.GetExtent())
    low, high = extent[::2], extent[1::2]
    moved = np.rint(to_grid[:3, 3])
    there = to_grid @ corners_of(low, high)
    if np.abs(there - corners_of(low + moved, high + moved)).max() > _SAME_GRID:
        return None
    return (low + moved).astype(int)[::-1]


def _voxels(image: Any) -> np.ndarray:
    """[k, j, i], the image's own memory."""
    scalars = vtk_to_numpy(image.GetPointData().GetScalars())
    return scalars.reshape(image.GetDimensions()[::-1])


def _box(low: np.ndarray, high: np.ndarray) -> Box:
    return tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
