"""The section "Correct and fine-tune": shows projects and trainings, and decides nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import ctk
import slicer
from slicer.i18n import tr as _

from TTTUNetLib import FineTuning, Forms, Projects, Results
from TTTUNetLib.FineTuning import FinetuneTask
from TTTUNetLib.Opening import OpeningTask
from TTTUNetLib.Volumes import RequestError

_SETTING = "TTTUNet/project"


class Host(Protocol):
    """What the panel needs of the window."""

    ui: Any
    logic: Any
    settings: Any
    models: list[dict[str, Any]]

    @property
    def idle(self) -> bool:
        """There is an engine; it is not being changed, and Apply does not run."""

    def busyElsewhere(self, panel: Any) -> bool:
        """Another section than this one runs something."""

    def log(self, text: str) -> None: ...

    def update(self) -> None: ...

    def chooseModel(self, name: str) -> None:
        """Read the library again, and choose this model."""


class FineTunePanel:
    """Project, corrections, training, decision; one project is open at a time.

    Args:
        host: the window, whose form has the controls.

    Attributes:
        project: `tttunet.projects.Project`; None if none is open.
        task: the training that runs; None if none does.
        opening: the image that is being read; None if none is.
        result: the training that ended and is not decided, or was kept last; None if none.
    """

    def __init__(self, host: Host) -> None:
        self.host, self.ui = host, host.ui
        self.project: Any = None
        self.task: FinetuneTask | None = None
        self.result: FinetuneTask | None = None
        self.opening: OpeningTask | None = None
        self._before = ""  # the model to go back to, once the new one is kept
        self._kept = False
        self._interrupted = False  # there is a training to go on with
        self._busy = False
        self._working: threading.Thread | None = None
        self._segments: list[str] = []
        ui = self.ui
        ui.projectPath.filters = ctk.ctkPathLineEdit.Dirs
        ui.projectPath.currentPath = str(host.settings.value(_SETTING) or "")
        for button, slot in (
            (ui.projectButton, self.onProject),
            (ui.loadButton, self.onLoad),
            (ui.editButton, self.onEdit),
            (ui.saveButton, self.onSave),
            (ui.finetuneButton, self.onFinetune),
            (ui.resumeButton, self.onResume),
            (ui.stopButton, self.onStop),
            (ui.keepButton, self.onKeep),
            (ui.revertButton, self.onRevert),
        ):
            button.connect("clicked(bool)", slot)
        ui.segmentationSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.onSegmentation)
        ui.curveCheckBox.connect("toggled(bool)", self.onCurve)

    @property
    def running(self) -> bool:
        return self.task is not None

    @property
    def busy(self) -> bool:
        """A training runs, or a project is read or written."""
        return self.running or self._busy or self.opening is not None

    def close(self) -> None:
        """Interrupt the training and close the project: the window or the engine goes away."""
        if self.task is not None:
            self.task.onFinished = None
            self.task.interrupt()
        if self.opening is not None:
            self.opening.onFinished = None
            self.opening.cancel()
        self.task = self.result = self.opening = None
        self._closeProject()

    def update(self) -> None:
        """Enable what can be used now."""
        ui, opened = self.ui, self.project is not None
        free = self.host.idle and not self.busy and not self.host.busyElsewhere(self)
        chosen = ui.segmentationSelector.currentNode() is not None
        ui.projectButton.text = _("Close") if opened else _("Open or create")
        ui.projectButton.enabled = free
        ui.projectPath.enabled = free and not opened
        ui.loadButton.enabled = free and opened and ui.imageSelector.count > 0
        ui.editButton.enabled = chosen
        ui.saveButton.enabled = free and opened and chosen
        ui.finetuneButton.text = _("Cancel") if self.running else _("Fine-tune")
        ui.finetuneButton.enabled = self.running or (
            free and opened and ui.imageSelector.count > 0 and ui.startSelector.count > 0
        )
        ui.resumeButton.visible = self._interrupted and not self.running
        ui.resumeButton.enabled = free and opened
        ui.stopButton.enabled = self.task is not None and not self.task.stopping
        ui.finetuneProgress.visible = self.running
        for control in (ui.startSelector, ui.minutesBox):
            control.enabled = free and opened
        ui.keepButton.enabled = free and self.result is not None and not self._kept
        ui.revertButton.enabled = free and self.result is not None

    def say(self, text: str) -> None:
        """Show a sentence in this section, and in the log."""
        self.ui.finetuneLabel.text = text
        self.host.log(text)

    def _work(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Do something in the background; what fails is said."""
        self._busy = True
        self.host.update()
        project = self.project

        def done(found: Any) -> None:
            self._busy = False
            if isinstance(found, Exception):
                self.say(str(found))
            elif self.project is project:  # else the window has moved on
                then(found)
            self.host.update()

        self._working = self.host.logic.mailbox.compute(work, done)

    # The project

    def onProject(self, *_args: Any) -> None:
        """Open the project of the folder, or make one there; or close it."""
        if self.project is not None:
            self._closeProject()
            self.host.update()
            return
        folder = str(self.ui.projectPath.currentPath).strip()
        if not folder:
            self.say(_("Choose a folder for the project."))
            return
        client, classes, closing = self.host.logic.client, self._classes(), self._working

        def open_or_create() -> Any:
            if closing is not None:
                closing.join()  # it may hold this project
            if not classes and not Path(folder).exists():
                raise RequestError(
                    _("A new project needs classes."),
                    _("Choose a model or a segmentation that has classes, not objects."),
                )
            return client.open_project(folder, classes)

        self._work(open_or_create, self._onOpened)

    def _classes(self) -> list[str]:
        """Of a new project: those of the chosen model, and the other segments."""
        model = Forms.modelOf(self.host.models, Forms.chosen(self.ui.modelSelector))
        names = []
        if model is not None and model["task"] == "semantic":
            names = [label["name"] for label in model["labels"]]
        segmentation = self.ui.segmentationSelector.currentNode()
        if segmentation is None or Results.has_objects(segmentation):
            return names
        return [*names, *(name for name in Forms.segmentNames(segmentation) if name not in names)]

    def _onOpened(self, project: Any) -> None:
        if project.task != "semantic":
            project.close()
            self.say(_("This project has objects, not classes: correct it in napari."))
            return
        self.project = project
        self.host.settings.setValue(_SETTING, str(project.folder))
        self.say("\n".join([_("'{0}' is open.").format(project.name), *project.problems]))
        self.result, self._kept = FineTuning.undecided(project), False
        if self.result is not None:
            self._show_scores(self.result.result)
            self.say(_("A training is not decided yet: keep its model, or revert."))
        self._interrupted = FineTuning.resumable(project)
        if self._interrupted:
            self.say(_("A training was interrupted: Resume goes on with it."))
        self.showModels()
        self._showProject()

    def _closeProject(self) -> None:
        project, self.project = self.project, None
        self.result, self._interrupted = None, False
        self.ui.imageSelector.clear()
        self.ui.startSelector.clear()
        self.ui.projectLabel.text = self.ui.scoresLabel.text = ""
        if project is None:
            return
        if self._working is None or not self._working.is_alive():
            project.close()
            return

        def close(working: threading.Thread = self._working) -> None:
            working.join()
            project.close()

        # The window goes at once. What is being saved is saved, even if the application ends:
        # Python waits for this thread, which is no daemon.
        self._working = threading.Thread(target=close, name="tttunet-close-project")
        self._working.start()

    def _showProject(self) -> None:
        """Count what is right, in the background."""
        project = self.project
        self.ui.imageSelector.clear()
        for reference in project.images:
            self.ui.imageSelector.addItem(reference.name, reference.id)

        def count() -> int:
            return sum(project.corrections(one).summary().vouched_pixels for one in project.images)

        def show(voxels: int) -> None:
            names = ", ".join(project.classes.values())
            self.ui.projectLabel.text = _("{0}. Images: {1}. Voxels that are right: {2:,}.").format(
                names, len(project.images), voxels
            )

        self._work(count, show)

    def showModels(self) -> None:
        """What a training can start from: the project's own models first, the newest on top."""
        if self.project is None:
            return
        selector = self.ui.startSelector
        selector.clear()
        for version in reversed(self.project.versions):
            selector.addItem(_("{0} (of this project)").format(version.name), str(version.folder))
        own = {version.name for version in self.project.versions}
        for model in self.host.models:
            if model["dim"] == self.project.dim and model["name"] not in own:
                selector.addItem(model["name"], model["name"])
        current = self.project.model_path()
        wanted = str(current) if current is not None else Forms.chosen(self.ui.modelSelector)
        Forms.choose(selector, wanted)

    # Corrections

    def onSegmentation(self, *_args: Any) -> None:
        """Another segmentation was chosen, or its segments may have changed."""
        names = Forms.segmentNames(self.ui.segmentationSelector.currentNode())
        if names != self._segments:
            checked = self._checked()
            rows = [row for row, name in enumerate(names) if name in checked]
            Forms.showChecks(self.ui.checkedList, names, rows)
            self._segments = names
        self.host.update()

    def _checked(self) -> list[str]:
        return [self._segments[row] for row in Forms.checkedRows(self.ui.checkedList)]

    def _volume(self) -> Any:
        """What the chosen segmentation was made of; else the input above."""
        node = self.ui.segmentationSelector.currentNode()
        made_of = node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole())
        return made_of or self.ui.inputSelector.currentNode()

    def onEdit(self, *_args: Any) -> None:
        """Show the segmentation in Segment Editor."""
        slicer.util.selectModule("SegmentEditor")
        editor = slicer.modules.segmenteditor.widgetRepresentation().self().editor
        editor.setSegmentationNode(self.ui.segmentationSelector.currentNode())
        editor.setSourceVolumeNode(self._volume())

    def onSave(self, *_args: Any) -> None:
        """Put what is said to be right into the project."""
        self.onSegmentation()
        project, volume = self.project, self._volume()
        segmentation = self.ui.segmentationSelector.currentNode()
        try:
            self._offerClasses(segmentation)
            found = Projects.read_corrections(
                project,
                volume,
                segmentation,
                self.ui.completeSelector.currentNode(),
                self._checked(),
            )
        except RequestError as error:
            self.say(str(error))
            return

        def saved(reference: Any) -> None:
            self.say(_("The corrections of '{0}' are saved.").format(reference.name))
            self._showProject()

        self.ui.finetuneLabel.text = _("Saving the corrections")
        self._work(lambda: found.store(project), saved)

    def _offerClasses(self, segmentation: Any) -> None:
        """Add segments that are no classes yet to the project, if the user agrees."""
        if Results.has_objects(segmentation):
            return
        names = Projects.new_classes(self.project, segmentation)
        question = _("The project has no class {0}. Add it, so that it is learnt, too?")
        if names and slicer.util.confirmOkCancelDisplay(question.format(", ".join(names))):
            Projects.add_classes(self.project, names)

    def onLoad(self, *_args: Any) -> None:
        """Make nodes of an image of the project and its corrections."""
        reference = self.project.image(Forms.chosen(self.ui.imageSelector))
        try:
            self.opening = self.host.logic.openCorrections(
                self.project, reference, onFinished=self.onLoaded
            )
        except RequestError as error:
            self.say(str(error))
            return
        self.ui.finetuneLabel.text = _("Reading '{0}'").format(reference.name)
        self.host.update()

    def onLoaded(self, task: OpeningTask) -> None:
        self.opening = None
        if task.state == "done":
            self.ui.inputSelector.setCurrentNode(task.volumeNode)
            self.ui.segmentationSelector.setCurrentNode(task.segmentationNode)
            said = _("'{0}' and its corrections are loaded.").format(task.reference.name)
            self.say("\n".join([said, *task.problems]))
        elif task.state == "failed":
            self.say(task.error)
            self.host.log(task.details)
        self.host.update()

    # The training

    def onFinetune(self, *_args: Any) -> None:
        """Fine-tune, or cancel."""
        if self.task is not None:
            self.task.cancel()
        elif self._mayPutAway():
            self._work(partial(FineTuning.put_away, self.project), self._begin)

    def _mayPutAway(self) -> bool:
        """Ask whether what is not decided yet may be lost, if there is such a thing."""
        if FineTuning.undecided(self.project) is not None:
            lost = _("The last model is neither kept nor reverted.")
        elif FineTuning.resumable(self.project):
            lost = _("A training was interrupted: Resume goes on with it.")
        else:
            return True
        question = _("{0} Delete it and begin anew?").format(lost)
        return bool(slicer.util.confirmOkCancelDisplay(question))

    def _begin(self, _found: Any) -> None:
        ui = self.ui
        minutes = float(ui.minutesBox.value)
        start = partial(self.host.logic.finetune, model=Forms.chosen(ui.startSelector))
        self._launch(start, {"max_minutes": minutes})

    def onResume(self, *_args: Any) -> None:
        """Go on with what was interrupted."""
        self._launch(self.host.logic.resume, {})
        self.host.update()

    def _launch(self, start: Callable[..., FinetuneTask], options: dict[str, Any]) -> None:
        ui = self.ui
        self.result, self._kept = None, False
        ui.scoresLabel.text = ""
        ui.finetuneProgress.value = 0
        device = Forms.chosen(ui.deviceSelector) or "auto"
        try:
            self.task = start(
                self.project,
                options={**options, "device": device},
                onProgress=self.onProgress,
                onLog=self.host.log,
                onFinished=self.onFinished,
            )
        except RequestError as error:
            self._interrupted = FineTuning.resumable(self.project)
            self.say(str(error))
        else:
            self.say(_("Preparing the corrections"))
            self.onCurve()

    def onCurve(self, *_args: Any) -> None:
        """Show the chart of the training in the layout."""
        task = self.task or self.result
        shown = task is not None and task.chartNode is not None and task.chartNode.GetScene()
        if shown and self.ui.curveCheckBox.checked:
            slicer.modules.plots.logic().ShowChartInLayout(task.chartNode)

    def onProgress(self, fraction: float, stage: str, eta: float | None) -> None:
        self.ui.finetuneProgress.value = round(100 * fraction)
        if self.task is not None and self.task.stopping:
            return  # what was said of it stays
        self.ui.finetuneLabel.text = Forms.progressText(fraction, stage, eta)

    def onStop(self, *_args: Any) -> None:
        """End the training with the best model so far."""
        assert self.task is not None
        try:
            self.task.stop()
        except RequestError as error:
            self.say(str(error))
            return
        self.say(_("Keeping the best model"))
        self.update()

    def _show_scores(self, result: dict[str, Any]) -> None:
        from tttunet.engine.outcome import scores_text

        self.ui.scoresLabel.text = scores_text(result, self.project.dim)

    def onFinished(self, task: FinetuneTask) -> None:
        self.task = None
        self._interrupted = not task.unwanted and FineTuning.resumable(task.project)
        if task.state == "done":
            self.result = task
            self._show_scores(task.result)
            self.say(_("Done: keep the new model, or revert."))
            self.host.log(self.ui.scoresLabel.text)
        elif task.state == "failed":
            self.say(task.error)
            self.host.log(task.details)
        elif not task.unwanted:
            self.say(_("The training was interrupted, as the engine was closed."))
        else:
            self.say(_("Cancelled; the model is as it was."))
        self.host.update()

    def onKeep(self, *_args: Any) -> None:
        """Make the new model the project's next version, and known to the section Segment."""
        task = self.result
        assert task is not None
        before, client = self.project.model, self.host.logic.client
        taken = {model["name"] for model in self.host.models}

        def kept(version: Any) -> None:
            self._before, self._kept = before, True
            self.say(_("Kept as '{0}'.").format(version.name))
            self.showModels()
            FineTuning.add_to_library(client, version, self.project, taken, self._onAdded)

        self._work(task.keep, kept)

    def _onAdded(self, name: str) -> None:
        if name:
            self.host.chooseModel(name)
        else:
            self.say(_("The model is kept in the project, but could not be added to the library."))

    def onRevert(self, *_args: Any) -> None:
        """Discard the new model, or go back to the one before it."""
        task, project, before = self.result, self.project, self._before
        assert task is not None
        if self._kept:
            work: Callable[[], Any] = partial(project.update, model=before)
        else:
            work = task.discard

        def reverted(_found: Any) -> None:
            self.result, self._kept = None, False
            self.ui.scoresLabel.text = ""
            self.say(_("Reverted: the old model is used as before."))
            self.showModels()
            Forms.choose(self.ui.modelSelector, Path(task.model).name)
            Forms.choose(self.ui.startSelector, task.model)

        self._work(work, reverted)
