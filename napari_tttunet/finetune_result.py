"""What a fine-tuning brought: scores, pictures side by side, and what to do with the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtCore import QRectF, QSize, Qt
from qtpy.QtGui import QImage, QPainter, QPalette
from qtpy.QtWidgets import QPushButton, QSizePolicy, QVBoxLayout, QWidget

from napari_tttunet.widgets import button_grid, explain, show_text, text_label
from tttunet.engine.outcome import scores_text

#: Colours of the outlines: corrections, before, after.
_OUTLINES = {"truth": (90, 220, 110), "before": (240, 170, 60), "after": (90, 180, 255)}
_TITLES = {"truth": "your labels", "before": "before", "after": "after"}
_GAP = 4


class Pictures(QWidget):
    """Held-out places in rows: the labels, and what was found before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("finetune_pictures")
        self.setAccessibleName("Held-out places before and after")
        self.setToolTip(
            "Places that were not trained on: your labels, what the model found before, and after."
        )
        policy = QSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        policy.setHeightForWidth(True)
        self.setSizePolicy(policy)
        self.rows: list[list[tuple[str, QImage]]] = []
        self.hide()

    def show_file(self, path: str) -> None:
        """Show what `tttunet.training.comparison` has written; nothing if that is not there."""
        self.rows = []
        try:
            with np.load(path, allow_pickle=False) as arrays:
                for number in range(len(arrays.files) // 4):
                    image = arrays[f"image_{number}"]
                    self.rows.append(
                        [
                            (name, _outlined(image, arrays[f"{name}_{number}"], _OUTLINES[name]))
                            for name in _TITLES
                        ]
                    )
        except (OSError, ValueError, KeyError):
            self.rows = []
        self.setVisible(bool(self.rows))
        self.updateGeometry()
        self.update()

    def heightForWidth(self, width: int) -> int:  # noqa: N802
        title = self.fontMetrics().height() + 2
        return title + sum(round(h) + _GAP for h in self._heights(width))

    def sizeHint(self) -> QSize:  # noqa: N802
        return QSize(260, self.heightForWidth(max(self.width(), 200)))

    def resizeEvent(self, event: Any) -> None:  # noqa: N802
        super().resizeEvent(event)
        self.setFixedHeight(self.heightForWidth(self.width()))

    def _heights(self, width: int) -> list[float]:
        each = (width - 2 * _GAP) / 3
        return [
            min(each * row[0][1].height() / max(row[0][1].width(), 1), 1.6 * each)
            for row in self.rows
        ]

    def paintEvent(self, _: Any) -> None:  # noqa: N802
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform)
        painter.setPen(self.palette().color(QPalette.ColorRole.WindowText))
        each = (self.width() - 2 * _GAP) / 3
        title = self.fontMetrics().height() + 2
        for column, text in enumerate(_TITLES.values()):
            place = QRectF(column * (each + _GAP), 0, each, title)
            painter.drawText(place, Qt.AlignmentFlag.AlignCenter, text)
        top = float(title)
        for row, height in zip(self.rows, self._heights(self.width()), strict=True):
            for column, (_name, image) in enumerate(row):
                left = column * (each + _GAP)
                scale = min(each / image.width(), height / image.height())
                wide, tall = image.width() * scale, image.height() * scale
                painter.drawImage(QRectF(left + (each - wide) / 2, top, wide, tall), image)
            top += height + _GAP


def _outlined(image: np.ndarray, labels: np.ndarray, colour: tuple[int, int, int]) -> QImage:
    """An image with the outlines of labels; where nobody looked (-1) it is darker."""
    shown = np.repeat(image[..., None], 3, -1) if image.ndim == 2 else image.copy()
    scale = max(1, 256 // max(shown.shape[:2]))  # outlines thinner than the pixels
    shown = shown.repeat(scale, 0).repeat(scale, 1)
    labels = labels.repeat(scale, 0).repeat(scale, 1)
    shown[labels < 0] = shown[labels < 0] // 2
    edge = np.zeros(labels.shape, bool)
    edge[:-1] |= labels[:-1] != labels[1:]
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    near = labels > 0
    near[:-1] |= labels[1:] > 0
    near[:, :-1] |= labels[:, 1:] > 0
    shown[edge & near] = colour
    shown = np.ascontiguousarray(shown)
    height, width, _ = shown.shape
    return QImage(shown.data, width, height, 3 * width, QImage.Format.Format_RGB888).copy()


class ResultPanel(QWidget):
    """Scores, pictures and the decision; hidden until there is a result."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = text_label("finetune_scores", "What the fine-tuning brought")
        self.pictures = Pictures()
        self.keep = explain(
            QPushButton("Keep"), "keep", "Keep the new model, and use it from now on in the project"
        )
        self.both = explain(
            QPushButton("Keep both"), "keep_both", "Keep the new model, but go on with the old one"
        )
        self.revert = explain(
            QPushButton("Revert"), "revert", "Do not keep the new model; the old one stays"
        )
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.scores)
        layout.addWidget(self.pictures)
        layout.addLayout(button_grid([self.keep, self.both, self.revert]))
        self.hide()

    def show_result(self, result: Mapping[str, Any], version: str) -> None:
        """Show scores and pictures, and offer to keep the model.

        Args:
            result: of the engine.
            version: the name that it would get.
        """
        show_text(self.scores, scores_text(result))
        self.pictures.show_file(str(result.get("comparison") or ""))
        number = version.rpartition("-v")[2]
        self.keep.setText(f"Keep as v{number}")
        self.keep.setToolTip(f"Keep the new model as '{version}', and use it from now on")
        better = bool(result.get("improved"))
        for button in (self.keep, self.both):
            button.setEnabled(better and Path(str(result["folder"])).is_dir())
        self.revert.setText("Revert" if better else "Close")
        self.revert.setEnabled(True)
        self.show()

    def show_kept(self, name: str, used: bool) -> None:
        """The model was kept; `used`: one can still go back to the old one."""
        self.keep.setEnabled(False)
        self.both.setEnabled(False)
        self.revert.setEnabled(True)
        self.revert.setText("Go back to the old model" if used else "Close")
        told = "and is used from now on" if used else "; the project goes on with the old one"
        show_text(self.scores, f"{self.scores.text()}\nKept as '{name}' {told}.")
