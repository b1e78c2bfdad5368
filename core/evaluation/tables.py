"""A `Report` as tables for the terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

if TYPE_CHECKING:
    from tttunet.evaluation.report import Report

_COUNTS = ("tp", "fp", "fn")
_SCORES = {
    "precision": "prec.",
    "recall": "recall",
    "f1": "F1",
    "ap": "AP",
    "mean_matched_iou": "IoU",
    "panoptic_quality": "PQ",
}


def instance_tables(report: Report) -> list[Table]:
    """Cases at the first threshold with both summaries; all thresholds, pooled."""
    thresholds = report.settings["thresholds"]
    columns = [*(name.upper() for name in _COUNTS), *_SCORES.values()]
    cases = _table(
        f"Objects matched at IoU >= {thresholds[0]:g}; "
        f"mAP: mean AP from {min(thresholds):g} to {max(thresholds):g}",
        ["case", *columns, "mAP"],
    )
    for case in report.cases:
        cases.add_row(case["case"], *_instance_cells(case))
    cases.add_section()
    cases.add_row("all objects", *_instance_cells(report.summary["pooled"]))
    cases.add_row("mean of images", *_instance_cells(report.summary["mean_over_images"]))

    pooled = _table("All objects, by IoU threshold", ["IoU >=", *columns])
    for scores in report.summary["pooled"]["scores"]:
        pooled.add_row(f"{scores['threshold']:.2f}", *_cells(scores, *_COUNTS, *_SCORES))
    return [cases, pooled]


def semantic_tables(report: Report) -> list[Table]:
    """Every class of every case; every class over all cases."""
    tolerance = report.settings["tolerance"]
    scores = ["dice"] if tolerance is None else ["dice", "nsd"]
    heads = ["Dice"]
    if tolerance is not None:
        within = "" if isinstance(tolerance, dict) else f" at {tolerance:g}"
        heads.append(f"NSD{within} ({report.settings['tolerance_unit']})")

    cases = _table("Classes of every case", ["case", "class", *heads])
    for case in report.cases:
        for row in case["classes"]:
            cases.add_row(case["case"], row["name"], *_cells(row, *scores))
        cases.add_row(case["case"], "mean", *_cells(case, *scores), end_section=True)

    classes = _table("Classes over all cases", ["class", "cases", *heads, "Dice of all pixels"])
    for row in report.summary["classes"]:
        classes.add_row(row["name"], *_cells(row, "cases", *scores, "dice_pooled"))
    classes.add_section()
    classes.add_row("mean of the classes", "", *_cells(report.summary, *scores), "")
    return [cases, classes]


def _table(title: str, columns: list[str]) -> Table:
    """Narrow enough for 80 characters: names give way, numbers are never cut."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=0)
    for number, column in enumerate(columns):
        is_text = number == 0 or column == "class"
        table.add_column(
            column,
            justify="left" if is_text else "right",
            no_wrap=not is_text,
            overflow="fold",
        )
    return table


def _instance_cells(entry: dict[str, Any]) -> list[str]:
    first = entry["scores"][0]
    return [*_cells(first, *_COUNTS, *_SCORES), *_cells(entry, "mean_ap")]


def _cells(row: dict[str, Any], *names: str) -> list[str]:
    return [_text(row.get(name, math.nan)) for name in names]


def _text(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return "-" if math.isnan(value) else f"{value:.3f}"
