"""nnU-Net v2's raw data: `imagesTr`, `labelsTr` and a `dataset.json` of its own kind."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tttunet.errors import DatasetError
from tttunet.imaging.readers import load_labels
from tttunet.training.dataset import (
    DESCRIPTION,
    Case,
    Dataset,
    Problem,
    channel_names,
    checked,
    files_of,
    general,
    split_cases,
)

_VOLUMES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
_TIFF = (".tif", ".tiff")


def survey_nnunet(folder: Path, description: Mapping[str, Any]) -> tuple[Dataset, list[Problem]]:
    """See `dataset.survey`.

    Regions (labels that are lists of numbers) are trained as classes that exclude each other:
    every number stands for the class that nnU-Net writes where all regions of this number are
    predicted, by `regions_class_order`. So a region is the union of its classes.
    """
    for key in ("channel_names", "labels", "file_ending"):
        if key not in description:
            raise DatasetError(f"{folder / DESCRIPTION} lacks `{key}`, an nnU-Net v2 key.")
    ending, names = str(description["file_ending"]), channel_names(description)
    classes, merged, ignore = _labels(folder / DESCRIPTION, description)

    problems: list[Problem] = []
    images = {path.name for path in files_of(folder / "imagesTr") if path.name.endswith(ending)}
    labels = sorted(p for p in files_of(folder / "labelsTr") if p.name.endswith(ending))
    expected = description.get("numTraining", len(labels))
    if len(labels) != expected:
        text = f"{folder / 'labelsTr'} has {len(labels)} labels, not {expected}."
        problems.append(Problem(str(folder / "labelsTr"), text))
    cases, used = [], set()
    for label in labels:
        name = label.name.removesuffix(ending)
        files = [f"{name}_{i:04d}{ending}" for i in range(len(names))]
        if not any(file in images for file in files[1:]):
            files = files[:1]  # one file holds all channels, as nnU-Net stores RGB images
        used.update(files)
        missing = [folder / "imagesTr" / file for file in files if file not in images]
        problems += [Problem(name, f"Image {path} is missing.") for path in missing]
        if not missing:
            cases.append(Case(name, tuple(folder / "imagesTr" / file for file in files), label))
    for file in sorted(images - used):
        why = "it has no label, or too high a channel number"
        if not re.search(r"_\d{4}$", file.removesuffix(ending)):
            why = "its name lacks the number of the channel (_0000)"
        text = f"{folder / 'imagesTr' / file} is not used: {why}."
        problems.append(Problem(file, text, False))
    dataset = Dataset(
        dim=_dim(cases, ending),
        task="semantic",
        classes=classes,
        cases=split_cases(cases),
        ignore=ignore,
        channels=names,
        merged=merged,
        **general(description, folder.resolve().name),
    )
    return checked(dataset, problems, folder)


def _labels(
    path: Path, description: Mapping[str, Any]
) -> tuple[dict[int, str], dict[int, int], int | None]:
    """Classes, the numbers that stand for other classes, and the number to ignore."""
    labels = description["labels"]
    try:
        values = {str(name): _numbers(value) for name, value in labels.items()}
    except (AttributeError, TypeError, ValueError):
        raise DatasetError(f"`labels` in {path} must map names to numbers or lists.") from None
    ignored = values.pop("ignore", ())
    if len(ignored) > 1:
        raise DatasetError(f"`ignore` in {path} must be one number.")
    ignore = ignored[0] if ignored else None
    regions = {name: numbers for name, numbers in values.items() if numbers != (0,)}
    if not regions:
        raise DatasetError(f"`labels` in {path} has no class beside the background.")
    if all(len(numbers) == 1 for numbers in regions.values()):
        names = {numbers[0]: name for name, numbers in regions.items()}
        if len(names) != len(regions):
            raise DatasetError(f"Two `labels` in {path} have the same number.")
        return dict(sorted(names.items())), {}, ignore
    order = description.get("regions_class_order")
    if not isinstance(order, list) or len(order) != len(regions):
        raise DatasetError(
            f"{path} has {len(regions)} regions, so it needs `regions_class_order` with as many "
            "numbers."
        )
    written: dict[int, int] = {}
    names = {}
    # Later regions are written over earlier ones.
    for (name, numbers), value in zip(regions.items(), order, strict=True):
        names[int(value)] = name
        written |= dict.fromkeys(numbers, int(value))
    classes = {value: names[value] for value in sorted(set(written.values()))}
    return classes, {a: b for a, b in sorted(written.items()) if a != b}, ignore


def _numbers(value: Any) -> tuple[int, ...]:
    numbers = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not numbers or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise ValueError(value)
    return numbers


def _dim(cases: list[Case], ending: str) -> int:
    if ending.lower() in _VOLUMES:
        return 3
    if not cases or not ending.lower().endswith(_TIFF):
        return 2
    return load_labels(cases[0].label).ndim_spatial
