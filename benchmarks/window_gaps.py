"""How long a window does not answer, and how much of that is spent in the plugin's own code."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np

#: Milliseconds between two ticks when nothing keeps the window.
PERIOD = 5
#: What a person begins to feel, in milliseconds.
LIMIT = 50.0
#: Whose time it is.
OWN, THEIRS = "own", "theirs"


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

    A call that leads on into napari (a layer is added, and napari draws it) is told in two parts,
    ours and napari's; what Qt and all other libraries do counts for whoever called them. Python's
    profiler makes everything slower, so numbers are upper limits, and gaps are measured without it.

    Args:
        own: folders of the packages.
        theirs: folders of napari and its own parts.
    """

    def __init__(self, own: Sequence[Path], theirs: Sequence[Path]) -> None:
        self._folders = {OWN: tuple(map(str, own)), THEIRS: tuple(map(str, theirs))}
        self._known: dict[CodeType, str] = {}
        # Frames at which the one who is charged changes.
        self._open: list[tuple[FrameType, str]] = []
        self._spent = {OWN: 0.0, THEIRS: 0.0}
        self._since = 0.0
        self.calls: list[tuple[float, float, str]] = []

    def __enter__(self) -> OwnTime:
        sys.setprofile(self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _hear(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            kind = self._kind(frame.f_code)
            if kind and (kind != self._open[-1][1] if self._open else kind == OWN):
                self._charge()
                self._open.append((frame, kind))
        elif event == "return" and self._open and frame is self._open[-1][0]:
            self._charge()
            self._open.pop()
            if not self._open:
                self.calls.append((self._spent[OWN], self._spent[THEIRS], _name(frame.f_code)))
                self._spent = {OWN: 0.0, THEIRS: 0.0}

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._open:
            self._spent[self._open[-1][1]] += 1000 * (now - self._since)
        self._since = now

    def _kind(self, code: CodeType) -> str:
        kind = self._known.get(code)
        if kind is None:
            starts = code.co_filename.startswith
            kind = next((kind for kind, paths in self._folders.items() if starts(paths)), "")
            self._known[code] = kind
        return kind

    def summary(self) -> dict[str, Any]:
        """The longest call without napari's part and the function it was, how many were longer
        than the limit, and the longest of napari's parts."""
        longest = max(self.calls, default=(0.0, 0.0, ""))
        return {
            "calls": len(self.calls),
            "total_ms": round(sum(own for own, _, _ in self.calls), 1),
            "max_ms": round(longest[0], 1),
            "longest": longest[2],
            "over_limit": sum(own > LIMIT for own, _, _ in self.calls),
            "napari_max_ms": round(max((theirs for _, theirs, _ in self.calls), default=0.0), 1),
        }

    def longest(self, count: int = 6) -> list[tuple[float, float, str]]:
        return sorted(self.calls, reverse=True)[:count]


def _name(code: CodeType) -> str:
    return f"{Path(code.co_filename).stem}.{getattr(code, 'co_qualname', code.co_name)}"
