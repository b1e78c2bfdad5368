"""Work in another thread whose errors are told by its listener, not by napari's traceback."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any

#: Seconds after each step in which the window's thread has Python for itself: it takes Python up
#: many times to paint, and would wait for this thread each time.
_BREATH = 0.002
#: Seconds between two calls of `on_progress`.
_BETWEEN_TELLING = 0.05

#: What a worker did: its result and None, or None and why it failed.
Outcome = tuple[Any, Exception | None]


def run_steps(
    steps: Generator[Any, None, Any],
    on_outcome: Callable[[Outcome], None],
    on_progress: Callable[[Any], None] | None = None,
) -> Any:
    """Run a generator in another thread.

    Args:
        steps: `quit()` of the worker ends it at its next yield; then nothing is told.
        on_outcome: a method of a widget, so that Qt calls it in the window's thread, and not at
            all when the widget is gone.
        on_progress: the same; gets what is yielded, now and then.

    Returns:
        napari's worker, started.
    """
    from napari.qt.threading import create_worker

    worker = create_worker(_guarded, steps)
    worker.returned.connect(on_outcome)
    if on_progress is not None:
        worker.yielded.connect(on_progress)
    worker.start()
    return worker


def _guarded(steps: Generator[Any, None, Any]) -> Generator[Any, None, Outcome]:
    told = 0.0
    try:
        while True:
            step = next(steps)
            time.sleep(_BREATH)
            if time.monotonic() - told >= _BETWEEN_TELLING:
                yield step
                told = time.monotonic()
    except StopIteration as stop:
        return stop.value, None
    except Exception as error:  # whatever an array or a file does, the user is told in words
        return None, error
