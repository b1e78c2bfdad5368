"""Results on stdout, progress and errors on stderr."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

#: Tables are not squeezed into 80 columns where nobody sees a screen.
_FILE_WIDTH = 160


def stdout() -> Console:
    """The console for results."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)


def stderr() -> Console:
    """The console for progress and errors."""
    from rich.console import Console

    return Console(stderr=True)


def show_error(text: str) -> None:
    """Print an error as one line, however long."""
    console = stderr()
    console.print("Error:", style="bold red", end=" ")
    _plain(console, text)


def show_table(table: Table) -> None:
    stdout().print(table)


def show(text: str = "") -> None:
    """Print a line of results as it is: no wrapping, no markup."""
    _plain(stdout(), text)


def note(text: str) -> None:
    """Print a line that is no result to stderr."""
    _plain(stderr(), text)


def _plain(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, markup=False, highlight=False)


class ProgressBar:
    """A bar with the time left on stderr; nothing where that is no terminal.

    Args:
        description: what is being done.
        time_left: estimate it from the speed of the bar.

    Example:
        with ProgressBar("Reading") as bar:
            work(progress=bar.update)
    """

    def __init__(self, description: str = "", *, time_left: bool = True) -> None:
        self._live: Progress | None = None
        if sys.stderr.isatty():
            self._live = _progress(time_left)
            self._task = self._live.add_task(description, total=None)

    def __enter__(self) -> ProgressBar:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def visible(self) -> bool:
        """Whether anybody sees the bar."""
        return self._live is not None

    def describe(self, text: str) -> None:
        """Say what is being done."""
        if self._live is not None:
            self._live.update(self._task, description=text)

    def update(self, done: float, total: float) -> None:
        """Move the bar."""
        if self._live is not None:
            self._live.update(self._task, completed=done, total=total)

    def note(self, text: str) -> None:
        """Print a line to stderr without tearing the bar."""
        _plain(stderr() if self._live is None else self._live.console, text)

    def show(self, text: str) -> None:
        """Print a line of results without tearing the bar."""
        if self._live is not None and sys.stdout.isatty():
            _plain(self._live.console, text)
        else:
            show(text)


def _progress(time_left: bool) -> Progress:
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        *([TimeRemainingColumn()] if time_left else []),
        console=stderr(),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
