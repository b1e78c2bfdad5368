"""The Triton kernels' numbers, by Triton's interpreter on the CPU, in a process of its own.

Triton decides once, when a kernel is defined, whether it is interpreted; the tests that compile
ahead of time need kernels that are not.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="pip install 'napari-tttunet[triton]'")

FOLDER = Path(__file__).parent / "interpreter"


def test_kernels_agree_with_the_reference_in_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(FOLDER)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
