"""Corrected segments in the project format that napari uses; `Opening` is the way back.

A project holds images, labels and what the user vouches for; `tttunet finetune` and the engine
learn from it. `project` is a `tttunet.projects.Project`, see `EngineClient.open_project`.
"""

from __future__ import annotations

import itertools
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from TTTUNetLib import Segments
from TTTUNetLib.Volumes import RequestError, box_of, matrix_of, read_volume

_MILLIMETERS = {"micrometer": 1e-3, "millimeter": 1.0, "": 1.0}
_RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])
_VOLUMES = "volumes"
#: Attributes of a volume node that came out of a project: the image's id and checksum.
IMAGE_ID, IMAGE_SHA256 = "TTTUNet.ProjectImage", "TTTUNet.ProjectImageSha256"


@dataclass(frozen=True, eq=False)
class _NewImage:
    """A copy of a volume that is to become a file of the project.

    Attributes:
        stem: the file's name to be.
        header: of the file.
        array: [k, j, i].
        fields: of the project's image.
    """

    stem: str
    header: bytes
    array: np.ndarray
    fields: dict[str, Any]

    def add(self, project: Any) -> Any:
        """Write the file, unless the project has one with the same content."""
        from tttunet.files import atomic_write

        folder = project.folder / _VOLUMES
        path = next(filter(self._is_in, sorted(folder.glob(f"{self.stem}*.nrrd"))), None)
        if path is None:
            names = (f"{self.stem}{f'-{n}' if n > 1 else ''}.nrrd" for n in itertools.count(1))
            path = next(folder / name for name in names if not (folder / name).exists())
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                file.writelines(self._parts())
        return project.add_image(path, **self.fields)

    def _parts(self) -> Iterator[Any]:
        """The bytes of the file, one slice after the other."""
        yield self.header
        for part in self.array:
            yield np.ascontiguousarray(part).data.cast("B")

    def _is_in(self, path: Path) -> bool:
        if path.stat().st_size != len(self.header) + self.array.nbytes:
            return False
        with path.open("rb") as file:
            return all(file.read(len(part)) == part for part in self._parts())


@dataclass(frozen=True, eq=False)
class Corrected:
    """What a scene says of one volume; nothing here belongs to the scene any more.

    Attributes:
        source: an image of the project, or a new one.
        segments: on the volume's grid.
        step: -1 if the order of the image's slices is the other way round, else 1.
        box: of the volume; inside it everything is right; None: no such region.
        checked: numbers of the classes that are right, with a rim of background.
    """

    source: Any
    segments: Segments.Segments
    step: int
    box: tuple[slice, ...] | None
    checked: tuple[int, ...]

    def store(self, project: Any) -> Any:
        """Put it into the project; takes seconds, and may be called in any thread.

        What was said to be right before stays as it was, where nothing is said now: the segments
        may come from a model in the meantime.

        Returns:
            The project's `ImageReference`.

        Raises:
            RequestError: the segments lie outside, or the project cannot be written to.
        """
        from tttunet.errors import TTTUNetError

        right = np.ascontiguousarray(self.segments.labels()[:: self.step])
        try:
            source = self.source
            reference = source.add(project) if isinstance(source, _NewImage) else source
            self._vouch(project, reference, right)
        except TTTUNetError as error:
            raise RequestError(error.message, error.hint) from error
        return reference

    def _vouch(self, project: Any, reference: Any, right: np.ndarray) -> None:
        from tttunet.projects import Region, vouch_object

        corrections = project.corrections(reference)
        known, before = corrections.read(reference.bounds)
        now = np.zeros_like(before)
        for number in self.checked:
            now = vouch_object(right, now, number)
        labels = np.where((before > 0) & (now == 0), known, right)
        own = corrections.own(reference.bounds) | (now > 0)
        corrections.write(reference.bounds, labels, before | now, own)
        if self.box is not None:
            box = self.box
            if self.step < 0:
                depth = len(right)
                box = (slice(depth - box[0].stop, depth - box[0].start), *box[1:])
            bounds = tuple((along.start, along.stop) for along in box)
            corrections.complete(Region(bounds), right[box])
        corrections.record()


def save_corrections(
    project: Any,
    volume: Any,
    segmentation: Any,
    region: Any = None,
    checked: Sequence[str] = (),
) -> Any:
    """Put the segments of a volume into a project, with what is right about them.

    Args and errors are those of `read_corrections`.

    Returns:
        The project's `ImageReference`.
    """
    return read_corrections(project, volume, segmentation, region, checked).store(project)


def read_corrections(
    project: Any,
    volume: Any,
    segmentation: Any,
    region: Any = None,
    checked: Sequence[str] = (),
) -> Corrected:
    """Take from the scene what is to be put into a project; takes milliseconds.

    A volume that came out of the project is its image, as long as it lies on its grid. Any other
    one is saved in the project as it is in the scene: Slicer turns the slices of some files round,
    so that the file it came from may have another order.

    Args:
        project: open for writing.
        volume: scalar volume.
        segmentation: its segments are called like classes of the project; the last one wins
            where they overlap.
        region: a Markups ROI inside which everything is right, background included.
        checked: names of segments that are right, with a rim of background.

    Raises:
        RequestError: nothing is vouched for, or names or transforms do not fit.
    """
    if project.task != "semantic":
        raise RequestError(
            _("The project '{0}' has objects, not classes.").format(project.name),
            _("Correct it in napari."),
        )
    if region is None and not checked:
        raise RequestError(
            _("Nothing is said to be right."),
            _("Check segments, or draw a region that is complete."),
        )
    image = read_volume(volume)
    if image.axes != "ZYX":
        raise RequestError(
            _("'{0}' has several components.").format(volume.GetName()), _("Choose a scalar one.")
        )
    box = None if region is None else box_of(region, volume)
    numbers = {name: number for number, name in project.classes.items()}
    for name in checked:
        if name not in numbers:
            raise RequestError(
                _("There is no class '{0}'.").format(name),
                _("There are {0}.").format(", ".join(numbers)),
            )
    segments = Segments.copy_segments(volume, segmentation, numbers)
    right = tuple(numbers[name] for name in checked)
    known, step = _image_of(project, volume)
    source = _new_image(volume) if known is None else known
    return Corrected(source, segments, step, box, right)


def new_classes(project: Any, segmentation: Any) -> list[str]:
    """Names of segments that are no classes of a project yet."""
    known = set(project.classes.values())
    content = segmentation.GetSegmentation()
    names = [content.GetNthSegment(n).GetName() for n in range(content.GetNumberOfSegments())]
    return [name for name in dict.fromkeys(names) if name not in known]


def add_classes(project: Any, names: Sequence[str]) -> None:
    """Give a project more classes; those that it has keep their numbers.

    Raises:
        RequestError: a name is empty, or the project cannot be written to.
    """
    from tttunet.errors import TTTUNetError

    classes = project.classes
    try:
        project.update(classes={**classes, **dict(enumerate(names, max(classes) + 1))})
    except TTTUNetError as error:
        raise RequestError(error.message, error.hint) from error


def _image_of(project: Any, volume: Any) -> tuple[Any, int]:
    """The project's image that a volume was opened from, and the order of its slices here.

    Returns:
        None and 1 if it came from elsewhere, or was resampled or cropped since.
    """
    sign = (volume.GetAttribute(IMAGE_ID), volume.GetAttribute(IMAGE_SHA256))
    for reference in project.images:
        shape = slicer.util.arrayFromVolume(volume).shape
        if (reference.id, reference.sha256) == sign and reference.label_shape == shape:
            step = _order_of_slices(reference, volume)
            return (reference, step) if step else (None, 1)
    return None, 1


def _new_image(volume: Any) -> _NewImage:
    """A copy of a volume, in the order of its own slices."""
    array = slicer.util.arrayFromVolume(volume).copy()
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", volume.GetName()).strip("-") or "volume"
    fields = {"name": volume.GetName(), "axes": "ZYX", "shape": array.shape}
    return _NewImage(stem, _header(volume), array, {**fields, **_local_geometry(volume)})


def _header(volume: Any) -> bytes:
    """Of the file that Slicer writes of a volume, uncompressed.

    Slicer itself writes a volume of one voxel on the same axes: so the header is its own, to the
    last digit, and the main thread does not wait for the voxels.
    """
    voxel, storage = vtk.vtkImageData(), slicer.vtkMRMLVolumeArchetypeStorageNode()
    voxel.SetDimensions(1, 1, 1)
    voxel.AllocateScalars(volume.GetImageData().GetScalarType(), 1)
    tiny = slicer.vtkMRMLScalarVolumeNode()
    tiny.CopyOrientation(volume)
    tiny.SetAndObserveImageData(voxel)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "voxel.nrrd"
        storage.SetFileName(str(path))
        storage.SetUseCompression(False)
        if not storage.WriteData(tiny):
            raise RequestError(
                _("Slicer cannot save the type of '{0}', {1}.").format(
                    volume.GetName(), volume.GetImageData().GetScalarTypeAsString()
                ),
                _("Make it another one (module Cast Scalar Volume)."),
            )
        header = path.read_bytes()[: -voxel.GetScalarSize()]
    sizes = " ".join(map(str, volume.GetImageData().GetDimensions()))
    return header.replace(b"\nsizes: 1 1 1\n", f"\nsizes: {sizes}\n".encode())


def _local_geometry(volume: Any) -> dict[str, Any]:
    """Of the volume before its parent transform, as its file has it."""
    local = matrix_of(volume.GetIJKToRASMatrix)
    spacing = np.array(volume.GetSpacing())
    direction = _RAS_TO_LPS[:, None] * local[:3, :3] / spacing
    return {
        "spacing": spacing[::-1].tolist(),
        "origin": (_RAS_TO_LPS * local[:3, 3])[::-1].tolist(),
        "direction": direction[::-1, ::-1],
        "unit": "millimeter",
    }


def ijk_to_ras(reference: Any) -> np.ndarray:
    """[4, 4] of a project's image, in the order of its own slices."""
    scale = _MILLIMETERS[reference.unit]
    direction = np.array(reference.direction)[::-1, ::-1]
    matrix = np.eye(4)
    matrix[:3, :3] = _RAS_TO_LPS[:, None] * direction * (np.array(reference.spacing)[::-1] * scale)
    matrix[:3, 3] = _RAS_TO_LPS * np.array(reference.origin)[::-1] * scale
    return matrix


def turn_slices(ijk_to_ras: np.ndarray, count: int) -> np.ndarray:
    """The matrix of a volume whose slices are in the opposite order."""
    turned = ijk_to_ras.copy()
    turned[:3, 3] += ijk_to_ras[:3, 2] * (count - 1)
    turned[:3, 2] *= -1
    return turned


def _order_of_slices(reference: Any, volume: Any) -> int:
    """-1 if Slicer has turned the image's slices round, else 1; 0 if it lies elsewhere."""
    from tttunet.projects import SAME_GRID

    wanted, there = ijk_to_ras(reference), matrix_of(volume.GetIJKToRASMatrix)
    turned = turn_slices(wanted, reference.label_shape[0])
    tolerance = SAME_GRID * min(volume.GetSpacing())
    for matrix, step in ((wanted, 1), (turned, -1)):
        if np.allclose(matrix, there, atol=tolerance):
            return step
    return 0
