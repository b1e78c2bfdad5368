"""The section "Several volumes": those of the scene, or of a folder, with the choices above."""

from __future__ import annotations

from typing import Any

import ctk
import slicer
from slicer.i18n import tr as _

from TTTUNetLib import Batches, Forms
from TTTUNetLib.Tasks import Task
from TTTUNetLib.Volumes import RequestError


class BatchPanel:
    """One batch at a time.

    Args:
        host: the window, see `FineTunePanel.Host`; it also has `wanted`, its parameters.

    Attributes:
        task: the batch that runs; None if none does.
    """

    def __init__(self, host: Any) -> None:
        self.host, self.ui = host, host.ui
        self.task: Task | None = None
        self._volumes: list[Any] = []
        for path in (self.ui.batchInputPath, self.ui.batchOutputPath):
            path.filters = ctk.ctkPathLineEdit.Dirs
        self.ui.batchNodesButton.connect("clicked(bool)", self.onNodes)
        self.ui.batchFolderButton.connect("clicked(bool)", self.onFolder)
        self.refresh()

    @property
    def running(self) -> bool:
        return self.task is not None

    def close(self) -> None:
        """Cancel what runs: the window, the scene or the engine goes away."""
        if self.task is not None:
            self.task.cancel()

    def refresh(self) -> None:
        """List the volumes of the scene; those that were checked stay so."""
        checked = {self._volumes[row] for row in Forms.checkedRows(self.ui.batchList)}
        found = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")  # of colours, too
        self._volumes = [n for n in found if not n.IsA("vtkMRMLLabelMapVolumeNode")]
        rows = {row for row, node in enumerate(self._volumes) if node in checked}
        Forms.showChecks(self.ui.batchList, [n.GetName() for n in self._volumes], rows)

    def update(self) -> None:
        """Enable what can be used now."""
        ui, free = self.ui, self.host.idle and not self.host.busyElsewhere(self)
        nodes = isinstance(self.task, Batches.NodesTask)
        ui.batchNodesButton.text = _("Cancel") if nodes else _("Segment the checked volumes")
        ui.batchNodesButton.enabled = nodes or (free and not self.running and bool(self._volumes))
        folder = self.running and not nodes
        ui.batchFolderButton.text = _("Cancel") if folder else _("Segment the folder")
        ui.batchFolderButton.enabled = folder or (free and not self.running)
        ui.batchProgress.visible = self.running
        for control in (ui.batchList, ui.batchInputPath, ui.batchOutputPath):
            control.enabled = not self.running

    def say(self, text: str) -> None:
        """Show a sentence in this section, and in the log."""
        self.ui.batchLabel.text = text
        self.host.log(text)

    def onNodes(self, *_args: Any) -> None:
        """Segment the volumes that are checked, or cancel."""
        if self.task is not None:
            self.task.cancel()
            return
        volumes = [self._volumes[row] for row in Forms.checkedRows(self.ui.batchList)]
        if not volumes:
            self.say(_("Check the volumes to segment."))
            return
        wanted = self.host.wanted

        def segment(volume: Any, **callbacks: Any) -> Task:
            return self.host.logic.segment(
                volume,
                model=wanted.model,
                device=wanted.device,
                mirror=wanted.mirror,
                table=wanted.table,
                maps=wanted.maps,
                **callbacks,
            )

        self._begin(lambda **callbacks: Batches.segment_nodes(segment, volumes, **callbacks))

    def onFolder(self, *_args: Any) -> None:
        """Segment the files of a folder, or cancel."""
        if self.task is not None:
            self.task.cancel()
            return
        ui, wanted = self.ui, self.host.wanted
        self._begin(
            lambda **callbacks: self.host.logic.segmentFolder(
                ui.batchInputPath.currentPath,
                ui.batchOutputPath.currentPath,
                model=wanted.model,
                device=wanted.device,
                mirror=wanted.mirror,
                **callbacks,
            )
        )

    def _begin(self, start: Any) -> None:
        self.ui.batchProgress.value = 0
        self.say(_("Starting"))
        try:
            task = start(
                onProgress=self.onProgress, onLog=self.host.log, onFinished=self.onFinished
            )
        except RequestError as error:
            self.say(str(error))
        else:
            self.task = None if task.finished else task
        self.host.update()

    def onProgress(self, fraction: float, stage: str, eta: float | None) -> None:
        self.ui.batchProgress.value = round(100 * fraction)
        self.ui.batchLabel.text = Forms.progressText(fraction, stage, eta)

    def onFinished(self, task: Any) -> None:
        self.task = None
        if task.state == "cancelled":
            self.say(_("Cancelled; what was done stays."))
        elif task.state == "failed":
            self.say(task.error)
            self.host.log(task.details)
        elif isinstance(task, Batches.NodesTask):
            done = sum(one.state == "done" for one in task.tasks)
            self.say("\n".join([_("Volumes segmented: {0}.").format(done), *task.refused]))
        else:
            text = _("Files done: {done}, there before: {skipped}, failed: {failed}.")
            self.say(text.format(**task.result))
        self.host.update()
