"""Data sets on disk: which image belongs to which label, which classes, which split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tttunet.errors import DatasetError
from tttunet.imaging.readers import image_stem

Split = Literal["train", "val"]
Task = Literal["instance", "semantic"]

DESCRIPTION = "dataset.json"
VALIDATION_SHARE = 0.2


@dataclass(frozen=True)
class Case:
    """One image with its label.

    Attributes:
        images: the file, or one file per channel.
        group: cases of one group (patient, field of view) are never split.
        modality: stratum for balanced sampling, such as "fluorescence".
    """

    name: str
    images: tuple[Path, ...]
    label: Path
    group: str | None = None
    modality: str | None = None


@dataclass(frozen=True)
class Dataset:
    """What `open_dataset` found.

    Attributes:
        dim: spatial dimensions, 2 or 3.
        classes: number to name, foreground only; {1: name} for instances.
        ignore: number of unlabelled pixels in the label files, or None.
        cases: by split; `val` may be empty if the data set says so.
        channels: names of the images' channels ("CT", "T1"), empty where they have none.
        merged: numbers in the label files that stand for another class, of data sets with regions.
    """

    name: str
    title: str
    dim: int
    task: Task
    classes: dict[int, str]
    licence: str
    source: str
    cases: dict[Split, list[Case]]
    ignore: int | None = None
    channels: tuple[str, ...] = ()
    merged: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """Something wrong with a data set.

    Attributes:
        where: the file, or the name of the case.
        text: one sentence.
        fatal: whether training is refused.
    """

    where: str
    text: str
    fatal: bool = True


def open_dataset(path: str | Path) -> Dataset:
    """Read a data set's description and find its files.

    Three layouts are known:

    - a folder with `images/NAME.*`, `labels/NAME.*` and a `dataset.json` with `task`, `dim`,
      `classes` and optionally `split` (lists of names), `group` or `case`, and `image_modality`
      (by name), `channel_names`;
    - nnU-Net v2 raw data: `imagesTr/NAME_0000.ext`, `labelsTr/NAME.ext` and its `dataset.json`,
      regions and `ignore` included;
    - a table of pairs as a CSV file, see `dataset_table`.

    Where no split is given, a fifth of the groups is held out, always the same ones.

    Raises:
        DatasetError: the description or a file is missing, or they do not fit together.
    """
    dataset, found = survey(path)
    problems = [problem for problem in found if problem.fatal]
    if problems:
        more = len(problems) - 1
        hint = f"There are {more} more such problems: `tttunet check` lists them." if more else ""
        raise DatasetError(problems[0].text, hint)
    return dataset


def survey(path: str | Path) -> tuple[Dataset, list[Problem]]:
    """A data set as far as its files are there, and what is missing; no image is read.

    Raises:
        DatasetError: the description is missing, or makes no sense.
    """
    from tttunet.training.dataset_nnunet import survey_nnunet
    from tttunet.training.dataset_table import survey_table

    folder = Path(path)
    if folder.suffix.lower() == ".csv":
        return survey_table(folder)
    description = read_description(folder / DESCRIPTION)
    if (folder / "imagesTr").is_dir() or "file_ending" in description:
        return survey_nnunet(folder, description)
    if (folder / "images").is_dir():
        return _survey_plain(folder, description)
    raise DatasetError(
        f"{folder} has neither images/ nor imagesTr/.",
        "Put images into images/ and labels of the same names into labels/.",
    )


def read_description(path: Path) -> dict[str, Any]:
    """The JSON object in a `dataset.json`."""
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DatasetError(
            f"{path} does not exist.", f"A data set is a folder with a {DESCRIPTION}."
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DatasetError(f"{path} cannot be read: {error}.") from error
    if not isinstance(description, dict):
        raise DatasetError(f"{path} must hold a JSON object.")
    return description


def _survey_plain(folder: Path, description: Mapping[str, Any]) -> tuple[Dataset, list[Problem]]:
    problems: list[Problem] = []
    images, labels = (_by_stem(folder / part, problems) for part in ("images", "labels"))
    groups = _by_name(folder, description, "group") or _by_name(folder, description, "case")
    modalities = _by_name(folder, description, "image_modality")

    def found(names: Iterable[str]) -> list[Case]:
        cases = []
        for name in names:
            if name not in images:
                problems.append(Problem(name, f"Image {name} is missing in {folder / 'images'}."))
            elif name not in labels:
                text = f"The label of {name} is missing in {folder / 'labels'}."
                problems.append(Problem(name, text))
            else:
                group, modality = groups.get(name), modalities.get(name)
                cases.append(Case(name, (images[name],), labels[name], group, modality))
        return cases

    for name in sorted(labels.keys() - images.keys()):
        problems.append(Problem(name, f"{labels[name]} has no image and is not used.", False))
    split = description.get("split")
    if split is None:
        cases = split_cases(found(sorted(images)))
    elif isinstance(split, dict) and {"train"} <= set(split):
        cases = {"train": found(split["train"]), "val": found(split.get("val", []))}
        problems += _shared(cases, folder)
    else:
        raise DatasetError(f"`split` in {folder / DESCRIPTION} must have lists `train` and `val`.")
    dataset = described(folder / DESCRIPTION, description, cases, folder.resolve().name)
    return checked(dataset, problems, folder)


def _shared(cases: dict[Split, list[Case]], folder: Path) -> list[Problem]:
    """What both parts of a split have: a score on it would be of what was trained on."""
    names, groups = (
        {split: {getattr(case, key) for case in listed} for split, listed in cases.items()}
        for key in ("name", "group")
    )
    found = [
        Problem(name, f"{name} is in both lists, `train` and `val`, of {folder / DESCRIPTION}.")
        for name in sorted(names["train"] & names["val"])
    ]
    return found + [
        Problem(group, f"The group {group} is in both lists of {folder / DESCRIPTION}.", False)
        for group in sorted((groups["train"] & groups["val"]) - {None})
    ]


def described(
    path: Path,
    description: Mapping[str, Any],
    cases: dict[Split, list[Case]],
    name: str,
) -> Dataset:
    """The data set of a description with the keys `task`, `dim` and `classes`.

    Args:
        path: of the description, for messages.
        description: its content.
        cases: by split.
        name: if the description gives none.
    """
    # Some descriptions add a remark: "semantic (binary)", "2 (serial sections)".
    task = str(description.get("task", "")).split(" ")[0]
    dim = str(description.get("dim", "")).split(" ")[0]
    if task not in ("instance", "semantic"):
        raise DatasetError(f"`task` in {path} must be instance or semantic.")
    if dim not in ("2", "3"):
        raise DatasetError(f"`dim` in {path} must be 2 or 3.")
    names = channel_names(description)
    if not names and dim == "3" and str(description.get("modality", "")).strip() == "CT":
        names = ("CT",)  # 2D slices are mostly windowed to 8 bits already
    return Dataset(
        task="instance" if task == "instance" else "semantic",
        dim=int(dim),
        classes=_classes(path, description, task),
        cases=cases,
        channels=names,
        **general(description, name),
    )


def general(description: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Name, title, licence and source of any description."""
    name = str(description.get("name", name))
    return {
        "name": name,
        "title": str(description.get("title", name)),
        "licence": str(description.get("licence", description.get("license", "unknown"))),
        "source": str(description.get("source", description.get("reference", ""))),
    }


def channel_names(description: Mapping[str, Any]) -> tuple[str, ...]:
    """nnU-Net's `channel_names`: number to name, or a list."""
    names: Any = description.get("channel_names") or {}
    if isinstance(names, dict):
        try:
            names = [names[key] for key in sorted(names, key=int)]
        except ValueError:
            names = list(names.values())
    return tuple(str(name) for name in names)


def checked(
    dataset: Dataset, problems: list[Problem], folder: Path
) -> tuple[Dataset, list[Problem]]:
    """The data set and its problems, of which having no cases is one."""
    if not dataset.cases["train"] and not any(problem.fatal for problem in problems):
        problems.append(Problem(str(folder), f"{folder} has no training cases."))
    return dataset, problems


def _by_name(folder: Path, description: Mapping[str, Any], key: str) -> dict[str, str]:
    values = description.get(key) or {}
    if not isinstance(values, dict):
        raise DatasetError(f"`{key}` in {folder / DESCRIPTION} must map image names to values.")
    return {name: str(value) for name, value in values.items()}


def _classes(path: Path, description: Mapping[str, Any], task: str) -> dict[int, str]:
    classes = description.get("classes") or {}
    if not isinstance(classes, dict):
        classes = {}
    if task == "instance":
        names = [str(name) for key, name in classes.items() if key != "0"]
        return {1: names[0].removesuffix(" instances") if names else "object"}
    try:
        found = {int(value): str(name) for value, name in classes.items() if int(value) != 0}
    except (AttributeError, ValueError):
        found = {}
    if not found:
        raise DatasetError(f"`classes` in {path} must map numbers to names.")
    return dict(sorted(found.items()))


def split_cases(cases: list[Case]) -> dict[Split, list[Case]]:
    """Hold out a fifth of the groups, but at least one of two; which ones depends on the names."""
    groups = sorted(
        {case.group or case.name for case in cases},
        key=lambda group: hashlib.sha256(group.encode()).hexdigest(),
    )
    count = max(1, round(VALIDATION_SHARE * len(groups))) if len(groups) > 1 else 0
    held_out = set(groups[:count])
    return {
        "train": [case for case in cases if (case.group or case.name) not in held_out],
        "val": [case for case in cases if (case.group or case.name) in held_out],
    }


def files_of(folder: Path) -> Iterable[Path]:
    """The files of a folder but hidden ones."""
    if not folder.is_dir():
        raise DatasetError(f"The folder {folder} does not exist.")
    return (path for path in folder.iterdir() if not path.name.startswith("."))


def _by_stem(folder: Path, problems: list[Problem]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(files_of(folder)):
        stem = image_stem(path)
        if stem in found:
            text = f"{found[stem]} and {path} have the same name; keep one of them."
            problems.append(Problem(stem, text))
        else:
            found[stem] = path
    return found
