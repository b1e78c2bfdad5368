"""Whether the model of a fine-tuning is kept; nothing is replaced before."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import QObject, Signal

from napari_tttunet.dock_work import Background, read_library, weakly
from napari_tttunet.finetune_models import keep, library_name, version_name
from napari_tttunet.finetune_project import ProjectWork
from napari_tttunet.finetune_result import ResultPanel
from napari_tttunet.session import session
from tttunet.engine import messages
from tttunet.errors import TTTUNetError
from tttunet.projects import Version
from tttunet.projects.runs import discard, forget_run, remember_run, remembered_run


class Decision(QObject):
    """Shows results, and keeps or discards their models.

    Args:
        work: with the project.
        panel: its buttons are connected here.

    Attributes:
        changed: the project's models or runs changed.
        failed: an exception to tell.
        said: what happened.
        run: what is shown, with its `result`; None: nothing.
    """

    changed = Signal()
    failed = Signal(object)
    said = Signal(str)

    def __init__(self, work: ProjectWork, panel: ResultPanel) -> None:
        super().__init__(panel)  # goes with its buttons
        self._work, self._panel = work, panel
        self._background = Background(self)
        self._go_back_to = ""
        self.run: dict[str, Any] | None = None
        panel.keep.clicked.connect(lambda *_: self.keep(True))
        panel.both.clicked.connect(lambda *_: self.keep(False))
        panel.revert.clicked.connect(lambda *_: self.revert())

    def forget(self) -> None:
        """Show nothing."""
        self.run, self._go_back_to = None, ""
        self._panel.hide()

    def take(self, run: dict[str, Any], result: dict[str, Any]) -> None:
        """A run has ended: remember its result until somebody decides, and show it."""
        project, run = self._work.project, {**run, "result": result}
        assert project is not None

        def note() -> None:
            remember_run(project, run)
            project.note(
                "fine-tuning finished",
                run=run["folder"],
                improved=result["improved"],
                before=result["before"],
                after=result["after"],
            )

        self._background.run(note, lambda _: self.changed.emit(), self.failed.emit)
        self.show(run)

    def show(self, run: dict[str, Any]) -> None:
        """Show the result of a run of the open project."""
        project = self._work.project
        assert project is not None
        self.run, self._go_back_to = run, ""
        self._panel.show_result(run["result"], version_name(project, run["model"]))

    def keep(self, use: bool) -> None:
        """Keep the new model; with `use`, the project goes on with it."""
        project, run = self._work.project, self.run
        if project is None or run is None:
            return
        for button in (self._panel.keep, self._panel.both, self._panel.revert):
            button.setEnabled(False)
        old = project.model or run["model"]

        def work() -> tuple[Version, str]:
            version = keep(project, run, use)
            return version, library_name(version, project, {e["name"] for e in read_library()})

        def then(found: tuple[Version, str]) -> None:
            version, name = found
            self._go_back_to = old if use else ""
            self._panel.show_kept(version.name, bool(self._go_back_to))
            request = messages.AddModel(str(version.folder), name)
            session().engine.request(request, weakly(self._added))
            self.changed.emit()

        def failed(error: Exception) -> None:
            self.failed.emit(error)
            self.show(run)

        self._background.run(work, then, failed)

    def _added(self, job: Any, event: Any) -> None:
        """The model is known to the other docks too, or why not."""
        if isinstance(event, messages.Done):
            session().models_changed.emit()
        elif isinstance(event, messages.Failed | messages.Lost):
            self.failed.emit(TTTUNetError(event.message, event.hint))

    def revert(self) -> None:
        """Do not keep the new model, or go back to the old one."""
        project, run, back = self._work.project, self.run, self._go_back_to
        if project is None or run is None:
            return
        self.forget()
        undecided = remembered_run(project) is not None

        def work() -> None:
            if back:
                project.update(model=back)
                project.note("fine-tuning reverted", model=back)
            elif undecided:
                discard(project, run, "fine-tuning reverted")
            else:
                forget_run(project, run)

        def then(_: Any) -> None:
            self.changed.emit()
            if back or undecided:
                self.said.emit("Reverted: the old model is used as before.")

        self._background.run(work, then, self.failed.emit)
