"""What the module does, without a window; in Slicer's Python console:

    from TTTUNet import TTTUNetLogic
    task = TTTUNetLogic().segment(volumeNode, model="nuclei", waitForCompletion=True)
    task.segmentationNode

All nodes, tasks and callbacks belong to the main thread.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import slicer

from TTTUNetLib import FineTuning, Results
from TTTUNetLib.EngineClient import EngineClient, Mailbox, clean_environment
from TTTUNetLib.FineTuning import FinetuneTask
from TTTUNetLib.Installer import Environment, Installer
from TTTUNetLib.Sequences import create_sequence, read_sequence
from TTTUNetLib.Tasks import Task
from TTTUNetLib.Volumes import RequestError, VolumeImage, box_of, read_volume

__all__ = ["FinetuneTask", "RequestError", "SegmentationTask", "TTTUNetLogic"]

_SEQUENCE = "vtkMRMLSequenceNode"


@dataclass(eq=False, kw_only=True)
class SegmentationTask(Task):
    """A volume on its way through the engine.

    Attributes:
        volumeNode: what is segmented.
        model: name or folder.
        segmentationNode, labelmapNode, tableNode: what was made; None if not.
        sequenceNode: a sequence of segmentations, for a sequence.
        voxels: by label value.
    """

    volumeNode: Any
    model: str
    segmentationNode: Any = None
    labelmapNode: Any = None
    tableNode: Any = None
    sequenceNode: Any = None
    voxels: dict[int, int] = field(default_factory=dict)


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
            then: called with a list that is empty if the engine cannot tell.
            refresh: ask again, though they are known.
        """
        if self._models is not None and not refresh:
            then(self._models)
            return
        client = self.client

        def hear(_job: Any, event: Any) -> None:
            if isinstance(event, client.messages.Done):
                self._models = list(event.result["models"])
            if isinstance(event, client.messages.TERMINAL):
                then(self._models or [])

        client.engine.request(client.messages.ListModels(), hear)

    def segment(
        self,
        volumeNode: Any,
        model: str = "nuclei",
        *,
        device: str = "auto",
        mirror: bool = False,
        table: bool = True,
        roiNode: Any = None,
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
            roiNode: a Markups ROI: only the voxels around it are segmented, as if the volume ended
                there; the rest of the result is empty.
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
                raise RequestError("A sequence is segmented as a whole.", "Remove the region.")
            image = read_sequence(volumeNode)
        else:
            image = read_volume(volumeNode)
            if roiNode is not None:
                image = image.cropped(box_of(roiNode, volumeNode))
        client = self.client
        task = SegmentationTask(volumeNode=volumeNode, model=model, **callbacks)
        options = {"device": device, "mirror": mirror}

        def start(classes: list[dict[str, Any]]) -> None:
            if client is not self._client:  # closed while the models were read
                task.cancel()
            elif not task.finished:
                self._start(client, task, image, classes, options, table)

        if _is_path(model):
            start(_classes_in(Path(model).expanduser()))
        else:
            self.models(lambda models: start(_classes_of(model, models)))
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

    def _wait(self, task: Task) -> None:
        self.mailbox.wait(lambda: task.finished)
        if task.state == "failed":
            raise RequestError(task.error)

    def _start(
        self,
        client: EngineClient,
        task: SegmentationTask,
        image: VolumeImage,
        classes: list[dict[str, Any]],
        options: dict[str, Any],
        table: bool,
    ) -> None:
        def done(result: dict[str, Any]) -> None:
            self._summarise(task, image, classes, result, table)

        task._job = client.engine.segment(
            image.array,
            axes=image.axes,
            model=task.model,
            image={**image.reference(), "name": task.volumeNode.GetName()},
            on_event=lambda _job, event: task.hear(client, event, done),
            **options,
        )

    def _summarise(
        self,
        task: SegmentationTask,
        image: VolumeImage,
        classes: list[dict[str, Any]],
        result: dict[str, Any],
        table: bool,
    ) -> None:
        labels = result.pop("labels").reshape(image.shape)

        def show(found: Any) -> None:
            if task.finished:
                return
            if isinstance(found, Exception):
                task.fail(f"The labels cannot be read: {found}.")
            elif task.volumeNode.GetScene() is not slicer.mrmlScene:
                task.cancel()  # the volume was deleted: where would its labels go?
            else:
                self._show(task, image, found, classes, result, table)

        self.mailbox.compute(lambda: Results.summarise(image.placed(labels)), show)

    def _show(
        self,
        task: SegmentationTask,
        image: VolumeImage,
        found: Results.LabelSummary,
        classes: list[dict[str, Any]],
        record: dict[str, Any],
        table: bool,
    ) -> None:
        volume, kind = task.volumeNode, record["model"]["task"]
        segments = Results.segment_labels(found.voxels, classes, kind)
        labels = found.labels
        name = slicer.mrmlScene.GenerateUniqueName(f"{volume.GetName()} segmentation")
        task.voxels = dict(found.voxels)
        if volume.IsA(_SEQUENCE):
            task.sequenceNode = create_sequence(volume, labels, segments, name)
            Results.write_provenance(task.sequenceNode, volume, record)
            task.finish("done")
            return
        if len(segments) > Results.MOST_SEGMENTS:
            task.labelmapNode = Results.create_labelmap(volume, labels, f"{name} objects")
            labels = (labels > 0).astype("uint8")
            segments = Results.segment_labels([1], classes, "semantic")
        task.segmentationNode = Results.create_segmentation(volume, labels, segments, name)
        if table:
            rows = Results.segment_labels(
                sorted({*found.voxels, *(int(one["value"]) for one in classes)})
                if kind == "semantic"
                else found.voxels,
                classes,
                kind,
            )
            task.tableNode = Results.create_table(volume, image, rows, found.voxels)
        for node in (task.segmentationNode, task.labelmapNode, task.tableNode):
            if node is not None:
                Results.write_provenance(node, volume, record)
        task.finish("done")


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
