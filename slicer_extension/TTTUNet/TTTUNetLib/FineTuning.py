"""Fitting a model to the corrections of a project, with a live curve; keep or revert."""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import slicer
import vtk
from slicer.i18n import tr as _

from TTTUNetLib.EngineClient import EngineClient
from TTTUNetLib.Tasks import Task
from TTTUNetLib.Volumes import RequestError

#: Names in the folder of a run; napari's are the same.
TRAINING, CONTROL, CHECKPOINT = "training", "control.txt", "checkpoint.pt"
#: Where the project's settings hold a run that is not decided yet; napari's do, too.
_RUN = "run"
_SERIES = {"loss": "Loss", "score": "Score"}


@dataclass(eq=False, kw_only=True)
class FinetuneTask(Task):
    """A fine-tuning.

    Attributes:
        project: whose corrections are learnt.
        model: where it starts.
        control: a file that tells the worker to stop.
        stopping: it was told to.
        result: `before`, `after`, `improved`, `folder` and more, see the engine's `run_finetune`.
        tableNode: the curve: step, loss, score.
        chartNode: a plot of it.
    """

    project: Any
    model: str
    control: Path
    stopping: bool = False
    result: dict[str, Any] = field(default_factory=dict)
    tableNode: Any = None
    chartNode: Any = None

    @property
    def folder(self) -> Path:
        """Of the run, in the project."""
        return self.control.parent

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

    def keep(self) -> Any:
        """Make the new model the project's next version. Not called: the old one stays.

        Returns:
            The project's `Version`; its `folder` is a model for `TTTUNetLogic.segment`.
        """
        base = Path(self.model).name or self.project.name
        version = self.project.keep_model(self.result["folder"], base)
        (self.folder / TRAINING / CHECKPOINT).unlink(missing_ok=True)  # large, of no more use
        self.project.set_setting(_RUN, None)
        return version

    def discard(self) -> None:
        """Delete what the run left; may be called in any thread."""
        _discard(self.project, self.folder, "fine-tuning reverted")

    def ask(self, result: dict[str, Any]) -> None:
        """The training has ended with a result; whoever opens the project can decide about it."""
        self.result = result
        own = Path(self.model).parent == self.project.folder / "models"
        reference = f"models/{Path(self.model).name}" if own else self.model
        told = {name: result[name] for name in ("improved", "before", "after")}
        self.project.note("fine-tuning finished", run=self.folder.name, **told)
        run = {"folder": str(self.folder), "model": reference, "options": {}, "result": result}
        self.project.set_setting(_RUN, run)

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

    try:
        folder = project.new_run()
    except TTTUNetError as error:
        raise RequestError(error.message, error.hint) from error
    task = FinetuneTask(project=project, model=model, control=folder / CONTROL, **callbacks)
    task.tableNode, task.chartNode = _create_curve(f"{project.name} {folder.name}")

    def done(result: dict[str, Any]) -> None:
        with contextlib.suppress(TTTUNetError):  # closed meanwhile; the result counts all the same
            task.ask(result)
        task.finish("done")

    def hear(_job: Any, event: Any) -> None:
        if isinstance(event, client.messages.Metric) and not task.finished:
            task.add_point(event.step, event.values)
        elif isinstance(event, client.messages.TERMINAL) and task.state == "cancelled":
            shutil.rmtree(folder, ignore_errors=True)  # the worker writes no more
        else:
            task.hear(client, event, done)

    task._job = client.engine.finetune(
        model, project.folder, folder / TRAINING, control=task.control, on_event=hear, **options
    )
    return task


def undecided(project: Any) -> FinetuneTask | None:
    """The training of a project whose model was neither kept nor reverted, whoever ran it."""
    run = _remembered(project)
    result = run.get("result") if run is not None else None
    if run is None or not isinstance(result, dict):
        return None
    folder, found = _folder_of(project, run), Path(str(result.get("folder")))
    if not found.is_dir():  # the project was moved
        found = folder / TRAINING / found.name
    if not found.is_dir():
        return None
    reference = str(run["model"])
    model = str(project.folder / reference) if reference.startswith("models/") else reference
    task = FinetuneTask(project=project, model=model, control=folder / CONTROL, state="done")
    task.result = {**result, "folder": str(found)}
    return task


def resumable(project: Any) -> bool:
    """Whether a training was interrupted that napari can go on with."""
    run = _remembered(project)
    if run is None or "result" in run:
        return False
    return (_folder_of(project, run) / TRAINING / CHECKPOINT).is_file()


def put_away(project: Any) -> None:
    """Delete what is not decided or was interrupted; may be called in any thread."""
    run = _remembered(project)
    if run is not None:
        _discard(project, _folder_of(project, run), "fine-tuning left undecided")


def _remembered(project: Any) -> dict[str, Any] | None:
    """The run that the project's settings hold, if its folder is there."""
    run = project.settings.get(_RUN)
    if not isinstance(run, dict) or not {"folder", "model"} <= set(run):
        return None
    return run if _folder_of(project, run).is_dir() else None


def _folder_of(project: Any, run: dict[str, Any]) -> Path:
    return Path(project.folder / "runs" / Path(str(run["folder"])).name)


def _discard(project: Any, folder: Path, event: str) -> None:
    """Forget a run and delete its folder.

    One that lies elsewhere, behind a link or a name that comes from anybody, is only forgotten.
    """
    project.set_setting(_RUN, None)
    project.note(event, run=folder.name)
    if folder.resolve().parent == project.folder.resolve() / "runs":
        shutil.rmtree(folder, ignore_errors=True)


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
