"""`tttunet train`: a data set folder in, a model folder out."""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import signal
import threading
import time
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tttunet.cli import options
from tttunet.cli.console import ProgressBar, note, show
from tttunet.errors import Cancelled

if TYPE_CHECKING:
    from types import FrameType

    from tttunet.models.model import Model
    from tttunet.training.trainer import TrainEvent

#: Where stderr is no terminal, a line at least this many seconds after the last one.
_SECONDS_BETWEEN_LINES = 60.0
INTERRUPTED = 130


class Precision(str, Enum):
    full = "32-true"
    half = "16-mixed"
    bfloat = "bf16-mixed"


def train(
    dataset: Annotated[
        Path,
        typer.Argument(
            metavar="DATASET",
            help="A folder with a dataset.json, or a CSV file of pairs.",
            callback=options.user_path,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder of this training.",
            callback=options.user_path,
        ),
    ],
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME_OR_PATH",
            help="A shipped recipe (nuclei, polyp, hippocampus-mr, ...) or a JSON file (default: "
            "planned from the data).",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the model (default: that of the data set).")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="MODEL",
            help="Start from the weights, the network and the plan of a model.",
        ),
    ] = None,
    configuration: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Classes in volumes: 3d_fullres (default), or 3d_lowres where it is planned.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Network and patch of the paper's Table 6, such as abdomen-ct-3d or microscopy.",
        ),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(min=2, help="Cross-validation: hold out one of so many parts of all cases."),
    ] = None,
    fold: Annotated[
        int | None, typer.Option(min=0, help="Which part, from 0 (with --folds).")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="End after so many steps.")] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(help="End after so many minutes (default: 60, if --steps is not given)."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Patches per step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Initial learning rate.")] = None,
    no_ttt: Annotated[
        bool, typer.Option("--no-ttt", help="Replace the TTT layers by the identity (ablation).")
    ] = False,
    seed: Annotated[
        int | None, typer.Option(help="Of weights, order and augmentation (default: 0).")
    ] = None,
    validate_every: Annotated[
        int | None, typer.Option(min=1, metavar="STEPS", help="Steps between validations.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where to compute: auto, cpu, cuda or mps.", metavar="DEVICE")
    ] = "auto",
    precision: Annotated[
        Precision | None,
        typer.Option(help="Of the computation (default: 16-mixed on CUDA, else 32-true)."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that prepare patches.")
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Of the preprocessed data (default: OUTPUT/cache).",
            callback=options.user_path,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the training in OUTPUT, as if never stopped."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the training in OUTPUT.")
    ] = False,
) -> None:
    """Train a model on a data set.

    DATASET has images/NAME.* and labels/NAME.* and a dataset.json with the
    keys task (instance or semantic), dim (2 or 3) and classes, or is an
    nnU-Net v2 raw data set, or a CSV file with the columns image and label.
    tttunet check finds what is wrong with it. Network, patch size and
    preprocessing are planned from the data; a recipe or the options below
    change them.

    OUTPUT receives model/ (the best model so far), loss.png and history.jsonl
    (the curve). Ctrl-C saves a checkpoint; --resume goes on from it.

    \b
    [bold]Examples[/bold]
    tttunet train my-cells/ --output runs/my-cells --max-minutes 90
    tttunet train my-cells/ -o runs/my-cells --resume --max-minutes 180
    tttunet train my-cells/ -o runs/tuned --from nuclei --steps 500
    tttunet train nuclei_dsb2018/ -o runs/nuclei --recipe nuclei
    tttunet train nuclei_dsb2018/ -o runs/no-ttt --recipe nuclei --no-ttt
    tttunet train Dataset001_Liver/ -o runs/liver-0 --folds 5 --fold 0
    """
    if fold is not None and folds is None:
        raise typer.BadParameter("--fold needs --folds.")
    fields = {
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "validate_every": validate_every,
        "precision": None if precision is None else precision.value,
        "workers": workers,
        "folds": folds,
        "fold": fold,
    }
    overrides: dict[str, dict[str, Any]] = {
        "train": {field: value for field, value in fields.items() if value is not None}
    }
    if no_ttt:
        overrides["network"] = {"ttt": None}

    with ProgressBar("Preparing the data", time_left=False) as bar, stop_key(bar) as stop:
        from tttunet.training.run import train as train_model

        try:
            model = train_model(
                dataset,
                output,
                recipe=recipe,
                name=name,
                steps=steps,
                max_minutes=max_minutes,
                overrides=overrides,
                start=start,
                configuration=configuration,
                preset=preset,
                device=device,
                resume=resume,
                overwrite=overwrite,
                cache=cache,
                listener=Display(bar).hear,
                progress=bar.update,
                cancel=stop,
            )
        except Cancelled:
            stopped = True
        else:
            stopped = False
    if stopped:
        note(f"Stopped; a checkpoint was saved in '{output}'. Go on with:")
        note(f"  {_resume_command(dataset, output, device)}")
        raise typer.Exit(INTERRUPTED)
    _show_result(model, output)


def _show_result(model: Model, output: Path) -> None:
    folder = output / "model"
    scores = model.config.card.scores.get("val", {}).get("all", {})
    names = {"f1_mean_over_images_iou50": "mean F1 at IoU 0.5", "dice_mean": "mean Dice"}
    for key, text in names.items():
        if key in scores:
            show(f"Score: {scores[key]:.3f} ({text} of {scores['images']} validation images)")
    show(f"Curve: {output / 'loss.png'}")
    show(f"Model: {folder}")
    show(f"Use it: tttunet segment IMAGE --model {shlex.quote(str(folder))} --output results/")


def _resume_command(dataset: Path, output: Path, device: str) -> str:
    words = ["tttunet", "train", str(dataset), "--output", str(output), "--resume"]
    words += [] if device == "auto" else ["--device", device]
    return shlex.join(words)


class Display:
    """Shows training events: in the progress bar, or as lines where there is no terminal."""

    def __init__(self, bar: ProgressBar) -> None:
        self._bar = bar
        self._loss = ""
        self._score = ""
        self._best = -math.inf
        self._last_line = -math.inf

    def hear(self, event: TrainEvent) -> None:
        if event.kind == "tuning":
            self._bar.describe("choosing thresholds on the validation images")
            self._bar.update(event.progress, 1.0)
            return
        if not math.isnan(event.loss):
            self._loss = f"loss {event.loss:.3f}"
        if event.score is not None and not math.isnan(event.score):
            self._best = max(self._best, event.score)
            self._score = f"score {event.score:.3f} (best {self._best:.3f})"
        left = "" if event.remaining is None else f"{duration(event.remaining)} left"
        parts = (f"step {event.step}", self._loss, self._score, left)
        text = ", ".join(part for part in parts if part)
        self._bar.describe(text)
        self._bar.update(event.progress, 1.0)
        waited = time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES
        if not self._bar.visible and (waited or event.kind == "validation"):
            note(text)
            self._last_line = time.monotonic()


def duration(seconds: float) -> str:
    """`45 s`, `12 min` or `1 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class _StopKey:
    """Ctrl-C ends the training after the current step; a second one, or one before the first
    step, ends the program at once."""

    def __init__(self, bar: ProgressBar) -> None:
        self._bar = bar
        self._process = os.getpid()
        self._training = False
        self._pressed = False

    def __call__(self) -> bool:
        """Whether to stop; the trainer asks at every step."""
        self._training = True
        return self._pressed

    def handle(self, _number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a worker process, forked with this handler: the main process ends it
        if self._pressed or not self._training:
            raise KeyboardInterrupt
        self._pressed = True
        self._bar.note("Stopping after this step. Ctrl-C again: at once, without a checkpoint.")


@contextlib.contextmanager
def stop_key(bar: ProgressBar) -> Iterator[_StopKey]:
    """Let Ctrl-C end a training after its step; gives what the training asks."""
    stop = _StopKey(bar)
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals reach the main thread only
        return
    previous = signal.signal(signal.SIGINT, stop.handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)
