"""The worker process seen from the client: start, greet, run one task at a time, end.

Transport is appose: messages as lines of JSON through pipes. Only the standard library and
appose are imported here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tttunet.engine.messages import PROTOCOL, Hello, package_version

#: Names the interpreter that runs the worker, if it is not the client's own.
PYTHON_VARIABLE = "TTTUNET_PYTHON"
#: Seconds; a cold disk and a busy machine need many.
START_TIMEOUT = 180.0
_SCRIPT = "from tttunet.engine.worker import serve\nserve(task, request)\n"
#: What the process writes to its error stream is kept up to this number of lines.
OUTPUT_LINES = 500
#: How often a process that starts is asked whether it still lives.
_POLL = 0.05
#: A process whose pipe broke has so many seconds to end.
_ENDING = 2.0


class WorkerError(RuntimeError):
    """The worker cannot be started, or speaks another protocol."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class WorkerDied(WorkerError):
    """The worker was ended from outside while it started."""


class WorkerProcess:
    """One worker. Used by one thread at a time, but for `kill`.

    Args:
        python: interpreter; None: as PYTHON_VARIABLE says, else the client's own.
        environment: variables that it sees otherwise than the client; None: not at all.
        light: it shall not load torch to say of itself what it has.

    Attributes:
        about: what the worker said of itself.
        output: the last lines that it wrote to its error stream.
    """

    def __init__(
        self,
        python: str | Path | None = None,
        environment: Mapping[str, str | None] | None = None,
        light: bool = False,
    ) -> None:
        self.light = light
        self.python = str(python or os.environ.get(PYTHON_VARIABLE) or sys.executable)
        self._environment = dict(environment or {})
        self.about: dict[str, Any] = {}
        self.output: deque[str] = deque(maxlen=OUTPUT_LINES)
        self._service: Any = None
        self._greeting: Any = None

    @property
    def alive(self) -> bool:
        """Whether the process runs, be it that it still starts."""
        return self._service is not None and self._service.is_alive()

    @property
    def ready(self) -> bool:
        return self.alive and self._greeting is None

    @property
    def pid(self) -> int | None:
        return self._service._process.pid if self.alive else None

    def start(self, cancelled: Callable[[], bool] = lambda: False) -> bool:
        """Start the process and exchange versions; go on with a start that was cancelled.

        Args:
            cancelled: asked while waiting.

        Returns:
            False if `cancelled` returned True; the process goes on starting.

        Raises:
            WorkerError: it does not start, has no tttunet, or speaks another protocol.
        """
        if not self.alive:
            self._spawn()
        return self._greeting is None or self._wait_for_greeting(cancelled)

    def _spawn(self) -> None:
        from appose.service import Service

        self._discard()
        self.output = deque(maxlen=OUTPUT_LINES)
        program = shutil.which(self.python)
        if program is None:
            raise WorkerError(
                f"The interpreter of the worker, {self.python}, does not exist.",
                f"Mend or remove the setting ({PYTHON_VARIABLE}).",
            )
        # No module of the folder that it runs in is imported by mistake.
        environment: dict[str, str | None] = {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
        if program != sys.executable:
            environment |= {"PYTHONHOME": None, "PYTHONPATH": None}
        environment |= self._environment
        command = (program, "-m", "tttunet.engine.worker")
        self._service = Service(Path(sys.prefix), environment, *command)
        self._service._error_lines = self.output
        try:
            self._service.start()
            self._greeting = self.run(Hello(light=self.light).to_dict(), lambda: None)
        except OSError as error:
            if self._service._process is None:
                raise WorkerError(
                    f"{self.python} cannot be started: {error.strerror}.", "Check the setting."
                ) from error
            raise self._cannot_run() from error

    def _wait_for_greeting(self, cancelled: Callable[[], bool]) -> bool:
        task, started = self._greeting, time.monotonic()
        while not task.over and self.alive:
            if cancelled():
                return False
            if time.monotonic() - started > START_TIMEOUT:
                self.kill()
                raise WorkerError(
                    f"The worker did not answer within {START_TIMEOUT:.0f} seconds.",
                    "The machine may be busy: try again.",
                )
            time.sleep(_POLL)
        self._greeting = None
        if not task.over:
            self.drain()
        if "done" not in task.outputs:
            raise self._cannot_run(task)
        self.about = dict(task.outputs["done"]["result"])
        theirs = self.about.get("protocol")
        if theirs != PROTOCOL:
            self.kill()
            raise WorkerError(
                f"The worker is tttunet {self.about.get('version')} with protocol {theirs}, but "
                f"this program is tttunet {package_version()} with protocol {PROTOCOL}.",
                f"Install the same version of napari-tttunet for {self.python}.",
            )
        return True

    def _cannot_run(self, task: Any = None) -> WorkerError:
        failed = {} if task is None else task.outputs.get("failed", {})
        if not failed:  # it has ended, or is about to: its pipe broke
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._service._process.wait(_ENDING)
        if (self._service._process.poll() or 0) < 0:
            return WorkerDied(self.cause_of_death())
        self.kill()
        why = failed.get("message") or self._last_words() or "it ended at once."
        if "No module named 'tttunet" in why:
            why = f"{self.python} has no napari-tttunet."
        return WorkerError(
            f"The worker cannot run: {why}",
            f"Install napari-tttunet for {self.python}, or choose another interpreter "
            f"({PYTHON_VARIABLE}).",
        )

    def run(
        self,
        request: dict[str, Any],
        ended: Callable[[], None],
        update: Callable[[dict[str, Any]], None] | None = None,
    ) -> Any:
        """Start a task.

        Args:
            request: a request as a dictionary.
            ended: called from another thread when the task is over, unless the process dies at
                that very moment.
            update: called with every event's dictionary, from another thread.

        Returns:
            appose's task with two more attributes: `launched`, the process took it; `over`, it has
            ended and its `outputs` are filled (its status says so too early).

        Raises:
            OSError: the process is gone.
        """

        def listen(event: Any) -> None:
            if event.response_type.is_terminal():
                event.task.over = True
                ended()
                return
            event.task.launched = True
            if update is not None and event.info:
                update(event.info["event"])

        task = self._service.task(_SCRIPT, {"request": request}, queue="main")
        task.launched = task.over = False
        task.listen(listen)
        try:
            task.start()
        except ValueError as error:  # its input is closed
            raise BrokenPipeError from error
        return task

    def _last_words(self) -> str:
        """The last line the process wrote to its error stream."""
        self._service._stderr_thread.join(1)
        lines = [line.strip() for line in list(self.output) if line.strip()]
        return next((line for line in reversed(lines) if "[WARNING]" not in line), "")

    def cause_of_death(self) -> str:
        """Why the process ended, as part of a sentence."""
        code = self._service._process.wait()
        if code < 0:
            with contextlib.suppress(ValueError):
                name = signal.Signals(-code).name
                if name == "SIGKILL":
                    return "it was killed, perhaps because memory ran out"
                return f"it was ended by {name}"
        return self._last_words().rstrip(".") or f"exit code {code}"

    def drain(self) -> None:
        """Wait until all that a dead process said is read."""
        self._service._stdout_thread.join(1)

    def kill(self) -> None:
        """End the process at once, and wait for its end."""
        if self._service is not None and self._service._process is not None:
            self._service.kill()
            self._service._process.wait()

    def close(self, timeout: float = 2.0) -> None:
        """Ask the process to end; end it after `timeout` seconds, at once if it still starts."""
        if self.alive and self._greeting is None:
            with contextlib.suppress(OSError, ValueError):
                self._service.close()
            with contextlib.suppress(Exception):
                self._service._process.wait(timeout)
        self.kill()
        self._discard()

    def _discard(self) -> None:
        """Close what is left of a process that ended."""
        if self._service is not None and self._service._process is not None:
            service, process = self._service, self._service._process
            with contextlib.suppress(OSError, ValueError):
                process.stdin.close()
            for thread, stream in (
                (service._stdout_thread, process.stdout),
                (service._stderr_thread, process.stderr),
            ):
                if thread is not threading.current_thread():
                    thread.join(1)
                if not thread.is_alive():  # a grandchild may hold the pipe; closing would wait
                    stream.close()
        self._service = self._greeting = None
