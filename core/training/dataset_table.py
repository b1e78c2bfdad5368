"""A data set as a table: one row per image and its label, as a CSV file.

Columns: `image` and `label` (paths, from the folder of the table), and optionally `name`, `split`
(`train` or `val`), `group` and `modality`. Channels in files of their own have the columns
`image_1`, `image_2`, ... beside `image`. `dataset.json` in the same folder, or a JSON file of the
table's name, may say `task`, `dim` and `classes`; without it the labels are read to find out.
"""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from tttunet.errors import DatasetError
from tttunet.imaging.readers import image_stem, load_labels
from tttunet.training.dataset import (
    DESCRIPTION,
    Case,
    Dataset,
    Problem,
    Split,
    checked,
    described,
    read_description,
    split_cases,
)

_SPLITS = ("train", "val")
#: Labels with more different numbers are no classes.
_MOST_CLASSES = 255


def survey_table(path: Path) -> tuple[Dataset, list[Problem]]:
    """See `dataset.survey`."""
    problems: list[Problem] = []
    rows = _rows(path)
    cases: list[Case] = []
    splits: dict[str, str] = {}
    for number, row in enumerate(rows, start=2):
        case, wrong = _case(row, path.parent, f"{path.name}, line {number}")
        problems += wrong
        if case is not None:
            cases.append(case)
            splits[case.name] = row.get("split", "")
    for name, count in Counter(case.name for case in cases).items():
        if count > 1:
            text = f"{count} rows of {path} have the name '{name}'; give them a column `name`."
            problems.append(Problem(name, text))
    unknown = sorted(set(splits.values()) - {*_SPLITS, ""})
    if unknown:
        raise DatasetError(f"`split` in {path} is 'train' or 'val', not '{unknown[0]}'.")
    by_split: dict[Split, list[Case]]
    if any(splits.values()):
        by_split = {
            "train": [case for case in cases if splits[case.name] != "val"],
            "val": [case for case in cases if splits[case.name] == "val"],
        }
    else:
        by_split = split_cases(cases)
    source, description = _description(path)
    if description is None:
        source, description = path, _guess(cases, path)
    return checked(described(source, description, by_split, path.stem), problems, path)


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            start = file.read(4096)
            file.seek(0)
            delimiter = ";" if start.count(";") > start.count(",") else ","
            reader = csv.DictReader(file, delimiter=delimiter)
            rows = [
                {str(key).strip().lower(): (value or "").strip() for key, value in row.items()}
                for row in reader
            ]
    except FileNotFoundError:
        raise DatasetError(f"{path} does not exist.") from None
    except (OSError, UnicodeDecodeError, csv.Error, AttributeError) as error:
        raise DatasetError(f"{path} cannot be read as a table: {error}.") from error
    if not rows or not {"image", "label"} <= set(rows[0]):
        raise DatasetError(
            f"{path} must be a table with the columns `image` and `label`.",
            "Its first line names the columns.",
        )
    return rows


def _case(row: dict[str, str], folder: Path, where: str) -> tuple[Case | None, list[Problem]]:
    extra = sorted((key for key in row if key.startswith("image_") and row[key]), key=_number)
    files = [row["image"], *(row[key] for key in extra), row["label"]]
    if not row["image"] or not row["label"]:
        return None, [Problem(where, f"{where} lacks an image or a label.")]
    paths = [folder / Path(file).expanduser() for file in files]
    missing = [path for path in paths if not path.exists()]
    if missing:
        return None, [Problem(where, f"{path} does not exist ({where}).") for path in missing]
    name = row.get("name") or image_stem(paths[0])
    group, modality = row.get("group") or None, row.get("modality") or None
    return Case(name, tuple(paths[:-1]), paths[-1], group, modality), []


def _number(key: str) -> tuple[int, str]:
    text = key.removeprefix("image_")
    return (int(text), "") if text.isdigit() else (10**6, text)


def _description(path: Path) -> tuple[Path, dict[str, Any] | None]:
    for candidate in (path.with_suffix(".json"), path.parent / DESCRIPTION):
        if candidate.exists():
            return candidate, read_description(candidate)
    return path, None


def _guess(cases: list[Case], path: Path) -> dict[str, Any]:
    """Task, dimensions and classes from the labels themselves."""
    values: set[int] = set()
    dim = 0
    for case in cases:
        label = load_labels(case.label)
        dim = dim or label.ndim_spatial
        values |= set(np.unique(label.array).tolist())
        if len(values) > _MOST_CLASSES:
            raise DatasetError(
                f"The labels in {path} have more than {_MOST_CLASSES} different numbers.",
                f'Put a {DESCRIPTION} beside it that says {{"task": "instance", "dim": {dim}}}.',
            )
    classes = {str(value): f"class {value}" for value in sorted(values) if value}
    return {"task": "semantic", "dim": dim or 2, "classes": classes or {"1": "class 1"}}
