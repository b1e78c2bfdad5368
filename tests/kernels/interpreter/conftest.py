"""These tests run Triton's interpreter, which is chosen before the kernels are imported.

`tests/kernels/test_interpreter.py` runs them in a process of their own, where it is chosen.
"""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
