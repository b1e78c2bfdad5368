"""Plots of what was measured, without a screen and for colour-blind eyes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tttunet.bench.paired import Spread
from tttunet.bench.report import Report
from tttunet.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tttunet.bench.scaling import Line, Series

#: Okabe and Ito's palette, without yellow, which white paper swallows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
#: Told apart by shape too.
MARKERS = "osD^vPX"
_DPI = 120


def plot_scaling(path: Path, series: Sequence[Series], machine: str, *, overwrite: bool) -> Path:
    """Time and memory against tokens, and against pixels, on logarithmic axes.

    Points are medians with their quartiles, lines the fitted straight lines.

    Args:
        path: a file that matplotlib can write: PNG, PDF, SVG.
        series: what to draw; the units get a row each.
        machine: description for the bottom.
        overwrite: replace an existing file.

    Raises:
        OutputError: the file exists, or cannot be written.
    """
    units = list(dict.fromkeys(one.unit for one in series))
    figure = _figure(9, 3.6 * len(units) + 0.3)
    for row, unit in enumerate(units):
        time, memory = (
            figure.add_subplot(len(units), 2, 2 * row + column, xscale="log", yscale="log")
            for column in (1, 2)
        )
        time.set(xlabel=unit, ylabel="time (s)")
        memory.set(xlabel=unit, ylabel="peak memory (MB)")
        for index, one in enumerate(s for s in series if s.unit == unit):
            _curve(time, index, one, one.seconds, one.time_line)
            if one.memory and min(one.memory) > 0:
                points = [Spread.of([count / 1e6]) for count in one.memory]
                _curve(memory, index, one, points, one.memory_line, 1e-6)
        time.legend(frameon=False, fontsize="small")
        for axes in (time, memory):
            axes.grid(alpha=0.3, which="both", linewidth=0.5)
    figure.supxlabel(machine, fontsize="x-small", color="0.4")
    return _save(figure, path, overwrite)


def plot_kernels(path: Path, report: Report, *, overwrite: bool) -> Path:
    """A bar with quartiles per layer, pass and backend; arguments as `plot_scaling`."""
    rows = report.rows
    backends = list(dict.fromkeys(row["backend"] for row in rows))
    groups = list(dict.fromkeys((row["case"], row["pass"]) for row in rows))
    figure = _figure(9, 0.9 + 0.28 * len(rows) + 0.2 * len(groups))
    axes = figure.add_subplot(xscale="log", xlabel="time (ms)", title=report.title)
    height = 0.8 / len(backends)
    for index, backend in enumerate(backends):
        times = [row["seconds"].scaled(1e3) for row in rows if row["backend"] == backend]
        axes.barh(
            [group + index * height for group in range(len(groups))],
            [t.median for t in times],
            height,
            xerr=_whiskers(times),
            color=COLOURS[index % len(COLOURS)],
            label=backend,
        )
    middle = (len(backends) - 1) * height / 2
    axes.set_yticks(
        [group + middle for group in range(len(groups))],
        [f"{case}\n{pass_}" for case, pass_ in groups],
    )
    axes.invert_yaxis()
    axes.grid(alpha=0.3, axis="x", which="both", linewidth=0.5)
    axes.legend(frameon=False)
    figure.supxlabel(report.machine_line(), fontsize="x-small", color="0.4")
    return _save(figure, path, overwrite)


def plot_parts(path: Path, report: Report, *, overwrite: bool) -> Path:
    """One bar of the parts of a whole; arguments as `plot_scaling`."""
    parts = [row for row in report.rows if row["part"] != "all"]
    figure = _figure(9, 2.2)
    axes = figure.add_subplot(xlabel="time (ms)", title=report.title, yticks=[])
    left = 0.0
    for index, row in enumerate(parts):
        width = max(0.0, 1e3 * row["seconds"].median)
        label = f"{row['part']} {row['share']:.0%}"
        axes.barh(0, width, left=left, color=COLOURS[index % len(COLOURS)], label=label)
        left += width
    axes.legend(frameon=False, ncols=len(parts), loc="upper center", bbox_to_anchor=(0.5, -0.35))
    figure.supxlabel(report.machine_line(), fontsize="x-small", color="0.4")
    return _save(figure, path, overwrite)


def _curve(
    axes: Axes,
    index: int,
    series: Series,
    points: Sequence[Spread],
    line: Line | None,
    scale: float = 1.0,
) -> None:
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    axes.errorbar(
        series.amounts,
        [p.median for p in points],
        yerr=_whiskers(points),
        fmt=marker,
        color=colour,
        capsize=3,
        label=series.name,
    )
    if line is not None:
        # A straight line with an offset is a curve on logarithmic axes.
        amounts = np.geomspace(series.amounts[0], series.amounts[-1]).tolist()
        fitted = [scale * line.at(amount) for amount in amounts]
        axes.plot(amounts, fitted, "--", color=colour, linewidth=1)


def _whiskers(points: Sequence[Spread]) -> list[list[float]]:
    return [[p.median - p.lower for p in points], [p.upper - p.median for p in points]]


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path, overwrite: bool) -> Path:
    with atomic_write(path, overwrite=overwrite) as temporary:
        figure.savefig(temporary, dpi=_DPI)
    return path
