"""Evaluate files or folders: scores per case and in summary, as JSON, rows and tables."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tttunet.errors import DatasetError
from tttunet.evaluation.cases import Case, load_cases, match_files
from tttunet.evaluation.instance import (
    IOU_THRESHOLDS,
    instance_scores,
    mean_ap,
    mean_over_images,
    pool,
)
from tttunet.evaluation.semantic import ClassScores, Tolerance, nan_mean, semantic_scores

if TYPE_CHECKING:
    from rich.table import Table

_LOG = logging.getLogger(__name__)
#: More classes than this are probably objects.
MANY_CLASSES = 64

Task = Literal["instance", "semantic"]


@dataclass(frozen=True)
class Report:
    """Scores of a set of cases; everything in it is plain data, ready for JSON.

    Attributes:
        task: what was scored.
        settings: thresholds, tolerance and the like.
        cases: one entry per case. Instance: `case`, `mean_ap`, `scores` (one per threshold, see
            `InstanceScores`). Semantic: `case`, means `dice` and `nsd` over its classes, and
            `classes` (every class of the whole set; NaN where neither image has it).
        summary: instance: `pooled` over all objects and `mean_over_images`. Semantic: per class
            the mean over the cases (`dice`, `nsd`) and the Dice of all pixels together
            (`dice_pooled`); overall the mean of the classes' means.
    """

    task: Task
    settings: dict[str, Any]
    cases: list[dict[str, Any]]
    summary: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Everything as one dictionary; undefined scores are NaN."""
        return {
            "task": self.task,
            "settings": self.settings,
            "summary": self.summary,
            "cases": self.cases,
        }

    def to_json(self) -> str:
        """Everything as JSON; undefined scores are null."""
        return json.dumps(_nan_to_none(self.to_dict()), indent=2, allow_nan=False) + "\n"

    def rows(self) -> list[dict[str, Any]]:
        """Flat rows for a CSV file: one per case and threshold, or per case and class."""
        inner = "scores" if self.task == "instance" else "classes"
        return [{"case": case["case"]} | row for case in self.cases for row in case[inner]]

    def tables(self) -> list[Table]:
        """Tables for the terminal: the cases, then the summary."""
        from tttunet.evaluation.tables import instance_tables, semantic_tables

        return instance_tables(self) if self.task == "instance" else semantic_tables(self)


def evaluate(
    pred: str | Path,
    truth: str | Path,
    task: Task,
    *,
    thresholds: Sequence[float] = IOU_THRESHOLDS,
    classes: Mapping[int, str] | Iterable[int] | None = None,
    tolerance: Tolerance | None = 2.0,
    spacing: Sequence[float] | None = None,
    ignore: int | None = None,
    axes: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Compare predicted label files with true ones.

    Args:
        pred, truth: two files, or two folders whose files are matched by name
            (see `cases.match_files`).
        task: `instance`: a number per object; `semantic`: a number per class.
        thresholds: instance: IoU thresholds in (0, 1]; tables show the first one first.
        classes: semantic: labels to score, with names if it is a mapping; None: all that occur.
        tolerance: semantic: NSD tolerance in mm, one for all classes or one per class; in pixels
            if the label files carry no physical pixel size. None: no NSD.
        spacing: in mm, one number per spatial axis, for files that do not hold it;
            None: as the true label files say.
        ignore: label in the true files of pixels that do not count.
        axes: overrides the axes of all files, such as "ZYX".
        progress: called with (pairs of files done, pairs of files in all).

    Raises:
        DatasetError: files are missing, have no partner or another shape than their partner.
        ImageError: a file cannot be read or holds no labels.
    """
    if task not in ("instance", "semantic"):
        raise DatasetError(f"The task is instance or semantic, not {task}.")
    cases = _each_case(pred, truth, axes, spacing, progress)
    if task == "instance":
        return _instance_report(cases, tuple(thresholds), ignore)
    return _semantic_report(cases, classes, tolerance, ignore)


def _each_case(
    pred: str | Path,
    truth: str | Path,
    axes: str | None,
    spacing: Sequence[float] | None,
    progress: Callable[[int, int], None] | None,
) -> Iterator[Case]:
    pairs = match_files(pred, truth)
    for done, pair in enumerate(pairs, start=1):
        yield from load_cases(pair, axes=axes, spacing=spacing)
        if progress is not None:
            progress(done, len(pairs))


def _instance_report(
    cases: Iterable[Case], thresholds: tuple[float, ...], ignore: int | None
) -> Report:
    if not thresholds:
        raise DatasetError("At least one IoU threshold is needed.")
    names, images = [], []
    for case in cases:
        valid = None if ignore is None else case.truth != ignore
        names.append(case.name)
        images.append(instance_scores(case.pred, case.truth, thresholds, valid))
    pooled = pool(images)
    return Report(
        task="instance",
        settings={"thresholds": list(thresholds), "ignore": ignore},
        cases=[
            {
                "case": name,
                "mean_ap": mean_ap(scores),
                "scores": [one.to_dict() for one in scores],
            }
            for name, scores in zip(names, images, strict=True)
        ],
        summary={
            "images": len(images),
            "pooled": {
                "mean_ap": mean_ap(pooled),
                "scores": [one.to_dict() for one in pooled],
            },
            "mean_over_images": {
                "mean_ap": nan_mean(mean_ap(scores) for scores in images),
                "scores": mean_over_images(images),
            },
        },
    )


def _semantic_report(
    cases: Iterable[Case],
    classes: Mapping[int, str] | Iterable[int] | None,
    tolerance: Tolerance | None,
    ignore: int | None,
) -> Report:
    class_names = dict(classes) if isinstance(classes, Mapping) else {}
    wanted = None if classes is None else [int(label) for label in classes]
    names: list[str] = []
    found: list[dict[int, ClassScores]] = []
    units: dict[str, str] = {}
    for case in cases:
        units.setdefault(case.unit, case.name)
        if tolerance is not None and len(units) > 1:
            raise DatasetError(
                f"{units['mm']} has a physical pixel size and {units['px']} has none, so no NSD "
                "tolerance holds for both.",
                "Give the spacing, or leave the NSD out.",
            )
        scores = semantic_scores(
            case.pred,
            case.truth,
            classes=wanted,
            spacing=case.spacing,
            tolerance=tolerance,
            ignore=ignore,
        )
        names.append(case.name)
        found.append({one.label: one for one in scores})
    labels = sorted(set().union(*found))
    if wanted is None and len(labels) > MANY_CLASSES:
        _LOG.warning(
            "The files hold %d different labels. If each is an object, not a class, the task is "
            "instance.",
            len(labels),
        )
    images = [[one.get(label, ClassScores(label, 0, 0, 0)) for label in labels] for one in found]
    per_case = [[_class_row(one, class_names) for one in scores] for scores in images]
    per_class = [_class_summary(column, class_names) for column in zip(*images, strict=True)]
    return Report(
        task="semantic",
        settings={
            "tolerance": dict(tolerance) if isinstance(tolerance, Mapping) else tolerance,
            "tolerance_unit": next(iter(units)),
            "ignore": ignore,
        },
        cases=[
            {"case": name} | _means(rows) | {"classes": rows}
            for name, rows in zip(names, per_case, strict=True)
        ],
        summary={"cases": len(names)} | _means(per_class) | {"classes": per_class},
    )


def _class_row(scores: ClassScores, names: Mapping[int, str]) -> dict[str, Any]:
    return {
        "label": scores.label,
        "name": names.get(scores.label, str(scores.label)),
        "dice": scores.dice,
        "nsd": scores.nsd,
        "intersection": scores.intersection,
        "pred_size": scores.pred_size,
        "truth_size": scores.truth_size,
    }


def _class_summary(cases: Sequence[ClassScores], names: Mapping[int, str]) -> dict[str, Any]:
    pooled = ClassScores(
        label=cases[0].label,
        intersection=sum(one.intersection for one in cases),
        pred_size=sum(one.pred_size for one in cases),
        truth_size=sum(one.truth_size for one in cases),
    )
    return {
        "label": pooled.label,
        "name": names.get(pooled.label, str(pooled.label)),
        "cases": sum(not math.isnan(one.dice) for one in cases),
        "dice": nan_mean(one.dice for one in cases),
        "dice_pooled": pooled.dice,
        "nsd": nan_mean(one.nsd for one in cases),
    }


def _means(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {score: nan_mean(row[score] for row in rows) for score in ("dice", "nsd")}


def _nan_to_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_nan_to_none(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
