"""Cross-validation: the same folds for everybody, and groups that stay together."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import replace

from tttunet.errors import DatasetError
from tttunet.training.dataset import Case, Dataset


def with_fold(dataset: Dataset, folds: int, fold: int) -> Dataset:
    """The data set with one of `folds` parts of all its cases as validation cases.

    Which part a case belongs to depends on the names of the groups alone: not on the order of the
    files, nor on a split that the data set may have.

    Args:
        dataset: from `open_dataset`.
        folds: parts, at least 2.
        fold: which one, 0 to `folds` - 1.

    Raises:
        DatasetError: there is no such fold, or there are fewer groups than folds.
    """
    if folds < 2 or not 0 <= fold < folds:
        raise DatasetError(
            f"There is no fold {fold} of {folds}.", f"Folds are numbered 0 to {max(folds, 2) - 1}."
        )
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in (*dataset.cases["train"], *dataset.cases["val"]):
        groups[case.group or case.name].append(case)
    if len(groups) < folds:
        raise DatasetError(
            f"'{dataset.name}' has {len(groups)} independent cases or groups, too few for {folds} "
            "folds.",
            "Choose fewer folds.",
        )
    parts: list[list[Case]] = [[] for _ in range(folds)]
    shuffled = sorted(groups, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    # Large groups first, each to the smallest part, so that the parts are alike in size.
    for name in sorted(shuffled, key=lambda name: -len(groups[name])):
        min(parts, key=len).extend(groups[name])
    held_out = {case.name for case in parts[fold]}
    everything = without_split(dataset).cases["train"]
    return replace(
        dataset,
        cases={
            "train": [case for case in everything if case.name not in held_out],
            "val": [case for case in everything if case.name in held_out],
        },
    )


def without_split(dataset: Dataset) -> Dataset:
    """The data set with all cases to train on, sorted by name."""
    cases = [*dataset.cases["train"], *dataset.cases["val"]]
    return replace(dataset, cases={"train": sorted(cases, key=lambda case: case.name), "val": []})
