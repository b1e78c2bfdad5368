"""The classes of an open project, which the user may name, rename and add to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari_tttunet.class_labels import classes_text, parse_classes
from tttunet.projects import Project

if TYPE_CHECKING:
    from napari_tttunet.finetune_project import ProjectWork
    from napari_tttunet.finetune_view import FinetuneView


class ClassNames:
    """Shows the classes in a field, and gives the project what is typed there.

    Args:
        view: has the field, and the message that says what is wrong.
        work: knows the project.
    """

    def __init__(self, view: FinetuneView, work: ProjectWork) -> None:
        self.field, self._row, self._message = view.classes, view.class_row, view.message
        self._work = work
        self.field.editingFinished.connect(self._typed)

    def show(self) -> None:
        """Show those of the project; objects have no classes."""
        project = self._work.project
        self._row.setVisible(project is not None and project.task == "semantic")
        if project is not None and not self.field.hasFocus():
            self.field.setText(classes_text(project.classes))

    def _typed(self) -> None:
        project = self._work.project
        if project is None or self.field.text() == classes_text(project.classes):
            return
        try:
            classes = parse_classes(self.field.text())
        except ValueError as error:
            self._message.tell("error", str(error), "Write `1: cell, 4: nucleus`.")
            return
        if not classes:
            self.field.setText(classes_text(project.classes))
            return

        def change(project: Project) -> None:
            project.update(classes=classes)

        def changed(_: Any) -> None:
            self._message.clear()
            self._work.changed.emit()

        self._work.flush(changed, change, self._message.tell_error)
