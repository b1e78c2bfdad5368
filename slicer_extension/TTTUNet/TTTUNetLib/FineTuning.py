"""Fitting a model to the corrections of a project, with a live curve; resume, keep or revert.

The project remembers the run (`tttunet.projects.runs`), so that whoever opens it next, here or in
napari, can go on with what was interrupted and decide about what has ended.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slicer
import vtk
from slicer.i18n import tr as _

from TTTUNetLib.EngineClient import EngineClient
from TTTUNetLib.Tasks import Task
from TTTUNetLib.Volumes import RequestError

_SERIES = {"loss": "Loss", "score": "Score"}


@dataclass(eq=False, kw_only=True)
class FinetuneTask(Task):
    """A fine-tuning.

    Attributes:
        project: whose corrections are learnt.
        run: what the project remembers of it.
        resumed: it goes on with what was interrupted.
        stopping: it was told to.
        unwanted: it was cancelled; what it has learnt is deleted.
        tableNode: the curve: step, loss, score.
        chartNode: a plot of it.
    """

    project: Any
    run: dict[str, Any]
    resumed: bool = False
    stopping: bool = False
    unwanted: bool = False
    tableNode: Any = None
    chartNode: Any = None

    @property
    def model(self) -> str:
        """Name or folder of where it starts."""
        return str(_runs().model_folder(self.project, self.run["model"]))

    @property
    def folder(self) -> Path:
        """Of the run, in the project."""
        return Path(_runs().run_folder(self.project, self.run))

    @property
    def control(self) -> Path:
        """A file that tells the worker to stop."""
        return self.folder / str(_runs().CONTROL)

    @property
    def result(self) -> dict[str, Any]:
        """`before`, `after`, `improved`, `folder` and more, see the engine's `run_finetune`."""
        return dict(self.run.get("result") or {})

    def stop(self) -> None:
        """End the training now and keep the best model so far; `done` follows.

        Raises:
            RequestError: the project cannot be written to.
        """
        try:
            self.control.write_text("stop", encoding="utf-8")
            self.stopping = True
        except OSError as error:
            raise RequestError(_("The engine cannot be told: {0}.").format(error)) from error

    def cancel(self) -> None:
        """End it at once, and delete what it has learnt."""
        if not self.finished:
            self.unwanted = True
            self._forget("fine-tuning cancelled")
        super().cancel()

    def interrupt(self) -> None:
        """End it at once; `TTTUNetLogic.resume` goes on from there, on another day too."""
        super().cancel()

    def keep(self) -> Any:
        """Make the new model the project's next version. Not called: the old one stays.

        Returns:
            The project's `Version`; its `folder` is a model for `TTTUNetLogic.segment`.
        """
        base = Path(self.model).name or self.project.name
        version = self.project.keep_model(self.result["folder"], base)
        with contextlib.suppress(OSError):
            _runs().drop_checkpoint(self.project, self.run)
        _runs().forget_run(self.project, self.run)
        return version

    def discard(self) -> None:
        """Delete what the run left; may be called in any thread."""
        _runs().discard(self.project, self.run, "fine-tuning reverted")

    def ask(self, result: dict[str, Any]) -> None:
        """The training has ended with a result; whoever opens the project can decide about it."""
        self.run = {**self.run, "result": result}
        told = {name: result[name] for name in ("improved", "before", "after")}
        self.project.note("fine-tuning finished", run=self.folder.name, **told)
        _runs().remember_run(self.project, self.run)

    def advice(self, hint: str) -> str:
        """What to do after a failure; whatever can be gone on with is kept."""
        if self.resumed and "--overwrite" in hint:  # which it says to who types commands
            return _("Press Fine-tune to begin anew.")
        if resumable(self.project):
            kept = _("What was learnt so far is kept: Resume goes on from there.")
            return f"{hint} {kept}".strip()
        return hint

    def fail(self, error: str, details: str = "") -> None:
        """End it with an error; of what cannot be gone on with, nothing is left."""
        if not self.finished and not resumable(self.project):
            self._forget("fine-tuning failed")
            self._delete()
        super().fail(error, details)

    def _forget(self, event: str) -> None:
        from tttunet.errors import TTTUNetError

        with contextlib.suppress(TTTUNetError):  # the project was closed, or its disk is full
            _runs().forget_run(self.project, self.run)
            self.project.note(event, run=self.folder.name)

    def _delete(self) -> None:
        """The worker writes no more; a checkpoint may take a while to delete."""
        arguments = (self.project, self.run)
        threading.Thread(
            target=_runs().delete_folder, args=arguments, name="tttunet-delete"
        ).start()

    def _heard(self, client: EngineClient, event: Any) -> None:
        from tttunet.errors import TTTUNetError

        def done(result: dict[str, Any]) -> None:
            with contextlib.suppress(
                TTTUNetError
            ):  # closed meanwhile; the result counts all the same
                self.ask(result)
            self.finish("done")

        messages = client.messages
        if isinstance(event, messages.Metric) and not self.finished:
            self.add_point(event.step, event.values)
        elif isinstance(event, messages.TERMINAL) and self.unwanted:
            self._delete()
        elif isinstance(event, messages.Cancelled):
            self.interrupt()  # nobody cancelled it: the engine was closed
        else:
            self.hear(client, event, done)

    def add_point(self, step: int, values: dict[str, float]) -> None:
        """Add to the curve; what is unknown at this step is left out of the plot."""
        if self.tableNode is None or self.tableNode.GetScene() is None:
            return
        table = self.tableNode.GetTable()
        row = table.InsertNextBlankRow()
        table.SetValue(row, 0, vtk.vtkVariant(step))
        for column, key in enumerate(_SERIES, 1):
            table.SetValue(row, column, vtk.vtkVariant(values.get(key, float("nan"))))
        self.tableNode.Modified()


def start(
    client: EngineClient, project: Any, model: str, options: dict[str, Any], **callbacks: Any
) -> FinetuneTask:
    """Begin; see `TTTUNetLogic.finetune`."""
    from tttunet.errors import TTTUNetError

    # Where it is resumed there may be other devices.
    kept = {name: value for name, value in options.items() if name != "device"}
    try:
        run = _runs().begin_run(project, _runs().model_reference(project, model), kept)
    except TTTUNetError as error:
        raise RequestError(error.message, error.hint) from error
    return _launch(client, FinetuneTask(project=project, run=run, **callbacks), options)


def resume(
    client: EngineClient, project: Any, options: dict[str, Any], **callbacks: Any
) -> FinetuneTask:
    """Go on; see `TTTUNetLogic.resume`."""
    from tttunet.errors import TTTUNetError

    run = _runs().remembered_run(project)
    if not _runs().can_resume(project, run):
        raise RequestError(
            _("No fine-tuning was interrupted in '{0}'.").format(project.name),
            _("Begin a new one."),
        )
    try:
        project.note("fine-tuning resumed", run=run["folder"])
    except TTTUNetError as error:
        raise RequestError(error.message, error.hint) from error
    task = FinetuneTask(project=project, run=run, resumed=True, **callbacks)
    return _launch(client, task, {**run["options"], **options})


def _launch(client: EngineClient, task: FinetuneTask, options: dict[str, Any]) -> FinetuneTask:
    with contextlib.suppress(OSError):
        task.control.unlink(missing_ok=True)  # it may say stop, from before an interruption
    task.tableNode, task.chartNode = _create_curve(f"{task.project.name} {task.folder.name}")
    task._job = client.engine.finetune(
        task.model,
        task.project.folder,
        task.folder / _runs().TRAINING,
        control=task.control,
        on_event=lambda _job, event: task._heard(client, event),
        resume=task.resumed,
        **options,
    )
    return task


def undecided(project: Any) -> FinetuneTask | None:
    """The training of a project whose model was neither kept nor reverted, whoever ran it."""
    run = _runs().remembered_run(project)
    result = run.get("result") if run is not None else None
    if run is None or not isinstance(result, dict):
        return None
    found = _runs().result_folder(project, run)
    if not found.is_dir():
        return None
    run = {**run, "result": {**result, "folder": str(found)}}
    return FinetuneTask(project=project, run=run, state="done")


def resumable(project: Any) -> bool:
    """Whether a training was interrupted, here or in napari, that `resume` can go on with."""
    return bool(_runs().can_resume(project, _runs().remembered_run(project)))


def put_away(project: Any) -> None:
    """Delete what is not decided or was interrupted; may be called in any thread."""
    run = _runs().remembered_run(project)
    if run is not None:
        _runs().discard(project, run, "fine-tuning left undecided")


def _runs() -> Any:
    """What projects remember of runs; it comes from the worker's environment."""
    from tttunet.projects import runs

    return runs


def add_to_library(
    client: EngineClient, version: Any, project: Any, taken: set[str], then: Callable[[str], None]
) -> None:
    """Copy a version of a project into the library, so that it is there for every volume.

    Args:
        client: of the engine that copies.
        version: from `FinetuneTask.keep`.
        project: whose version it is.
        taken: names of the library.
        then: called with the name in the library, or with "" if that failed.
    """
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", project.name).strip("-.") or "project"
    names = (f"{stem}-{version.name}{f'-{n}' if n > 1 else ''}" for n in itertools.count(1))
    name = next(one for one in itertools.chain([version.name], names) if one not in taken)
    messages = client.messages

    def hear(_job: Any, event: Any) -> None:
        if isinstance(event, messages.TERMINAL):
            then(name if isinstance(event, messages.Done) else "")

    client.engine.request(messages.AddModel(str(version.folder), name), hear)


def _create_curve(name: str) -> tuple[Any, Any]:
    """A table node with the columns of the curve, and a chart node of it."""
    scene = slicer.mrmlScene
    table = scene.AddNewNodeByClass("vtkMRMLTableNode", f"{name} curve")
    for title in ("Step", *_SERIES.values()):
        column = vtk.vtkDoubleArray()
        column.SetName(title)
        table.AddColumn(column)
    chart = scene.AddNewNodeByClass("vtkMRMLPlotChartNode", name)
    chart.SetXAxisTitle("Step")
    for title in _SERIES.values():
        series = scene.AddNewNodeByClass("vtkMRMLPlotSeriesNode", f"{name} {title}")
        series.SetAndObserveTableNodeID(table.GetID())
        series.SetXColumnName("Step")
        series.SetYColumnName(title)
        series.SetPlotType(series.PlotTypeScatter)
        chart.AddAndObservePlotSeriesNodeID(series.GetID())
    return table, chart
