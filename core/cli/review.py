"""`tttunet review`: which images, slices and objects to correct first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tttunet.cli import options
from tttunet.cli.console import ProgressBar, show_table
from tttunet.cli.messages import explain
from tttunet.cli.segment import describe_file, report_failures

if TYPE_CHECKING:
    from tttunet.measuring.places import Place
    from tttunet.models.model import Model

#: The image, the slice or frame of it (empty for an image of the model's dimensions), and a place.
_Found = tuple[Path, tuple[int, ...], "Place"]
_COLUMNS = ("image", "slice", "kind", "label", "centre", "doubt")


def review(
    inputs: Annotated[
        list[str], typer.Argument(metavar="IMAGES...", help="Files, folders or globs.")
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="MODEL", help="Name or folder of a model.")
    ] = "nuclei",
    places: Annotated[
        int,
        typer.Option(min=1, help="So many places, the most doubtful of an image, are added up."),
    ] = 5,
    csv: Annotated[
        Path | None,
        typer.Option(
            "--csv",
            metavar="FILE",
            help="Write every place with its doubt, the most doubtful first.",
            callback=options.user_path,
        ),
    ] = None,
    axes: options.Axes = None,
    device: options.Device = "auto",
    overwrite: options.Overwrite = False,
) -> None:
    """Say which images and slices are worth correcting first.

    Segments the images and ranks them by how doubtful the model is about its
    most doubtful objects and gaps: images without any are left out.

    \b
    [bold]Examples[/bold]
    tttunet review plate/ --model nuclei
    tttunet review plate/*.tif --csv places.csv
    """
    from rich.table import Table
    from rich.text import Text

    from tttunet.files import check_output

    if csv is not None:
        check_output(csv, overwrite=overwrite)
    from tttunet.imaging import save_table
    from tttunet.inference.files import expand_inputs, first_channels
    from tttunet.measuring.places import rank_groups

    paths = expand_inputs(inputs)
    failures: dict[Path, str] = {}
    with ProgressBar("Loading the model") as bar:
        from tttunet.models.model import load_model

        loaded = load_model(model)
        paths = first_channels(paths, loaded.config)
        found = list(_review(paths, loaded, bar, failures, axes=axes, device=device))
    grouped = [((path, index), place) for path, index, place in found]
    counts = Counter(group for group, _ in grouped)
    table = Table("image", "slice", "doubt", "places")
    for group, doubt in rank_groups(grouped, places):
        path, index = group
        table.add_row(Text(str(path)), _numbers(index), f"{doubt:.2f}", str(counts[group]))
    show_table(table)
    if csv is not None:
        found.sort(key=lambda one: -one[2].doubt)
        save_table(csv, [_row(*one) for one in found], columns=_COLUMNS, overwrite=overwrite)
    if failures:
        report_failures(failures, len(paths))
        raise typer.Exit(1)


def _review(
    paths: list[Path],
    model: Model,
    bar: ProgressBar,
    failures: dict[Path, str],
    *,
    axes: str | None,
    device: str,
) -> Iterator[_Found]:
    """The doubtful places of one image after the other; tells what went wrong, by file."""
    from tttunet.inference.files import load_input
    from tttunet.inference.review import review_image

    for number, path in enumerate(paths):
        describe_file(bar, path.name, number, len(paths))

        def update(done: float, total: float, number: int = number) -> None:
            bar.update(number + done / total, len(paths))

        try:
            image = load_input(path, model.config, axes=axes, note=bar.note)
            places = review_image(image, model, device=device, progress=update)
        except Exception as error:
            failures[path] = explain(error)
            continue
        for index, place in places:
            yield path, index, place


def _numbers(index: tuple[int, ...]) -> str:
    return " ".join(map(str, index))


def _row(path: Path, index: tuple[int, ...], place: Place) -> dict[str, object]:
    centre = " ".join(f"{x:.1f}" for x in place.centre)
    return dict(
        zip(
            _COLUMNS,
            (path, _numbers(index), place.kind, place.label or "", centre, round(place.doubt, 4)),
            strict=True,
        )
    )
