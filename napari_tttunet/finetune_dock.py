"""The Fine-tune dock: correct labels, train on them in the background, keep the model or not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtWidgets import QFileDialog, QWidget

from napari_tttunet.class_labels import classes_text
from napari_tttunet.dock_work import (
    ActivityBar,
    Background,
    Cleanup,
    ask_for_path,
    delayed,
    read_library,
    weakly,
)
from napari_tttunet.finetune_classes import ClassNames
from napari_tttunet.finetune_correct import Corrections
from napari_tttunet.finetune_decision import Decision
from napari_tttunet.finetune_estimate import TimeEstimate
from napari_tttunet.finetune_images import task_of
from napari_tttunet.finetune_models import (
    can_resume,
    classes_of_start,
    discard,
    last_options,
    model_folder,
    new_run,
    remembered_run,
    run_folder,
    startable,
    undecided,
)
from napari_tttunet.finetune_project import ProjectWork
from napari_tttunet.finetune_run import FinetuneRun, View
from napari_tttunet.finetune_view import FinetuneView
from napari_tttunet.keys import FINETUNE_KEYS, DockKeys
from napari_tttunet.layers import real_viewer
from napari_tttunet.session import session
from napari_tttunet.settings import Settings
from napari_tttunet.widgets import Scrolling
from tttunet.errors import OutputError
from tttunet.projects import Project, check

if TYPE_CHECKING:
    import napari

_NO_PROJECT = (
    "No project is open. Make one (New), so that your corrections are kept and can be trained on."
)
#: Milliseconds without a change before lists are shown anew, and before the time is asked for.
_SHOW_AFTER, _TIME_AFTER = 30, 600


class FinetuneDock(QWidget):
    """Corrects labels and fine-tunes models with them.

    Args:
        napari_viewer: the viewer that the dock belongs to.
        parent: of the widget.
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.viewer = real_viewer(napari_viewer)
        self.settings = Settings()
        self.models: list[dict[str, Any]] = []
        self._started: dict[str, Any] = {}
        self._resumed, self._preparing, self._asked = False, False, ""
        self._background = Background(self)
        self._activity = ActivityBar()
        self._cleanup = Cleanup(self)
        self.run = FinetuneRun(self.viewer)
        self.work = ProjectWork(self.viewer, self.settings)
        self.corrections = Corrections(self.viewer, self.work)
        for call in (self.work.close, self.run.close, self.settings.save_soon):
            self._cleanup.add(call)
        self._cleanup.add(self._activity.close)
        self.view = FinetuneView(self.settings)
        self.decision = Decision(self.work, self.view.result)
        self.classes = ClassNames(self.view, self.work)
        self.time = TimeEstimate(self.settings)
        self._time_timer = delayed(self, _TIME_AFTER, self._ask_time)
        self._cleanup.add(self.time.stop)
        Scrolling(self.view, self)
        self._show_timer = delayed(self, _SHOW_AFTER, self._show_state)
        correct = self.corrections
        self.keys = DockKeys(
            self.viewer,
            {
                "mark_checked": lambda: correct.mark(True, mouse=True),
                "take_back": lambda: correct.mark(False, mouse=True),
                "complete_region": weakly(correct.complete_region),
                "remove_region": weakly(correct.remove_region),
                "next_unchecked": weakly(correct.next_place),
            },
            FINETUNE_KEYS,
        )
        self._cleanup.add(self.keys.release)
        self._connect()
        self._layers_changed()
        self.read_models()

    def _connect(self) -> None:
        view, work, run, correct = self.view, self.work, self.run, self.corrections
        decision = self.decision
        view.new.clicked.connect(lambda *_: self._ask_for_new())
        view.open.clicked.connect(lambda *_: self._ask_to_open())
        view.form.created.connect(lambda folder, what: self.create_project(folder, **what))
        view.form.browse.clicked.connect(lambda *_: self._ask_for_parent())
        view.project.activated.connect(self._project_picked)
        view.images.activated.connect(self._image_picked)
        view.labels.activated.connect(self._labels_picked)
        correcting = view.correcting
        correcting["mark_checked"].clicked.connect(lambda *_: correct.mark(True))
        correcting["take_back"].clicked.connect(lambda *_: correct.mark(False))
        correcting["complete_region"].clicked.connect(lambda *_: correct.complete_region())
        correcting["remove_region"].clicked.connect(lambda *_: self._remove_region())
        view.put_back.clicked.connect(lambda *_: correct.put_back())
        view.regions.activated.connect(lambda index: correct.show_region(view.region(index)))
        correcting["next_unchecked"].clicked.connect(lambda *_: correct.next_place())
        view.add.clicked.connect(lambda *_: correct.add_object())
        view.erase.clicked.connect(lambda *_: correct.erase_object())
        view.around.valueChanged.connect(lambda depth: setattr(correct, "depth", depth))
        view.name_keys(self.keys.text)
        view.go.clicked.connect(lambda *_: self.finetune())
        view.resume.clicked.connect(lambda *_: self.resume())
        view.stop.clicked.connect(lambda *_: self._steer(run.stop))
        view.pause.toggled.connect(self._pause)
        view.cancel.clicked.connect(lambda *_: run.cancel())
        for failed in (work.failed, correct.failed, correct.unchecked.failed, decision.failed):
            failed.connect(view.message.tell_error)
        for said in (correct.said, correct.unchecked.said, decision.said):
            said.connect(self._say)
        run.noted.connect(lambda text: view.message.add("warning", text))
        for changed in (work.changed, view.expert.changed, view.model.activated):
            changed.connect(lambda *_: self._show_timer.start())
        self.time.told.connect(view.show_time)
        work.opened.connect(self._opened)
        run.progressed.connect(self._progressed)
        run.point.connect(view.curve.add)
        run.done.connect(self._done)
        decision.changed.connect(self._decided)
        run.failed.connect(self._failed)
        run.lost.connect(self._lost)
        run.cancelled.connect(self._cancelled)
        layers = self.viewer.layers
        for emitter in (layers.events.inserted, layers.events.removed):
            self._cleanup.connect(emitter, self._layers_changed)
        self._cleanup.connect(layers.selection.events.active, self._active_changed)
        session().models_changed.connect(self.read_models)

    # Lists

    def read_models(self) -> None:
        """Read the library again, in a thread."""
        self._background.run(read_library, self._list_models, self.view.message.tell_error)

    def _list_models(self, entries: list[dict[str, Any]]) -> None:
        self.models = entries
        self._show_models()
        self._show_timer.start()

    def _show_models(self) -> None:
        project = self.work.project
        if project is None:
            self.view.list_models([], "")
            return
        known = startable(self.models, project)
        current = project.model
        if current not in [reference for _, reference in known]:
            segmented = self._model_of_labels()
            current = segmented if segmented in [r for _, r in known] else ""
            current = current or (known[0][1] if known else "")
        self.view.list_models(known, current)

    def _model_of_labels(self) -> str:
        own = getattr(self.corrections.labels, "metadata", {}).get("tttunet") or {}
        model = own.get("model")
        return str(model.get("name", "")) if isinstance(model, dict) else ""

    def _layers_changed(self, *_: Any) -> None:
        from napari.layers import Labels

        found = [layer for layer in self.viewer.layers if isinstance(layer, Labels)]
        self.work.layers_changed()
        if self.corrections.labels not in found:
            self.corrections.choose(None)
        self._active_changed()
        self._list_labels()

    def _list_labels(self) -> None:
        from napari.layers import Labels

        shown = [
            layer
            for layer in reversed(self.viewer.layers)
            if isinstance(layer, Labels) and layer.editable
        ]
        self.view.list_labels(shown, self.corrections.labels)

    def _active_changed(self, *_: Any) -> None:
        from napari.layers import Labels

        active = self.viewer.layers.selection.active
        if isinstance(active, Labels) and active.editable and active is not self.corrections.labels:
            self.corrections.choose(active)
            self._list_labels()
        self._show_timer.start()

    def _labels_picked(self, index: int) -> None:
        layer = self.view.labels.itemData(index)
        if layer is not None and layer in self.viewer.layers:
            self.viewer.layers.selection.active = layer

    def _show_state(self) -> None:
        work, view = self.work, self.view
        project = work.project
        folder = str(project.folder) if project is not None else ""
        view.list_projects(work.recent, folder)
        images = [(image.name, image.id) for image in project.images] if project else []
        view.list_images(images, work.image.id if work.image is not None else "")
        self.classes.show()
        counted = f"Will be used: {work.text}." if work.text else ""
        used = counted if project is not None else _NO_PROJECT
        running = self.run.running or self._preparing
        view.show_state(used, self.corrections.labels is not None, project is not None, running)
        regions = work.annotation.regions if work.annotation is not None else []
        view.list_regions(regions, self.corrections.can_put_back)
        view.around_row.setVisible(work.annotation is not None and "Z" in work.annotation.axes)
        run = remembered_run(project) if project is not None and not running else None
        resumable = project is not None and can_resume(project, run)
        view.resume.setVisible(resumable and self.decision.run is None)
        self._time_timer.start()

    def _ask_time(self) -> None:
        project, work = self.work.project, self.work
        if project is None or self.run.running or self._preparing or not self.models:
            return
        model = str(self.view.model.currentData() or "")
        options = self.view.expert.options()
        state = f"{work.text} {len(project.versions)}"
        self.time.ask(str(project.folder), model_folder(project, model), options, state)

    def _remove_region(self) -> None:
        if region := self.view.region(self.view.regions.currentIndex()):
            self.corrections.remove_region(region)

    def _say(self, text: str) -> None:
        self.view.message.tell("info", text)

    # Projects

    def create_project(self, folder: Path, **what: Any) -> None:
        """Make a project and open it; see `Project.create`."""
        self.view.form.hide()
        self.view.message.clear()
        self.settings.set("finetune.parent", str(folder.parent))
        self.settings.save_soon()
        self.work.create(folder, model=self._model_of_labels(), **what)

    def open_project(self, folder: str | Path) -> None:
        """Open a project, and show the image that was corrected last."""
        self.view.message.clear()
        self.work.open(folder)

    def _opened(self) -> None:
        project = self.work.project
        assert project is not None
        self._show_models()
        self.view.expert.show_options(last_options(project))
        self.decision.forget()
        self.view.curve.hide()
        if project.problems:
            self.view.message.tell("warning", " ".join(project.problems[:3]))
        run = remembered_run(project)
        if run is not None and "result" in run:
            self.decision.show(run)
        elif can_resume(project, run):
            self._say("A fine-tuning was interrupted. Press Resume to go on with it.")

    def _ask_for_new(self) -> None:
        labels, work = self.corrections.labels, self.work
        task, dim = "instance", 2
        if work.annotation is not None:
            task, dim = work.annotation.task, work.annotation.dim
        elif labels is not None and task_of(labels):
            task, dim = task_of(labels) or (task, dim)
        name = work.source.layer.name if work.source is not None else "my-cells"
        model = self._model_of_labels()
        entry = next((e for e in self.models if e["name"] == model and e["error"] is None), {})
        named = {int(one["value"]): str(one["name"]) for one in entry.get("labels", [])}
        classes = classes_text(named) or "object"
        parent = self.settings.get("finetune.parent", str(Path.home()))
        self.view.form.ask(f"{name}-project", parent, task, dim, classes)

    def _ask_for_parent(self) -> None:
        ask_for_path(
            self,
            "Where the project is made",
            lambda paths: self.view.form.parent_folder.setText(paths[0]),
            folder=self.view.form.parent_folder.text(),
            mode=QFileDialog.FileMode.Directory,
        )

    def _ask_to_open(self) -> None:
        ask_for_path(
            self,
            "Open a project",
            lambda paths: self.open_project(paths[0]),
            folder=self.settings.get("finetune.parent", ""),
            mode=QFileDialog.FileMode.Directory,
        )

    def _project_picked(self, index: int) -> None:
        folder = self.view.project.itemData(index)
        project = self.work.project
        if folder and (project is None or folder != str(project.folder)):
            self.open_project(folder)

    def _image_picked(self, index: int) -> None:
        image = self.view.images.itemData(index)
        if image:
            self.work.show_image(image)

    # Running

    def finetune(self) -> None:
        """Check what there is, and begin; what goes wrong is told in the dock."""
        project = self.work.project
        if project is None or self.run.running or self._preparing:
            return
        if not self._may_discard(project):
            return
        reference = str(self.view.model.currentData() or "")
        options = self.view.expert.options()
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
        self.work.flush(self._begin, prepare, self._not_begun)

    def _may_discard(self, project: Project) -> bool:
        """Whether a run that is not decided yet may be deleted: the user is asked once."""
        old = remembered_run(project)
        told = undecided(project, old) if old is not None else ""
        if old is None or not told or self._asked == old["folder"]:
            return True
        self._asked, hint = old["folder"], "Or press Fine-tune again to delete it and begin anew."
        self.view.message.tell("warning", f"{told}.", hint)
        return False

    def _prepare(self) -> None:
        self._preparing = True
        self._asked = ""
        self._resumed = False
        self.time.forget()
        self.view.message.clear()
        self.decision.forget()
        self.view.curve.clear()
        self.view.curve.show()
        self.view.progress.report("saving the corrections")
        self._show_state()

    def _begin(self, prepared: tuple[list[Any], dict[str, Any]]) -> None:
        findings, run = prepared
        self._preparing = False
        if not run:
            self.view.progress.finish()
            self.view.curve.hide()
            self.view.message.tell("warning", findings[0].text)
            self._show_state()
            return
        if findings:
            self.view.message.tell("info", " ".join(finding.text for finding in findings[:3]))
        self._start(run, resume=False)

    def _not_begun(self, error: Exception) -> None:
        self._preparing = False
        self.view.curve.hide()
        self.view.message.tell_error(error)
        self._ended()

    def resume(self) -> None:
        """Go on with the run that was interrupted."""
        project = self.work.project
        run = remembered_run(project) if project is not None else None
        if project is None or run is None or self.run.running or self._preparing:
            return
        self._prepare()
        self._resumed = True
        self.work.flush(self._begin_again, lambda project: run, self._not_begun)

    def _begin_again(self, run: dict[str, Any]) -> None:
        self._preparing = False
        self._start(run, resume=True)

    def _start(self, run: dict[str, Any], resume: bool) -> None:
        project = self.work.project
        if project is None:  # closed meanwhile
            self._show_state()
            return
        self._started = run
        self.view.pause.setChecked(False)
        self.run.start(
            project.folder,
            model_folder(project, run["model"]),
            run_folder(project, run),
            run["options"],
            View.of(self.viewer, self.work.source)
            if self.view.expert.preview.isChecked()
            else None,
            project.dim,
            resume,
        )
        self.view.progress.report("waiting for the engine")
        self._show_state()

    def _steer(self, call: Any) -> None:
        try:
            call()
        except OutputError as error:
            self.view.message.tell_error(error)

    def _pause(self, paused: bool) -> None:
        if not self.run.running:
            return
        self._steer(lambda: self.run.pause(paused))
        if paused:
            self.view.progress.say("Paused")

    def _progressed(self, stage: str, fraction: float, eta: float | None) -> None:
        self.view.progress.report(stage, fraction, eta)
        self._activity.report(stage, fraction)

    def _ended(self) -> None:
        self.view.progress.finish()
        self._activity.close()
        self._show_state()

    def _failed(self, message: str, hint: str, details: str) -> None:
        if self._resumed and "--overwrite" in hint:  # which it says to who types commands
            hint = "Press Fine-tune to begin anew."
        elif self._resumable():
            hint = f"{hint} What was learnt so far is kept: Resume goes on from there.".strip()
        else:
            self._discard("fine-tuning failed")
        self.view.message.tell("error", message, hint, details)
        self._ended()

    def _resumable(self) -> bool:
        found = self.work.project
        return found is not None and can_resume(found, remembered_run(found))

    def _lost(self, message: str, hint: str) -> None:
        way = "Resume to go on" if self._resumable() else "Fine-tune to begin again"
        told = f"Your labels and the model are as they were. Press {way}."
        self.view.message.tell("error", message, told)
        self._ended()

    def _cancelled(self) -> None:
        self._say("Cancelled; everything is as it was.")
        self.view.curve.hide()
        self._discard("fine-tuning cancelled")
        self._ended()

    def _discard(self, event: str) -> None:
        """Nothing of the run is of use."""
        project, run = self.work.project, self._started
        if project is not None and run:
            self._background.run(
                lambda: discard(project, run, event),
                lambda _: self._show_state(),
                self.view.message.tell_error,
            )

    def _done(self, result: dict[str, Any]) -> None:
        if not self._resumed:
            self.time.learn(int(result["steps"] or 0), self.run.seconds)
        self._ended()
        if self.work.project is not None:
            self.decision.take(self._started, result)

    def _decided(self) -> None:
        """A model was kept or not."""
        if self.decision.run is None:
            self.view.curve.hide()
        self._show_models()
        self._show_state()
