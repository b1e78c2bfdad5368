"""`tttunet finetune`: a model and some corrections in, a better model out."""

from __future__ import annotations

import shlex
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tttunet.cli import options
from tttunet.cli.console import ProgressBar, note, show
from tttunet.cli.train import INTERRUPTED, Display, stop_key
from tttunet.errors import Cancelled

if TYPE_CHECKING:
    from tttunet.training.finetune import FinetuneResult

#: Instead of a model: a new one, planned from the data.
_SCRATCH = "scratch"


class Parts(str, Enum):
    auto = "auto"
    all = "all"
    decoder = "decoder"
    head = "head"


class Task(str, Enum):
    instance = "instance"
    semantic = "semantic"


def finetune(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help=f"Name or folder of the model to start from, or '{_SCRATCH}'."
        ),
    ],
    data: Annotated[
        Path,
        typer.Argument(
            metavar="PROJECT_OR_DATASET",
            help="A folder with a project.json or a dataset.json.",
            callback=options.user_path,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Working folder; the new model is in DIR/model.",
            callback=options.user_path,
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the new model (default: MODEL-tuned).")
    ] = None,
    task: Annotated[
        Task | None,
        typer.Option(
            help="'instance' lets an instance model learn from masks of one class, in which "
            "touching objects are not told apart."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="End after so many steps (default: by the data).")
    ] = None,
    max_minutes: Annotated[float | None, typer.Option(help="End after so many minutes.")] = None,
    parts: Annotated[
        Parts, typer.Option(help="Which weights move: all, decoder, head or auto.")
    ] = Parts.auto,
    learning_rate: Annotated[float | None, typer.Option(help="Initial learning rate.")] = None,
    share: Annotated[
        float,
        typer.Option(
            min=0.05,
            max=0.9,
            help="Share of the corrections that is held out: not trained on, but scored.",
        ),
    ] = 0.25,
    blend: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1.0,
            help="Share of the trained weights in the new model, the rest is MODEL's: less forgets "
            "less and learns less (default: 0.5; 1 where the last layer begins anew).",
        ),
    ] = None,
    no_replay: Annotated[
        bool,
        typer.Option("--no-replay", help="Do not train on a sample of the model's earlier data."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Of what is held out, of order and augmentation.")] = 0,
    device: Annotated[
        str, typer.Option(help="Where to compute: auto, cpu, cuda or mps.", metavar="DEVICE")
    ] = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the fine-tuning in DIR.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the fine-tuning in DIR.")
    ] = False,
) -> None:
    """Fit a model to your corrections.

    Some of the corrections are held out and never trained on; the score on
    them before and after says what the fine-tuning brought. MODEL itself is
    never changed; if nothing is better, the new model is the same one.

    Ctrl-C saves a checkpoint; --resume goes on from it.

    \b
    [bold]Examples[/bold]
    tttunet finetune nuclei my-cells/ --output runs/my-cells
    tttunet finetune nuclei my-cells/ -o runs/short --max-minutes 1
    tttunet finetune nuclei masks/ -o runs/masks --task instance
    tttunet finetune scratch my-cells/ -o runs/new --max-minutes 30
    """
    with ProgressBar("Preparing the corrections", time_left=False) as bar, stop_key(bar) as stop:
        from tttunet.training.finetune import finetune as finetune_model

        result: FinetuneResult | None = None
        said: list[str] = []

        def say(text: str) -> None:
            said.append(text)
            bar.show(text)

        try:
            result = finetune_model(
                None if model == _SCRATCH else model,
                data,
                output,
                name=name,
                task=None if task is None else task.value,
                replay=not no_replay,
                seed=seed,
                max_minutes=max_minutes,
                steps=steps,
                parts=parts.value,
                learning_rate=learning_rate,
                share=share,
                blend=blend,
                device=device,
                resume=resume,
                overwrite=overwrite,
                listener=Display(bar).hear,
                cancel=stop,
                say=say,
            )
        except Cancelled:
            note(f"Stopped; a checkpoint was saved in '{output}'. Go on by --resume.")
    if result is None:
        raise typer.Exit(INTERRUPTED)
    for text in result.notes:
        if text not in said:
            show(text)
    _show_result(result)


def _show_result(result: FinetuneResult) -> None:
    if result.after is not None:
        before = "" if result.before is None else f"{result.before['score']:.3f} -> "
        show(
            f"Held out: {result.after['metric']} {before}{result.after['score']:.3f} "
            f"({_count(result.after)}{_interval(result.after)})"
        )
    if result.forgetting is not None:
        old, new = result.forgetting["before"], result.forgetting["after"]
        show(
            f"Earlier data: {new['metric']} {old['score']:.3f} -> {new['score']:.3f} "
            f"({_count(new)}{_interval(result.forgetting)})"
        )
    folder = result.folder
    show(f"Curve: {folder.parent / 'loss.png'}")
    show(f"Model: {folder}")
    show(f"Use it: tttunet segment IMAGE --model {shlex.quote(str(folder))} --output results/")


def _count(score: dict[str, Any]) -> str:
    return f"{score['objects']} objects" if "objects" in score else f"{score['pixels']} pixels"


def _interval(score: dict[str, Any]) -> str:
    if "difference_interval" not in score:
        return ""
    low, high = score["difference_interval"]
    return f"; difference {score['difference']:+.3f}, 95 % between {low:+.3f} and {high:+.3f}"
