"""A small histogram whose bars can be clicked."""

from __future__ import annotations

from typing import Any

import numpy as np
from qtpy.QtCore import QEvent, QRectF, QSize, Qt, Signal
from qtpy.QtGui import QColor, QPainter, QPalette
from qtpy.QtWidgets import QSizePolicy, QToolTip, QWidget

from napari_tttunet.object_table import number_text

_MOST_BARS = 30
_TOP, _SIDE = 4, 6


class Histogram(QWidget):
    """How often which values occur; a click on a bar chooses its values, a second one none.

    Attributes:
        chosen: lowest and highest value, and whether the highest itself belongs to the bar; or
            None, when the choice was undone.
    """

    chosen = Signal(object)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("results_histogram")
        self.setAccessibleName("Histogram")
        self.setToolTip("Click a bar, or move with the arrow keys, to list its objects only")
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setMouseTracking(True)
        self.counts = np.zeros(0, np.int64)
        self.edges = np.zeros(0)
        self.bar: int | None = None
        self._whole = False

    def sizeHint(self) -> QSize:  # noqa: N802
        return QSize(260, 110)

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        return QSize(120, 110)

    def set_values(self, values: np.ndarray) -> None:
        """Show other values; no bar is chosen then, without a signal."""
        values = np.asarray(values)
        finite = values[np.isfinite(values)]
        self.bar = None
        if len(finite):
            self._whole = values.dtype.kind in "iu"
            self.counts, self.edges = np.histogram(finite, _edges(finite, self._whole))
        else:
            self.counts, self.edges = np.zeros(0, np.int64), np.zeros(0)
        self.update()

    def choose(self, bar: int | None) -> None:
        """Choose a bar as a click does."""
        self.bar = bar
        self.update()
        self.chosen.emit(None if bar is None else self.span(bar))

    def forget(self) -> None:
        """No bar is chosen, without a signal."""
        self.bar = None
        self.update()

    def span(self, bar: int) -> tuple[float, float, bool]:
        return float(self.edges[bar]), float(self.edges[bar + 1]), bar == len(self.counts) - 1

    def ends(self, first: int, last: int) -> tuple[str, str]:
        """Lowest and highest value of some bars as text; whole numbers without the borders."""
        inside = 0.5 if self._whole else 0.0
        return number_text(self.edges[first] + inside), number_text(self.edges[last + 1] - inside)

    def bar_rect(self, bar: int) -> QRectF:
        """Where a bar can be clicked."""
        area = self._area()
        width = area.width() / len(self.counts)
        return QRectF(area.left() + bar * width, area.top(), width, area.height())

    def _area(self) -> QRectF:
        below = self.fontMetrics().height() + 4
        return QRectF(self.rect()).adjusted(_SIDE, _TOP, -_SIDE, -below)

    def _bar_at(self, x: float) -> int | None:
        area = self._area()
        if not len(self.counts) or not area.left() <= x < area.right():
            return None
        return min(int((x - area.left()) / area.width() * len(self.counts)), len(self.counts) - 1)

    # Events

    def mousePressEvent(self, event: Any) -> None:  # noqa: N802
        bar = self._bar_at(event.pos().x())
        if bar is not None and event.button() == Qt.MouseButton.LeftButton:
            self.choose(None if bar == self.bar else bar)

    def keyPressEvent(self, event: Any) -> None:  # noqa: N802
        step = {Qt.Key.Key_Left: -1, Qt.Key.Key_Right: 1}.get(event.key())
        if step is not None and len(self.counts):
            start = self.bar if self.bar is not None else (-1 if step > 0 else len(self.counts))
            self.choose(min(max(start + step, 0), len(self.counts) - 1))
        elif event.key() == Qt.Key.Key_Escape and self.bar is not None:
            self.choose(None)
        else:
            super().keyPressEvent(event)

    def event(self, event: Any) -> bool:
        if event.type() == QEvent.Type.ToolTip:
            bar = self._bar_at(event.pos().x())
            if bar is not None:
                low, high = self.ends(bar, bar)
                text = f"{self.counts[bar]} objects from {low} to {high}"
                QToolTip.showText(event.globalPos(), text, self)
                return True
        return super().event(event)

    def paintEvent(self, _: Any) -> None:  # noqa: N802
        painter = QPainter(self)
        palette, area = self.palette(), self._area()
        text = palette.color(QPalette.ColorRole.WindowText)
        if not len(self.counts):
            painter.setPen(text)
            painter.drawText(self.rect(), Qt.AlignmentFlag.AlignCenter, "No values")
            return
        plain, chosen = QColor(90, 140, 190), QColor(230, 159, 0)
        top = max(int(self.counts.max()), 1)
        for bar, count in enumerate(self.counts):
            rect = self.bar_rect(bar).adjusted(0.5, 0, -0.5, 0)
            # A single object among thousands can still be seen.
            height = max(rect.height() * int(count) / top, 1.5 if count else 0)
            rect.setTop(rect.bottom() - height)
            painter.fillRect(rect, chosen if bar == self.bar else plain)
        painter.setPen(text)
        painter.drawLine(area.bottomLeft(), area.bottomRight())
        below = QRectF(area.left(), area.bottom() + 2, area.width(), self.fontMetrics().height())
        flags = Qt.AlignmentFlag
        low, high = self.ends(0, len(self.counts) - 1)
        painter.drawText(below, flags.AlignLeft, low)
        painter.drawText(below, flags.AlignRight, high)
        painter.drawText(below, flags.AlignHCenter, f"highest bar: {top}")


def _edges(values: np.ndarray, whole: bool) -> np.ndarray:
    """Bars of one width; of whole numbers, each bar has equally many of them."""
    low, high = float(values.min()), float(values.max())
    count = min(max(round(np.sqrt(len(values))), 5), _MOST_BARS)
    if whole:
        width = max(int(np.ceil((high - low + 1) / count)), 1)
        bars = int(np.ceil((high - low + 1) / width))
        return low - 0.5 + width * np.arange(bars + 1)
    # Equal values, or so close that no bars fit between them.
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        pad = max(abs(low), 1.0) * 0.01
        return np.array([low - pad, high + pad])
    return np.linspace(low, high, count + 1)
