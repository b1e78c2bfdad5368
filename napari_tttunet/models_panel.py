"""What the Models dock looks like; `models_dock` says what it does."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QHeaderView,
    QLineEdit,
    QMenu,
    QPushButton,
    QTextBrowser,
    QTreeWidget,
    QTreeWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_tttunet.settings import Settings
from napari_tttunet.widgets import (
    FoldingSection,
    MessageLabel,
    ProgressLine,
    button_grid,
    explain,
    form_layout,
    text_label,
)

_COLUMNS = ("Name", "Version", "Task", "")
_TASKS = {"instance": "objects", "semantic": "regions"}
#: Where an entry's name is kept.
_NAME = Qt.ItemDataRole.UserRole
#: The list is as high as its models are many, up to this; then it scrolls.
_MOST_ROWS = 6


class ModelList(QTreeWidget):
    """The models of the library, damaged ones in grey.

    Attributes:
        chosen: another model was chosen.
    """

    chosen = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.models: dict[tuple[str, str], dict[str, Any]] = {}
        self.setColumnCount(len(_COLUMNS))
        self.setHeaderLabels(_COLUMNS)
        self.setRootIsDecorated(False)
        self.setUniformRowHeights(True)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        header = self.header()
        header.setStretchLastSection(False)
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        for column in range(1, len(_COLUMNS)):
            header.setSectionResizeMode(column, QHeaderView.ResizeMode.ResizeToContents)
        self._fit()
        self.currentItemChanged.connect(lambda *_: self.chosen.emit())

    @property
    def current(self) -> dict[str, Any] | None:
        """The entry that is chosen."""
        item = self.currentItem()
        return None if item is None else self.models.get(tuple(item.data(0, _NAME)))

    def fill(self, models: list[dict[str, Any]], choose: str = "") -> None:
        """Show entries of the library; `choose` is the name of the one to choose."""
        old = self.current
        wanted = choose or (old["name"] if old else "")
        self.blockSignals(True)
        self.clear()
        self.models = {(m["origin"], m["name"]): m for m in models}
        for key, model in self.models.items():
            dim = f"{model['dim']}D" if model["dim"] else ""
            task = _TASKS.get(model["task"] or "", "damaged")
            item = QTreeWidgetItem([model["name"], model.get("version", ""), task, dim])
            item.setData(0, _NAME, list(key))
            item.setToolTip(0, model["error"] or model["title"] or "")
            if model["error"]:
                for column in range(len(_COLUMNS)):
                    item.setForeground(column, Qt.GlobalColor.gray)
            self.addTopLevelItem(item)
        self._fit()
        items = self.findItems("", Qt.MatchFlag.MatchContains)
        found = [item for item in items if item.text(0) == wanted]
        if items:
            self.setCurrentItem(found[-1] if found else items[0])
        self.blockSignals(False)
        self.chosen.emit()

    def _fit(self) -> None:
        rows = min(max(self.topLevelItemCount(), 1), _MOST_ROWS)
        row = self.sizeHintForRow(0) if self.topLevelItemCount() else self.fontMetrics().height()
        self.setFixedHeight(self.header().sizeHint().height() + rows * row + 6)


class ImportForm(QWidget):
    """Asks what is needed before a model is imported; appears when a file was chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.source = ""
        self.convert = False
        self.what = text_label("models_import_source")
        self.name, self.replace = _name_and_replace("models_import")
        self.title = explain(
            QLineEdit(), "models_import_title", "One line about the model, for its card."
        )
        self.licence = explain(
            QLineEdit(), "models_import_licence", "The licence of the checkpoint, for the card."
        )
        self.configuration = explain(
            QLineEdit(),
            "models_import_configuration",
            "nnU-Net's configuration (2d, 3d_fullres), if the checkpoint does not say it.",
        )
        self.configuration.setPlaceholderText("as the checkpoint says")
        self.go = explain(QPushButton("Import"), "models_import_go", "Check it and add it.")
        self.stop = explain(QPushButton("Do not import"), "models_import_stop", "Import nothing.")
        self._form = form_layout(self)
        self._form.addRow(self.what)
        self._form.addRow("Name", self.name)
        self._form.addRow("Title", self.title)
        self._form.addRow("Licence", self.licence)
        self._form.addRow("Configuration", self.configuration)
        self._form.addRow(self.replace)
        self._form.addRow(button_grid([self.go, self.stop]))
        self.hide()

    def ask(self, source: str, convert: bool) -> None:
        """Show the form for a model (a folder or zip) or, with `convert`, a checkpoint."""
        self.source, self.convert = source, convert
        self.what.setText(f"Import '{source}'")
        for edit in (self.name, self.title, self.licence, self.configuration):
            edit.clear()
        self.name.setPlaceholderText(
            "made from the file's name" if convert else "as the model says"
        )
        self.replace.setChecked(False)
        for widget in (self.title, self.licence, self.configuration):
            widget.setVisible(convert)
            label = self._form.labelForField(widget)
            if label is not None:
                label.setVisible(convert)
        self.show()

    def options(self) -> dict[str, str]:
        """Options of the conversion."""
        edits = {
            "title": self.title,
            "licence": self.licence,
            "configuration": self.configuration,
        }
        given = {name: edit.text().strip() for name, edit in edits.items()}
        return {name: text for name, text in given.items() if text}


class DownloadForm(QWidget):
    """Asks for an address."""

    def __init__(self) -> None:
        super().__init__()
        self.url = explain(
            QLineEdit(), "models_url", "Address (https://) of a model's archive (.zip)."
        )
        self.url.setPlaceholderText("https://")
        self.sha256 = explain(
            QLineEdit(),
            "models_sha256",
            "The checksum that the page with the address states: 64 digits. Without it you trust "
            "the page and the connection.",
        )
        self.sha256.setPlaceholderText("optional")
        self.name, self.replace = _name_and_replace("models_download")
        self.go = explain(
            QPushButton("Download"),
            "models_download",
            "Nothing is ever downloaded unless you press this; at most 2 GB.",
        )
        form = form_layout(self, indent=8)
        form.addRow("Address", self.url)
        form.addRow("SHA-256", self.sha256)
        form.addRow("Name", self.name)
        form.addRow(self.replace)
        form.addRow(self.go)


def _name_and_replace(prefix: str) -> tuple[QLineEdit, QCheckBox]:
    """What is asked of every model that comes in."""
    name: QLineEdit = explain(
        QLineEdit(), f"{prefix}_name", "What the model is called in your library."
    )
    name.setPlaceholderText("as the model says")
    replace: QCheckBox = explain(
        QCheckBox("Replace the model of that name"),
        f"{prefix}_replace",
        "Otherwise a model that you have is never changed.",
    )
    return name, replace


class ModelsPanel(QWidget):
    """The controls of the Models dock."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.list = explain(ModelList(), "models_list", "The models that you can choose by name.")
        self.card = explain(QTextBrowser(), "models_card", "What is known about the model")
        self.card.setOpenLinks(False)
        self.card.setMinimumHeight(180)
        self.import_ = explain(QPushButton("Import"), "models_import", "Add a model that you have.")
        menu = QMenu(self.import_)
        self.import_archive = menu.addAction("Archive (.zip) or model.json...")
        self.import_folder = menu.addAction("Model folder...")
        self.import_checkpoint = menu.addAction("Checkpoint of the authors (.pth)...")
        self.import_.setMenu(menu)
        self.export = explain(QPushButton("Export"), "models_export", "Hand this model on.")
        menu = QMenu(self.export)
        self.export_archive = menu.addAction("As an archive (.zip)...")
        self.export_folder = menu.addAction("Into a folder...")
        self.export.setMenu(menu)
        self.remove = explain(
            QPushButton("Remove..."), "models_remove", "Delete a model that you added."
        )
        self.open = explain(
            QPushButton("Open folder"), "models_open_folder", "Show its files in the file manager."
        )
        grid = button_grid([self.import_, self.export, self.remove, self.open])
        self.confirm = QWidget()
        self.confirm_text = text_label("models_confirm")
        self.delete = explain(QPushButton("Delete"), "models_delete", "It cannot be undone.")
        self.keep = explain(QPushButton("Keep"), "models_keep", "Leave it where it is.")
        column = QVBoxLayout(self.confirm)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.confirm_text)
        column.addLayout(button_grid([self.delete, self.keep]))
        self.confirm.hide()
        self.importing = ImportForm()
        self.downloading = DownloadForm()
        self.cancel = explain(QPushButton("Cancel"), "models_cancel", "Stop; nothing is changed.")
        self.progress = ProgressLine("models_progress", self.cancel)
        self.message = MessageLabel()
        self.download_fold = FoldingSection(
            "Download from the web",
            self.downloading,
            "models_download_fold",
            settings,
            "models.download",
        )
        layout = QVBoxLayout(self)
        layout.setContentsMargins(8, 8, 8, 8)
        layout.addWidget(self.list)
        layout.addWidget(self.card, 1)
        layout.addLayout(grid)
        for widget in (self.confirm, self.importing, self.download_fold):
            layout.addWidget(widget)
        layout.addWidget(self.progress)
        layout.addWidget(self.message)

    def show_state(self, busy: bool) -> None:
        """Enable what can be done."""
        model = self.list.current
        self.import_.setEnabled(not busy)
        self.importing.setEnabled(not busy)
        self.downloading.setEnabled(not busy)
        self.export.setEnabled(not busy and model is not None and not model["error"])
        mine = model is not None and model["origin"] == "user"
        self.remove.setEnabled(not busy and mine)
        self.remove.setToolTip(
            "Delete a model that you added." if mine else "Models of the plugin stay."
        )
        self.open.setEnabled(model is not None)
        if not mine:
            self.confirm.hide()
