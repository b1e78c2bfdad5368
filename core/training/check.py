"""Everything that is wrong with a data set, found before a training spends hours on it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tttunet.errors import TTTUNetError
from tttunet.imaging.image import Image
from tttunet.imaging.readers import load_labels
from tttunet.training.dataset import Case, Dataset, Problem, survey
from tttunet.training.grids import grid_problems
from tttunet.training.prepare import known_labels, read_image

Progress = Callable[[int, int], None]


@dataclass
class Checked:
    """A data set and what was found in it.

    Attributes:
        dataset: as far as its files are there.
        problems: in the order of the cases.
    """

    dataset: Dataset
    problems: list[Problem]

    @property
    def errors(self) -> int:
        return sum(problem.fatal for problem in self.problems)

    @property
    def warnings(self) -> int:
        return len(self.problems) - self.errors


@dataclass
class _Seen:
    """What is compared between cases."""

    channels: int | None = None
    contents: dict[str, str] = field(default_factory=dict)
    values: set[int] = field(default_factory=set)


def check_dataset(path: str | Path, progress: Progress | None = None) -> Checked:
    """Read every image and label of a data set, one after the other, and collect all problems.

    Missing files, unreadable ones, images and labels on different grids, other numbers of channels
    or axes, label values without a class, not-a-number, constant images, cases and classes without
    a label, and the same image in two cases.

    Args:
        path: see `open_dataset`.
        progress: called with (cases done, cases in all).

    Raises:
        DatasetError: the description is missing or makes no sense, so that nothing can be checked.
    """
    dataset, problems = survey(path)
    cases = [*dataset.cases["train"], *dataset.cases["val"]]
    seen = _Seen()
    for number, case in enumerate(cases, start=1):
        problems += _check_case(case, dataset, seen)
        if progress is not None:
            progress(number, len(cases))
    if cases and not any(problem.fatal for problem in problems):
        problems += _check_classes(dataset, seen)
    return Checked(dataset, problems)


def _check_case(case: Case, dataset: Dataset, seen: _Seen) -> list[Problem]:
    problems: list[Problem] = []
    image, label = None, None
    try:
        image = read_image(case)
    except TTTUNetError as error:
        problems.append(Problem(case.name, str(error)))
    try:
        stored = load_labels(case.label)
        label = known_labels(stored.array, case.label, dataset)
    except TTTUNetError as error:
        problems.append(Problem(case.name, str(error)))
    if image is not None:
        problems += _check_image(image, case, dataset, seen)
    if label is not None:
        seen.values |= set(np.unique(label).tolist())
        if not (label > 0).any():
            problems.append(Problem(case.name, f"{case.label} has nothing but background.", False))
    if image is not None and label is not None:
        problems += grid_problems(image, stored, case)
    return problems


def _check_image(image: Image, case: Case, dataset: Dataset, seen: _Seen) -> list[Problem]:
    path, found = case.images[0], []

    def add(text: str, fatal: bool = True) -> None:
        found.append(Problem(case.name, text, fatal))

    if image.ndim_spatial != dataset.dim:
        add(f"{path} is {image.ndim_spatial}D, but the data set {dataset.dim}D.")
    seen.channels = seen.channels or len(dataset.channels) or image.channels
    if image.channels != seen.channels:
        add(f"{path} has {image.channels} channels, not {seen.channels}.")
    array = image.array
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        share = 1 - np.isfinite(array).mean()
        add(f"{path} has pixels that are no numbers ({share:.2%}).", False)
    elif array.min() == array.max():
        add(f"{path} has the same value everywhere.", False)
    content = hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
    if content in seen.contents:
        add(f"{path} is the same image as that of '{seen.contents[content]}'.", False)
    seen.contents.setdefault(content, case.name)
    return found


def _check_classes(dataset: Dataset, seen: _Seen) -> list[Problem]:
    where = dataset.name
    if not any(value > 0 for value in seen.values):
        return [Problem(where, "Nothing is labelled in any image.")]
    if dataset.task == "instance":
        return []
    missing = [name for value, name in dataset.classes.items() if value not in seen.values]
    return [Problem(where, f"No image has the class '{name}'.", False) for name in missing]
