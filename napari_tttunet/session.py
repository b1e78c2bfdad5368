"""The engine that all docks of this napari share, and its events in the window's thread."""

from __future__ import annotations

from collections.abc import Callable

from qtpy.QtCore import QObject, Qt, Signal
from qtpy.QtWidgets import QApplication

from napari_tttunet.garbage import GarbageCollection
from tttunet.engine.client import Engine

_session: Session | None = None


class Session(QObject):
    """Owns the engine; made in the window's thread and there until the application ends.

    Attributes:
        engine: its events arrive in the window's thread.
        models_changed: a model was added to the library or removed from it.
    """

    models_changed = Signal()
    _sent = Signal(object)

    def __init__(self) -> None:
        super().__init__()
        self._garbage = GarbageCollection()  # the engine's threads must not destroy widgets
        self._sent.connect(self._call, Qt.ConnectionType.QueuedConnection)
        self.engine = Engine(deliver=self._sent.emit)
        application = QApplication.instance()
        if application is not None:
            application.aboutToQuit.connect(self.close)

    def close(self) -> None:
        """End the engine."""
        self.engine.close()
        self._garbage.close()

    def _call(self, function: Callable[[], None]) -> None:
        function()


def session() -> Session:
    """The session of this process; the first call makes it, no worker starts yet."""
    global _session
    if _session is None:
        _session = Session()
    return _session


def close_session() -> None:
    """End the engine; the next `session()` makes another one."""
    global _session
    if _session is not None:
        _session.close()
        _session = None
