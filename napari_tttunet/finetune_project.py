"""The project of the Fine-tune dock: its images in the viewer, its corrections on the disk."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtCore import QObject, Signal

from napari_tttunet.annotation import Annotation
from napari_tttunet.annotation_overlay import Overlay
from napari_tttunet.dock_work import Background
from napari_tttunet.finetune_images import (
    Opened,
    Source,
    add_image,
    is_image,
    label_axes,
    layer_of,
    mark_as_corrected,
    path_of,
    read_corrections,
    task_of,
)
from napari_tttunet.layers import image_fields, label_grid, layer_array
from napari_tttunet.settings import Settings
from tttunet.errors import TTTUNetError
from tttunet.projects import Autosaver, Project, ProjectError, Region, describe
from tttunet.projects.schema import Bounds, ImageReference

#: Seconds from an edit to its file.
SAVE_AFTER = 1.0
#: How many projects are remembered.
RECENT = 8


class ProjectWork(QObject):
    """An open project and the labels of one image that are corrected at the moment.

    Attributes:
        changed: another project, other labels, or other counts.
        opened: a project was opened.
        failed: an exception to tell.
        project: the open one, or None.
        annotation: of the labels that are corrected, or None.
        text: what would be used for training, in words.
    """

    changed = Signal()
    opened = Signal()
    failed = Signal(object)
    _saved = Signal(object)

    def __init__(self, viewer: Any, settings: Settings) -> None:
        super().__init__()
        self._viewer, self._settings = viewer, settings
        self._background = Background(self)
        self.project: Project | None = None
        self.annotation: Annotation | None = None
        self.source: Source | None = None
        self.image: ImageReference | None = None
        self.text = ""
        self._overlay: Overlay | None = None
        self._saver: Autosaver | None = None
        self._adding = False
        self._pending: deque[tuple[Region, bool]] = deque()
        self._regions_lock = threading.Lock()
        self._waiting: list[Callable[[], None]] = []
        self._saved.connect(self._on_saved)

    # Projects

    @property
    def recent(self) -> list[str]:
        """Folders of projects, the last one first."""
        remembered: list[Any] = []
        return [str(path) for path in self._settings.get("finetune.recent", remembered)]

    def create(self, folder: Path, **what: Any) -> None:
        """Make a project and open it; see `Project.create`."""
        self._open(lambda: Project.create(folder, **what))

    def open(self, folder: str | Path) -> None:
        """Open a project, and show the image that was corrected last."""
        self._open(lambda: Project.open(folder))

    def _open(self, make: Callable[[], Project]) -> None:
        old = self._let_go()

        def work() -> tuple[Project, str]:
            _close(*old)
            project = make()
            return project, describe(project)

        self._background.run(work, self._opened, self._not_opened)

    def _not_opened(self, error: Exception) -> None:
        self.changed.emit()
        self.failed.emit(error)

    def _opened(self, found: tuple[Project, str]) -> None:
        self.project, self.text = found
        folder = str(self.project.folder)
        recent = [folder, *(path for path in self.recent if path != folder)][:RECENT]
        self._settings.set("finetune.recent", recent)
        self._settings.save_soon()
        if self.annotation is not None:  # what was done before there was a project
            self.annotation.task, self.annotation.dim = self.project.task, self.project.dim
        if self.annotation is not None and self.annotation.vouched_bounds() is not None:
            self.add_image()
        elif self.project.images:
            last = self.project.settings.get("image", "")
            names = [image.id for image in self.project.images]
            self.show_image(last if last in names else names[0])
        self.opened.emit()
        self.changed.emit()

    def _let_go(self) -> tuple[Autosaver | None, Project | None]:
        """Forget the project; what must be closed, which takes time."""
        saver, project = self._saver, self.project
        self._saver, self.project, self.image, self.text = None, None, None, ""
        if project is not None:
            self._drop_annotation()  # it belongs to the old one
        return saver, project

    def close(self) -> None:
        """Write everything; the dock or the viewer goes. Waits for the disk."""
        old = self._let_go()
        self._drop_annotation()
        with contextlib.suppress(Exception):  # nobody is left to be told
            _close(*old)

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
        try:
            axes = label_axes(layer, source)
            annotation = Annotation(
                layer, axes, source.kept, task=task, dim=dim, changed=self._changed
            )
        except TTTUNetError as error:
            self.failed.emit(error)
            return False
        self._stop_annotating()
        self.annotation, self.source = annotation, source
        return True

    def _stop_annotating(self) -> None:
        """Go on with other labels: what is there is written."""
        saver, self._saver, self.image = self._saver, None, None
        self._drop_annotation()
        if saver is not None:
            self._background.run(lambda: _close(saver, None), lambda _: None, self.failed.emit)

    def _drop_annotation(self) -> None:
        annotation, self.annotation, self.source = self.annotation, None, None
        overlay, self._overlay = self._overlay, None
        self._pending = deque()
        if annotation is not None:
            annotation.close()
        if overlay is not None:
            overlay.close()

    def forget_layer(self) -> None:
        """The labels or their image were removed from the viewer: what is checked is kept."""
        self._stop_annotating()
        self.changed.emit()

    def complete(self, region: Region) -> None:
        """Vouch for a region, here and in the project.

        Raises:
            ProjectError: it holds no pixel.
        """
        assert self.annotation is not None
        self.annotation.complete(region)
        self._pending.append((region, True))
        self._save_regions()

    def remove_region(self, region: Region) -> None:
        """Vouch for a complete region no more, here and in the project."""
        assert self.annotation is not None
        self.annotation.remove_region(region)
        self._pending.append((region, False))
        self._save_regions()

    def _changed(self, bounds: Bounds) -> None:
        """The annotation tells that something is to be drawn and saved."""
        annotation = self.annotation
        assert annotation is not None
        mark_as_corrected(annotation.layer)
        if self._overlay is None and annotation.layer in self._viewer.layers:
            self._overlay = Overlay(self._viewer, annotation.layer, annotation.state)
        elif self._overlay is not None:
            self._overlay.draw()
        if self._saver is not None:
            self._saver.changed(bounds)
        elif self.project is not None:
            self.add_image()
        self.changed.emit()

    # The image in the project

    def add_image(self) -> None:
        """Have the image of the labels in the project, and bring its corrections here."""
        project, source = self.project, self.source
        if project is None or source is None or self._adding:
            return
        self._adding = True
        annotation = self.annotation
        layer = source.layer
        path = getattr(getattr(layer, "source", None), "path", None)
        window = layer_array(layer)
        fields = image_fields(layer, source.axes)
        fields.pop("rgb")
        axes = fields.pop("axes")

        def work() -> Opened:
            image = add_image(project, path, window, axes, source, fields)
            return read_corrections(project, image)

        def then(opened: Opened) -> None:
            self._adding = False
            if self.project is project and self.annotation is annotation:
                self._attach(opened)
            self._go_on()

        def failed(error: Exception) -> None:
            self._adding = False
            self.failed.emit(error)
            self._go_on()

        self._background.run(work, then, failed)

    def _attach(self, opened: Opened) -> None:
        annotation, project = self.annotation, self.project
        if annotation is None or project is None:
            return
        if annotation.labels.shape != opened.image.label_shape:
            self.failed.emit(
                ProjectError(
                    f"'{annotation.layer.name}' has the shape {annotation.labels.shape}, its image "
                    f"{opened.image.label_shape}.",
                    "Correct labels that cover the whole image at its full resolution.",
                )
            )
            self._drop_annotation()
            return
        try:
            annotation.restore(opened.stored, opened.regions)
        except ProjectError as error:
            self.failed.emit(error)
            self._drop_annotation()
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
            self._changed(bounds)
        self._save_regions()
        settings = {**project.settings, "image": opened.image.id}
        self._in_thread(lambda: project.update(settings=settings))

    def _save_regions(self) -> None:
        annotation, project, image = self.annotation, self.project, self.image
        if annotation is None or project is None or image is None or self._saver is None:
            return
        if self._pending:
            self._background.run(self._writer(), self._on_saved, self.failed.emit)

    def _writer(self) -> Callable[[], None]:
        """Writes what is pending; not to be called in the window's thread."""
        annotation, project, image = self.annotation, self.project, self.image
        saver, pending = self._saver, self._pending

        def write() -> None:
            if saver is None:
                return
            saver.flush()
            if annotation is None or project is None or image is None:
                return
            with self._regions_lock:  # one after the other, in their order
                corrections = project.corrections(image.id)
                while pending:
                    region, complete = pending.popleft()
                    if complete:
                        corrections.complete(region, annotation.read(region.bounds)[0])
                    elif region in corrections.regions:
                        corrections.remove_region(corrections.regions.index(region))

        return write

    def _on_saved(self, result: Any) -> None:
        """In the window's thread: something was written, or could not be."""
        if isinstance(result, Exception):
            self.failed.emit(result)
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
        if self._adding:  # the corrections have no place yet
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
        """What waited for the image to be added."""
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call()

    def _in_thread(self, work: Callable[[], Any]) -> None:
        self._background.run(work, lambda _: None, self.failed.emit)

    # Images of the project in the viewer

    def show_image(self, image_id: str) -> None:
        """Show an image of the project with its corrections."""
        project = self.project
        if project is None or (self.image is not None and self.image.id == image_id):
            return
        known = [(layer, path_of(layer)) for layer in self._viewer.layers if is_image(layer)]

        def work() -> tuple[Any, ...]:
            image = project.load(image_id)
            opened = read_corrections(project, project.image(image_id))
            return project, opened, image, layer_of(image, opened.image, known)

        self._background.run(work, self._show, self.failed.emit)

    def _show(self, found: tuple[Any, ...]) -> None:
        from napari.layers import Labels, Layer

        from napari_tttunet.convert import image_layers

        project, opened, image, layer = found
        if project is not self.project:
            return
        axes = image.axes
        if layer is None or layer not in self._viewer.layers:
            made = [Layer.create(*data) for data in image_layers(image)]
            self._viewer.layers.extend(made)
            layer = made[-1]
            axes = axes if image.rgb or "C" not in axes else axes.replace("C", "")
        elif "C" in axes and layer.ndim < len(axes) and not layer.rgb:
            axes = axes.replace("C", "")
        if layer.rgb:
            axes = axes.replace("C", "") + "S"
        grid = label_grid(layer, axes)
        arguments = grid.arguments()
        labels = Labels(grid.empty(np.int32), **arguments, name=f"{opened.image.name}: corrections")
        labels.metadata = {
            "tttunet": {**arguments["metadata"]["tttunet"], "image": layer.name, "corrected": True}
        }
        self._viewer.layers.append(labels)
        if self.annotate(labels, Source(layer, axes, opened.image.channel)):
            self._attach(opened)
        self.changed.emit()


def _close(saver: Autosaver | None, project: Project | None) -> None:
    try:
        if saver is not None:
            saver.close()
    finally:
        if project is not None:
            project.close()
