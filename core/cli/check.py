"""`tttunet check`: is this data set fit for training?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tttunet.cli import options
from tttunet.cli.console import ProgressBar, show


def check(
    dataset: Annotated[
        Path,
        typer.Argument(
            metavar="DATASET",
            help="What tttunet train takes: a folder, or a CSV file of pairs.",
            callback=options.user_path,
        ),
    ],
) -> None:
    """Find everything that is wrong with a data set, before training.

    Reads all images and labels and lists missing and damaged files, images
    and labels on different grids, values without a class, images without
    labels, and more. The exit code is 1 if training would fail.

    \b
    [bold]Examples[/bold]
    tttunet check nnUNet_raw/Dataset001_Liver/
    tttunet check pairs.csv
    """
    with ProgressBar("Checking") as bar:
        from tttunet.training.check import check_dataset

        found = check_dataset(dataset, bar.update)
    for problem in found.problems:
        show(f"{'error' if problem.fatal else 'warning'}: {problem.where}: {problem.text}")
    data = found.dataset
    classes = ", ".join(f"{value} {name}" for value, name in data.classes.items())
    show(f"{data.name}: {data.dim}D, {data.task}, {classes}")
    train, val = (len(data.cases[split]) for split in ("train", "val"))
    show(
        f"{train} cases to train on, {val} to validate on; "
        f"{_count(found.errors, 'error')}, {_count(found.warnings, 'warning')}"
    )
    if found.errors:
        raise typer.Exit(1)


def _count(number: int, name: str) -> str:
    return f"{number or 'no'} {name}{'' if number == 1 else 's'}"
