"""A job: a request in the engine's queue, as its client sees it."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tttunet.engine.messages import TERMINAL, Done, Message

if TYPE_CHECKING:
    from tttunet.engine.lane import Lane

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preview:
    """A finished part of a running segmentation: `labels` belong to `bounds` of the result."""

    bounds: tuple[tuple[int, int], ...]
    labels: np.ndarray


OnEvent = Callable[["Job", Any], None]
Prepare = Callable[[Path, Callable[[], bool]], Message]
Collect = Callable[[Path, Done], Done]


@dataclass(eq=False)
class Job:
    """A request on its way. `prepare` and `collect` run in the engine's thread.

    Attributes:
        name: for messages.
        state: `waiting`, `running`, `cancelling`, or the kind of the event that ended it.
        outcome: that event.
        grace: seconds to end by itself after a cancel; None: the engine's.
    """

    name: str
    prepare: Prepare | None
    collect: Collect | None = None
    on_event: OnEvent | None = None
    expected_bytes: int = 0
    grace: float | None = None
    state: str = "waiting"
    outcome: Any = None
    engine: Lane | None = field(default=None, repr=False)
    _cancelled: threading.Event = field(default_factory=threading.Event, repr=False)
    _finished: threading.Event = field(default_factory=threading.Event, repr=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False)
    _telling: Any = field(default_factory=threading.RLock, repr=False)

    def cancel(self) -> None:
        """Stop the job: at once if it waits, else `Cancelled` follows, at the latest after
        the grace time."""
        with self._lock:
            if self.outcome is not None:
                return
            self.state = "cancelling"
            self._cancelled.set()
        if self.engine is not None:
            self.engine._wake(self)

    def wait(self, timeout: float | None = None) -> Any:
        """The event that ended the job, or None after `timeout` seconds."""
        self._finished.wait(timeout)
        return self.outcome

    @property
    def finished(self) -> bool:
        return self._finished.is_set()

    def _emit(self, event: Any) -> None:
        """Tell an event; nothing follows the one that ends the job."""
        terminal = isinstance(event, TERMINAL)
        with self._telling:
            with self._lock:
                if self.outcome is not None or (self._cancelled.is_set() and not terminal):
                    return
                if terminal:
                    self.outcome, self.state = event, event.kind
            deliver = None if self.engine is None else self.engine.deliver
            try:
                if self.on_event is not None:
                    (deliver or _call)(functools.partial(self._tell, event))
            except Exception:
                _LOG.exception("The events of the job '%s' cannot be delivered.", self.name)
            finally:
                if terminal:
                    self._finished.set()

    def _tell(self, event: Any) -> None:
        assert self.on_event is not None
        if self._cancelled.is_set() and not isinstance(event, TERMINAL):
            return  # cancelled while the event was on its way
        try:
            self.on_event(self, event)
        except Exception:
            _LOG.exception("A listener of the job '%s' failed.", self.name)


def _call(function: Callable[[], None]) -> None:
    function()
