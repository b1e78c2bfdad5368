"""Python's garbage collection, chosen by hand in the thread of a window.

Reference cycles are collected by whichever thread happens to allocate next, for instance one of the
client's. If there is a widget or a node among them, it is destroyed in that thread, which the
window's thread may wait for, or which its toolkit forbids: the window freezes for good, or crashes.
So a window's thread calls `collect_due` regularly while an engine is open, and `gc.enable()` when
the last one is closed.

Only the standard library: 3D Slicer's Python reads this file too.
"""

from __future__ import annotations

import gc


def collect_due() -> int | None:
    """Keep Python from collecting by itself, and collect what it would have collected by now.

    Returns:
        The oldest generation that was collected; None if nothing was due.
    """
    gc.disable()  # libraries that turn it off for a moment turn it on again
    due = [
        generation
        for generation, (count, limit) in enumerate(
            zip(gc.get_count(), gc.get_threshold(), strict=True)
        )
        if limit and count > limit
    ]
    if not due:
        return None
    gc.collect(due[-1])
    return due[-1]
