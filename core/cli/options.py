"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Axes = Annotated[
    str | None,
    typer.Option(
        help="Axes of the files if they do not say them or say them wrongly, one letter per "
        "dimension: T time, C channel, Z, Y, X, S colour samples. For instance ZYX.",
    ),
]
Device = Annotated[
    str, typer.Option(help="Where to compute: auto, cpu, cuda, cuda:1 or mps.", metavar="DEVICE")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing results.")]
