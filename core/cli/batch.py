"""`tttunet batch`: a saved batch, run in the engine's worker process."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tttunet.cli import options
from tttunet.cli.console import ProgressBar, note, show_error

if TYPE_CHECKING:
    from tttunet.engine.batch import Batch

_INTERRUPTED = 130


def batch(
    context: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A YAML or JSON file.",
            callback=options.user_path,
            show_default=False,
        ),
    ],
) -> None:
    """Segment the images that a batch file names.

    The file is saved by the batch panel of the viewer, or written by hand:

    \b
    inputs: \\[plate1/, "plate2/*.tif"]
    model: nuclei
    output: results/
    table: true
    decoding: {min_size: 30}

    Further fields: ending, format, overlay, adaptation_map, axes, channel,
    device, tile, overlap, mirror, adaptation, frames, smoothing, existing.
    Paths start from the file's folder. Run it again after an interruption:
    images that are complete are left out, unless it says existing: overwrite.

    \b
    [bold]Example[/bold]
    tttunet batch plates.yaml
    """
    from tttunet.engine.batch import Batch

    run_batch(Batch.read(file), debug=bool(context.obj))


def run_batch(plan: Batch, debug: bool = False) -> None:
    """Run a batch in a worker process and show how it goes.

    Args:
        plan: with absolute paths.
        debug: show the traceback of a defect.

    Raises:
        typer.Exit: a file failed, or the batch as a whole, or Ctrl-C was pressed.
    """
    from tttunet.engine.client import Engine
    from tttunet.engine.messages import Batch as BatchRequest

    with ProgressBar("Starting") as bar, Engine() as engine:
        display = _Display(bar)
        job = engine.request(
            BatchRequest(plan.model_dump(mode="json")), lambda _, event: display.hear(event)
        )
        with _first_ctrl_c() as pressed:
            while not job.finished and not pressed:
                job.wait(0.2)
        if pressed:
            bar.note("Stopping after this tile.")
            job.cancel()
            job.wait()
    outcome = job.outcome
    if outcome.kind == "cancelled":
        note("Stopped; files that were done stay.")
        raise typer.Exit(_INTERRUPTED)
    if outcome.kind != "done":
        if debug and outcome.kind == "failed" and outcome.details:
            note(outcome.details)
        show_error(f"{outcome.message} {outcome.hint}".strip())
        raise typer.Exit(1)
    if display.failures:
        from tttunet.cli.segment import report_failures

        report_failures(display.failures, display.total)
        raise typer.Exit(1)


@contextlib.contextmanager
def _first_ctrl_c() -> Iterator[list[int]]:
    """A list that Ctrl-C puts something into; a second one interrupts as usual.

    As an exception it might come while this thread holds a lock of the engine, for good.
    """
    pressed: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def press(number: int, _frame: Any) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


class _Display:
    """Shows the engine's events."""

    def __init__(self, bar: ProgressBar) -> None:
        self._bar = bar
        self.failures: dict[Path, str] = {}
        self.total = 0

    def hear(self, event: Any) -> None:
        from tttunet.cli.segment import describe_file, summary

        if event.kind == "progress":
            if event.stage == "segmenting":
                self._bar.update(event.fraction, 1.0)
            else:
                self._bar.describe(event.stage.capitalize())
        elif event.kind == "log":
            self._bar.note(event.message)
        elif event.kind == "file":
            self.total = event.total
            if event.state == "running":
                describe_file(self._bar, Path(event.source).name, event.index, event.total)
            elif event.state == "failed":
                self.failures[Path(event.source)] = event.text
            elif event.state == "skipped":
                self._bar.note(f"{event.source}: done already -> {event.labels}")
            else:
                self._bar.show(summary(event.source, event.text, event.seconds, event.labels))
