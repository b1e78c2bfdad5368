"""The `tttunet` application: commands, global options, and what a user sees of an error."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from tttunet.cli.batch import batch
from tttunet.cli.bench import bench_app
from tttunet.cli.check import check
from tttunet.cli.console import show_error
from tttunet.cli.convert import convert
from tttunet.cli.demo import demo
from tttunet.cli.evaluate import evaluate
from tttunet.cli.finetune import finetune
from tttunet.cli.messages import explain
from tttunet.cli.models import models_app
from tttunet.cli.review import review
from tttunet.cli.segment import segment
from tttunet.cli.train import train

app = typer.Typer(
    name="tttunet",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
app.command()(segment)
app.command()(batch)
app.command()(check)
app.command()(train)
app.command()(review)
app.command()(finetune)
app.command()(evaluate)
app.add_typer(models_app)
app.command()(convert)
app.add_typer(bench_app)
app.command()(demo)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; None: those of this process.

    Returns:
        The exit code: 0, 1 for an error, 2 for wrong usage, 130 after Ctrl-C.
    """
    words, debug = _take_debug(list(sys.argv[1:] if arguments is None else arguments))
    with _other_voices(debug):
        try:
            app(words, prog_name="tttunet")
        except SystemExit as exit_:
            return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        except Exception as error:
            if debug:
                raise
            show_error(explain(error))
            return 1
    return 0


@contextlib.contextmanager
def _other_voices(debug: bool) -> Iterator[None]:
    """What libraries log and warn of is for developers."""
    if debug:
        logging.basicConfig(level=logging.INFO)
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable()
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _take_debug(words: list[str]) -> tuple[list[str], bool]:
    """Move --debug to the front, so that it may stand after the command too."""
    end = words.index("--") if "--" in words else len(words)
    rest = [word for word in words[:end] if word != "--debug"]
    if len(rest) == end:
        return words, False
    return ["--debug", *rest, *words[end:]], True


def _print_version(wanted: bool) -> None:
    if wanted:
        import tttunet

        typer.echo(f"tttunet {tttunet.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (in any place).")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Segment cells and organs with [bold]TTT-UNet[/bold].

    \b
    tttunet demo                                     try it on sample images
    tttunet segment cells.tif --output results/      segment an image
    tttunet train my-cells/ --output runs/my-cells   train a model of your own
    tttunet segment *.tif --model runs/my-cells/model --output results/

    Every command explains itself: [bold]tttunet segment --help[/bold].
    """
    context.obj = debug
