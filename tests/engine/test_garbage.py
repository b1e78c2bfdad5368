"""Collection by hand: what Python would do by itself, in the thread that calls."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest

from tttunet.engine.garbage import collect_due


class Cycle:
    def __init__(self) -> None:
        self.own = self


@pytest.fixture(autouse=True)
def _leave_it_as_it_was() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    yield
    if enabled:
        gc.enable()


def test_python_collects_no_more_by_itself() -> None:
    gc.enable()
    collect_due()
    assert not gc.isenabled()
    gone = weakref.ref(Cycle())
    kept = [[] for _ in range(100_000)]
    assert gone() is not None
    del kept


def test_what_is_due_is_collected_and_nothing_else() -> None:
    collect_due()
    gone = weakref.ref(Cycle())
    assert collect_due() is None
    assert gone() is not None
    kept = [[] for _ in range(2 * gc.get_threshold()[0])]
    assert collect_due() is not None
    assert gone() is None
    del kept


def test_it_needs_the_standard_library_only() -> None:
    code = (
        "import sys, tttunet.engine.garbage; "
        "print([m for m in ('numpy', 'appose', 'torch') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
