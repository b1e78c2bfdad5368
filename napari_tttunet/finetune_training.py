"""Beginning, steering and ending a fine-tuning: what the Fine-tune dock's buttons for that do."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import QObject, Signal

from napari_tttunet.dock_work import ActivityBar, Background
from napari_tttunet.finetune_decision import Decision
from napari_tttunet.finetune_estimate import TimeEstimate
from napari_tttunet.finetune_models import classes_of_start, new_run, undecided
from napari_tttunet.finetune_project import ProjectWork
from napari_tttunet.finetune_run import FinetuneRun, View
from napari_tttunet.finetune_view import FinetuneView
from tttunet.errors import OutputError
from tttunet.projects import Project, check
from tttunet.projects.runs import (
    can_resume,
    discard,
    model_folder,
    remembered_run,
    run_folder,
)


class Training(QObject):
    """One fine-tuning at a time, from the button to its result.

    Args:
        viewer: napari's viewer.
        view: its buttons for this are connected here; what happens is told there.
        work: with the project.
        run: does it.
        decision: gets the result.
        time: learns how long it took.

    Attributes:
        changed: it began or ended, or something of it was deleted.
        models: entries of the library.
        activity: shows how far it is; to be closed when the dock goes.
    """

    changed = Signal()

    def __init__(
        self,
        viewer: Any,
        view: FinetuneView,
        work: ProjectWork,
        run: FinetuneRun,
        decision: Decision,
        time: TimeEstimate,
    ) -> None:
        super().__init__(view)  # goes with what it shows
        self._viewer, self._view, self._work = viewer, view, work
        self._run, self._decision, self._time = run, decision, time
        self.models: list[dict[str, Any]] = []
        self._started: dict[str, Any] = {}
        self._resumed, self._preparing, self._asked = False, False, ""
        self._background = Background(self)
        self.activity = ActivityBar()
        view.go.clicked.connect(lambda *_: self.finetune())
        view.resume.clicked.connect(lambda *_: self.resume())
        view.stop.clicked.connect(lambda *_: self._steer(run.stop))
        view.pause.toggled.connect(self._pause)
        view.cancel.clicked.connect(lambda *_: run.cancel())
        run.noted.connect(lambda text: view.message.add("warning", text))
        run.progressed.connect(self._progressed)
        run.point.connect(view.curve.add)
        run.done.connect(self._done)
        run.failed.connect(self._failed)
        run.lost.connect(self._lost)
        run.cancelled.connect(self._cancelled)

    @property
    def busy(self) -> bool:
        """Whether a fine-tuning runs or is prepared."""
        return self._run.running or self._preparing

    def finetune(self) -> None:
        """Check what there is, and begin; what goes wrong is told in the dock."""
        project = self._work.project
        if project is None or self.busy:
            return
        if not self._may_discard(project):
            return
        reference = str(self._view.model.currentData() or "")
        options = self._view.expert.options()
        classes = classes_of_start(self.models, reference)

        def prepare(project: Project) -> tuple[list[Any], dict[str, Any]]:
            found = check(project, classes)
            if any(finding.stops for finding in found):
                return found, {}
            old = remembered_run(project)
            if old is not None:
                discard(project, old, "fine-tuning left undecided")
            return found, new_run(project, reference, options)

        self._prepare()
        self._work.flush(self._begin, prepare, self._not_begun)

    def _may_discard(self, project: Project) -> bool:
        """Whether a run that is not decided yet may be deleted: the user is asked once."""
        old, shown = remembered_run(project), self._decision.run
        if old is not None and shown is not None and shown["folder"] == old["folder"]:
            old = shown  # its result may not be on the disk yet
        told = undecided(project, old) if old is not None else ""
        if old is None or not told or self._asked == old["folder"]:
            return True
        self._asked, hint = old["folder"], "Or press Fine-tune again to delete it and begin anew."
        self._view.message.tell("warning", f"{told}.", hint)
        return False

    def _prepare(self) -> None:
        self._preparing = True
        self._asked = ""
        self._resumed = False
        self._time.forget()
        self._view.message.clear()
        self._decision.forget()
        self._view.curve.clear()
        self._view.curve.show()
        self._view.progress.report("saving the corrections")
        self.changed.emit()

    def _begin(self, prepared: tuple[list[Any], dict[str, Any]]) -> None:
        findings, run = prepared
        self._preparing = False
        if not run:
            self._view.progress.finish()
            self._view.curve.hide()
            self._view.message.tell("warning", findings[0].text)
            self.changed.emit()
            return
        if findings:
            self._view.message.tell("info", " ".join(finding.text for finding in findings[:3]))
        self._start(run, resume=False)

    def _not_begun(self, error: Exception) -> None:
        self._preparing = False
        self._view.curve.hide()
        self._view.message.tell_error(error)
        self._ended()

    def resume(self) -> None:
        """Go on with the run that was interrupted."""
        project = self._work.project
        run = remembered_run(project) if project is not None else None
        if project is None or run is None or self.busy:
            return
        self._prepare()
        self._resumed = True
        self._work.flush(self._begin_again, lambda project: run, self._not_begun)

    def _begin_again(self, run: dict[str, Any]) -> None:
        self._preparing = False
        self._start(run, resume=True)

    def _start(self, run: dict[str, Any], resume: bool) -> None:
        project = self._work.project
        if project is None:  # closed meanwhile
            self.changed.emit()
            return
        self._started = run
        self._view.pause.setChecked(False)
        self._run.start(
            project.folder,
            model_folder(project, run["model"]),
            run_folder(project, run),
            run["options"],
            View.of(self._viewer, self._work.source)
            if self._view.expert.preview.isChecked()
            else None,
            project.dim,
            resume,
        )
        self._view.progress.report("waiting for the engine")
        self.changed.emit()

    def _steer(self, call: Any) -> None:
        try:
            call()
        except OutputError as error:
            self._view.message.tell_error(error)

    def _pause(self, paused: bool) -> None:
        if not self._run.running:
            return
        self._steer(lambda: self._run.pause(paused))
        if paused:
            self._view.progress.say("Paused")

    def _progressed(self, stage: str, fraction: float, eta: float | None) -> None:
        self._view.progress.report(stage, fraction, eta)
        self.activity.report(stage, fraction)

    def _ended(self) -> None:
        self._view.progress.finish()
        self.activity.close()
        self.changed.emit()

    def _failed(self, message: str, hint: str, details: str) -> None:
        if self._resumed and "--overwrite" in hint:  # which it says to who types commands
            hint = "Press Fine-tune to begin anew."
        elif self._resumable():
            hint = f"{hint} What was learnt so far is kept: Resume goes on from there.".strip()
        else:
            self._discard("fine-tuning failed")
        self._view.message.tell("error", message, hint, details)
        self._ended()

    def _resumable(self) -> bool:
        found = self._work.project
        return found is not None and can_resume(found, remembered_run(found))

    def _lost(self, message: str, hint: str) -> None:
        way = "Resume to go on" if self._resumable() else "Fine-tune to begin again"
        told = f"Your labels and the model are as they were. Press {way}."
        self._view.message.tell("error", message, told)
        self._ended()

    def _cancelled(self) -> None:
        self._view.message.tell("info", "Cancelled; everything is as it was.")
        self._view.curve.hide()
        self._discard("fine-tuning cancelled")
        self._ended()

    def _discard(self, event: str) -> None:
        """Nothing of the run is of use."""
        project, run = self._work.project, self._started
        if project is not None and run:
            self._background.run(
                lambda: discard(project, run, event),
                lambda _: self.changed.emit(),
                self._view.message.tell_error,
            )

    def _done(self, result: dict[str, Any]) -> None:
        if not self._resumed:
            self._time.learn(int(result["steps"] or 0), self._run.seconds)
        self._ended()
        if self._work.project is not None:
            self._decision.take(self._started, result)
