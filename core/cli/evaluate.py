"""`tttunet evaluate`: predicted against true labels."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from tttunet.cli import options
from tttunet.cli.console import ProgressBar, show_table


class Task(str, Enum):
    instance = "instance"
    semantic = "semantic"


def evaluate(
    pred: Annotated[
        Path,
        typer.Argument(
            metavar="PRED",
            help="Predicted labels: a file or a folder.",
            callback=options.user_path,
        ),
    ],
    truth: Annotated[
        Path,
        typer.Argument(metavar="TRUTH", help="True labels, likewise.", callback=options.user_path),
    ],
    task: Annotated[
        Task,
        typer.Option("--task", help="instance: a number per object; semantic: a number per class."),
    ],
    json: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Write all scores as JSON.",
            callback=options.user_path,
        ),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(
            "--csv",
            metavar="FILE",
            help="Write a row per file and threshold or class.",
            callback=options.user_path,
        ),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="semantic: tolerance of the surface Dice (NSD) in mm; in pixels for files without "
            "a physical pixel size.",
        ),
    ] = 2.0,
    ignore: Annotated[
        int | None,
        typer.Option(metavar="LABEL", help="Number in the true labels that does not count."),
    ] = None,
    axes: options.Axes = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Score predicted labels against true ones.

    Takes two files, or two folders whose files have the same names up to
    endings such as _labels. Instances: F1, precision, recall, AP and panoptic
    quality at IoU 0.5 to 0.95. Classes: Dice and surface Dice.

    \b
    [bold]Examples[/bold]
    tttunet evaluate results/cells_labels.ome.tif truth/cells.tif --task instance
    tttunet evaluate results/ truth/ --task instance --json scores.json
    tttunet evaluate pred/ labelsTs/ --task semantic --csv scores.csv
    """
    from tttunet.files import atomic_write, check_output

    for path in (json, csv):
        if path is not None:
            check_output(path, overwrite=overwrite)

    from tttunet.evaluation import evaluate as evaluate_files
    from tttunet.imaging import save_table

    with ProgressBar("Comparing") as bar:
        report = evaluate_files(
            pred,
            truth,
            task.value,
            tolerance=tolerance,
            ignore=ignore,
            axes=axes,
            progress=bar.update,
        )
    for table in report.tables():
        show_table(table)
    if json is not None:
        with atomic_write(json, overwrite=overwrite) as temporary:
            temporary.write_text(report.to_json(), encoding="utf-8")
    if csv is not None:
        save_table(csv, report.rows(), overwrite=overwrite)
