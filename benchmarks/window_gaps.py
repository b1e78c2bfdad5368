"""How long a window does not answer, and how much of that is spent in the plugin's own code."""

from __future__ import annotations

import gc
import sys
import time
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np

#: Milliseconds between two ticks when nothing keeps the window.
PERIOD = 5
#: What a person begins to feel, in milliseconds.
LIMIT = 50.0


class GapMeter:
    """A timer in the window's thread; a gap is the time between two of its ticks.

    Attributes:
        gaps: in milliseconds.
        collecting: the longest pause of Python's garbage collector, in milliseconds.
    """

    def __init__(self) -> None:
        from qtpy.QtCore import Qt, QTimer

        self.gaps: list[float] = []
        self.collecting = 0.0
        self._last = self._collects = time.perf_counter()
        self._timer = QTimer()
        self._timer.setTimerType(Qt.TimerType.PreciseTimer)
        self._timer.setInterval(PERIOD)
        self._timer.timeout.connect(self._tick)

    def __enter__(self) -> GapMeter:
        gc.callbacks.append(self._collected)
        self._last = time.perf_counter()
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._tick()  # what the window is in the middle of counts too
        self._timer.stop()
        gc.callbacks.remove(self._collected)

    def _tick(self) -> None:
        now = time.perf_counter()
        self.gaps.append(1000 * (now - self._last))
        self._last = now

    def _collected(self, phase: str, _: Any) -> None:
        now = time.perf_counter()
        if phase == "stop":
            self.collecting = max(self.collecting, 1000 * (now - self._collects))
        self._collects = now

    def summary(self) -> dict[str, Any]:
        """p50, p99 and largest gap, in milliseconds."""
        gaps = np.array(self.gaps)
        p50, p99 = np.percentile(gaps, [50, 99])
        return {
            "seconds": round(float(gaps.sum()) / 1000, 2),
            "ticks": len(gaps),
            "p50_ms": round(float(p50), 1),
            "p99_ms": round(float(p99), 1),
            "max_ms": round(float(gaps.max()), 1),
            "over_limit": int((gaps > LIMIT).sum()),
            "garbage_collector_max_ms": round(self.collecting, 1),
        }


class OwnTime:
    """Times every call from outside into some packages, in the window's thread.

    What these packages call counts as theirs: a layer that is added by us, napari's part of that
    included. Python's profiler makes everything slower, so numbers are upper limits, and gaps are
    measured without it.

    Args:
        folders: of the packages.
    """

    def __init__(self, *folders: Path) -> None:
        self._folders = tuple(str(folder) for folder in folders)
        self._known: dict[CodeType, bool] = {}
        self._outer: FrameType | None = None
        self._start = 0.0
        self.calls: list[tuple[float, str]] = []

    def __enter__(self) -> OwnTime:
        sys.setprofile(self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _hear(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            if self._outer is None and self._is_own(frame.f_code):
                self._outer, self._start = frame, time.perf_counter()
        elif event == "return" and frame is self._outer:
            self.calls.append((1000 * (time.perf_counter() - self._start), _name(frame.f_code)))
            self._outer = None

    def _is_own(self, code: CodeType) -> bool:
        own = self._known.get(code)
        if own is None:
            own = self._known[code] = code.co_filename.startswith(self._folders)
        return own

    def summary(self) -> dict[str, Any]:
        """The longest call, the function it was, and how many were longer than the limit."""
        longest = max(self.calls, default=(0.0, ""))
        return {
            "calls": len(self.calls),
            "total_ms": round(sum(one[0] for one in self.calls), 1),
            "max_ms": round(longest[0], 1),
            "longest": longest[1],
            "over_limit": sum(one[0] > LIMIT for one in self.calls),
        }

    def totals(self) -> dict[str, tuple[int, float]]:
        """Calls and milliseconds by function."""
        found: dict[str, tuple[int, float]] = {}
        for spent, name in self.calls:
            count, total = found.get(name, (0, 0.0))
            found[name] = count + 1, total + spent
        return found

    def longest(self, count: int = 6) -> list[tuple[float, str]]:
        return sorted(self.calls, reverse=True)[:count]


def _name(code: CodeType) -> str:
    return f"{Path(code.co_filename).stem}.{getattr(code, 'co_qualname', code.co_name)}"
