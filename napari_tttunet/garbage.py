"""Python's garbage collection in the window's thread only.

Reference cycles are collected by whichever thread happens to allocate next, for instance one of the
engine's. If there is a widget among them, Qt destroys it in that thread, under a lock, and asks for
Python's own lock, which the window's thread may hold while it waits for Qt's: the window freezes
for good.
"""

from __future__ import annotations

import gc

from qtpy.QtCore import QObject, QTimer

#: Milliseconds between two looks at what has gathered.
INTERVAL = 500


class GarbageCollection(QObject):
    """Takes over the collection of cycles; made in the window's thread.

    Each generation is collected when Python itself would have done so, at the next tick.
    """

    _open = 0

    def __init__(self) -> None:
        super().__init__()
        GarbageCollection._open += 1
        gc.disable()
        self._timer = QTimer(self)
        self._timer.setInterval(INTERVAL)
        self._timer.timeout.connect(self._look)
        self._timer.start()

    def close(self) -> None:
        """Leave it to Python again, unless another one is open."""
        if self._timer.isActive():
            self._timer.stop()
            GarbageCollection._open -= 1
        if not GarbageCollection._open:
            gc.enable()

    def _look(self) -> None:
        gc.disable()  # libraries that turn it off for a moment turn it on again
        due = [
            generation
            for generation, (count, limit) in enumerate(
                zip(gc.get_count(), gc.get_threshold(), strict=True)
            )
            if limit and count > limit
        ]
        if due:
            gc.collect(due[-1])
