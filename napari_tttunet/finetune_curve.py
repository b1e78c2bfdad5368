"""The course of a fine-tuning: loss, and the score on what was held out."""

from __future__ import annotations

import math
from typing import Any

from qtpy.QtCore import QPointF, QRectF, QSize, Qt
from qtpy.QtGui import QColor, QPainter, QPalette, QPen, QPolygonF
from qtpy.QtWidgets import QSizePolicy, QWidget

_LOSS, _SCORE = QColor(90, 140, 190), QColor(230, 159, 0)
_SIDE = 6
#: How much a new loss counts in the smoothed line.
_SMOOTHING = 0.1


class Curve(QWidget):
    """Draws points as they come.

    Attributes:
        losses: (step, loss).
        scores: (step, score), 0 to 1, before the first step included.
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("finetune_curve")
        self.setAccessibleName("Loss and validation curve")
        self.setToolTip(
            "Blue: the loss on the labels that are trained on, which falls. "
            "Orange: the score on the labels that are held out, which should rise."
        )
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.losses: list[tuple[int, float]] = []
        self.scores: list[tuple[int, float]] = []
        self._smooth: list[float] = []

    def sizeHint(self) -> QSize:  # noqa: N802
        return QSize(260, 110)

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        return QSize(120, 110)

    def clear(self) -> None:
        self.losses, self.scores, self._smooth = [], [], []
        self.update()

    def add(self, step: int, values: dict[str, float]) -> None:
        """A point: `loss`, `score`, or both."""
        loss, score = values.get("loss"), values.get("score")
        if loss is not None and math.isfinite(loss):
            last = self._smooth[-1] if self._smooth else loss
            self._smooth.append(last + _SMOOTHING * (loss - last))
            self.losses.append((step, loss))
        if score is not None and math.isfinite(score):
            self.scores.append((step, score))
        self.update()

    def paintEvent(self, _: Any) -> None:  # noqa: N802
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        text = self.palette().color(QPalette.ColorRole.WindowText)
        line = self.fontMetrics().height()
        area = QRectF(self.rect()).adjusted(_SIDE, line + 4, -_SIDE, -line - 4)
        last = max([step for step, _ in (*self.losses, *self.scores)], default=0)
        painter.setPen(text)
        painter.drawLine(area.bottomLeft(), area.bottomRight())
        below = QRectF(area.left(), area.bottom() + 2, area.width(), line)
        above = QRectF(area.left(), 1, area.width(), line)
        flags = Qt.AlignmentFlag
        painter.drawText(below, flags.AlignRight, f"step {last}")
        if not (self.losses or self.scores):
            painter.drawText(area, flags.AlignCenter, "The curve comes with the first steps")
            return
        if self.losses:
            high = max(value for _, value in self.losses)
            points = [(s, v) for (s, _), v in zip(self.losses, self._smooth, strict=True)]
            self._line(painter, area, points, last, 0.0, high, _LOSS)
            painter.drawText(above, flags.AlignLeft, f"loss {self._smooth[-1]:.3g}")
        if self.scores:
            values = [value for _, value in self.scores]
            low, high = min(values), max(values)
            pad = max(0.02, 0.1 * (high - low))
            self._line(painter, area, self.scores, last, low - pad, high + pad, _SCORE, True)
            best = f"held-out score {values[-1]:.3f}, best {high:.3f}"
            painter.drawText(above, flags.AlignRight, best)

    def _line(
        self,
        painter: QPainter,
        area: QRectF,
        points: list[tuple[int, float]],
        last: int,
        low: float,
        high: float,
        colour: QColor,
        dots: bool = False,
    ) -> None:
        """Draw a line, and leave the pen in its colour for what is written about it."""
        painter.setPen(QPen(colour, 1.6))
        places = [
            QPointF(
                area.left() + area.width() * step / max(last, 1),
                area.bottom() - area.height() * (value - low) / max(high - low, 1e-9),
            )
            for step, value in points
        ]
        painter.drawPolyline(QPolygonF(places))
        if dots:
            painter.setBrush(colour)
            for place in places:
                painter.drawEllipse(place, 2.2, 2.2)
