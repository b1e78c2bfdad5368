"""A queue of jobs that a worker process does one after the other."""

from __future__ import annotations

import atexit
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tttunet.engine import exchange, messages
from tttunet.engine.job import Job, Preview
from tttunet.engine.messages import Cancelled, Done, Failed, Lost, Queued, Started
from tttunet.engine.process import WorkerDied, WorkerError, WorkerProcess

#: Seconds that a running job has to end by itself after a cancel.
GRACE = 1.0
#: The same for any job when the engine is closed.
CLOSING_GRACE = 3.0
#: How often a running worker is asked whether it lives, in seconds: appose may miss its death.
_HEARTBEAT = 1.0


class Lane:
    """One worker process and the jobs for it.

    The process starts with the first job, stays, is started again if it dies, and ends with this
    object or with the client's process.

    Args:
        python: interpreter of the worker; None: see `process.PYTHON_VARIABLE`.
        grace: seconds that a cancelled job has before its process is ended.
        deliver: calls the function it is given, in the thread that is to hear events, without
            waiting for it; None: they are heard in background threads.
        environment: variables that the worker sees otherwise than the client; None: not at all.
        light: the worker shall not load torch.
    """

    def __init__(
        self,
        python: str | Path | None = None,
        grace: float = GRACE,
        deliver: Callable[[Callable[[], None]], object] | None = None,
        environment: Mapping[str, str | None] | None = None,
        light: bool = False,
    ) -> None:
        self.grace = grace
        self.deliver = deliver
        self._worker = WorkerProcess(python, environment, light)
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._running: Job | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="tttunet-engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @property
    def about(self) -> dict[str, Any]:
        """What the worker said of itself: versions, devices, memory; empty before it started."""
        return self._worker.about

    @property
    def worker_output(self) -> list[str]:
        """The last lines that the worker, or what it uses, has printed: for reports of defects."""
        return list(self._worker.output)

    @property
    def worker_pid(self) -> int | None:
        return self._worker.pid

    def submit(self, job: Job) -> Job:
        """Queue a job.

        Raises:
            RuntimeError: the engine is closed.
        """
        if self._closed:
            raise RuntimeError("The engine is closed.")
        job.engine = self
        job._emit(Queued(len(self._jobs) + (self._running is not None)))
        with self._changed:
            closed = self._closed
            if not closed:
                self._jobs.append(job)
                self._changed.notify_all()
        if closed:
            job._emit(Cancelled())
        return job

    def close(self) -> None:
        """Cancel what waits or runs, and end the worker."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            jobs = [*self._jobs, *([self._running] if self._running else [])]
            self._changed.notify_all()
        for job in jobs:
            job.grace = min(CLOSING_GRACE, job.grace or self.grace)
            job.cancel()
        if threading.current_thread() is not self._thread:
            self._thread.join(max(CLOSING_GRACE, self.grace) + 2)
        self._worker.close()
        atexit.unregister(self.close)

    # The engine's thread

    def _wake(self, job: Job) -> None:
        with self._changed:
            waiting = job in self._jobs
            if waiting:
                self._jobs.remove(job)
            self._changed.notify_all()
        if waiting:
            job._emit(Cancelled())

    def _loop(self) -> None:
        with contextlib.suppress(OSError):
            exchange.remove_orphans()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if not self._jobs:
                    return
                job = self._running = self._jobs.popleft()
            outcome: Any
            try:
                outcome = self._run(job)
            except Exception as error:  # the queue must go on whatever an array or file does
                outcome = Failed("defect", f"Unexpected {type(error).__name__}: {error}")
            with self._changed:
                self._running = None
            job._emit(outcome)

    def _run(self, job: Job) -> Any:
        with job._lock:
            if job.state == "waiting":
                job.state = "running"
        folder = exchange.make_folder(job.expected_bytes)
        try:
            if job._cancelled.is_set():
                return Cancelled()
            job._emit(Started(not self._worker.ready))
            assert job.prepare is not None
            request = job.prepare(folder, job._cancelled.is_set)
            job.prepare = None  # it may hold a large array
            outcome = self._ask(job, request)
            if isinstance(outcome, Done) and job.collect is not None:
                return job.collect(folder, outcome)
            return outcome
        except WorkerDied as error:
            return _lost(str(error))
        except WorkerError as error:
            return Failed("worker", str(error), error.hint)
        except OSError as error:
            reason = error.strerror or error
            return Failed(
                "disk", f"The image or its labels cannot be handed over: {reason}.", "Free space."
            )
        finally:
            exchange.remove_folder(folder)

    def _ask(self, job: Job, request: messages.Message) -> Any:
        def update(event: dict[str, Any]) -> None:
            message = messages.from_dict(event)
            if isinstance(message, messages.Partial):
                message = _preview(message)
            job._emit(message)

        for _ in range(2):
            if not self._worker.start(job._cancelled.is_set) or job._cancelled.is_set():
                return Cancelled()
            try:
                task = self._worker.run(request.to_dict(), self._notify, update)
            except OSError:
                self._worker.kill()
                continue
            if not self._wait(task, job._cancelled.is_set):
                with contextlib.suppress(OSError, ValueError):
                    task.cancel()
                if not self._wait(task, timeout=job.grace or self.grace):
                    self._replace_worker()
                return Cancelled()
            if task.launched or not self._worker_died(task):
                return self._outcome(task)
            # It had died while it was idle, which nobody needs to know.
        raise WorkerError("The worker process cannot be reached.", "Try again.")

    def _replace_worker(self) -> None:
        """End the worker; a new one starts meanwhile, so that the next job need not wait."""
        self._worker.kill()
        if not self._closed:
            with contextlib.suppress(WorkerError):  # the next job will say it
                self._worker.start(lambda: True)

    def _worker_died(self, task: Any) -> bool:
        return not task.outputs and task.status.value not in ("CANCELED", "FAILED")

    def _wait(
        self, task: Any, until: Callable[[], bool] = lambda: False, timeout: float | None = None
    ) -> bool:
        """Wait for the end of a task or of the worker; False if `until` or `timeout` came first."""
        left = float("inf") if timeout is None else timeout
        while not task.over and self._worker.alive:
            if until() or left <= 0:
                return False
            with self._changed:
                self._changed.wait_for(lambda: task.over or until(), min(_HEARTBEAT, left))
            left -= _HEARTBEAT
        if not task.over:
            self._worker.drain()
        return True

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _outcome(self, task: Any) -> Any:
        for kind in ("done", "failed"):
            if kind in task.outputs:
                return messages.from_dict({"kind": kind, **task.outputs[kind]})
        if self._worker_died(task):
            return _lost(self._worker.cause_of_death())
        if task.status.value == "CANCELED":
            return Cancelled()
        return Failed("defect", "The worker failed.", details=task.error or "")


def _lost(cause: str) -> Lost:
    return Lost(
        f"The worker process ended unexpectedly: {cause}.",
        "Nothing was changed; the next job starts a new one.",
    )


def _preview(message: messages.Partial) -> Preview:
    part = tuple(slice(start, stop) for start, stop in message.bounds)
    return Preview(message.bounds, np.array(exchange.open_array(message.file)[part]))
