"""Data sets on disk: which image belongs to which label, which classes, which split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tttunet.errors import DatasetError
from tttunet.imaging.readers import image_stem, load_labels

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


def open_dataset(folder: str | Path) -> Dataset:
    """Read a data set's description and find its files.

    Two layouts are known, both with a `dataset.json`:

    - `images/NAME.*` and `labels/NAME.*`; keys `task`, `dim`, `classes` and optionally `split`
      (lists of names), `group` or `case`, and `image_modality` (by name);
    - nnU-Net v2 raw data: `imagesTr/NAME_0000.ext` and `labelsTr/NAME.ext`; integer labels,
      `ignore` included.

    Where no split is given, a fifth of the groups is held out, always the same ones.

    Raises:
        DatasetError: the description or a file is missing, or they do not fit together.
    """
    folder = Path(folder)
    description = _read_description(folder)
    if (folder / "imagesTr").is_dir() or "channel_names" in description:
        return _open_nnunet(folder, description)
    if (folder / "images").is_dir():
        return _open_plain(folder, description)
    raise DatasetError(
        f"{folder} has neither images/ nor imagesTr/.",
        "Put images into images/ and labels of the same names into labels/.",
    )


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
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


def _open_plain(folder: Path, description: Mapping[str, Any]) -> Dataset:
    images = _by_stem(folder / "images")
    labels = _by_stem(folder / "labels")
    groups = _by_name(folder, description, "group") or _by_name(folder, description, "case")
    modalities = _by_name(folder, description, "image_modality")

    def case(name: str) -> Case:
        if name not in images:
            raise DatasetError(f"Image {name} is missing in {folder / 'images'}.")
        if name not in labels:
            raise DatasetError(f"The label of {name} is missing in {folder / 'labels'}.")
        return Case(name, (images[name],), labels[name], groups.get(name), modalities.get(name))

    split = description.get("split")
    if split is None:
        cases = _split([case(name) for name in sorted(images)])
    elif isinstance(split, dict) and {"train"} <= set(split):
        cases = {
            "train": [case(name) for name in split["train"]],
            "val": [case(name) for name in split.get("val", [])],
        }
    else:
        raise DatasetError(f"`split` in {folder / DESCRIPTION} must have lists `train` and `val`.")

    # Some descriptions add a remark: "semantic (binary)", "2 (serial sections)".
    task = str(description.get("task", "")).split(" ")[0]
    dim = str(description.get("dim", "")).split(" ")[0]
    if task not in ("instance", "semantic"):
        raise DatasetError(f"`task` in {folder / DESCRIPTION} must be instance or semantic.")
    if dim not in ("2", "3"):
        raise DatasetError(f"`dim` in {folder / DESCRIPTION} must be 2 or 3.")
    return _dataset(folder, description, cases, int(dim), task, _classes(folder, description, task))


def _by_name(folder: Path, description: Mapping[str, Any], key: str) -> dict[str, str]:
    values = description.get(key) or {}
    if not isinstance(values, dict):
        raise DatasetError(f"`{key}` in {folder / DESCRIPTION} must map image names to values.")
    return {name: str(value) for name, value in values.items()}


def _classes(folder: Path, description: Mapping[str, Any], task: str) -> dict[int, str]:
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
        raise DatasetError(f"`classes` in {folder / DESCRIPTION} must map numbers to names.")
    return dict(sorted(found.items()))


def _open_nnunet(folder: Path, description: Mapping[str, Any]) -> Dataset:
    for key in ("channel_names", "labels", "file_ending"):
        if key not in description:
            raise DatasetError(f"{folder / DESCRIPTION} lacks `{key}`, an nnU-Net v2 key.")
    ending, channels = str(description["file_ending"]), description["channel_names"]
    classes = description["labels"]
    if not isinstance(classes, dict) or not all(isinstance(v, int) for v in classes.values()):
        raise DatasetError(
            f"`labels` in {folder / DESCRIPTION} must map names to numbers.",
            "Region-based labels are not supported.",
        )

    labels = sorted(p for p in _files(folder / "labelsTr") if p.name.endswith(ending))
    expected = description.get("numTraining", len(labels))
    if len(labels) != expected:
        raise DatasetError(f"{folder / 'labelsTr'} has {len(labels)} labels, not {expected}.")

    cases = []
    for label in labels:
        name = label.name.removesuffix(ending)
        paths = [folder / "imagesTr" / f"{name}_{i:04d}{ending}" for i in range(len(channels))]
        if not any(path.exists() for path in paths[1:]):
            paths = paths[:1]  # one file holds all channels, as nnU-Net stores RGB images
        for path in paths:
            if not path.exists():
                raise DatasetError(f"Image {path} is missing.")
        cases.append(Case(name, tuple(paths), label))

    return _dataset(
        folder,
        description,
        _split(cases),
        3 if ending in (".nii.gz", ".nii", ".nrrd", ".mha") else _guess_dim(cases),
        "semantic",
        {v: k for k, v in sorted(classes.items(), key=lambda x: x[1]) if v != 0 and k != "ignore"},
        classes.get("ignore"),
    )


def _guess_dim(cases: list[Case]) -> int:
    if not cases or cases[0].label.suffix not in (".tif", ".tiff"):
        return 2
    return load_labels(cases[0].label).ndim_spatial


def _dataset(
    folder: Path,
    description: Mapping[str, Any],
    cases: dict[Split, list[Case]],
    dim: int,
    task: Any,
    classes: dict[int, str],
    ignore: int | None = None,
) -> Dataset:
    if not cases["train"]:
        raise DatasetError(f"{folder} has no training cases.")
    name = str(description.get("name", folder.resolve().name))
    return Dataset(
        name=name,
        title=str(description.get("title", name)),
        dim=dim,
        task=task,
        classes=classes,
        licence=str(description.get("licence", description.get("license", "unknown"))),
        source=str(description.get("source", description.get("reference", ""))),
        cases=cases,
        ignore=ignore,
    )


def _split(cases: list[Case]) -> dict[Split, list[Case]]:
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


def _files(folder: Path) -> Iterable[Path]:
    if not folder.is_dir():
        raise DatasetError(f"The folder {folder} does not exist.")
    return (path for path in folder.iterdir() if not path.name.startswith("."))


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in _files(folder):
        stem = image_stem(path)
        if stem in found:
            raise DatasetError(f"{found[stem]} and {path} have the same name.", "Keep one of them.")
        found[stem] = path
    return found
