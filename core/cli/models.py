"""`tttunet models`: the library of models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tttunet.cli import options
from tttunet.cli.console import note, show, show_table

if TYPE_CHECKING:
    from tttunet.models import ModelConfig, ModelEntry

models_app = typer.Typer(name="models", help="List, show, add and remove models.")


@models_app.callback(no_args_is_help=True)
def _group() -> None:
    """List, show, add and remove models.

    A model is a folder with model.json and model.safetensors. Shipped models
    and those you add are known by name; any other is used by its path.
    """


@models_app.command("list")
def list_() -> None:
    """List the models that are known by name.

    \b
    [bold]Example[/bold]
    tttunet models list
    """
    from rich.table import Table
    from rich.text import Text

    from tttunet.models import list_models

    entries = list_models()
    if not entries:
        note("There are no models yet: train one (tttunet train) or add one (tttunet models add).")
        return
    table = Table()
    for head in ("name", "from", "task", "title", "licence", "folder"):
        table.add_column(head, overflow="fold")
    for entry in entries:
        table.add_row(*(Text(cell) for cell in _cells(entry)))
    show_table(table)


def _cells(entry: ModelEntry) -> list[str]:
    if entry.task is None:
        return [entry.name, entry.origin, "damaged", entry.error or "", "", str(entry.path)]
    task = f"{entry.task}, {entry.dim}D"
    title = entry.title or ""
    if entry.error is not None:
        title = f"{title} ({entry.error})"
    return [entry.name, entry.origin, task, title, entry.licence or "", str(entry.path)]


@models_app.command("show")
def show_(
    name: Annotated[str, typer.Argument(metavar="NAME_OR_PATH", help="The model.")],
    json: Annotated[bool, typer.Option("--json", help="Print model.json.")] = False,
) -> None:
    """Show what a model does, its training data, scores and licence.

    \b
    [bold]Examples[/bold]
    tttunet models show nuclei
    tttunet models show runs/my-cells/model --json
    """
    from tttunet.models import describe

    entry, config = describe(name)
    if json:
        show(config.model_dump_json(indent=2))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for head, value in _card_lines(entry, config):
        if value:
            table.add_row(head, Text(value))
    show_table(table)


def _card_lines(entry: ModelEntry, config: ModelConfig) -> list[tuple[str, str]]:
    card, network, plan = config.card, config.network, config.plan
    weights = config.weights
    labels = ", ".join(f"{label.value} {label.name}" for label in config.labels)
    rules = ", ".join(rule.scheme for rule in plan.intensities or ()) or plan.normalisation
    voxels = " x ".join(f"{size:g}" for size in plan.spacing or ())
    return [
        ("name", f"{config.name} {config.version}"),
        ("title", card.title),
        ("description", card.description),
        ("task", f"{config.task}, {network.dim}D"),
        ("labels", labels),
        ("input", f"{network.input_channels} channels, {plan.channels}, {rules}"),
        ("voxels", f"{voxels} {plan.unit or ''}".strip() if voxels else ""),
        ("frame", f"{plan.frame[0]} x {plan.frame[1]} pixels" if plan.frame else ""),
        ("network", f"{network.architecture}, {network.flavour}, features {network.features}"),
        ("TTT layers", "none" if network.ttt is None else f"{network.placement}"),
        ("patch", " x ".join(str(n) for n in plan.patch_size)),
        ("weights", f"{weights.bytes / 1e6:.1f} MB" if weights else ""),
        ("licence", card.licence),
        ("authors", ", ".join(card.authors)),
        *(("data", f"{data.title} ({data.licence}) {data.source}") for data in card.data),
        ("started from", card.parent or ""),
        *_flat("training", card.training),
        *_flat("scores", card.scores),
        ("limitations", card.limitations),
        ("folder", str(entry.path)),
        ("problem", entry.error or ""),
    ]


def _flat(head: str, values: dict[str, Any]) -> list[tuple[str, str]]:
    """Nested entries as `head.key` lines."""
    lines = []
    for key, value in values.items():
        if isinstance(value, dict):
            lines += _flat(f"{head}.{key}", value)
        else:
            lines.append((f"{head}.{key}", str(value)))
    return lines


@models_app.command()
def add(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The model's folder or model.json.")],
    name: Annotated[
        str | None, typer.Option(help="Name in the library (default: the model's own).")
    ] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Check a model and copy it into your library, to use it by its name.

    \b
    [bold]Example[/bold]
    tttunet models add runs/my-cells/model --name my-cells
    """
    from tttunet.models import add_model

    entry = add_model(path, name, overwrite=overwrite)
    show(f"Added '{entry.name}': {entry.path}")


@models_app.command()
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model that you added.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a model from your library.

    \b
    [bold]Example[/bold]
    tttunet models remove my-cells
    """
    from tttunet.models import list_models, remove_model

    mine = {entry.name for entry in list_models() if entry.origin == "user"}
    if name in mine and not yes:
        typer.confirm(f"Delete the model '{name}'?", abort=True, err=True)
    show(f"Removed {remove_model(name)}")
