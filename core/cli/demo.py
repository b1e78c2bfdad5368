"""`tttunet demo`: the shipped model on the shipped samples, scored against their true labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tttunet.cli import options
from tttunet.cli.console import ProgressBar, show, show_table
from tttunet.cli.segment import DEFAULT_MODEL
from tttunet.errors import ModelError

if TYPE_CHECKING:
    from tttunet.evaluation import InstanceScores
    from tttunet.models.model import Model

#: Objects match at this IoU.
_THRESHOLD = 0.5


def demo(
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder of the results.",
            callback=options.user_path,
        ),
    ] = Path("demo-output"),
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="NAME_OR_PATH", help="A model of nuclei.")
    ] = DEFAULT_MODEL,
    device: options.Device = "auto",
) -> None:
    """Segment the sample images that ship with the package, and score the result.

    Writes label files and pictures with outlines to ./demo-output, replacing
    those of the last demo.

    \b
    [bold]Examples[/bold]
    tttunet demo
    tttunet demo --output /tmp/demo --model runs/my-cells/model
    """
    from importlib.resources import as_file, files

    from tttunet.files import check_output

    check_output(output / "x", overwrite=True)
    with (
        ProgressBar("Loading the model") as bar,
        as_file(files("tttunet.resources") / "samples") as folder,
    ):
        from tttunet.models.model import load_model

        loaded = load_model(model)
        if loaded.config.task != "instance":
            raise ModelError(f"'{model}' finds classes, not nuclei.", "Choose an instance model.")
        description = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
        samples = description["images"]
        scores = []
        for index, sample in enumerate(samples):
            bar.describe(sample["name"])
            bar.update(index, len(samples))
            scores.append(_run(folder, sample["name"], loaded, output, device))
    _show(description, loaded, scores)
    show(f"Labels and pictures: {output.resolve()}")
    for sample in samples:
        show(f"  {sample['name']}_labels.ome.tif  {sample['name']}_overlay.png")


def _run(folder: Path, name: str, model: Model, output: Path, device: str) -> InstanceScores:
    from tttunet.evaluation import instance_scores
    from tttunet.imaging import load_image, load_labels, save_labels, save_overlay
    from tttunet.inference.segment import segment

    image = load_image(folder / f"{name}.png")
    truth = load_labels(folder / f"{name}_labels.tif")
    labels = segment(image, model, device=device).labels
    save_labels(output / f"{name}_labels.ome.tif", labels, image, overwrite=True)
    save_overlay(output / f"{name}_overlay.png", image, labels, overwrite=True)
    return instance_scores(labels, truth.array, thresholds=(_THRESHOLD,))[0]


def _show(description: dict[str, Any], model: Model, scores: list[InstanceScores]) -> None:
    from rich.table import Table

    from tttunet.evaluation import pool

    table = Table(title=f"{description['title']}, segmented by '{model.config.name}'")
    table.add_column("image")
    for head in ("true nuclei", "found", f"F1 at IoU {_THRESHOLD}"):
        table.add_column(head, justify="right")
    (pooled,) = pool([[score] for score in scores])
    rows = [*zip(description["images"], scores, strict=True)]
    for sample, score in rows:
        table.add_row(sample["title"], *_cells(score), end_section=sample is rows[-1][0])
    table.add_row("all nuclei pooled", *_cells(pooled))
    show_table(table)


def _cells(score: InstanceScores) -> list[str]:
    return [str(score.tp + score.fn), str(score.tp + score.fp), f"{score.f1:.3f}"]
