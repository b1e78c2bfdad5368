"""Python's garbage collection in the window's thread only; `tttunet.engine.garbage` says why."""

from __future__ import annotations

import gc

from qtpy.QtCore import QObject, QTimer

from tttunet.engine.garbage import collect_due

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
        self._timer.timeout.connect(collect_due)
        self._timer.start()

    def close(self) -> None:
        """Leave it to Python again, unless another one is open."""
        if self._timer.isActive():
            self._timer.stop()
            GarbageCollection._open -= 1
        if not GarbageCollection._open:
            gc.enable()
