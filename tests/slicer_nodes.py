"""Volumes for tests, and segmentations as arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import slicer

from TTTUNetLib.Volumes import matrix_of


def oblique() -> np.ndarray:
    """A rotation about no axis of the grid."""
    a, b = np.deg2rad(20), np.deg2rad(-35)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return about_z @ about_x


#: Directions (columns i, j, k in RAS) and spacing of unlike volumes.
GRIDS: dict[str, tuple[np.ndarray, tuple[float, ...]]] = {
    "plain": (np.eye(3), (1.0, 1.0, 1.0)),
    "flipped": (np.diag([-1.0, -1.0, 1.0]), (1.0, 1.0, 1.0)),
    "left-handed": (np.diag([1.0, 1.0, -1.0]), (0.7, 0.7, 2.5)),
    "sagittal": (np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]), (0.9, 1.1, 3.0)),
    "oblique": (oblique(), (0.8, 1.25, 4.0)),
}


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Smooth enough for a network to find something in it."""
    values = np.random.default_rng(seed).normal(0, 100, shape)
    for axis in range(3):
        values = values + np.roll(values, 1, axis) + np.roll(values, -1, axis)
    return values.astype(np.int16)


def discs(shape: tuple[int, int, int]) -> np.ndarray:
    """Four bright discs in every slice, as the shipped model finds them."""
    image = np.random.default_rng(1).integers(5, 15, shape).astype(np.uint8)
    y, x = np.indices(shape[1:])
    for cy, cx in ((20, 20), (25, 60), (60, 30), (70, 70)):
        image[:, (y - cy) ** 2 + (x - cx) ** 2 < 81] = 180
    return image


def add_volume(array: np.ndarray, grid: str = "plain", name: str = "volume") -> Any:
    """A volume node of an array [k, j, i(, components)]."""
    directions, spacing = GRIDS[grid]
    kind = "vtkMRMLVectorVolumeNode" if array.ndim == 4 else "vtkMRMLScalarVolumeNode"
    node = slicer.mrmlScene.AddNewNodeByClass(kind, name)
    slicer.util.updateVolumeFromArray(node, array)
    node.SetSpacing(*spacing)
    node.SetIJKToRASDirections(*directions.ravel())
    node.SetOrigin(-31.5, 12.25, 87.0)
    return node


def load_volume(path: Path, kind: str = "vtkMRMLScalarVolumeNode") -> Any:
    """Read a file as Slicer does."""
    node = slicer.mrmlScene.AddNewNodeByClass(kind, path.name.partition(".")[0])
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(path))
    storage.SetCenterImage(0)
    assert storage.ReadData(node)
    return node


def array_on_grid(node: Any, volume: Any) -> np.ndarray:
    """[k, j, i] of a file's node: Slicer turns the slices of a left-handed file round."""
    array = slicer.util.arrayFromVolume(node)
    found, wanted = matrix_of(node.GetIJKToRASMatrix), matrix_of(volume.GetIJKToRASMatrix)
    if np.dot(found[:3, 2], wanted[:3, 2]) < 0:
        array, found = array[::-1], found @ _reversed_slices(len(array))
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    return array


def _reversed_slices(count: int) -> np.ndarray:
    matrix = np.diag([1.0, 1.0, -1.0, 1.0])
    matrix[2, 3] = count - 1
    return matrix


def save(node: Any, path: Path, storage_class: str = "vtkMRMLVolumeArchetypeStorageNode") -> Path:
    """Write a node as Slicer does."""
    storage = getattr(slicer, storage_class)()
    storage.SetFileName(str(path))
    assert storage.WriteData(node)
    return path


def labels_of(segmentation: Any, volume: Any) -> np.ndarray:
    """[k, j, i] on the volume's grid, by Slicer's own export: the segments' label values."""
    shape = slicer.util.arrayFromVolume(volume).shape[:3]
    labels = np.zeros(shape, np.int32)
    content = segmentation.GetSegmentation()
    for number in range(content.GetNumberOfSegments()):
        name = content.GetNthSegmentID(number)
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, name, volume)
        labels[mask > 0] = content.GetSegment(name).GetLabelValue()
    return labels


def grid_of(segmentation: Any) -> tuple[np.ndarray, tuple[int, ...]]:
    """IJKToRAS and the shape [k, j, i] of the labels as they are stored, without resampling."""
    image = slicer.vtkOrientedImageData()
    content = segmentation.GetSegmentation()
    segmentation.GetBinaryLabelmapRepresentation(content.GetNthSegmentID(0), image)
    return matrix_of(image.GetImageToWorldMatrix), image.GetDimensions()[::-1]
