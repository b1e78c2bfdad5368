"""Several volumes with one model: of the scene, or of a folder, which never come into the scene."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from TTTUNetLib.EngineClient import EngineClient
from TTTUNetLib.Tasks import Task
from TTTUNetLib.Volumes import RequestError


@dataclass(eq=False, kw_only=True)
class FolderTask(Task):
    """The files of a folder on their way through the engine.

    Attributes:
        output: where the label files are written.
        result: numbers of files `done`, `skipped` and `failed`.
    """

    output: Path
    result: dict[str, Any] = field(default_factory=dict)


def segment_folder(
    client: EngineClient, folder: str | Path, output: str | Path, plan: dict[str, Any], **callbacks
) -> FolderTask:
    """Begin; see `TTTUNetLogic.segmentFolder`."""
    source, target = Path(folder).expanduser(), Path(output).expanduser()
    if not str(folder).strip() or not source.is_dir():
        raise RequestError(
            _("There is no folder '{0}'.").format(folder), _("Choose the folder of the volumes.")
        )
    if not str(output).strip() or target.absolute() == source.absolute():
        raise RequestError(_("The labels need a folder of their own."), _("Choose another one."))
    task = FolderTask(output=target.absolute(), **callbacks)

    def done(result: dict[str, Any]) -> None:
        task.result = result
        task.finish("done")

    def hear(_job: Any, event: Any) -> None:
        if isinstance(event, client.messages.FileStatus):
            if task.onLog is not None and not task.finished and event.state != "running":
                name = Path(event.source).name
                place = f"{event.index + 1}/{event.total}"
                task.onLog(f"{place} {name}: {event.state}. {event.text}".strip())
        else:
            task.hear(client, event, done)

    content = {"inputs": [str(source.absolute())], "output": str(task.output) + "/", **plan}
    task._job = client.engine.request(client.messages.Batch(content), hear)
    return task


@dataclass(eq=False, kw_only=True)
class NodesTask(Task):
    """Volumes of the scene, one after the other; one that fails does not stop the others.

    Attributes:
        tasks: of the volumes that could be begun.
        refused: sentences about the others, and about those that failed.
    """

    tasks: list[Task] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def cancel(self) -> None:
        """End it at once; segmentations that are done stay."""
        self.finish("cancelled")
        for task in self.tasks:
            task.cancel()


def segment_nodes(
    segment: Callable[..., Task], volumes: Sequence[Any], **callbacks: Any
) -> NodesTask:
    """Begin to segment several volumes.

    Args:
        segment: called with a volume and callbacks.
        volumes: nodes.
        callbacks: of the whole.
    """
    whole = NodesTask(**callbacks)
    names = {volume: volume.GetName() for volume in volumes}

    def progress(fraction: float, stage: str) -> None:
        ended = len(volumes) - len(whole.tasks) + sum(task.finished for task in whole.tasks)
        if begun and whole.onProgress is not None and not whole.finished:
            whole.onProgress((ended + fraction) / len(volumes), stage, None)

    def finished(volume: Any, task: Task) -> None:
        if task.state == "failed":
            whole.refused.append(f"{names[volume]}: {task.error}")
        if whole.onLog is not None and not whole.finished:
            whole.onLog(f"{names[volume]}: {task.state}. {task.error}".strip())
        progress(0.0, names[volume])
        check()

    def check() -> None:
        if begun and all(task.finished for task in whole.tasks):
            whole.finish("done")

    begun = False
    for volume in volumes:
        try:
            task = segment(
                volume,
                onProgress=lambda fraction, stage, eta: progress(fraction, stage),
                onFinished=lambda task, volume=volume: finished(volume, task),
            )
        except RequestError as error:
            whole.refused.append(f"{names[volume]}: {error}")
        else:
            whole.tasks.append(task)
    begun = True
    check()
    return whole
