"""`tttunet segment`: files in, label files out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from tttunet.cli import options
from tttunet.cli.console import ProgressBar, note, show_error
from tttunet.cli.messages import explain
from tttunet.errors import ModelError, TTTUNetError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tttunet.cli.jobs import Job
    from tttunet.inference.segment import Result
    from tttunet.models.config import InstanceDecoding
    from tttunet.models.model import Model

DEFAULT_MODEL = "nuclei"


@dataclass(frozen=True)
class Settings:
    """What is the same for all files of a run."""

    model: Model
    axes: str | None
    channel: str | None
    device: str
    tile: tuple[int, ...] | None
    overlap: float
    mirror: bool
    decoding: InstanceDecoding | None
    overwrite: bool
    debug: bool


def segment(
    context: typer.Context,
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT", help="Files, folders or globs ('*.tif').")
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="Folder of the results; for a single image also the name of the label file.",
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", metavar="NAME_OR_PATH", help="See [bold]tttunet models list[/bold]."
        ),
    ] = DEFAULT_MODEL,
    axes: options.Axes = None,
    channel: Annotated[
        str | None,
        typer.Option(
            metavar="NAME_OR_NUMBER", help="Segment this channel only; numbers start at 0."
        ),
    ] = None,
    device: options.Device = "auto",
    tile: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Tile size in pixels, 512 or 64,256,256; smaller needs less memory. "
            "By default chosen from the model.",
        ),
    ] = None,
    overlap: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Share of a tile that neighbours share.")
    ] = 0.25,
    tta: Annotated[
        bool,
        typer.Option(
            "--tta", help="Average over mirrored images: often better, 4 times slower (8 in 3D)."
        ),
    ] = False,
    min_size: Annotated[
        int | None,
        typer.Option(min=0, metavar="PIXELS", help="Drop smaller objects (default: the model's)."),
    ] = None,
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Write NAME_overlay.png: outlines over the image.")
    ] = False,
    table: Annotated[
        bool,
        typer.Option(
            "--table", help="Write NAME_objects.csv: size, place and intensity of every object."
        ),
    ] = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Segment images and write label files of the same size.

    Reads TIFF, OME-TIFF, PNG, JPEG, BMP, NIfTI, NRRD and MHA. Labels are
    written as NAME_labels.ome.tif with the pixel size of the input; NIfTI,
    NRRD and MHA keep their format and geometry. A file that fails does not
    stop the others.

    \b
    [bold]Examples[/bold]
    tttunet segment cells.tif --output results/
    tttunet segment cells.png -o cells_labels.ome.tif --overlay --table
    tttunet segment plate1/ 'plate2/*.tif' -o results/ --model my-cells --tta
    tttunet segment stack.tif -o results/ --axes ZYX --device cuda
    tttunet segment stained.ome.tif -o results/ --channel DAPI
    """
    from tttunet.cli.jobs import expand_inputs, plan_jobs

    jobs = plan_jobs(
        expand_inputs(inputs), output, overlay=overlay, table=table, overwrite=overwrite
    )
    tile_numbers = None if tile is None else _parse_tile(tile)

    with ProgressBar("Loading the model") as bar:
        from tttunet.inference.device import pick_device
        from tttunet.inference.segment import tile_size
        from tttunet.models.model import load_model

        pick_device(device)
        loaded = load_model(model)
        settings = Settings(
            model=loaded,
            axes=axes,
            channel=channel,
            device=device,
            tile=tile_size(loaded, tile_numbers),
            overlap=overlap,
            mirror=tta,
            decoding=_decoding(loaded, min_size),
            overwrite=overwrite,
            debug=bool(context.obj),
        )
        failures = _run_jobs(jobs, settings, bar)
    if failures:
        _report_failures(failures, len(jobs))
        raise typer.Exit(1)


def _run_jobs(jobs: list[Job], settings: Settings, bar: ProgressBar) -> dict[Path, str]:
    """Segment one file after the other; returns what went wrong, by file."""
    failures: dict[Path, str] = {}
    for index, job in enumerate(jobs):
        count = f"  {index + 1}/{len(jobs)}" if len(jobs) > 1 else ""
        bar.describe(f"{job.source.name}{count}")
        bar.update(index, len(jobs))
        try:
            result = _run_job(job, settings, bar, index, len(jobs))
        except Exception as error:
            if settings.debug and not isinstance(error, TTTUNetError):
                raise
            failures[job.source] = explain(error)
            continue
        bar.show(_summary(job, result, settings.model))
    return failures


def _run_job(job: Job, settings: Settings, bar: ProgressBar, index: int, total: int) -> Result:
    from tttunet.imaging import load_image
    from tttunet.inference.segment import segment as segment_image

    image = load_image(job.source, settings.axes)
    if settings.channel is not None:
        image = image.select_channel(settings.channel)
    elif settings.model.config.plan.channels == "rgb" and image.channels == 3 and not image.rgb:
        bar.note(
            f"{job.source}: its three channels are taken as red, green and blue; "
            "--channel chooses one of them."
        )
    result = segment_image(
        image,
        settings.model,
        device=settings.device,
        tile=settings.tile,
        overlap=settings.overlap,
        mirror=settings.mirror,
        decoding=settings.decoding,
        progress=lambda done, tiles: bar.update(index + done / tiles, total),
    )
    written: list[Path] = []
    try:
        for path in _write(job, result, settings):
            written.append(path)
    except BaseException:
        # All files of an image or none; but what they replaced is gone already.
        for path in [] if settings.overwrite else written:
            path.unlink(missing_ok=True)
        raise
    return result


def _write(job: Job, result: Result, settings: Settings) -> Iterator[Path]:
    """Write one output after the other; gives each path when it is complete."""
    from tttunet.imaging import save_labels, save_overlay, save_table
    from tttunet.inference.objects import object_columns, object_table

    image, config, overwrite = result.image, settings.model.config, settings.overwrite
    semantic = config.task == "semantic"
    yield save_labels(job.labels, result.labels, image, overwrite=overwrite)
    if job.overlay is not None:
        colors = {label.value: label.color for label in config.labels if label.color and semantic}
        yield save_overlay(job.overlay, image, result.labels, colors=colors, overwrite=overwrite)
    if job.table is not None:
        classes = {label.value: label.name for label in config.labels} if semantic else None
        rows = object_table(result.labels, image, classes)
        columns = object_columns(image, semantic)
        yield save_table(job.table, rows, columns=columns, overwrite=overwrite)


def _summary(job: Job, result: Result, model: Model) -> str:
    things = "object" if model.config.task == "instance" else "class"
    plural = "" if result.count == 1 else "s" if things == "object" else "es"
    return f"{job.source}: {result.count} {things}{plural}, {result.seconds:.1f} s -> {job.labels}"


def _report_failures(failures: dict[Path, str], total: int) -> None:
    """Say at the end which files have no result, and why."""
    if total == 1:
        show_error(next(iter(failures.values())))
        return
    show_error(f"{len(failures)} of {total} images could not be segmented:")
    for path, reason in failures.items():
        note(f"  {reason}" if str(path) in reason else f"  {path}: {reason}")


def _parse_tile(text: str) -> tuple[int, ...]:
    try:
        size = tuple(int(number) for number in text.replace("x", ",").split(","))
    except ValueError:
        size = ()
    if not size or min(size) < 1:
        raise typer.BadParameter("give a size such as 512 or 64,256,256", param_hint="--tile")
    return size


def _decoding(model: Model, min_size: int | None) -> InstanceDecoding | None:
    rules = model.config.plan.decoding
    if min_size is None:
        return rules
    if rules is None:
        raise ModelError(
            f"'{model.config.name}' finds classes, not objects, so --min-size has no meaning.",
            "Leave it away.",
        )
    return rules.model_copy(update={"min_size": min_size})
