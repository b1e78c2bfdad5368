"""The first Labels layer, made beforehand in a process of its own."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc, sys
import napari.layers
from napari_tttunet.warm_up import warm_up
assert "pandas" not in sys.modules
thread = warm_up()
thread.join()
assert warm_up() is None
print("pandas" in sys.modules, gc.get_freeze_count(), "torch" in sys.modules)
"""


def test_a_thread_imports_what_the_first_labels_need() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=120
    )
    assert ran.stdout.split() == ["True", "0", "False"], ran.stderr
