"""`tttunet convert`: the authors' checkpoints as models of ours."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from tttunet.cli import options
from tttunet.cli.console import note, show


class Precision(str, Enum):
    fp32 = "fp32"
    fp16 = "fp16"


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="nnU-Net folder TRAINER__PLANS__CONFIGURATION, one fold of it, or a .pth file.",
            callback=options.user_path,
        ),
    ],
    output: Annotated[
        Path,
        typer.Argument(
            metavar="OUTPUT", help="The model folder to write.", callback=options.user_path
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the model (default: that of the folder).")
    ] = None,
    configuration: Annotated[
        str | None,
        typer.Option(help="2d or 3d_fullres (default: what the checkpoint says)."),
    ] = None,
    fold: Annotated[
        str | None, typer.Option(help="Which fold, if there are several: 0 to 4, or all.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title of the model card.")] = None,
    licence: Annotated[str, typer.Option(help="Licence of the weights.")] = "unknown",
    precision: Annotated[Precision, typer.Option(help="Of the weights on disk.")] = Precision.fp32,
    overwrite: options.Overwrite = False,
) -> None:
    """Convert a checkpoint of the authors' TTT-UNet code to a model folder.

    Needs the checkpoint with its plans.json and dataset.json. Only tensors and
    numbers are read from it: code hidden in a checkpoint is not run.

    \b
    [bold]Examples[/bold]
    tttunet convert nnUNetTrainerUTTTBot__nnUNetPlans__2d models/abdomen-mr
    tttunet convert fold_0/checkpoint_final.pth models/cells --title Cells
    tttunet models add models/cells
    """
    from tttunet.models.convert import convert_checkpoint

    conversion = convert_checkpoint(
        source,
        output,
        name=name,
        configuration=configuration,
        fold=fold,
        title=title,
        licence=licence,
        dtype=precision.value,
        overwrite=overwrite,
    )
    for warning in conversion.warnings:
        note(f"Note: {warning}")
    show(f"{conversion.config.name} ({conversion.config.card.title}) -> {conversion.path}")
