"""The Fine-tune dock: correct labels, train on them in the background, keep the model or not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtWidgets import QFileDialog, QWidget

from napari_tttunet.class_labels import classes_text
from napari_tttunet.dock_work import (
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
from napari_tttunet.finetune_models import last_options, startable
from napari_tttunet.finetune_project import ProjectWork
from napari_tttunet.finetune_run import FinetuneRun
from napari_tttunet.finetune_training import Training
from napari_tttunet.finetune_view import FinetuneView
from napari_tttunet.keys import FINETUNE_KEYS, DockKeys
from napari_tttunet.layers import real_viewer
from napari_tttunet.session import session
from napari_tttunet.settings import Settings
from napari_tttunet.widgets import Scrolling
from tttunet.projects.runs import can_resume, model_folder, remembered_run

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
        self._noted = ""
        self._background = Background(self)
        self._cleanup = Cleanup(self)
        self.run = FinetuneRun(self.viewer)
        self.work = ProjectWork(self.viewer, self.settings)
        self.view = view = FinetuneView(self.settings)
        self.corrections = Corrections(
            self.viewer, self.work, lambda: str(view.model.currentData() or "")
        )
        self.decision = Decision(self.work, self.view.result)
        self.classes = ClassNames(self.view, self.work)
        self.time = TimeEstimate(self.settings)
        self._time_timer = delayed(self, _TIME_AFTER, self._ask_time)
        self.training = Training(self.viewer, view, self.work, self.run, self.decision, self.time)
        for call in (
            self.work.close,
            self.run.close,
            self.settings.save_soon,
            self.corrections.unchecked.ranking.forget,
            self.training.activity.close,
            self.time.stop,
        ):
            self._cleanup.add(call)
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
        view, work, correct = self.view, self.work, self.corrections
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
        for failed in (work.failed, correct.failed, correct.unchecked.failed, decision.failed):
            failed.connect(view.message.tell_error)
        for said in (correct.said, correct.unchecked.said, decision.said):
            said.connect(self._say)
        for changed in (work.changed, view.expert.changed, view.model.activated):
            changed.connect(lambda *_: self._show_timer.start())
        self.time.told.connect(view.show_time)
        self.time.noted.connect(self._note)
        work.opened.connect(self._opened)
        self.training.changed.connect(self._show_state)
        decision.changed.connect(self._decided)
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
        self.models = self.training.models = entries
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
        counted = f"Will be used: {work.text}. {self._noted}".strip() if work.text else ""
        used = counted if project is not None else _NO_PROJECT
        running = self.training.busy
        view.show_state(used, self.corrections.labels is not None, project is not None, running)
        regions = work.annotation.regions if work.annotation is not None else []
        view.list_regions(regions, self.corrections.can_put_back)
        view.around_row.setVisible(work.annotation is not None and "Z" in work.annotation.axes)
        run = remembered_run(project) if project is not None and not running else None
        resumable = project is not None and can_resume(project, run)
        view.resume.setVisible(resumable and self.decision.run is None)
        self._time_timer.start()

    def _note(self, text: str) -> None:
        """What is said beside the number of labels."""
        self._noted = text
        self._show_timer.start()

    def _ask_time(self) -> None:
        project, work = self.work.project, self.work
        if project is None or self.training.busy or not self.models:
            return
        model = str(self.view.model.currentData() or "")
        options = self.view.expert.options()
        state = f"{work.text} {len(project.versions)} {project.classes}"
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
        self._noted = ""
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

    def _decided(self) -> None:
        """A model was kept or not."""
        if self.decision.run is None:
            self.view.curve.hide()
        self._show_models()
        self._show_state()
