"""`tttunet segment`: files in, label files out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tttunet.cli import options
from tttunet.cli.console import ProgressBar, note, show_error
from tttunet.cli.messages import explain
from tttunet.errors import TTTUNetError

if TYPE_CHECKING:
    from pathlib import Path

    from tttunet.inference.files import FileJob
    from tttunet.models.model import Model

DEFAULT_MODEL = "nuclei"


def segment(
    context: typer.Context,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT", help="Files, folders (also of DICOM slices) or globs ('*.tif')."
        ),
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
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME_OR_PATH",
            help="See [bold]tttunet models list[/bold]; several, or a folder of the folds of a "
            f"cross-validation, are averaged. [dim]\\[default: {DEFAULT_MODEL}][/dim]",
        ),
    ] = None,
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
    decoding: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Change a threshold of the model, such as foreground=0.4; may be repeated.",
        ),
    ] = None,
    adaptation: Annotated[
        str,
        typer.Option(
            metavar="MODE",
            help="How TTT layers adapt: [bold]tile[/bold] by tile, not at all ([bold]off[/bold]), "
            "on from tile to tile of an [bold]image[/bold], or per tile in [bold]both[/bold] "
            "directions.",
        ),
    ] = "tile",
    adaptation_map: Annotated[
        bool,
        typer.Option(
            "--adaptation-map",
            help="Write NAME_adaptation.ome.tif: the loss of the TTT layers before and after they "
            "adapted, large where the image is unlike what the model knows.",
        ),
    ] = False,
    frames: Annotated[
        bool,
        typer.Option(
            "--frames",
            help="A TIFF stack or a folder of pictures is a film: frames are read, segmented and "
            "written one by one, so that memory does not grow with their number. Videos always "
            "are.",
        ),
    ] = False,
    smooth: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="FRAMES",
            help="Average the probabilities of so many frames of a film (3, 5, ...) before the "
            "likeliest class is taken; for models of classes.",
        ),
    ] = 1,
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
    engine: Annotated[
        bool,
        typer.Option(
            "--engine",
            help="Compute in a process of its own, which goes on with smaller tiles or on the CPU "
            "if memory runs out.",
        ),
    ] = False,
) -> None:
    """Segment images and write label files of the same size.

    Reads TIFF, OME-TIFF, PNG, JPEG, BMP, NIfTI, NRRD and MHA, and videos
    (MP4, MOV, AVI, MKV, ...: pip install 'napari-tttunet\\[video]'). Labels
    are written as NAME_labels.ome.tif with the pixel size of the input; NIfTI,
    NRRD and MHA keep their format and geometry. A file that fails does not
    stop the others.

    \b
    [bold]Examples[/bold]
    tttunet segment cells.tif --output results/
    tttunet segment cells.png -o cells_labels.ome.tif --overlay --table
    tttunet segment plate1/ 'plate2/*.tif' -o results/ --model my-cells --tta
    tttunet segment stack.tif -o results/ --axes ZYX --device cuda
    tttunet segment stained.ome.tif -o results/ --channel DAPI
    tttunet segment video.mp4 -o labels.ome.tif --model polyp --smooth 3
    tttunet segment frames/ -o results/ --frames
    tttunet segment case.nii.gz -o results/ -m fold-0/model -m fold-1/model
    """
    settings: dict[str, Any] = {
        "axes": axes,
        "channel": channel,
        "device": device,
        "overlap": overlap,
        "mirror": tta,
        "adaptation": adaptation,
    }
    tile_numbers = () if tile is None else _parse_tile(tile)
    thresholds = _thresholds(decoding or [], min_size)
    models = model or [DEFAULT_MODEL]
    if engine:
        from tttunet.cli.batch import run_batch
        from tttunet.engine.batch import Batch

        fields = {
            "inputs": tuple(inputs),
            "output": output,
            "model": models,
            "overlay": overlay,
            "table": table,
            "adaptation_map": adaptation_map,
            "tile": tile_numbers,
            "decoding": thresholds,
            "frames": frames,
            "smoothing": smooth,
            "existing": "overwrite" if overwrite else "error",
        }
        plan = Batch.from_dict({**fields, **settings}, "The command")
        run_batch(plan.absolute(), debug=bool(context.obj))
        return

    from tttunet.inference.files import expand_inputs, plan_jobs, without_further_channels

    jobs = plan_jobs(
        expand_inputs(inputs, frames=frames),
        output,
        overlay=overlay,
        table=table,
        adaptation=adaptation_map,
        existing="overwrite" if overwrite else "error",
        frames=frames,
    )
    with ProgressBar("Loading the model") as bar:
        from tttunet.inference.device import pick_device
        from tttunet.inference.ensemble import load_ensemble
        from tttunet.inference.segment import changed_decoding, tile_size

        pick_device(device)
        loaded = load_ensemble(models)
        jobs = without_further_channels(jobs, loaded.config)
        settings |= {
            "tile": tile_size(loaded.config, tile_numbers),
            "decoding": changed_decoding(loaded.config, thresholds),
            "smoothing": smooth,
            "overwrite": overwrite,
            "note": bar.note,
        }
        failures = _run_jobs(jobs, loaded, settings, bar, debug=bool(context.obj))
    if failures:
        report_failures(failures, len(jobs))
        raise typer.Exit(1)


def _run_jobs(
    jobs: list[FileJob], model: Model, settings: dict[str, Any], bar: ProgressBar, debug: bool
) -> dict[Path, str]:
    """Segment one file after the other; returns what went wrong, by file."""
    from tttunet.inference.files import describe_result, segment_file

    failures: dict[Path, str] = {}
    for index, job in enumerate(jobs):
        describe_file(bar, job.source.name, index, len(jobs))

        def update(done: float, tiles: float, index: int = index) -> None:
            bar.update(index + done / tiles, len(jobs))

        try:
            result = segment_file(job, model, progress=update, **settings)
        except KeyboardInterrupt:
            bar.note(f"Stopped: {index - len(failures)} of {len(jobs)} images are segmented.")
            raise
        except Exception as error:
            if debug and not isinstance(error, TTTUNetError):
                raise
            failures[job.source] = explain(error)
            continue
        count = describe_result(result, model.config)
        bar.show(summary(job.source, count, result.seconds, job.labels))
    return failures


def describe_file(bar: ProgressBar, name: str, index: int, total: int) -> None:
    """Say which file it is."""
    bar.describe(f"{name}  {index + 1}/{total}" if total > 1 else name)
    bar.update(index, total)


def summary(source: Path | str, count: str, seconds: float, labels: Path | str) -> str:
    """The line about a file that is done."""
    return f"{source}: {count}, {seconds:.1f} s -> {labels}"


def report_failures(failures: dict[Path, str], total: int) -> None:
    """Say at the end which files have no result, and why."""
    if total == 1:
        show_error(next(iter(failures.values())))
        return
    show_error(f"{len(failures)} of {total} images could not be read or segmented:")
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


def _thresholds(words: list[str], min_size: int | None) -> dict[str, Any]:
    """`["foreground=0.4"]` to `{"foreground": 0.4}`."""
    changes: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise typer.BadParameter("write NAME=VALUE", param_hint="--decoding")
        changes[name] = {"true": True, "false": False}.get(value.lower(), value)
    return changes if min_size is None else {**changes, "min_size": min_size}
