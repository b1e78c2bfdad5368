"""Edits reach the disk within seconds, without the viewer waiting for it."""

from __future__ import annotations

import atexit
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tttunet.projects.chunks import Index
from tttunet.projects.corrections import Corrections
from tttunet.projects.schema import Bounds

_LOG = logging.getLogger(__name__)

Read = Callable[[Bounds], tuple[np.ndarray, ...]]


class Autosaver:
    """Collects changed boxes of one image and writes them in a thread of its own.

    A box is read when it is written, from the arrays that the viewer edits: a stroke that goes on
    meanwhile is reported again and written again. What cannot be written stays pending and is
    tried again.

    Args:
        corrections: where to.
        read: gives labels, vouched mask and perhaps `own` of a box (see `Corrections.write`);
            called in the thread.
        delay: seconds from the first change to the writing, so that a stroke is written once.
        on_error: called in the thread with what went wrong, once per sentence until a writing
            succeeds.
        on_saved: called in the thread with the number of files written. What either raises is
            logged; the saving goes on.
    """

    def __init__(
        self,
        corrections: Corrections,
        read: Read,
        *,
        delay: float = 2.0,
        on_error: Callable[[Exception], None] | None = None,
        on_saved: Callable[[int], None] | None = None,
    ) -> None:
        self._corrections, self._read, self.delay = corrections, read, delay
        self._on_error, self._on_saved = on_error, on_saved
        self._pending: dict[Index, Bounds] = {}
        self._due = 0.0
        self._told = ""
        self._closed = False
        self._wake = threading.Condition()
        self._saving = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="autosave", daemon=True)
        self._thread.start()
        atexit.register(self._last_chance)

    @property
    def pending(self) -> bool:
        """Whether something is not on the disk yet."""
        with self._wake:
            return bool(self._pending) or self._saving.locked()

    def changed(self, bounds: Bounds) -> None:
        """Have a box written soon; returns at once.

        Args:
            bounds: where labels or the vouched mask changed; what lies outside the image is cut
                off.
        """
        limits = zip(bounds, self._corrections.image.label_shape, strict=True)
        box = tuple((max(0, int(a)), min(int(b), size)) for (a, b), size in limits)
        if any(start >= stop for start, stop in box):
            return
        with self._wake:
            if self._closed:
                raise RuntimeError("the autosaver is closed")
            if not self._pending:
                self._due = time.monotonic() + self.delay
            self._add(box)
            self._wake.notify_all()

    def _add(self, box: Bounds) -> None:
        for index in self._corrections.store.overlapping(box):
            whole = self._corrections.store.bounds(index)
            part = tuple(
                (max(a, start), min(b, stop))
                for (a, b), (start, stop) in zip(box, whole, strict=True)
            )
            old = self._pending.get(index, part)
            self._pending[index] = tuple(
                (min(a, c), max(b, d)) for (a, b), (c, d) in zip(part, old, strict=True)
            )

    def flush(self) -> int:
        """Write everything now, in the calling thread.

        Returns:
            The number of files written.

        Raises:
            ProjectError, OutputError: the first one, see `Corrections.write`; what cannot be
                written stays pending, all else is written.
        """
        written, error = self._save()
        if error is not None:
            raise error
        return written

    def close(self) -> None:
        """Write everything and end the thread; call it before the project is closed.

        Raises:
            ProjectError, OutputError: see `flush`; the thread has ended nevertheless.
        """
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        atexit.unregister(self._last_chance)
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self.flush()
        self._corrections.record()

    def _last_chance(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter ends, nobody is left to be told
            self.close()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._closed and not (self._pending and time.monotonic() >= self._due):
                    rest = self._due - time.monotonic() if self._pending else None
                    self._wake.wait(rest)
                if self._closed:
                    return
            written, error = self._save()
            if written and self._on_saved is not None:
                _call(self._on_saved, written)
            if error is not None:
                self._failed(error)
            else:
                self._told = ""

    def _failed(self, error: Exception) -> None:
        with self._wake:
            self._due = time.monotonic() + max(self.delay, 0.1)
        told, self._told = self._told, str(error)
        if self._told != told and self._on_error is not None:
            _call(self._on_error, error)

    def _save(self) -> tuple[int, Exception | None]:
        """The number of files written, and the first error: one bad box keeps no other back."""
        with self._saving:
            with self._wake:
                boxes, self._pending = self._pending, {}
            written, first, left = 0, None, dict(boxes)
            try:
                for index, box in boxes.items():
                    try:
                        written += self._corrections.write(box, *self._read(box))
                    except Exception as error:  # the reader of the viewer may raise anything
                        first = first or error
                    else:
                        del left[index]
            finally:
                with self._wake:
                    for box in left.values():
                        self._add(box)
            return written, first


def _call(hear: Callable[[Any], None], what: Any) -> None:
    """Tell somebody who may be gone, as a window that was closed; the saving must go on."""
    try:
        hear(what)
    except Exception:
        _LOG.exception("What was told about the saving of corrections was not taken")
