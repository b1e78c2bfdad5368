"""What the module does, without a window; in Slicer's Python console:

    from TTTUNet import TTTUNetLogic
    task = TTTUNetLogic().segment(volumeNode, model="hippocampus-mr", waitForCompletion=True)
    task.segmentationNode

All nodes, tasks and callbacks belong to the main thread.
"""

from __future__ import annotations

import json
import os
import threading
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from TTTUNetLib import Batches, FineTuning, Maps, Opening, Results
from TTTUNetLib.Batches import FolderTask
from TTTUNetLib.EngineClient import EngineClient, Mailbox, clean_environment
from TTTUNetLib.FineTuning import FinetuneTask
from TTTUNetLib.Installer import Environment, Installer
from TTTUNetLib.Opening import OpeningTask
from TTTUNetLib.Sequences import create_sequence, read_sequence
from TTTUNetLib.Tasks import Task
from TTTUNetLib.Volumes import RequestError, VolumeImage, box_of, read_volume

__all__ = [
    "FinetuneTask",
    "FolderTask",
    "OpeningTask",
    "RequestError",
    "SegmentationTask",
    "TTTUNetLogic",
]

_SEQUENCE = "vtkMRMLSequenceNode"
#: Of the engine's result; the rest is the record.
_ARRAYS = ("labels", "maps", "adaptation_map")


@dataclass(eq=False, kw_only=True)
class SegmentationTask(Task):
    """A volume on its way through the engine.

    Attributes:
        volumeNode: what is segmented.
        model: name or folder.
        segmentationNode, labelmapNode, tableNode: what was made; None if not.
        sequenceNode: a sequence of segmentations, for a sequence.
        mapNodes: volumes with probabilities, uncertainty and adaptation, as far as wanted.
        voxels: by label value.
    """

    volumeNode: Any
    model: str
    segmentationNode: Any = None
    labelmapNode: Any = None
    tableNode: Any = None
    sequenceNode: Any = None
    mapNodes: list[Any] = field(default_factory=list)
    voxels: dict[int, int] = field(default_factory=dict)

    @property
    def nodes(self) -> list[Any]:
        """All that were made."""
        made = (self.segmentationNode, self.labelmapNode, self.tableNode, self.sequenceNode)
        return [node for node in (*made, *self.mapNodes) if node is not None]


@dataclass(frozen=True, eq=False)
class _Request:
    """What is asked for, while the engine works on it."""

    image: VolumeImage
    classes: list[dict[str, Any]]
    table: bool
    maps: frozenset[str]


class TTTUNetLogic:
    """Segments volumes through one engine.

    Attributes:
        mailbox: events wait in it; `segment` with `waitForCompletion` empties it by itself.
    """

    def __init__(self) -> None:
        self.mailbox = Mailbox()
        self._client: EngineClient | None = None
        self._models: list[dict[str, Any]] | None = None

    @property
    def client(self) -> EngineClient:
        """The engine's client, in the chosen environment if none was connected.

        Raises:
            RequestError: no environment is installed, or it does not fit this extension.
        """
        if self._client is None:
            self.connect(Installer(variables=clean_environment()).environment())
            assert self._client is not None
        return self._client

    @property
    def connected(self) -> bool:
        """Whether there is an engine; its worker starts with the first job."""
        return self._client is not None

    def connect(self, environment: Environment) -> None:
        """Use this environment from now on."""
        self.close()
        self._client = EngineClient(environment, self.mailbox)

    def close(self) -> None:
        """Cancel what runs and end the worker, in the background."""
        if self._client is not None:
            threading.Thread(target=self._client.close, name="tttunet-close").start()
        self._client = self._models = None

    def models(self, then: Callable[[list[dict[str, Any]]], None], refresh: bool = False) -> None:
        """Hand over the models of the library with their cards, from `mailbox.pump`.

        Args:
            then: called with a list that is empty if the engine cannot tell, or was closed.
            refresh: ask again, though they are known.
        """
        if self._models is not None and not refresh:
            then(self._models)
            return
        client = self.client

        def hear(_job: Any, event: Any) -> None:
            if not isinstance(event, client.messages.TERMINAL):
                return
            if client is not self._client:  # closed meanwhile, perhaps for another one
                then([])
                return
            if isinstance(event, client.messages.Done):
                self._models = list(event.result["models"])
            then(self._models or [])

        client.engine.request(client.messages.ListModels(), hear)

    def segment(
        self,
        volumeNode: Any,
        model: str = "hippocampus-mr",
        *,
        device: str = "auto",
        mirror: bool = False,
        table: bool = True,
        roiNode: Any = None,
        roiSegment: str = "",
        maps: Collection[str] = (),
        waitForCompletion: bool = False,
        **callbacks: Any,
    ) -> SegmentationTask:
        """Segment a volume into a new segmentation node on the volume's exact grid.

        Args:
            volumeNode: scalar or vector volume, or a sequence of scalar volumes; it is not
                changed. A linear parent transform is taken into account, and the result comes
                under the same transform.
            model: name in the library, or folder.
            device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
            mirror: average over flips: slower, often better.
            table: also make a table node with volumes in millilitres.
            roiNode: a Markups ROI, or a segmentation: only the voxels of the box around it are
                segmented, as if the volume ended there; the rest of the result is empty.
            roiSegment: name of the one segment that counts; empty: all of them.
            maps: also make volumes of what the network computed, see `Maps.read`: `probability`,
                `uncertainty`, `adaptation`.
            waitForCompletion: come back when it is done.
            callbacks: `onProgress`, `onLog` and `onFinished` of the task.

        Returns:
            The task; without waiting it is `running`, and `mailbox.pump` must be called.

        Raises:
            RequestError: the volume cannot be segmented, or there is no engine; with
                `waitForCompletion` also if it failed.
        """
        if volumeNode is not None and volumeNode.IsA(_SEQUENCE):
            if roiNode is not None:
                raise RequestError(
                    _("A sequence is segmented as a whole."), _("Remove the region.")
                )
            image = read_sequence(volumeNode)
        else:
            image = read_volume(volumeNode)
            if roiNode is not None:
                image = image.cropped(box_of(roiNode, volumeNode, roiSegment))
        Maps.check(maps, image)
        client = self.client
        task = SegmentationTask(volumeNode=volumeNode, model=model, **callbacks)
        options = {"device": device, "mirror": mirror}

        def start(classes: list[dict[str, Any]]) -> None:
            if client is not self._client:  # closed while the models were read
                task.cancel()
            elif not task.finished:
                request = _Request(image, classes, table, frozenset(maps))
                self._start(client, task, request, options)

        if _is_path(model):
            start(_classes_in(Path(model).expanduser()))
        else:
            self.models(lambda models: start(_classes_of(model, models)))
        if waitForCompletion:
            self._wait(task)
        return task

    def segmentFolder(
        self,
        folder: str | Path,
        output: str | Path,
        model: str = "hippocampus-mr",
        *,
        device: str = "auto",
        mirror: bool = False,
        waitForCompletion: bool = False,
        **callbacks: Any,
    ) -> FolderTask:
        """Segment the image files of a folder into label files, without loading them into Slicer.

        The files are read by the engine: NIfTI, NRRD, MetaImage, folders of DICOM slices, TIFF and
        more. Label files that are complete already are left as they are.

        Args:
            folder: of the images.
            output: another folder, for the labels; made if it is not there.
            model: name in the library, or folder.
            device, mirror: as for `segment`.
            waitForCompletion: come back when it is done.
            callbacks: `onProgress`, `onLog` and `onFinished` of the task.

        Raises:
            RequestError: there is no engine or no such folder; with `waitForCompletion` also if
                nothing could be done.
        """
        plan = {"model": model, "device": device, "mirror": mirror}
        task = Batches.segment_folder(self.client, folder, output, plan, **callbacks)
        if waitForCompletion:
            self._wait(task)
        return task

    def finetune(
        self,
        project: Any,
        model: str,
        *,
        waitForCompletion: bool = False,
        options: dict[str, Any] | None = None,
        **callbacks: Any,
    ) -> FinetuneTask:
        """Fit a model to the corrections of a project; the model itself is not changed.

        The project remembers it from now on, in place of an earlier one that was not decided: if
        it is interrupted, `resume` goes on with it.

        Args:
            project: from `client.open_project`, with corrections (`Projects.save_corrections`).
            model: name in the library or folder.
            waitForCompletion: come back when it is done.
            options: arguments of `tttunet.finetune`, such as `max_minutes`.
            callbacks: `onProgress`, `onLog` and `onFinished` of the task.

        Raises:
            RequestError: there is no engine; with `waitForCompletion` also if it failed.
        """
        task = FineTuning.start(self.client, project, model, options or {}, **callbacks)
        if waitForCompletion:
            self._wait(task)
        return task

    def resume(
        self,
        project: Any,
        *,
        waitForCompletion: bool = False,
        options: dict[str, Any] | None = None,
        **callbacks: Any,
    ) -> FinetuneTask:
        """Go on with a fine-tuning that was interrupted, here or in napari.

        It learns what it began with: corrections that were saved since are for the next one.

        Args:
            project: from `client.open_project`.
            waitForCompletion: come back when it is done.
            options: `device`; everything else is as it was.
            callbacks: `onProgress`, `onLog` and `onFinished` of the task.

        Raises:
            RequestError: nothing was interrupted, or there is no engine; with
                `waitForCompletion` also if it failed.
        """
        task = FineTuning.resume(self.client, project, options or {}, **callbacks)
        if waitForCompletion:
            self._wait(task)
        return task

    def openCorrections(
        self,
        project: Any,
        reference: Any,
        *,
        waitForCompletion: bool = False,
        **callbacks: Any,
    ) -> OpeningTask:
        """Make a volume node and a segmentation node of an image of a project, whoever began it.

        Args:
            project: from `client.open_project`.
            reference: one of `project.images`, a 3D image with one channel.
            waitForCompletion: come back when it is done.
            callbacks: `onProgress`, `onLog` and `onFinished` of the task.

        Raises:
            RequestError: the image is of another kind, or there is no engine; with
                `waitForCompletion` also if its file is gone or lies elsewhere now.
        """
        task = Opening.open_corrections(self.client, self.mailbox, project, reference, **callbacks)
        if waitForCompletion:
            self._wait(task)
        return task

    def _wait(self, task: Task) -> None:
        self.mailbox.wait(lambda: task.finished)
        if task.state == "failed":
            raise RequestError(task.error)

    def _start(
        self,
        client: EngineClient,
        task: SegmentationTask,
        request: _Request,
        options: dict[str, Any],
    ) -> None:
        image = request.image
        task._job = client.engine.segment(
            image.array,
            axes=image.axes,
            model=task.model,
            image={**image.reference(), "name": task.volumeNode.GetName()},
            on_event=lambda _job, event: task.hear(
                client, event, lambda result: self._summarise(task, request, result)
            ),
            maps=bool(request.maps & {Maps.PROBABILITY, Maps.UNCERTAINTY}),
            adaptation_map=Maps.ADAPTATION in request.maps,
            **options,
        )

    def _summarise(self, task: SegmentationTask, request: _Request, result: dict[str, Any]) -> None:
        image = request.image
        labels = result["labels"].reshape(image.shape)
        record = {name: value for name, value in result.items() if name not in _ARRAYS}

        def read() -> tuple[Results.LabelSummary, list[Maps.Map]]:
            kind = record["model"]["task"]
            maps = Maps.read(result, request.maps, image, request.classes, kind)
            return Results.summarise(image.placed(labels)), maps

        def show(found: Any) -> None:
            if task.finished:
                return
            if isinstance(found, Exception):
                task.fail(_("The labels cannot be read: {0}.").format(found))
            elif task.volumeNode.GetScene() is not slicer.mrmlScene:
                task.cancel()  # the volume was deleted: where would its labels go?
            else:
                try:
                    self._show(task, request, *found, record)
                except Exception as error:  # else it would seem to run for ever
                    for node in task.nodes:
                        slicer.mrmlScene.RemoveNode(node)
                    task.fail(
                        _("The result cannot be shown: {0}.").format(error), traceback.format_exc()
                    )
                else:
                    task.finish("done")

        self.mailbox.compute(read, show)

    def _show(
        self,
        task: SegmentationTask,
        request: _Request,
        found: Results.LabelSummary,
        maps: list[Maps.Map],
        record: dict[str, Any],
    ) -> None:
        volume, kind = task.volumeNode, record["model"]["task"]
        image, classes = request.image, request.classes
        segments = Results.segment_labels(found.voxels, classes, kind)
        rows = segments
        if kind == "semantic":  # those that were not found, too
            values = sorted({*found.voxels, *(int(one["value"]) for one in classes)})
            rows = Results.segment_labels(values, classes, kind)
        labels = found.labels
        name = slicer.mrmlScene.GenerateUniqueName(f"{volume.GetName()} segmentation")
        task.voxels = dict(found.voxels)
        if volume.IsA(_SEQUENCE):
            task.sequenceNode = create_sequence(volume, labels, segments, name)
            if request.table and kind == "semantic":  # objects have other numbers in every frame
                task.tableNode = Results.create_sequence_table(volume, image, rows, found.frames)
        else:
            if len(segments) > Results.MOST_SEGMENTS:
                task.labelmapNode = Results.create_labelmap(volume, labels, f"{name} objects")
                labels = (labels > 0).astype("uint8")
                segments = Results.segment_labels([1], classes, "semantic")
            task.segmentationNode = Results.create_segmentation(volume, labels, segments, name)
            task.mapNodes = Maps.create(volume, maps)
            if request.table:
                task.tableNode = Results.create_table(volume, image, rows, found.voxels)
        for node in task.nodes:
            Results.write_provenance(node, volume, record)


def _is_path(model: str) -> bool:
    return "/" in model or os.sep in model or model.startswith((".", "~"))


def _classes_in(folder: Path) -> list[dict[str, Any]]:
    """The labels of a model's folder; the worker says what is wrong with the rest of it."""
    try:
        content = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        return [dict(one) for one in content["labels"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _classes_of(model: str, models: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return next((list(one["labels"]) for one in models if one["name"] == model), [])
