"""`tttunet bench`: numbers to compare with the paper's, and times on this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tttunet.cli import options
from tttunet.cli.console import ProgressBar, note, show, show_table

if TYPE_CHECKING:
    from tttunet.bench.report import Report
    from tttunet.networks.cost import CostRow

bench_app = typer.Typer(name="bench", help="Count and measure.", no_args_is_help=True)

Rounds = Annotated[int, typer.Option(min=1, help="How often everything is timed.")]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Threads to compute with (default: as many as PyTorch takes)."),
]
Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write numbers.", callback=options.user_path),
]
Markdown = Annotated[
    Path | None,
    typer.Option("--markdown", metavar="FILE", help="Write the table.", callback=options.user_path),
]
Plot = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE", help="Draw a PNG.", callback=options.user_path),
]
ModelName = Annotated[
    str,
    typer.Option(
        "--model", "-m", metavar="NAME_OR_PATH", help="See [bold]tttunet models list[/bold]."
    ),
]


class Inner(str, Enum):
    linear = "linear"
    mlp = "mlp"


@bench_app.callback()
def _group() -> None:
    """Count and measure.

    Candidates take turns (A B A B), medians and quartiles are printed, and
    nothing is timed before it has computed the right thing.
    """


@bench_app.command()
def cost() -> None:
    """Count parameters and multiply-accumulates (MACs), beside the paper's.

    Recounts Tables 3 and 4 of the TTT-UNet paper: its networks on its input
    sizes. Nothing is computed but the count, so memory does not matter.

    \b
    [bold]Example[/bold]
    tttunet bench cost
    """
    from rich.table import Table

    table = Table(title="Cost of the networks in the paper's Tables 3 and 4")
    for head in ("network", "data", "input"):
        table.add_column(head)
    for head in (
        "parameters",
        "paper (M)",
        "MACs (G)",
        "with norms (G)",
        "paper (G)",
        "difference",
    ):
        table.add_column(head, justify="right")
    with ProgressBar("Counting", time_left=False):
        from tttunet.networks.cost import paper_cost_table

        for row in paper_cost_table():
            table.add_row(*_cells(row))
    show_table(table)
    show(
        "The paper calls the MACs, with normalisations at 5 operations per element, FLOPs; "
        "the difference is that of this count."
    )


@bench_app.command()
def kernels(
    case: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Layer to time: bot, enc-coarse or enc-fine, which takes minutes; may be "
            "repeated (default: the first two).",
        ),
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Backend to time: cpu, triton, dual or reference; may be repeated (default: all "
            "that are fast enough).",
        ),
    ] = None,
    inner: Annotated[Inner, typer.Option(help="The inner model.")] = Inner.linear,
    rounds: Rounds = 5,
    threads: Threads = None,
    device: options.Device = "auto",
    json: Json = None,
    markdown: Markdown = None,
    plot: Plot = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Time the TTT operator's backends against each other.

    Forward, and forward with backward, on layers of the authors' networks.
    Before that, every backend's output and gradients are compared with the
    token-by-token definition in double precision.

    \b
    [bold]Examples[/bold]
    tttunet bench kernels
    tttunet bench kernels --case enc-fine --threads 2 --json kernels.json
    """
    with _measuring(json, markdown, plot, overwrite) as (bar, deliver):
        from tttunet.bench.kernels import QUICK_CASES, measure_kernels
        from tttunet.bench.plots import plot_kernels

        report = measure_kernels(
            tuple(dict.fromkeys(case or QUICK_CASES)),
            backend or (),
            inner=inner.value,
            rounds=rounds,
            threads=threads,
            device=_device(device),
            progress=bar.update,
        )
        deliver(report, lambda path: plot_kernels(path, report, overwrite=overwrite))


@bench_app.command()
def inference(
    size: Annotated[
        str, typer.Option(metavar="SIZE", help="Of the image: 512, 512x768 or 64x256x256.")
    ] = "512",
    model: ModelName = "nuclei",
    tile: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Tile size (default: the model's).")
    ] = None,
    overlap: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Share of a tile that neighbours share.")
    ] = 0.25,
    rounds: Rounds = 5,
    threads: Threads = None,
    device: options.Device = "auto",
    json: Json = None,
    markdown: Markdown = None,
    plot: Plot = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Time a segmentation, its parts, and the memory it takes.

    \b
    [bold]Examples[/bold]
    tttunet bench inference
    tttunet bench inference --size 2048 --tile 512 --threads 2
    tttunet bench inference --model my-organs --size 64x256x256 --plot parts.png
    """
    numbers, tile_numbers = _parse_size(size, "--size"), _parse_size(tile or "", "--tile")
    with _measuring(json, markdown, plot, overwrite) as (bar, deliver):
        from tttunet.bench.inference import measure_inference
        from tttunet.bench.plots import plot_parts
        from tttunet.inference.segment import tile_size
        from tttunet.models.model import load_model

        loaded = load_model(model)
        dim = loaded.config.network.dim
        report = measure_inference(
            loaded,
            numbers * dim if len(numbers) == 1 else numbers,
            tile=tile_size(loaded.config, tile_numbers),
            overlap=overlap,
            rounds=rounds,
            threads=threads,
            device=_device(device),
            progress=bar.update,
        )
        deliver(report, lambda path: plot_parts(path, report, overwrite=overwrite))


@bench_app.command()
def training(
    recipe: Annotated[
        str, typer.Option(metavar="NAME_OR_PATH", help="A shipped recipe or a JSON file.")
    ] = "nuclei",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Patches per step (default: the recipe's).")
    ] = None,
    workers: Annotated[
        int,
        typer.Option(min=0, help="Processes that prepare patches; 0 shows what the data costs."),
    ] = 0,
    rounds: Rounds = 5,
    threads: Threads = None,
    device: options.Device = "auto",
    json: Json = None,
    markdown: Markdown = None,
    plot: Plot = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Time training steps and their parts: data, forward, backward, optimiser.

    Trains the network of a recipe for a few steps on made-up images.

    \b
    [bold]Examples[/bold]
    tttunet bench training
    tttunet bench training --recipe my-recipe.json --batch-size 2 --threads 2
    """
    with _measuring(json, markdown, plot, overwrite) as (bar, deliver):
        from tttunet.bench.plots import plot_parts
        from tttunet.bench.training import measure_training

        report = measure_training(
            recipe,
            batch_size=batch_size,
            workers=workers,
            rounds=rounds,
            threads=threads,
            device=_device(device),
            progress=bar.update,
        )
        deliver(report, lambda path: plot_parts(path, report, overwrite=overwrite))


@bench_app.command()
def scaling(
    tokens: Annotated[
        str, typer.Option(metavar="N,N,...", help="Lengths for the TTT operator; 0: leave it out.")
    ] = "1024,4096,16384,65536,262144",
    backend: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Of the operator; may be repeated (default: fastest)."),
    ] = None,
    inner: Annotated[Inner, typer.Option(help="The inner model.")] = Inner.linear,
    model: ModelName = "nuclei",
    sizes: Annotated[
        str,
        typer.Option(metavar="N,N,...", help="Sides of the images to segment; 0: leave it out."),
    ] = "256,512,1024",
    rounds: Rounds = 3,
    threads: Threads = None,
    device: options.Device = "auto",
    json: Json = None,
    markdown: Markdown = None,
    plot: Plot = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Time and peak memory against the number of tokens, and of pixels.

    A straight line is fitted to each; the plot has logarithmic axes.

    \b
    [bold]Examples[/bold]
    tttunet bench scaling --plot scaling.png
    tttunet bench scaling --tokens 0 --sizes 256,512,1024,2048 --threads 2
    """
    lengths, sides = _parse_list(tokens, "--tokens"), _parse_list(sizes, "--sizes")
    if not lengths and not sides:
        raise typer.BadParameter("there is nothing to measure", param_hint="--tokens and --sizes")
    with _measuring(json, markdown, plot, overwrite) as (bar, deliver):
        from tttunet.bench.plots import plot_scaling
        from tttunet.bench.scaling import measure_scaling
        from tttunet.models.model import load_model

        found = measure_scaling(
            lengths,
            backend or (),
            inner=inner.value,
            model=load_model(model) if sides else None,
            sizes=sides,
            rounds=rounds,
            threads=threads,
            device=_device(device),
            progress=bar.update,
        )
        machine = found.report.machine_line()
        deliver(
            found.report,
            lambda path: plot_scaling(path, found.series, machine, overwrite=overwrite),
        )


@contextlib.contextmanager
def _measuring(
    json: Path | None, markdown: Path | None, plot: Path | None, overwrite: bool
) -> Iterator[tuple[ProgressBar, Callable[[Report, Callable[[Path], Any]], None]]]:
    """A progress bar, and a function for the result; the bar is gone when that prints.

    Where the files cannot be written it says so before anything is measured.
    """
    from tttunet.files import check_output

    for path in (json, markdown, plot):
        if path is not None:
            check_output(path, overwrite=overwrite)
    if plot is not None and plot.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise typer.BadParameter("the file must end in .png, .pdf or .svg", param_hint="--plot")
    results: list[tuple[Report, Callable[[Path], Any]]] = []
    with ProgressBar("Measuring") as bar:
        yield bar, lambda report, draw: results.append((report, draw))
    for report, draw in results:
        _show_report(report)
        written = report.write(json, markdown, overwrite=overwrite)
        if plot is not None:
            draw(plot)
            written.append(plot)
        for path in written:
            note(f"wrote {path}")


def _show_report(report: Report) -> None:
    from rich.table import Table

    table = Table(title=report.title)
    for index, head in enumerate(report.columns):
        table.add_column(head, justify="right" if index else "left")
    for row in report.cells:
        table.add_row(*row)
    show_table(table)
    for line in (*report.notes, f"{report.machine_line()}."):
        show(line)


def _device(name: str) -> str:
    from tttunet.inference.device import pick_device

    return str(pick_device(name))


def _parse_size(text: str, option: str) -> tuple[int, ...]:
    """`512x768` or `512,768`; nothing from nothing."""
    return _parse(text.replace("x", ","), option, "give a size such as 512 or 64x256x256")


def _parse_list(text: str, option: str) -> tuple[int, ...]:
    return () if text.strip() == "0" else _parse(text, option, "give numbers such as 1024,4096")


def _parse(text: str, option: str, hint: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(number) for number in text.split(",")) if text else ()
    except ValueError:
        numbers = (0,)
    if numbers and min(numbers) < 1:
        raise typer.BadParameter(hint, param_hint=option)
    return numbers


def _cells(row: CostRow) -> list[Any]:
    total = row.cost.fvcore_total / 1e9
    return [
        row.network,
        row.data,
        " x ".join(str(n) for n in row.input_shape),
        f"{row.cost.parameters:,}",
        f"{row.paper_parameters:.2f}",
        f"{row.cost.macs / 1e9:.2f}",
        f"{total:.2f}",
        f"{row.paper_flops:.2f}",
        f"{100 * (total / row.paper_flops - 1):+.2f} %",
    ]
