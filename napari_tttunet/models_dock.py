"""The Models dock: which models there are, what they are good for, and how others come in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QUrl
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import QFileDialog, QWidget

from napari_tttunet.dock_work import Background, Running, ask_for_path, read_library
from napari_tttunet.model_card import card_html, size
from napari_tttunet.models_panel import ModelsPanel
from napari_tttunet.session import session
from napari_tttunet.settings import Settings
from napari_tttunet.widgets import Scrolling
from tttunet.engine import messages

if TYPE_CHECKING:
    import napari

#: What the file dialogs offer.
_ARCHIVES = "Models (*.zip model.json)"
_CHECKPOINTS = "Checkpoints (*.pth *.pt)"


class ModelsDock(QWidget):
    """Lists, shows, imports, exports, removes and downloads models.

    Args:
        napari_viewer: not used; napari gives it to every dock.
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._settings = Settings()
        self._background = Background(self)
        self._run = Running(self, self.hear)
        self._choose_next = ""
        self._then: Callable[[dict[str, Any]], str] = lambda result: ""
        self.panel = ModelsPanel(self._settings)
        Scrolling(self.panel, self)
        self._connect()
        session().models_changed.connect(self.load)
        self.load()
        self._update()

    def _connect(self) -> None:
        panel = self.panel
        panel.list.chosen.connect(self._show_card)
        panel.import_archive.triggered.connect(lambda *_: self._choose_import("archive"))
        panel.import_folder.triggered.connect(lambda *_: self._choose_import("folder"))
        panel.import_checkpoint.triggered.connect(lambda *_: self._choose_import("checkpoint"))
        panel.importing.go.clicked.connect(lambda *_: self._import())
        panel.importing.stop.clicked.connect(panel.importing.hide)
        panel.export_archive.triggered.connect(lambda *_: self._choose_export(True))
        panel.export_folder.triggered.connect(lambda *_: self._choose_export(False))
        panel.remove.clicked.connect(lambda *_: self._ask_to_remove())
        panel.delete.clicked.connect(lambda *_: self._remove())
        panel.keep.clicked.connect(panel.confirm.hide)
        panel.open.clicked.connect(lambda *_: self._open_folder())
        panel.downloading.go.clicked.connect(lambda *_: self._download())
        panel.downloading.url.returnPressed.connect(self._download)
        panel.cancel.clicked.connect(lambda *_: self._cancel())

    # The list

    def load(self) -> None:
        """Read the library again, in the background; no worker is needed for that."""
        self._background.run(read_library, self._show_models, self.panel.message.tell_error)

    def _show_models(self, models: list[dict[str, Any]]) -> None:
        self.panel.list.fill(models, self._choose_next)
        self._choose_next = ""

    def _show_card(self) -> None:
        model = self.panel.list.current
        empty = "There are no models yet: import one, or download one below."
        self.panel.card.setHtml(card_html(model) if model else empty)
        self.panel.confirm.hide()
        self._update()

    def _update(self) -> None:
        self.panel.show_state(self._run.busy)

    # Jobs

    def _start(
        self, request: messages.Message, told: str, then: Callable[[dict[str, Any]], str]
    ) -> None:
        """Send a request; `then(result)` says what came of it."""
        if self._run.busy:
            return
        self.panel.message.clear()
        self.panel.progress.move_to(0.0, told)
        self._then = then
        self._run.job = None
        self._run.job = session().engine.request(request, self._run.on_event)
        self._update()

    def hear(self, event: Any) -> None:
        """An event of the job, in the window's thread."""
        progress = self.panel.progress
        if isinstance(event, messages.Queued) and event.ahead:
            progress.say("Waiting for other jobs")
        elif isinstance(event, messages.Started):
            if event.cold:
                progress.say("Starting the engine")
        elif isinstance(event, messages.Progress):
            progress.report(event.stage, event.fraction)
        elif isinstance(event, messages.TERMINAL):
            self._end(event)

    def _end(self, event: Any) -> None:
        progress = self.panel.progress
        progress.finish()
        if isinstance(event, messages.Done):
            progress.finish(self._then(event.result))
        elif isinstance(event, messages.Cancelled):
            progress.finish("Stopped; nothing was changed.")
        else:
            self.panel.message.tell_failure(event)
        self._update()

    def _cancel(self) -> None:
        if self._run.busy:
            self._run.cancel()
            self.panel.progress.say("Stopping")

    def _added(self, result: dict[str, Any]) -> str:
        """The text about a model that came in."""
        name = result["model"]["name"]
        self._choose_next = name
        self.panel.importing.hide()
        session().models_changed.emit()
        return " ".join([f"Added '{name}'.", *result.get("warnings", ())])

    # Import and download

    def ask_to_import(self, source: str) -> None:
        """Show what is asked before `source` is imported: folder, archive or checkpoint."""
        self.panel.message.clear()
        self.panel.confirm.hide()
        self._settings.set("models.folder", str(Path(source).parent))
        self._settings.save_soon()
        self.panel.importing.ask(source, source.lower().endswith((".pth", ".pt")))

    def _import(self) -> None:
        form = self.panel.importing
        name = form.name.text().strip()
        if form.convert and not name:
            name = _name_for(form.source)
        request = messages.AddModel(
            form.source,
            name,
            overwrite=form.replace.isChecked(),
            convert=form.convert,
            options=form.options() if form.convert else {},
        )
        self._start(request, "Importing", self._added)

    def _download(self) -> None:
        form = self.panel.downloading
        request = messages.DownloadModel(
            form.url.text().strip(),
            form.sha256.text().strip(),
            form.name.text().strip(),
            overwrite=form.replace.isChecked(),
        )

        def then(result: dict[str, Any]) -> str:
            checked = "as you gave it" if request.sha256 else "not compared with anything"
            return (
                f"{self._added(result)} {size(result['bytes'])} came; their SHA-256 is "
                f"{result['sha256']}, {checked}."
            )

        self._start(request, "Connecting", then)

    # Export and removal

    def export_to(self, path: str) -> None:
        """Write the chosen model: an archive if `path` ends in .zip, else the folder `path`."""
        model = self.panel.list.current
        if model is not None:
            # The file dialog has asked whether an archive may be replaced.
            overwrite = path.lower().endswith(".zip")
            request = messages.ExportModel(_reference(model), path, overwrite)
            self._start(request, "Exporting", lambda result: f"Written: {result['path']}")

    def _ask_to_remove(self) -> None:
        model = self.panel.list.current
        if model is not None:
            text = f"Delete the model '{model['name']}' from this computer?"
            self.panel.confirm_text.setText(text)
            self.panel.confirm.show()

    def _remove(self) -> None:
        model = self.panel.list.current
        self.panel.confirm.hide()
        if model is None:
            return

        def then(result: dict[str, Any]) -> str:
            session().models_changed.emit()
            return f"Removed '{Path(result['folder']).name}'."

        self._start(messages.RemoveModel(model["name"]), "Removing", then)

    def _open_folder(self) -> None:
        model = self.panel.list.current
        if model is not None:
            QDesktopServices.openUrl(QUrl.fromLocalFile(model["path"]))

    # Dialogs

    def _choose_import(self, kind: str) -> None:
        mode = QFileDialog.FileMode
        ask_for_path(
            self,
            "Import a model",
            lambda paths: self.ask_to_import(paths[0]),
            folder=self._settings.get("models.folder", ""),
            mode=mode.Directory if kind == "folder" else mode.ExistingFile,
            filters={"archive": _ARCHIVES, "checkpoint": _CHECKPOINTS}.get(kind, ""),
        )

    def _choose_export(self, archive: bool) -> None:
        model = self.panel.list.current
        if model is None:
            return
        name = model["name"]

        def chosen(paths: list[str]) -> None:
            self.export_to(paths[0] if archive else str(Path(paths[0]) / name))

        ask_for_path(
            self,
            "Export the model",
            chosen,
            folder=self._settings.get("models.folder", ""),
            mode=QFileDialog.FileMode.Directory,
            save_as=f"{name}.zip" if archive else "",
            filters="Archives (*.zip)" if archive else "",
        )


def _reference(model: dict[str, Any]) -> str:
    """What the engine calls a model: its folder, as two may have the same name."""
    return str(model["path"])


def _name_for(checkpoint: str) -> str:
    """A name for a converted checkpoint, from the folder that says what it was trained on."""
    from re import sub

    path = Path(checkpoint)
    fold = path.parent.name.startswith("fold_")
    text = (path.parent.parent if fold else path.parent).name or path.stem
    return sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-._") or "model"
