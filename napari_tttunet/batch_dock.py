"""The Batch dock: segment many files, see where each one is, stop and go on."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QModelIndex, QUrl
from qtpy.QtGui import QDesktopServices, QGuiApplication
from qtpy.QtWidgets import QFileDialog, QWidget

from napari_tttunet.batch_panel import BatchPanel
from napari_tttunet.batch_results import load_result
from napari_tttunet.batch_table import (
    OVER,
    DropMixin,
    FileRow,
    find_files,
    label_name,
    results_folder,
)
from napari_tttunet.dock_work import Background, Running, ask_for_path, delayed, read_library
from napari_tttunet.layers import real_viewer
from napari_tttunet.session import session
from napari_tttunet.settings import Settings
from napari_tttunet.widgets import Scrolling, duration, roughly
from tttunet.engine import messages

if TYPE_CHECKING:
    import napari

_LOST = "The engine ended while it worked on this image, perhaps for lack of memory."
#: Milliseconds after the last key before names are looked up again.
_TYPING = 300
_YAML = "Batch files (*.yaml *.yml *.json)"


class BatchDock(DropMixin, QWidget):
    """Segments files with one model into one folder.

    Args:
        napari_viewer: shows results that are double clicked.
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.viewer = real_viewer(napari_viewer)
        self._settings = Settings()
        self._background = Background(self)
        self._run = Running(self, self.hear)
        self._inputs: list[str] = []
        self._own_output = True
        self._begun: float | None
        self._saved: tuple[str, dict[str, Any]] | None = None
        self._shown = 0
        self._started, self._begun = 0.0, None
        self._before, self._place = 0, (0, 1)
        self.panel = BatchPanel(self._settings)
        self.table, self.form = self.panel.table, self.panel.form
        self.message = self.panel.message
        self.on_drop = self.add_inputs
        self.setAcceptDrops(True)
        Scrolling(self.panel, self)
        self._timer = delayed(self, _TYPING, self.refresh)
        self._connect()
        session().models_changed.connect(self.load_models)
        self.load_models()
        self._offer_unfinished()
        self._update()

    def _connect(self) -> None:
        clicks: dict[str, Callable[[], None]] = {
            "batch_go_on": self._open_unfinished,
            "batch_forget": self._forget_unfinished,
            "batch_add_folder": partial(self._choose_inputs, QFileDialog.FileMode.Directory),
            "batch_add_files": partial(self._choose_inputs, QFileDialog.FileMode.ExistingFiles),
            "batch_add_open": self.add_open_images,
            "batch_clear": self.clear,
            "batch_start": self._start_or_cancel,
            "batch_resume": self.resume,
            "batch_open_output": self._open_output,
            "batch_copy": self.copy_command,
            "batch_save": self._choose_save,
            "batch_open": self._choose_open,
        }
        for name, act in clicks.items():
            self.panel.buttons[name].clicked.connect(lambda *_, act=act: act())
        self.panel.view.doubleClicked.connect(self.open_row)
        self.panel.view.removed.connect(self.remove_rows)
        self.form.names_changed.connect(self._timer.start)
        self.form.changed.connect(self._update)
        self.form.browse.connect(self._choose_output)
        self.form.output.textEdited.connect(self._output_edited)
        self.form.output.editingFinished.connect(self.form.show_folder)

    def _update(self) -> None:
        """Enable what can be done now."""
        busy = self._run.busy
        self.panel.show_state(
            busy=busy,
            stopping=busy and self._run.job.state == "cancelling",
            chosen=bool(self._inputs),
            retry=bool(self._retryable()),
        )

    # Which files

    def add_inputs(self, paths: list[str]) -> None:
        """Add files or folders; a single batch file (.yaml) is opened instead."""
        if self._run.busy or not paths:
            return
        if len(paths) == 1 and paths[0].lower().endswith((".yaml", ".yml", ".json")):
            self.open_plan(paths[0])
            return
        # The worker has a working folder of its own, and tells of files by their whole paths.
        whole = [os.path.abspath(os.path.expanduser(path)) for path in paths]
        self._inputs += [path for path in whole if path not in self._inputs]
        self.refresh()

    def add_open_images(self) -> None:
        """Add the files of the viewer's image layers, and name the layers that have none."""
        found, without = [], []
        for layer in self.viewer.layers:
            own = layer.metadata.get("tttunet") or {}
            if not hasattr(layer, "rgb") or "shows" in own:  # maps that we made are no images
                continue
            path = layer.source.path or own.get("path")
            if path and Path(path).exists():
                found.append(str(path))
            else:
                without.append(f"'{layer.name}'")
        self.add_inputs(list(dict.fromkeys(found)))
        hint = "Save it first, or add its file."
        if not found:
            self.message.tell("error", "No image layer was opened from a file.", hint)
        elif without:
            names = ", ".join(without)
            self.message.tell("warning", f"Left out, for lack of a file: {names}.", hint)

    def remove_rows(self, numbers: list[int]) -> None:
        """Leave files out; folders become the list of their other files."""
        if not self._run.busy:
            self._inputs = [r.path for i, r in enumerate(self.table.rows) if i not in set(numbers)]
            self.refresh()

    def clear(self) -> None:
        self._inputs = []
        if self._own_output:
            self.form.output.clear()
        self.panel.tell("")
        self.message.clear()
        self.refresh()

    def refresh(self) -> None:
        """Look the files up again, in the background."""
        if self._run.busy:
            return
        self.message.clear()
        self._shown += 1
        fields, inputs = self.form.fields(), list(self._inputs)

        def look() -> tuple[list[FileRow], str, str]:
            rows = find_files(inputs, fields["ending"], fields["frames"])
            output = results_folder(inputs[0]) if inputs else ""
            first = next((row.path for row in rows if row.state == "waiting"), "")
            if not first:
                return rows, "", output
            name = label_name(first, fields["ending"], fields["format"], fields["frames"])
            return rows, f"{Path(first).name} gives {name}", output

        self._background.run(look, partial(self._show_files, self._shown), self._background_failed)

    def _show_files(self, number: int, found: tuple[list[FileRow], str, str]) -> None:
        if number != self._shown or self._run.busy:
            return  # the user has gone on meanwhile
        rows, preview, output = found
        self.table.reset(rows)
        self.form.show_preview(preview)
        if self._own_output and not self.form.output.text():
            self.form.output.setText(output)
        self.form.base = str(Path(output).parent) if output else ""
        self.form.show_folder()
        self._update()

    def _background_failed(self, error: Exception) -> None:
        self.message.tell_error(error)
        self._update()

    def _output_edited(self, text: str) -> None:
        self._own_output = not text

    def load_models(self) -> None:
        """Read the library, in the background."""
        self._background.run(read_library, self.form.show_models, self._background_failed)

    # Running

    def plan(self) -> dict[str, Any]:
        """The fields of the batch file that does what the dock would do."""
        return {"inputs": list(self._inputs), **self.form.fields()}

    def _start_or_cancel(self) -> None:
        if self._run.busy:
            self._run.job.cancel()
            self._update()
        else:
            self.start()

    def start(self) -> None:
        """Look the files up again and segment all of them."""
        fields = self.form.fields()
        if not fields["output"]:
            self.message.tell(
                "error", "There is no folder for the results.", "Choose it at 'Save in'."
            )
            self.form.output.setFocus()
            return
        self.panel.start_button.setEnabled(False)
        self._shown += 1
        look = partial(find_files, list(self._inputs), fields["ending"], fields["frames"])
        self._background.run(look, self._start_found, self._background_failed)

    def _start_found(self, rows: list[FileRow]) -> None:
        self.table.reset(rows)
        self._begin(self.table.paths("waiting"))

    def resume(self) -> None:
        """Go on with the files that wait; if there are none, with those that failed."""
        paths = self.table.paths("waiting") or self._retryable()
        if paths and not self._run.busy:
            self.table.restart(paths)
            self._begin(paths)

    def _retryable(self) -> list[str]:
        return [row.path for row in self.table.rows if row.state == "failed" and row.labels]

    def _begin(self, paths: list[str]) -> None:
        self.message.clear()
        if not paths:
            self.message.tell("error", "None of the files can be read.", "Add other images.")
            self._update()
            return
        self._settings.set("batch.unfinished", self.plan())
        self._settings.save_soon()
        plan = {**self.form.fields(), "inputs": paths}
        self._started, self._begun = time.monotonic(), None
        self._before = self.table.count("done", "failed")
        self._run.job = None
        self.panel.move_to(0.0, "Waiting for the engine")
        self._run.job = session().engine.request(messages.Batch(plan), self._run.on_event)
        self._update()

    def hear(self, event: Any) -> None:
        """An event of the batch, in the window's thread."""
        if isinstance(event, messages.Queued):
            ahead = event.ahead
            if ahead:
                self.panel.tell(f"Waiting for {ahead} other job{'s' * (ahead != 1)}")
        elif isinstance(event, messages.Started):
            self.panel.tell("Starting the engine" if event.cold else "Starting")
        elif isinstance(event, messages.FileStatus):
            if event.state == "running" and self._begun is None:
                self._begun = time.monotonic()
            self._place = event.index, event.total
            self.table.update(event)
            self._show_progress()
        elif isinstance(event, messages.Progress):
            if event.stage == "segmenting":
                self._show_fraction(event.fraction)
            elif self.table.running is None:
                self.panel.tell(event.stage.capitalize())
        elif isinstance(event, messages.Log):
            self.table.note(event.message)
        elif isinstance(event, messages.TERMINAL):
            self._end(event)

    def _show_fraction(self, fraction: float) -> None:
        """`fraction` is of all files of this job, each of which counts the same."""
        index, size = self._place
        self.table.progress(fraction * size - index)
        self._show_progress()

    def _show_progress(self) -> None:
        rows = self.table.rows
        place = self.table.running
        part = rows[place].fraction if place is not None else 0.0
        over = self.table.count(*OVER)
        text = f"{over} of {len(rows)} images"
        # Files that are skipped take no time and say nothing about that of the others.
        worked = self.table.count("done", "failed") - self._before + part
        if self._begun is not None and worked > 0.05:
            rate = (time.monotonic() - self._begun) / worked
            text += f", {roughly(rate * (len(rows) - over - part))} left"
        if place is not None:
            text += f"\n{Path(rows[place].path).name}"
        self.panel.move_to((over + part) / max(1, len(rows)), text)

    def _end(self, event: Any) -> None:
        if isinstance(event, messages.Lost):
            lost = self.table.running is not None
            self.table.interrupt("failed", _LOST)
            if lost and self.table.count("waiting"):
                # One image that is too large must not stop the others.
                self.resume()
                return
            self.message.tell_failure(event)
        self.table.interrupt("waiting")
        if isinstance(event, messages.Failed):
            self.message.tell_failure(event)
        counts = {state: self.table.count(state) for state in (*OVER, "waiting")}
        parts = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
        took = duration(time.monotonic() - self._started)
        if isinstance(event, messages.Cancelled):
            self.panel.finish(f"Stopped: {parts}. What is done stays; Resume goes on.")
        else:
            self.panel.finish(f"{parts}, in {took}.")
        if not counts["waiting"]:
            self._settings.set("batch.unfinished", {})
            self._settings.save_soon()
        self.form.show_devices(session().engine.about)
        self._update()

    # Results

    def open_row(self, index: QModelIndex) -> None:
        """Show an image and its labels in the viewer; both are read in the background."""
        row = self.table.rows[index.row()]
        if row.state not in ("done", "skipped"):
            return
        work = partial(load_result, row.path, row.labels, self.form.fields())
        self._background.run(work, self._show_result, self._background_failed)

    def _show_result(self, result: Any) -> None:
        self.message.clear()
        result.show(self.viewer)

    def _open_output(self) -> None:
        folder = Path(self.form.folder())
        if not folder.is_dir():
            self.message.tell("error", f"There is no folder '{folder}' yet.", "Start makes it.")
        else:
            QDesktopServices.openUrl(QUrl.fromLocalFile(str(folder)))

    # The batch as a file or command

    def copy_command(self) -> None:
        """Put the command that does the same on the clipboard."""
        from tttunet.engine.batch import segment_command

        plan = self.plan()
        if self._saved is not None and self._saved[1] == plan:
            command: str | None = shlex.join(["tttunet", "batch", self._saved[0]])
        else:
            command = segment_command(plan)
        if command is None:
            self.message.tell(
                "error",
                "A single command cannot choose names and formats.",
                "Save the batch as YAML first; then its command is copied.",
            )
            return
        self.message.clear()
        QGuiApplication.clipboard().setText(command)
        self.panel.tell("Copied: " + command)

    def save_plan(self, path: str) -> None:
        """Save the batch as a file that `tttunet batch` runs."""
        plan = self.plan()

        def write() -> str:
            from tttunet.engine.batch import Batch

            return str(Batch.from_dict(plan).write(path, overwrite=True))

        def saved(path: str) -> None:
            self._saved = path, plan
            self.message.clear()
            self.panel.tell(f"Saved. In a terminal: {shlex.join(['tttunet', 'batch', path])}")

        self._background.run(write, saved, self._background_failed)

    def open_plan(self, path: str) -> None:
        """Show a batch file."""

        def read() -> dict[str, Any]:
            from tttunet.engine.batch import Batch

            return Batch.read(path).model_dump(mode="json")

        def show(plan: dict[str, Any]) -> None:
            self._show_plan(plan)
            self._saved = path, self.plan()

        self._background.run(read, show, self._background_failed)

    def _show_plan(self, plan: dict[str, Any]) -> None:
        self._inputs = list(plan["inputs"])
        self._own_output = False
        self.form.show_fields(plan)
        self.panel.tell("")
        self.refresh()

    def _offer_unfinished(self) -> None:
        plan: dict[str, Any] = self._settings.get("batch.unfinished", {})
        self.panel.offer_unfinished(str(plan.get("output", "")))

    def _open_unfinished(self) -> None:
        plan: dict[str, Any] = self._settings.get("batch.unfinished", {})
        self.panel.unfinished.hide()

        def check() -> dict[str, Any]:
            from tttunet.engine.batch import Batch

            return Batch.from_dict(plan).model_dump(mode="json")

        self._background.run(check, self._show_plan, self._background_failed)

    def _forget_unfinished(self) -> None:
        self.panel.unfinished.hide()
        self._settings.set("batch.unfinished", {})
        self._settings.save_soon()

    # Dialogs

    def _choose_inputs(self, mode: QFileDialog.FileMode) -> None:
        ask_for_path(self, "Images", self.add_inputs, folder=self._folder(), mode=mode)

    def _choose_output(self) -> None:
        def chosen(paths: list[str]) -> None:
            self._own_output = False
            self.form.output.setText(paths[0])

        mode = QFileDialog.FileMode.Directory
        ask_for_path(self, "Folder of the results", chosen, folder=self._folder(), mode=mode)

    def _choose_save(self) -> None:
        ask_for_path(
            self,
            "Save the batch",
            lambda paths: self.save_plan(paths[0]),
            folder=self._folder(),
            save_as="batch.yaml",
            filters=_YAML,
        )

    def _choose_open(self) -> None:
        ask_for_path(
            self,
            "Open a batch",
            lambda paths: self.open_plan(paths[0]),
            folder=self._folder(),
            filters=_YAML,
        )

    def _folder(self) -> str:
        """Where dialogs begin: beside what was chosen last."""
        return str(Path(self._inputs[-1]).parent) if self._inputs else ""
