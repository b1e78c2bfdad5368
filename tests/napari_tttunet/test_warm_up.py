"""The first Labels layer, made beforehand in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

PROGRAM = """
import gc, sys
import napari.layers
from napari_tttunet.warm_up import warm_up
drawn = "napari._vispy.layers.labels"
assert drawn not in sys.modules
thread = warm_up()
thread.join()
assert warm_up() is None
print("pandas" in sys.modules, drawn in sys.modules, gc.get_freeze_count(), "torch" in sys.modules)
"""


def test_a_thread_imports_what_the_first_labels_need() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=120
    )
    assert ran.stdout.split() == ["True", "True", "0", "False"], ran.stderr


@pytest.mark.usefixtures("one_engine", "own_settings")
def test_it_waits_for_the_first_layer(
    viewer: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise two threads would read napari's units at once, and the image would be refused."""
    from napari_tttunet import warm_up
    from napari_tttunet.segment_dock import SegmentDock

    once = threading.Lock()
    monkeypatch.setattr(warm_up, "_once", once)
    viewer.window.add_dock_widget(SegmentDock(viewer))
    qtbot.wait(1500)
    assert not once.locked()
    viewer.add_image(np.zeros((9, 9), np.uint8))
    qtbot.waitUntil(once.locked, timeout=60_000)
