"""The session: where garbage is collected while its threads run."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from typing import Any

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
    qtbot.waitUntil(lambda: not gc.isenabled())
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
    qtbot.waitUntil(lambda: bool(found), timeout=30_000)
    assert len(kept) == 2000


def test_collection_is_taken_over_again_from_whoever_turned_it_on(qtbot: Any) -> None:
    gc.enable()
    qtbot.waitUntil(lambda: not gc.isenabled())


def test_the_last_one_leaves_collection_to_python_again(qtbot: Any) -> None:
    session()
    one, two = GarbageCollection(), GarbageCollection()
    one.close()
    one.close()
    close_session()
    assert not gc.isenabled()
    two.close()
    # That of all tests is open.
    assert not gc.isenabled()


PROGRAM = """
import gc
from qtpy.QtCore import QCoreApplication
from napari_tttunet.session import close_session, session
application = QCoreApplication([])
session()
before = gc.isenabled()
close_session()
print(before, gc.isenabled())
"""


def test_a_closed_session_leaves_collection_to_python_again() -> None:
    command = [sys.executable, "-c", PROGRAM]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.split() == ["False", "True"]
