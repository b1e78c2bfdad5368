"""These tests run Triton's interpreter, which is chosen before the kernels are imported.

`tests/kernels/test_interpreter.py` runs them in a process of their own, where it is chosen.
"""

from __future__ import annotations

import os

import pytest

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]


@pytest.fixture(autouse=True, scope="module")
def device_functions_are_patched_once():
    """The interpreter patches `triton.language` again at every call of a device function: most of
    the tests' time. Once a module and at every launch is enough."""
    from triton.runtime import interpreter

    patched: set[str] = set()

    def call(self, *arguments, **options):
        if self.fn.__module__ not in patched:
            interpreter._patch_lang(self.fn)
            patched.add(self.fn.__module__)
        return self.rewrite()(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpretedFunction, "__call__", call)
        yield
