"""The worker process: receives requests, runs them, tells events.

`python -m tttunet.engine.worker` is what the client starts. It ends when the client does, also
when the client is killed.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from tttunet.engine import exchange, messages

#: A worker that outlives its client has this many seconds for a checkpoint.
ORPHAN_GRACE = 3.0
#: After so many seconds without a job, the memory that is free is given back.
IDLE = 5.0
#: Progress is told at most this often, in seconds.
REPORT_EVERY = 0.1

_client = os.getppid()
_busy = threading.Event()


class Reporter:
    """What a job tells while it runs; any thread may use it.

    Args:
        send: takes an event.
        is_cancelled: whether the client cancelled.
    """

    def __init__(
        self, send: Callable[[messages.Message], None], is_cancelled: Callable[[], bool]
    ) -> None:
        self.is_cancelled = is_cancelled
        self._send, self._lock = send, threading.Lock()
        self._stage, self._start, self._last = "", 0.0, 0.0

    def send(self, event: messages.Message) -> None:
        with self._lock:
            self._send(event)

    def progress(self, stage: str, done: float, total: float) -> None:
        """`done` of `total` units of a stage; the time left follows from the rate so far."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._start, self._last = stage, now, 0.0
        if now - self._last < REPORT_EVERY and done < total:
            return
        self._last = now
        eta = (now - self._start) / done * (total - done) if done else None
        self.send(messages.Progress(done / total if total else 0.0, stage, eta))

    def stage(self, name: str) -> None:
        """Begin a stage of unknown length."""
        self.progress(name, 0, 1)

    def log(self, text: str, level: str = "info") -> None:
        self.send(messages.Log(level, text))


def serve(task: Any, request: dict[str, Any]) -> None:
    """Run a request and leave its outcome in the task's outputs (called by appose)."""
    reporter = Reporter(
        lambda event: task.update(info={"event": event.to_dict()}),
        lambda: task.cancel_requested or _orphaned(),
    )
    _busy.set()
    try:
        outcome = _outcome(request, reporter)
    except BaseException as error:  # of an import: an installation that is broken
        outcome = _failure(error)
    finally:
        _busy.clear()
        # appose keeps every task of the main thread for ever.
        task._worker.tasks.pop(task._uuid, None)
    if isinstance(outcome, messages.Cancelled):
        task.cancel()
    else:
        task.outputs[outcome.kind] = {k: v for k, v in outcome.to_dict().items() if k != "kind"}


def _outcome(request: dict[str, Any], reporter: Reporter) -> messages.Message:
    from tttunet.engine.jobs import rest

    outcome = _attempt(request, reporter)
    rest()
    return outcome


def _attempt(request: dict[str, Any], reporter: Reporter) -> messages.Message:
    from tttunet.engine.jobs import run
    from tttunet.errors import Cancelled, TTTUNetError

    try:
        message = messages.from_dict(request)
        with _logs_told(reporter):
            return messages.Done(run(message, reporter))
    except messages.ProtocolError as error:
        return messages.Failed("version", str(error), "Install the same version on both sides.")
    except Cancelled:
        return messages.Cancelled()
    except TTTUNetError as error:
        return messages.Failed("input", error.message, error.hint)
    except BaseException as error:
        return _failure(error)


def _failure(error: BaseException) -> messages.Failed:
    from tttunet.engine.memory import is_out_of_memory, shortage

    details = traceback.format_exc()
    if is_out_of_memory(error):
        return messages.Failed(
            "memory",
            shortage(error),
            "Close other programs, or take a part of the image.",
            details,
        )
    if isinstance(error, OSError):
        text = error.strerror or str(error)
        name = f"'{error.filename}': " if error.filename else ""
        return messages.Failed("disk", f"{name}{text}.", "Free some space, or check the folder.")
    text = (str(error).strip().splitlines() or [""])[0]
    name = type(error).__name__
    return messages.Failed(
        "defect", f"Unexpected {name}{f': {text}' if text else ''}.", "", details
    )


@contextlib.contextmanager
def _logs_told(reporter: Reporter) -> Iterator[None]:
    """Warnings of the core become events."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            reporter.log(record.getMessage(), record.levelname.lower())

    handler, logger = Handler(logging.WARNING), logging.getLogger("tttunet")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _receives() -> bool:
    """Whether appose's receiver reads; it ends with the client's end of the pipe."""
    return any(t.name == "Appose-Receiver" and t.is_alive() for t in threading.enumerate())


def _orphaned() -> bool:
    """Whether the client is gone: it was killed, or closed its end of the pipe."""
    return os.getppid() != _client or not _receives()


def _watch() -> None:
    """Give memory back while nothing is to do, and end the process once the client is gone.

    It ends in the middle of a job too, and the arrays of a client that was killed go with it.
    """
    while not _receives():
        time.sleep(0.05)
    rested = time.monotonic()
    while not _orphaned():
        time.sleep(0.2)
        if _busy.is_set():
            rested = time.monotonic()
        elif time.monotonic() - rested > IDLE:
            rested = float("inf")
            _rest()
    deadline = time.monotonic() + ORPHAN_GRACE
    while _busy.is_set() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.1)  # a process that is killed closes its pipes before it is gone
    # A client that lives, and has only closed this pipe, may use its arrays still.
    exchange.remove_orphans(dead=_client if os.getppid() != _client else None)
    os._exit(0)


def _rest() -> None:
    """Give the system the memory that was kept for the next tensor."""
    with contextlib.suppress(ImportError):
        from tttunet.inference.allocator import release_memory

        release_memory()


def _own_pipes() -> None:
    """Keep the pipes to the client for messages.

    What libraries print goes to the error stream. Processes that a job forks (a training's, to
    prepare patches) must not meet the pipes either: they close `sys.stdin` first of all, and would
    wait for ever for the lock of the thread that reads there; and the client would wait for the
    last of them to see that this process has died.
    """
    from appose import python_worker

    incoming = os.fdopen(os.dup(0), encoding="utf-8")
    outgoing = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdin, sys.stdout = open(0, encoding="utf-8", closefd=False), sys.stderr  # noqa: SIM115
    python_worker.input = incoming.readline
    python_worker.print = functools.partial(print, file=outgoing)

    def forget_pipes() -> None:
        for pipe in (incoming, outgoing):
            os.dup2(0, pipe.fileno())

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=forget_pipes)


def main() -> None:
    # On Windows, numpy cannot be imported once appose reads the input.
    import numpy  # noqa: F401
    from appose.python_worker import main as receive

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the client
    _own_pipes()
    watch = threading.Thread(target=_watch, name="tttunet-watch", daemon=True)
    watch.start()
    receive()
    watch.join()  # it tidies up after the client, and ends the process


if __name__ == "__main__":
    # Once under its own name only: `serve` is imported by it.
    from tttunet.engine import worker

    worker.main()
