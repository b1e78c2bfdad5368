"""An image of a project and its corrections as nodes, whoever began it.

The engine reads the files; the main thread only makes the nodes.
"""

from __future__ import annotations

import functools
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtkITK
from slicer.i18n import tr as _

from TTTUNetLib import Projects, Results
from TTTUNetLib.EngineClient import EngineClient, Mailbox
from TTTUNetLib.Tasks import Task
from TTTUNetLib.Volumes import RequestError

#: Two ways to compute the same matrix may differ by so much, in voxels.
_ROUNDING = 1e-9


@dataclass(eq=False, kw_only=True)
class OpeningTask(Task):
    """An image of a project on its way into the scene.

    Attributes:
        project: `tttunet.projects.Project`.
        reference: the image.
        volumeNode, segmentationNode: what was made; None if not.
        problems: what the project has to say about its files.
    """

    project: Any
    reference: Any
    volumeNode: Any = None
    segmentationNode: Any = None
    problems: list[str] = field(default_factory=list)

    def remove(self) -> None:
        """Take what was made out of the scene."""
        for node in (self.volumeNode, self.segmentationNode):
            if node is not None:
                slicer.mrmlScene.RemoveNode(node)
        self.volumeNode = self.segmentationNode = None


@dataclass(frozen=True, eq=False)
class _Arranged:
    """What becomes nodes, in the order of slices that Slicer has."""

    volume: Any  # in no scene yet
    labels: Results.LabelSummary


def open_corrections(
    client: EngineClient, mailbox: Mailbox, project: Any, reference: Any, **callbacks: Any
) -> OpeningTask:
    """Begin; see `TTTUNetLogic.openCorrections`."""
    if reference.axes != "ZYX":
        raise RequestError(
            _("'{0}' has the axes {1}.").format(reference.name, reference.axes),
            _("Slicer opens ZYX only."),
        )
    task = OpeningTask(project=project, reference=reference, **callbacks)

    def show(found: Any) -> None:
        if task.finished:
            return
        try:
            if isinstance(found, Exception):
                raise found
            _show(task, found)
        except Exception as error:  # else it would seem to run for ever
            task.remove()
            task.fail(
                _("'{0}' cannot be shown: {1}.").format(reference.name, error),
                traceback.format_exc(),
            )
        else:
            task.finish("done")

    def done(result: dict[str, Any]) -> None:
        task.problems = list(result["problems"])
        mailbox.compute(functools.partial(_arrange, reference, result), show)

    task._job = client.engine.read_image(
        project.folder, reference, on_event=lambda _job, event: task.hear(client, event, done)
    )
    return task


def _arrange(reference: Any, result: dict[str, Any]) -> _Arranged:
    """Right-handed, as Slicer's own readers have it; may be called in any thread."""
    volume, labels = slicer.vtkMRMLScalarVolumeNode(), result["labels"]
    volume.SetName(reference.name)
    slicer.util.updateVolumeFromArray(volume, result["image"])
    matrix = Projects.ijk_to_ras(reference)
    _place(volume, matrix, Path(result["path"]))
    volume.SetIJKCoordinateSystemToRightHanded()
    if np.linalg.det(matrix[:3, :3]) < 0:
        labels = labels[::-1]
    return _Arranged(volume, Results.summarise(np.ascontiguousarray(labels)))


def _place(volume: Any, ijk_to_ras: np.ndarray, path: Path) -> None:
    """Give a volume its matrix: what Slicer makes of the header of its file, to the last bit.

    Slicer has another opinion of some files, such as TIFF; then the engine's counts.
    """
    if path.is_file():
        reader = vtkITK.vtkITKArchetypeImageSeriesScalarReader()
        reader.SetArchetype(str(path))
        reader.SetSingleFile(1)
        reader.SetUseNativeOriginOn()
        reader.SetDesiredCoordinateOrientationToNative()
        reader.UpdateInformation()
        header = reader.GetRasToIjkMatrix()
        both_ways = slicer.util.arrayFromVTKMatrix(header) @ ijk_to_ras
        if np.allclose(both_ways, np.eye(4), rtol=0, atol=_ROUNDING):
            volume.SetRASToIJKMatrix(header)
            return
    volume.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(ijk_to_ras))


def _show(task: OpeningTask, found: _Arranged) -> None:
    project, reference = task.project, task.reference
    volume = task.volumeNode = slicer.mrmlScene.AddNode(found.volume)
    volume.SetAttribute(Projects.IMAGE_ID, reference.id)
    volume.SetAttribute(Projects.IMAGE_SHA256, reference.sha256)
    classes = [{"value": value, "name": name} for value, name in project.classes.items()]
    wanted = Results.segment_labels(found.labels.voxels, classes, project.task)
    task.segmentationNode = Results.create_segmentation(
        volume, found.labels.labels, wanted, f"{reference.name} corrections"
    )
