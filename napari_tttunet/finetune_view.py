"""The controls of the Fine-tune dock and how they are laid out; what they do is in the dock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import (
    QLineEdit,
    QPushButton,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from napari_tttunet.class_labels import parse_classes
from napari_tttunet.finetune_curve import Curve
from napari_tttunet.finetune_expert import Expert
from napari_tttunet.finetune_result import ResultPanel
from napari_tttunet.settings import Settings
from napari_tttunet.widgets import (
    FoldingSection,
    MessageLabel,
    ProgressLine,
    button_grid,
    choose,
    combo_box,
    explain,
    form_layout,
    show_text,
    side_by_side,
    text_label,
)

_TASKS = (("Objects, each with its own number", "instance"), ("Classes", "semantic"))
_DIMS = (("Slices (2D)", 2), ("Volumes (3D)", 3))
#: The data of the entry that starts from nothing.
NEW_MODEL = ""
_TIPS = {
    "mark_checked": "Vouch for the object: with the key that under the mouse, "
    "with the button the selected label.",
    "take_back": "The object counts as not checked again.",
    "complete_region": "Vouch for everything in the chosen shapes, "
    "or draw a rectangle on the image first. Background counts too.",
    "remove_region": "Vouch for the region no more: with the key that under the mouse, "
    "with the button the chosen one.",
    "next_unchecked": "Go to the next place that nobody checked: where the network was unsure or "
    "an outline has dents, and where it saw something without label. If its output is not kept any "
    "more, objects of unusual size come first. After the five most doubtful ones, the project's "
    "most doubtful image is next.",
}


class ProjectForm(QWidget):
    """What is asked before a project is made.

    Attributes:
        created: folder, and the arguments of `Project.create`.
    """

    created = Signal(object, dict)

    def __init__(self) -> None:
        super().__init__()
        self.name = explain(QLineEdit(), "project_name", "The name of the project and its folder")
        self.parent_folder = explain(
            QLineEdit(), "project_parent", "Where the project's folder is made"
        )
        self.browse = explain(QPushButton("..."), "project_browse", "Choose the folder")
        self.task = combo_box("project_task", "What the labels mean", _TASKS)
        self.dim = combo_box("project_dim", "What the model is to see at a time", _DIMS)
        self.classes = explain(
            QLineEdit(),
            "project_classes",
            "What the objects are called; of classes the names of label 1, 2, ... with commas, or "
            "with numbers of their own: 1: cell, 4: nucleus",
        )
        self.problem = text_label("project_problem")
        self.go = explain(QPushButton("Create"), "project_create", "Make the project")
        self.stop = explain(QPushButton("Not now"), "project_not_now", "Make no project")
        form = form_layout(self, 12)
        form.addRow("Name", self.name)
        form.addRow("In folder", side_by_side(self.parent_folder, self.browse))
        form.addRow("Labels are", self.task)
        form.addRow("Called", self.classes)
        form.addRow(self.problem)
        form.addRow("Model sees", self.dim)
        form.addRow(button_grid([self.go, self.stop]))
        self.go.clicked.connect(self._create)
        self.stop.clicked.connect(self.hide)
        self.hide()

    def ask(self, name: str, folder: str, task: str, dim: int, classes: str) -> None:
        """Show the form with proposals."""
        for field, text in ((self.name, name), (self.parent_folder, folder)):
            field.setText(text)
        self.classes.setText(classes)
        choose(self.task, task)
        choose(self.dim, dim)
        show_text(self.problem, "")
        self.show()

    def _create(self) -> None:
        name = self.name.text().strip() or "project"
        try:
            classes = parse_classes(self.classes.text())
        except ValueError as error:
            show_text(self.problem, str(error))
            return
        what = {
            "name": name,
            "task": self.task.currentData(),
            "dim": self.dim.currentData(),
            "classes": classes or {1: "object"},
        }
        folder = Path(self.parent_folder.text().strip() or ".").expanduser()
        self.created.emit(folder / name.replace("/", "-"), what)


def _region_text(number: int, region: Any) -> str:
    """A complete region in words: its size, and the slice if there are some."""
    sizes = [stop - start for start, stop in region.bounds]
    thick = any(n > 1 for n in sizes[:-2])
    shown = sizes if thick else sizes[-2:]
    text = f"{number}: " + " \N{MULTIPLICATION SIGN} ".join(map(str, shown))
    if thick or len(sizes) == 2:
        return text
    return f"{text}, slice {', '.join(str(start) for start, _ in region.bounds[:-2])}"


class FinetuneView(QWidget):
    """All controls."""

    def __init__(self, settings: Settings, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.message, self.progress, self.curve = MessageLabel(), ProgressLine(), Curve()
        self.form, self.expert, self.result = ProjectForm(), Expert(), ResultPanel()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(8, 8, 8, 8)
        self._project(layout)
        self._correcting(layout)
        self._training(layout, settings)
        layout.addWidget(self.progress)
        layout.addWidget(self.message)
        layout.addWidget(self.running)
        layout.addWidget(self.curve)
        layout.addWidget(self.result)
        layout.addStretch(1)
        self.curve.hide()

    def _project(self, layout: QVBoxLayout) -> None:
        self.project = combo_box("project", "The project that keeps corrections and models")
        self.new = explain(QPushButton("New"), "new_project", "Make a project")
        self.open = explain(QPushButton("Open..."), "open_project", "Open the folder of a project")
        form = form_layout()
        form.addRow("Project", side_by_side(self.project, self.new, self.open))
        self.images = combo_box("project_images", "Show an image of the project")
        form.addRow("Image", self.images)
        self.labels = combo_box("finetune_labels", "The labels that are corrected")
        form.addRow("Labels", self.labels)
        layout.addLayout(form)
        self.classes = explain(
            QLineEdit(),
            "known_classes",
            "The names of label 1, 2, ... with commas, or with numbers of their own: 1: cell, "
            "4: nucleus. Add one to paint and learn a further class.",
        )
        self.class_row = QWidget()
        form_layout(self.class_row).addRow("Classes", self.classes)
        layout.addWidget(self.class_row)
        layout.addWidget(self.form)

    def _correcting(self, layout: QVBoxLayout) -> None:
        self.used = text_label("will_be_used", "What the model will learn from")
        layout.addWidget(self.used)
        names = (
            ("mark_checked", "Mark as checked"),
            ("take_back", "Not checked"),
            ("complete_region", "Complete region"),
            ("next_unchecked", "Next place"),
        )
        self.correcting = {
            name: explain(QPushButton(text), name, _TIPS[name]) for name, text in names
        }
        self.add = explain(
            QPushButton("Add object"),
            "add_object",
            "Paint an object that is missing, with a number that none has",
        )
        self.erase = explain(
            QPushButton("Erase object"), "erase_object", "Remove the selected object"
        )
        layout.addLayout(button_grid([*self.correcting.values(), self.add, self.erase]))
        self._regions: list[Any] = []
        self.regions = combo_box("complete_regions", "The complete regions; choose one to see it")
        self.correcting["remove_region"] = explain(
            QPushButton("Remove"), "remove_region", _TIPS["remove_region"]
        )
        self.put_back = explain(
            QPushButton("Put back"), "put_back", "Complete the region again that was removed last"
        )
        self.around = explain(
            QSpinBox(),
            "region_depth",
            "A complete region that you draw also covers so many slices before and after the one "
            "that is shown: then everything in this box must be right.",
        )
        self.around.setRange(0, 999)
        self.around_row = QWidget()
        form_layout(self.around_row).addRow("Slices around a region", self.around)
        layout.addWidget(self.around_row)
        self.region_row = QWidget()
        row = form_layout(self.region_row)
        row.addRow(
            "Regions",
            side_by_side(self.regions, self.correcting["remove_region"], self.put_back),
        )
        layout.addWidget(self.region_row)

    def _training(self, layout: QVBoxLayout, settings: Settings) -> None:
        self.model = combo_box("start_from", "The model to improve; it is never changed itself")
        form = form_layout()
        form.addRow("Start from", self.model)
        layout.addLayout(form)
        layout.addWidget(
            FoldingSection("Expert", self.expert, "expert_button", settings, "finetune.expert")
        )
        self.go = explain(
            QPushButton("Fine-tune"), "finetune", "Train on what is checked, in the background"
        )
        self.go.setStyleSheet("font-weight: bold; padding: 5px;")
        self.resume = explain(
            QPushButton("Resume"), "resume", "Go on with the fine-tuning that was interrupted"
        )
        self.time = text_label("finetune_time")
        self.time.hide()
        layout.addWidget(self.time)
        layout.addWidget(self.resume)
        layout.addWidget(self.go)
        self.stop = explain(
            QPushButton("Stop, keep the best"), "stop", "End now, with the best model so far"
        )
        self.pause = explain(
            QPushButton("Pause"), "pause", "Compute nothing until it is pressed again"
        )
        self.pause.setCheckable(True)
        self.cancel = explain(
            QPushButton("Cancel"), "cancel_finetune", "End, and leave everything as it was"
        )
        self.running = QWidget()
        buttons = button_grid([self.stop, self.pause, self.cancel])
        self.running.setLayout(buttons)
        self.running.hide()
        self.resume.hide()

    def show_time(self, text: str, how: str) -> None:
        """How long it will take, and how that is known."""
        show_text(self.time, "" if self.running.isVisibleTo(self) else text)
        self.time.setToolTip(how)

    def name_keys(self, text: Callable[[str], str]) -> None:
        """Name the keys of the actions in the tooltips."""
        for name, button in self.correcting.items():
            button.setToolTip(_TIPS[name] + text(name))

    def list_projects(self, folders: Sequence[str], current: str) -> None:
        """Recent projects; `current` is the folder of the open one, or empty."""
        self.project.clear()
        if not current:
            self.project.addItem("None is open", "")
        for folder in folders:
            self.project.addItem(Path(folder).name, folder)
            self.project.setItemData(self.project.count() - 1, folder, 3)  # as the tooltip
        choose(self.project, current)

    def list_images(self, images: Sequence[tuple[str, str]], current: str) -> None:
        """Names and ids of the project's images."""
        self.images.clear()
        if not images:
            self.images.addItem("None yet: it comes with its first correction", "")
        elif not current:
            self.images.addItem("Choose one to see it", "")
        for name, image_id in images:
            self.images.addItem(name, image_id)
        choose(self.images, current)
        self.images.setEnabled(bool(images))

    def list_labels(self, layers: Sequence[Any], current: Any) -> None:
        self.labels.clear()
        for layer in layers:
            self.labels.addItem(layer.name, layer)
        if current is not None:
            for place in range(self.labels.count()):
                if self.labels.itemData(place) is current:
                    self.labels.setCurrentIndex(place)
        if not layers:
            self.labels.addItem("Segment an image first", None)
        self.labels.setEnabled(bool(layers))

    def region(self, index: int) -> Any:
        """The complete region of an entry; None: there is no such entry."""
        return self._regions[index] if 0 <= index < len(self._regions) else None

    def list_regions(self, regions: Sequence[Any], can_put_back: bool) -> None:
        """Show the complete regions of the image."""
        chosen = self.regions.currentIndex() if len(self._regions) == len(regions) else -1
        self._regions = list(regions)  # not in the box: Qt would take them apart
        self.regions.clear()
        self.regions.addItems([_region_text(i, one) for i, one in enumerate(regions, 1)])
        self.regions.setCurrentIndex(chosen if chosen >= 0 else len(regions) - 1)
        self.regions.setEnabled(bool(regions))
        self.correcting["remove_region"].setEnabled(bool(regions))
        self.put_back.setVisible(can_put_back)
        self.region_row.setVisible(bool(regions) or can_put_back)

    def list_models(self, models: Sequence[tuple[str, str]], current: str) -> None:
        """Texts and references of the models to start from."""
        self.model.clear()
        for text, reference in models:
            self.model.addItem(text, reference)
        self.model.addItem("A new model from my labels", NEW_MODEL)
        choose(self.model, current)

    def show_state(self, used: str, correcting: bool, ready: bool, running: bool) -> None:
        """What is said, and what can be pressed.

        Args:
            used: what will be used, in words.
            correcting: there are labels to correct.
            ready: a project is open.
            running: a fine-tuning is under way.
        """
        show_text(self.used, used)
        for button in (*self.correcting.values(), self.add, self.erase):
            button.setEnabled(correcting)
        self.go.setVisible(not running)
        self.go.setEnabled(ready)
        self.running.setVisible(running)
        if running or not ready:
            self.show_time("", "")
        for widget in (self.project, self.new, self.open, self.model, self.expert):
            widget.setEnabled(not running)
