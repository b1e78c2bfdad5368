"""What the Batch dock looks like; `batch_dock` says what it does."""

from __future__ import annotations

from qtpy.QtWidgets import QGridLayout, QPushButton, QVBoxLayout, QWidget

from napari_tttunet.batch_form import BatchForm
from napari_tttunet.batch_table import OVER, FileTable, FileView
from napari_tttunet.settings import Settings
from napari_tttunet.widgets import (
    MessageLabel,
    ProgressLine,
    button_grid,
    explain,
    side_by_side,
    text_label,
)

_EMPTY = "Drop images or a folder here, or choose them above."
_TABLE = "The images. Key: Delete takes the chosen ones out of the list; their files stay."
_UNFINISHED = (
    ("Go on", "batch_go_on", "Open that batch again; Start leaves out what is done."),
    ("Forget it", "batch_forget", "Its results stay."),
)
_SOURCES = (
    (
        "Add folder...",
        "batch_add_folder",
        "All images of a folder, without its subfolders; and DICOM series: the folder itself, or "
        "each folder in it. You can drop it here too.",
    ),
    ("Add files...", "batch_add_files", "Single images. You can drop them here too."),
    (
        "Add open images",
        "batch_add_open",
        "The image layers of the viewer that were opened from files.",
    ),
    ("Clear", "batch_clear", "Empty the list; files stay."),
)
_AFTER = (
    ("Open results", "batch_open_output", "Show the results in the file manager."),
    ("Copy command line", "batch_copy", "Copy the command that does the same in a terminal."),
    (
        "Save as YAML...",
        "batch_save",
        "Save this batch; `tttunet batch FILE.yaml` runs it, here or on a server.",
    ),
    ("Open YAML...", "batch_open", "Open a batch that was saved."),
)


class BatchPanel(QWidget):
    """The controls of the Batch dock.

    Attributes:
        buttons: by their names.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.buttons: dict[str, QPushButton] = {}
        self.table = FileTable(self)
        self.unfinished = QWidget()
        self._unfinished_text = text_label("batch_unfinished_text")
        column = QVBoxLayout(self.unfinished)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self._unfinished_text)
        column.addLayout(self._grid(_UNFINISHED))
        self.sources = QWidget()
        self.sources.setLayout(self._grid(_SOURCES))
        self.view = explain(FileView(self.table, _EMPTY), "batch_files", _TABLE)
        self.form = BatchForm(settings)
        self.start_button = self._button("Start", "batch_start", "")
        self.start_button.setDefault(True)
        self.resume_button = self._button("Resume", "batch_resume", "")
        self.start_button.setStyleSheet("font-weight: bold; padding: 5px;")
        self.resume_button.setStyleSheet("padding: 5px;")
        self.progress = ProgressLine("batch_progress")
        self.message = MessageLabel()
        self._told = False
        layout = QVBoxLayout(self)
        layout.setContentsMargins(8, 8, 8, 8)
        layout.addWidget(self.unfinished)
        layout.addWidget(self.sources)
        layout.addWidget(self.view, 1)
        layout.addWidget(self.form)
        layout.addLayout(side_by_side(self.start_button, self.resume_button))
        layout.addWidget(self.progress)
        layout.addWidget(self.message)
        layout.addLayout(self._grid(_AFTER))

    def _button(self, text: str, name: str, tip: str) -> QPushButton:
        self.buttons[name] = made = explain(QPushButton(text), name, tip)
        made.setAccessibleName(text)
        return made

    def _grid(self, entries: tuple[tuple[str, str, str], ...]) -> QGridLayout:
        return button_grid([self._button(*entry) for entry in entries])

    def tell(self, text: str) -> None:
        """Say how the batch goes; "": say how many images there are."""
        self._told = bool(text)
        self.progress.say(text)

    def move_to(self, fraction: float, text: str) -> None:
        """Say how far the files are, all together."""
        self._told = True
        self.progress.move_to(fraction, text)

    def finish(self, text: str) -> None:
        """Say how the batch ended."""
        self._told = True
        self.progress.finish(text)

    def offer_unfinished(self, output: str) -> None:
        """Offer the batch of another session, by its output folder; "": there is none."""
        self._unfinished_text.setText(f"A batch into '{output}' was interrupted.")
        self.unfinished.setVisible(bool(output))

    def show_state(self, *, busy: bool, stopping: bool, chosen: bool, retry: bool) -> None:
        """Enable what can be done.

        Args:
            busy: a batch waits or runs.
            stopping: it was cancelled.
            chosen: there are files or folders.
            retry: some of the files failed and may be tried again.
        """
        waiting = bool(self.table.count("waiting"))
        begun = bool(self.table.count(*OVER))
        for widget in (self.sources, self.form, self.buttons["batch_open"]):
            widget.setEnabled(not busy)
        for name in ("batch_copy", "batch_save", "batch_clear"):
            self.buttons[name].setEnabled(chosen)
        self.buttons["batch_open_output"].setEnabled(bool(self.form.output.text().strip()))
        self.start_button.setText("Stopping..." if stopping else "Cancel" if busy else "Start")
        self.start_button.setToolTip(
            "Stop after this tile; what is done stays." if busy else "Segment all files."
        )
        self.start_button.setEnabled(not stopping and (busy or bool(self.table.rows)))
        self.resume_button.setVisible(not busy and ((begun and waiting) or retry))
        self.resume_button.setText("Resume" if waiting else "Try failed again")
        self.resume_button.setToolTip(
            "Go on with the files that wait." if waiting else "Only the files that failed."
        )
        if not self._told:
            count = len(self.table.rows)
            text = f"{count} image{'s' * (count != 1)}" if count else ""
            self.progress.say(text)
