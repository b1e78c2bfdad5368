"""The engine in Slicer: its client is read from the worker's environment, and polled.

Slicer's Python holds nothing of ours. The client and `appose`, both pure Python, are imported from
the folders where the worker's interpreter has them, and nothing else of that environment is. So
client and worker are of one version, whatever Slicer ships.

Events come from background threads and wait in a queue until `Mailbox.pump` is called in the
main thread: by a timer, or by `Mailbox.wait`.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import slicer
from slicer.i18n import tr as _

from TTTUNetLib.Installer import Environment
from TTTUNetLib.Volumes import RequestError

#: Variables that Slicer's launcher sets for itself and that would mislead another Python, beside
#: those that never reach the worker (PYTHONHOME, PYTHONPATH).
_LAUNCHER = (
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "PATH",
    "PYTHONNOUSERSITE",
    "QT_PLUGIN_PATH",
    "SSL_CERT_FILE",
)
#: The main thread is kept by one poll for at most so long, in seconds, plus one event.
_AT_ONCE = 0.02
_NAP = 0.01


class _Packages(metadata.DistributionFinder):
    """Finds the packages of the worker's environment that the client needs, and no others."""

    def __init__(self) -> None:
        self.folders: dict[str, str] = {}
        self.records: dict[str, str] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        folder = self.folders.get(name)
        if folder is None:
            return None
        return importlib.util.spec_from_file_location(
            name, Path(folder) / "__init__.py", submodule_search_locations=[folder]
        )

    def find_distributions(
        self, context: metadata.DistributionFinder.Context | None = None
    ) -> Iterator[metadata.Distribution]:
        """Their versions, for those who ask for one of them by name."""
        record = self.records.get(getattr(context, "name", None) or "")
        if record is not None:
            yield metadata.PathDistribution(Path(record))

    def provide(self, environment: Environment) -> None:
        """Import from here from now on; what was imported from elsewhere is forgotten."""
        folders = environment.packages
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)
        if folders != self.folders:
            for name in [*sys.modules]:
                if name.partition(".")[0] in folders:
                    del sys.modules[name]
        self.folders, self.records = dict(folders), dict(environment.records)


_packages = _Packages()


class Mailbox:
    """Calls for the main thread, put in by others. Made and pumped in the main thread."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.put = self._waiting.put

    def pump(self) -> None:
        """Make the calls that have gathered, for a short time."""
        end = time.monotonic() + _AT_ONCE
        while time.monotonic() < end:
            try:
                function = self._waiting.get_nowait()
            except queue.Empty:
                return
            function()

    def wait(self, finished: Callable[[], bool]) -> None:
        """Pump until `finished`; the application's window stays alive, where there is one."""
        while not finished():
            self.pump()
            if hasattr(slicer, "app"):
                slicer.app.processEvents()
            time.sleep(_NAP)

    def compute(self, work: Callable[[], Any], then: Callable[[Any], None]) -> threading.Thread:
        """Do `work` in a background thread, and call `then` with its result from `pump`.

        If it fails, `then` gets the exception.

        Returns:
            The thread.
        """

        def run() -> None:
            try:
                result = work()
            except Exception as error:
                result = error
            self.put(functools.partial(then, result))

        thread = threading.Thread(target=run, name="tttunet-compute", daemon=True)
        thread.start()
        return thread


class EngineClient:
    """One worker and its jobs, heard in the main thread.

    Args:
        environment: where the worker runs.
        mailbox: for its events.

    Attributes:
        engine: `tttunet.engine.client.Engine`.
        messages: `tttunet.engine.messages`.
        collect_garbage: `tttunet.engine.garbage.collect_due`, for the main thread.
    """

    def __init__(self, environment: Environment, mailbox: Mailbox) -> None:
        self.environment = environment
        _packages.provide(environment)
        try:
            from tttunet.engine import garbage, messages
            from tttunet.engine.client import Engine
        except ImportError as error:
            raise RequestError(
                _("The engine cannot be imported from {0}: {1}.").format(environment.python, error),
                _("Install the environment again."),
            ) from error
        self.messages, self.collect_garbage = messages, garbage.collect_due
        self.engine: Any = Engine(
            environment.python, deliver=mailbox.put, environment=clean_environment()
        )

    def open_project(self, folder: str | Path, classes: Sequence[str] = ()) -> Any:
        """Open a project of corrections, or make a new one for 3D classes.

        Args:
            folder: of the project.
            classes: names of labels 1, 2, ... of a new one; none: it must be there.

        Raises:
            RequestError: it is not there, or cannot be opened or made.
        """
        from tttunet.errors import TTTUNetError
        from tttunet.projects import Project

        try:
            if classes and not (Path(folder) / "project.json").exists():
                numbered = dict(enumerate(classes, 1))
                return Project.create(folder, task="semantic", dim=3, classes=numbered)
            return Project.open(folder)
        except TTTUNetError as error:
            raise RequestError(error.message, error.hint) from error

    def close(self) -> None:
        """Cancel what runs and end the worker; takes at most some seconds."""
        self.engine.close()


def clean_environment() -> dict[str, str | None]:
    """What the launcher of Slicer changed, as it was before; nothing outside the application."""
    if not hasattr(slicer, "app"):
        return {}
    before = slicer.util.startupEnvironment()
    return {
        name: before.get(name) for name in _LAUNCHER if os.environ.get(name) != before.get(name)
    }
