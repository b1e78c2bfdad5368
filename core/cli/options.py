"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def user_path(path: Path | None) -> Path | None:
    """Callback of path parameters: `~` is the home folder, also where no shell replaced it."""
    return None if path is None else path.expanduser()


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
