"""Fitting a model to the corrections of a project, with a live curve; keep or revert."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import slicer
import vtk

from TTTUNetLib.EngineClient import EngineClient
from TTTUNetLib.Tasks import Task

_SERIES = {"loss": "Loss", "score": "Score"}


@dataclass(eq=False, kw_only=True)
class FinetuneTask(Task):
    """A fine-tuning.

    Attributes:
        project: whose corrections are learnt.
        model: where it starts.
        control: a file that tells the worker to stop.
        result: `before`, `after`, `improved`, `folder` and more, see the engine's `run_finetune`.
        tableNode: the curve: step, loss, score.
        chartNode: a plot of it.
    """

    project: Any
    model: str
    control: Path
    result: dict[str, Any] = field(default_factory=dict)
    tableNode: Any = None
    chartNode: Any = None

    def stop(self) -> None:
        """End the training now and keep the best model so far; `done` follows."""
        self.control.write_text("stop", encoding="utf-8")

    def keep(self) -> Any:
        """Make the new model the project's next version. Not called: the old one stays.

        Returns:
            The project's `Version`; its `folder` is a model for `TTTUNetLogic.segment`.
        """
        base = Path(self.model).name or self.project.name
        return self.project.keep_model(self.result["folder"], base)

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
    runs = project.folder / "runs"
    number = 1 + sum(1 for path in runs.glob("run-*") if path.is_dir())
    folder = runs / f"run-{number}"
    folder.mkdir(parents=True)
    task = FinetuneTask(project=project, model=model, control=folder / "control.txt", **callbacks)
    task.tableNode, task.chartNode = _create_curve(f"{project.name} {folder.name}")

    def done(result: dict[str, Any]) -> None:
        task.result = result
        task.finish("done")

    def hear(_job: Any, event: Any) -> None:
        if isinstance(event, client.messages.Metric) and not task.finished:
            task.add_point(event.step, event.values)
        else:
            task.hear(client, event, done)

    task._job = client.engine.finetune(
        model, project.folder, folder, control=task.control, on_event=hear, **options
    )
    return task


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
