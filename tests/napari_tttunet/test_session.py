"""The session: where garbage is collected while its threads run."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest
from qtpy.QtWidgets import QWidget

from napari_tttunet.garbage import GarbageCollection
from napari_tttunet.session import close_session, session


class Pair:
    """A cycle."""

    def __init__(self) -> None:
        self.widget = QWidget()
        self.widget.owner = self  # type: ignore[attr-defined]


def churn() -> None:
    """Enough for Python to collect all generations many times."""
    kept = [[] for _ in range(300_000)]
    del kept


def collecting_threads(qtbot: Any, work: Any) -> set[str]:
    """In which threads a widget of a cycle was destroyed while `work` ran in another one."""
    found: list[str] = []
    weakref.finalize(Pair().widget, lambda: found.append(threading.current_thread().name))
    thread = threading.Thread(target=work, name="another")
    thread.start()
    qtbot.waitUntil(lambda: not thread.is_alive(), timeout=30_000)
    gc.collect()
    return set(found)


def test_widgets_are_destroyed_in_the_thread_of_the_window(qtbot: Any) -> None:
    assert collecting_threads(qtbot, churn) == {threading.main_thread().name}


def test_the_window_thread_collects_what_gathers(qtbot: Any) -> None:
    found: list[int] = []
    weakref.finalize(Pair().widget, found.append, 1)
    kept = [[] for _ in range(2000)]
    qtbot.waitUntil(lambda: bool(found), timeout=10_000)
    assert len(kept) == 2000


@pytest.mark.usefixtures("_garbage")
def test_a_closed_session_leaves_collection_to_python_again() -> None:
    gc.enable()
    session()
    assert not gc.isenabled()
    close_session()
    assert gc.isenabled()
    again = GarbageCollection()
    nested = GarbageCollection()
    nested.close()
    assert not gc.isenabled()
    again.close()
    assert gc.isenabled()
    gc.disable()
