"""The project of the Fine-tune dock: its images in the viewer, its corrections on the disk."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from qtpy.QtCore import QObject, QTimer, Signal

from napari_tttunet.annotation import Annotation
from napari_tttunet.annotation_overlay import Overlay
from napari_tttunet.annotation_restore import Plan
from napari_tttunet.dock_work import Background
from napari_tttunet.finetune_begun import Begun, do_all, store_all
from napari_tttunet.finetune_images import (
    Opened,
    Source,
    is_image,
    label_axes,
    mark_as_corrected,
    path_of,
    read_corrections,
    read_image,
    show,
    task_of,
)
from napari_tttunet.finetune_recent import recent_projects, remember_project
from napari_tttunet.finetune_shown import Shown
from napari_tttunet.settings import Settings
from tttunet.errors import TTTUNetError
from tttunet.projects import Autosaver, Project, ProjectError, Region, describe
from tttunet.projects.schema import Bounds, ImageReference

#: Seconds from an edit to its file.
SAVE_AFTER = 1.0
#: Seconds that bringing corrections into the labels takes the window's thread at a time.
_STEP = 0.02


class ProjectWork(QObject):
    """An open project and the labels of one image that are corrected at the moment.

    Attributes:
        changed: another project, other labels, or other counts.
        opened: a project was opened.
        shown: the labels that are corrected have the corrections of their image, from now on.
        failed: an exception to tell.
        project: the open one, or None.
        annotation: of the labels that are corrected, or None.
        source: the image of these labels, or None.
        text: what would be used for training, in words.
    """

    changed = Signal()
    opened = Signal()
    shown = Signal()
    failed = Signal(object)
    _saved = Signal(object)

    def __init__(self, viewer: Any, settings: Settings) -> None:
        super().__init__()
        self._viewer, self._settings = viewer, settings
        self._shown = Shown(viewer)
        self._background = Background(self)
        self.project: Project | None = None
        self.image: ImageReference | None = None
        self.text = ""
        self._overlay: Overlay | None = None
        self._saver: Autosaver | None = None
        self._current: Begun | None = None
        self._kept: list[Begun] = []  # other labels, which no project has yet
        self._adding: list[Begun] = []
        self._storing = 0
        self._waiting: list[Callable[[], None]] = []
        self._saved.connect(self._on_saved)

    @property
    def annotation(self) -> Annotation | None:
        return self._current.annotation if self._current is not None else None

    @property
    def source(self) -> Source | None:
        return self._current.source if self._current is not None else None

    # Projects

    @property
    def recent(self) -> list[str]:
        """Folders of projects, the last one first."""
        return recent_projects(self._settings)

    def create(self, folder: Path, **what: Any) -> None:
        """Make a project and open it; see `Project.create`."""
        self._open(lambda: Project.create(folder, **what))

    def open(self, folder: str | Path) -> None:
        """Open a project, and show the image that was corrected last."""
        self._open(lambda: Project.open(folder))

    def _open(self, make: Callable[[], Project]) -> None:
        old = self._let_go()

        def work() -> tuple[Project, str]:
            do_all(old)
            project = make()
            return project, describe(project)

        self._background.run(work, self._opened, self._not_opened)

    def _not_opened(self, error: Exception) -> None:
        self.changed.emit()
        self.failed.emit(error)

    def _opened(self, found: tuple[Project, str]) -> None:
        self.project, self.text = found
        remember_project(self._settings, str(self.project.folder))
        kept = list(self._kept)
        for begun in (*kept, *([self._current] if self._current is not None else [])):
            # What was done before there was a project.
            begun.annotation.task, begun.annotation.dim = self.project.task, self.project.dim
        for begun in kept:
            self._store(begun)
        if self._current is not None and self._current.holds:
            self.add_image()
        elif self.project.images:
            last = self.project.settings.get("image", "")
            names = [image.id for image in self.project.images]
            self.show_image(last if last in names else names[0])
        self.opened.emit()
        self.changed.emit()

    def _let_go(self) -> list[Callable[[], object]]:
        """Forget the project; what must be done for it, which takes time."""
        saver, project, image, begun = self._saver, self.project, self.image, self._current
        unsaved = list(self._kept)
        self._saver, self.project, self.image, self.text = None, None, None, ""
        if project is None:
            return []
        self._shown.forget()
        self._drop_annotation()  # it belongs to the old one
        self._kept = []
        calls: list[Callable[[], object]] = []
        if saver is not None:
            calls.append(saver.close)
        if begun is not None and image is not None and begun.pending:
            calls.append(lambda: begun.write_regions(project, image))
        if begun is not None and saver is None and begun.holds:
            unsaved.append(begun)
        calls.append(lambda: store_all(unsaved, project))
        for one in unsaved:
            one.annotation.close()
        return [*calls, project.close]

    def close(self) -> None:
        """Write everything; the dock or the viewer goes. Waits for the disk."""
        old = self._let_go()
        self._drop_annotation()
        for begun in self._kept:
            begun.annotation.close()
        self._kept = []
        with contextlib.suppress(Exception):  # nobody is left to be told
            do_all(old)

    # Labels

    def annotate(self, layer: Any, source: Source) -> bool:
        """Follow what is done to a Labels layer; False if that is impossible, which is told.

        Args:
            layer: labels on the grid of the image.
            source: their image.
        """
        if self.annotation is not None and self.annotation.layer is layer:
            return True
        task, dim = task_of(layer) or ("instance", 2)
        if self.project is not None:
            task, dim = self.project.task, self.project.dim
        begun = next((one for one in self._kept if one.annotation.layer is layer), None)
        if begun is not None:
            self._kept.remove(begun)
        else:
            try:
                axes, kept = label_axes(layer, source), source.kept
                changed = partial(self._changed, layer)
                annotation = Annotation(layer, axes, kept, task=task, dim=dim, changed=changed)
            except TTTUNetError as error:
                self.failed.emit(error)
                return False
            begun = Begun(annotation, source)
        self._set_down()
        self._current = begun
        if begun.holds:
            self._draw()
        if begun.holds or self._shown.image_of(layer):
            self.add_image()
        return True

    def _set_down(self) -> None:
        """Go on with other labels: what is there is written, or kept until it can be."""
        begun, saver, image, project = self._current, self._saver, self.image, self.project
        self._saver, self.image = None, None
        if saver is None and begun is not None and begun.holds:
            self._current = None
            self._close_overlay()
            self._kept.append(begun)
            if project is not None:
                self._store(begun)
            return
        self._drop_annotation()
        calls: list[Callable[[], object]] = [saver.close] if saver is not None else []
        if begun is not None and project is not None and image is not None and begun.pending:
            calls.append(lambda: begun.write_regions(project, image))
        if calls:
            self._in_thread(lambda: do_all(calls))

    def _drop_annotation(self) -> None:
        begun, self._current = self._current, None
        if begun is not None:
            begun.annotation.close()
        self._close_overlay()

    def _close_overlay(self) -> None:
        overlay, self._overlay = self._overlay, None
        if overlay is not None:
            overlay.close()

    def _draw(self) -> None:
        annotation = self.annotation
        if self._overlay is not None:
            self._overlay.draw()
        elif annotation is not None and annotation.layer in self._viewer.layers:
            self._overlay = Overlay(self._viewer, annotation.layer, annotation.state)

    def _store(self, begun: Begun) -> None:
        """Write labels that are not the current ones into the project, in a thread."""
        project, edits = self.project, begun.annotation.edits
        assert project is not None
        self._storing += 1

        def then(_: Any) -> None:
            self._storing -= 1
            if self.project is project and begun in self._kept:
                if begun.annotation.edits != edits:  # meanwhile
                    self._store(begun)
                else:
                    self._kept.remove(begun)
                    begun.annotation.close()
            self.count()
            self._go_on()

        def failed(error: Exception) -> None:
            self._storing -= 1
            if self.project is project:
                self.failed.emit(error)
            self._go_on()

        self._background.run(lambda: store_all([begun], project), then, failed)

    def layers_changed(self) -> None:
        """Layers were removed from the viewer: what was checked in them is kept in the project."""

        def gone(begun: Begun) -> bool:
            layers = self._viewer.layers
            return begun.annotation.layer not in layers or begun.source.layer not in layers

        if self._current is not None and gone(self._current):
            self._set_down()
            self.changed.emit()
        for begun in [one for one in self._kept if self.project is None and gone(one)]:
            self._kept.remove(begun)
            begun.annotation.close()

    def complete(self, region: Region) -> None:
        """Vouch for a region, here and in the project.

        Raises:
            ProjectError: it holds no pixel.
        """
        assert self._current is not None
        self._current.annotation.complete(region)
        self._current.pending.append((region, True))
        self._save_regions()

    def remove_region(self, region: Region) -> None:
        """Vouch for a complete region no more, here and in the project."""
        assert self._current is not None
        self._current.annotation.remove_region(region)
        self._current.pending.append((region, False))
        self._save_regions()

    def _changed(self, layer: Any, bounds: Bounds) -> None:
        """An annotation tells that something is to be drawn and saved."""
        mark_as_corrected(layer)
        if self.annotation is None or self.annotation.layer is not layer:
            return
        self._draw()
        if self._saver is not None:
            self._saver.changed(bounds)
        else:
            self.add_image()
        self.changed.emit()

    # The image in the project

    def add_image(self) -> None:
        """Have the image of the labels in the project, and bring its corrections here."""
        project, begun = self.project, self._current
        if project is None or begun is None or begun in self._adding:
            return
        self._adding.append(begun)
        place = begun.place(project)
        self._plan(project, begun, lambda: read_corrections(project, place()))

    def _plan(self, project: Project, begun: Begun, read: Callable[[], Opened]) -> None:
        """Find out in a thread what the corrections change in the labels, then do it."""

        def work() -> tuple[Opened, Plan | ProjectError]:
            opened = read()
            try:
                return opened, begun.plan(opened)
            except ProjectError as error:
                return opened, error

        def then(found: tuple[Opened, Plan | ProjectError]) -> None:
            opened, plan = found
            if self.project is not project or self._current is not begun:
                self._added(begun)
            elif isinstance(plan, ProjectError):
                self.failed.emit(plan)
                self._drop_annotation()
                self._added(begun)
            else:
                begun.annotation.settle()
                if plan.edits == begun.annotation.edits:
                    self._restore(begun, opened, begun.annotation.restoring(plan))
                else:  # something was marked or painted meanwhile
                    self._plan(project, begun, lambda: opened)

        def failed(error: Exception) -> None:
            if self.project is project:
                self.failed.emit(error)
            self._added(begun)

        self._background.run(work, then, failed)

    def _restore(self, begun: Begun, opened: Opened, steps: Iterator[None]) -> None:
        """Go through the steps, a little at a time, then save what is done from now on."""
        project, end = self.project, time.monotonic() + _STEP
        for _ in steps:
            if time.monotonic() >= end:
                QTimer.singleShot(0, lambda: self._restore_on(project, begun, opened, steps))
                return
        self._attach(opened)
        self._added(begun)

    def _restore_on(
        self, project: Project | None, begun: Begun, opened: Opened, steps: Iterator[None]
    ) -> None:
        if self.project is project and self._current is begun:
            self._restore(begun, opened, steps)
        else:
            self._added(begun)

    def _added(self, begun: Begun) -> None:
        self._adding.remove(begun)
        self._go_on()

    def _attach(self, opened: Opened) -> None:
        annotation, source, project = self.annotation, self.source, self.project
        if annotation is None or source is None or project is None:
            return
        if opened.stored:
            annotation.layer.refresh()
        self.image = opened.image
        self._saver = Autosaver(
            project.corrections(opened.image.id),
            annotation.read,
            delay=SAVE_AFTER,
            on_error=self._saved.emit,
            on_saved=self._saved.emit,
        )
        bounds = annotation.vouched_bounds()
        if bounds is not None:
            self._changed(annotation.layer, bounds)
        self._save_regions()
        self._in_thread(lambda: project.set_setting("image", opened.image.id))
        self._shown.remember(opened.image.id, (), annotation.layer, source)
        self.shown.emit()

    def _save_regions(self) -> None:
        if self._saver is not None and self._current is not None and self._current.pending:
            self._background.run(self._writer(), self._on_saved, self.failed.emit)

    def _writer(self) -> Callable[[], None]:
        """Writes what is pending; not to be called in the window's thread."""
        saver, begun, project, image = self._saver, self._current, self.project, self.image

        def write() -> None:
            if saver is not None:
                saver.flush()
            if begun is not None and project is not None and image is not None:
                begun.write_regions(project, image)

        return write

    def _on_saved(self, result: Any) -> None:
        """In the window's thread: something was written, or could not be."""
        if isinstance(result, Exception):
            self.failed.emit(result)
        else:
            self._save_regions()  # that could not be written before
        self.count()

    def count(self) -> None:
        """Say anew what would be used."""
        project = self.project
        if project is not None:
            self._background.run(
                lambda: (project, describe(project)), self._counted, self.failed.emit
            )

    def _counted(self, found: tuple[Project, str]) -> None:
        if found[0] is self.project:
            self.text = found[1]
            self.changed.emit()

    def flush(
        self,
        then: Callable[[Any], None],
        work: Callable[[Project], Any],
        failed: Callable[[Exception], None],
    ) -> None:
        """Write what is pending, then do more in the same thread.

        Args:
            then: hears the result of `work`.
            work: gets the project.
            failed: hears what went wrong.
        """
        project = self.project
        if self._adding or self._storing:  # corrections have no place yet
            self._waiting.append(lambda: self.flush(then, work, failed))
            return
        if project is None:  # it was closed meanwhile
            failed(ProjectError("The project is closed.", "Open it again."))
            return
        write = self._writer()

        def do() -> Any:
            write()
            return work(project)

        self._background.run(do, then, failed)

    def _go_on(self) -> None:
        """What waited for images to be added."""
        if self._adding or self._storing:
            return
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call()

    def _in_thread(self, work: Callable[[], Any]) -> None:
        self._background.run(work, lambda _: None, self.failed.emit)

    # Images of the project in the viewer

    def show_image(self, image_id: str) -> None:
        """Show an image of the project with its corrections, and hide the others."""
        project = self.project
        if project is None or (self.image is not None and self.image.id == image_id):
            return
        if there := self._shown.find(image_id):
            self._viewer.layers.selection.active = there[0]
            self.annotate(*there)
            self._shown.show_alone(image_id, there[0])
            return
        known = [(layer, path_of(layer)) for layer in self._viewer.layers if is_image(layer)]
        self._background.run(
            lambda: (project, *read_image(project, image_id, known)), self._show, self.failed.emit
        )

    def _show(self, found: tuple[Any, ...]) -> None:
        project, opened, image, layer = found
        if project is not self.project:
            return
        images, labels, source = show(self._viewer, image, opened, layer)
        if self.annotate(labels, source):
            self._shown.remember(opened.image.id, images, labels, source)
            self._shown.show_alone(opened.image.id, labels)
            begun = self._current
            assert begun is not None
            self._adding.append(begun)  # empty labels: nothing has to make room
            plan = Plan(begun.annotation.edits, opened.stored, opened.regions)
            self._restore(begun, opened, begun.annotation.restoring(plan))
        self.changed.emit()
