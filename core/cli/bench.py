"""`tttunet bench`: numbers to compare with the paper's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from tttunet.cli.console import ProgressBar, show, show_table

if TYPE_CHECKING:
    from tttunet.networks.cost import CostRow

bench_app = typer.Typer(name="bench", help="Count and measure.", no_args_is_help=True)


@bench_app.callback()
def _group() -> None:
    """Count and measure."""


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
