"""From files and folders to pairs of label arrays: which prediction belongs to which truth."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tttunet.errors import DatasetError
from tttunet.imaging import Image, image_stem, image_suffix, load_labels
from tttunet.imaging.itk import SUFFIXES as PLACED_SUFFIXES

_LOSSY_SUFFIXES = (".jpg", ".jpeg")
_ENDING = re.compile(
    r"(?<=.)[ ._-](labels?|(cp_)?masks?|instances?|seg(mentation)?|pred(iction)?|truth|gt)$",
    re.IGNORECASE,
)
_MILLIMETRES = {"micrometer": 1e-3, "millimeter": 1.0}


@dataclass(frozen=True)
class FilePair:
    """A predicted label file and the true one it belongs to; `name` is the true one's stem."""

    name: str
    pred: Path
    truth: Path


@dataclass(frozen=True)
class Case:
    """What is scored: two label arrays of the same shape, [Y, X] or [Z, Y, X].

    `spacing` (one number per axis) is in `unit`: "mm", or "px" if the files do not say.
    """

    name: str
    pred: np.ndarray
    truth: np.ndarray
    spacing: tuple[float, ...]
    unit: str


def match_files(pred: str | Path, truth: str | Path) -> list[FilePair]:
    """Pair predicted with true label files.

    Two files are a pair. In two folders, files belong together if their names without extension
    are the same, or else the same without an ending such as `_labels`, `_mask` or `_seg`
    (`a.ome.tif` and `a_labels.nii.gz`). Hidden files, overlay pictures (`*_overlay.png`), JPEG
    (it does not keep label values) and other formats are passed over; subfolders too.

    Returns:
        Pairs in the order of their names; at least one.

    Raises:
        DatasetError: a path is missing, a file without a partner in either folder, several
            files for one name, or no label files at all.
    """
    pred, truth = Path(pred), Path(truth)
    for path in (pred, truth):
        if not path.exists():
            raise DatasetError(f"'{path}' does not exist.", "Check the name and the folder.")
    if pred.is_dir() != truth.is_dir():
        folder, file = (pred, truth) if pred.is_dir() else (truth, pred)
        raise DatasetError(
            f"{folder} is a folder, {file} is a file.", "Give two files or two folders."
        )
    if not pred.is_dir():
        return [FilePair(image_stem(truth), pred, truth)]

    left, right = _label_files(pred), _label_files(truth)
    pairs = []
    for key in (image_stem, _bare_stem):
        keyed_left, keyed_right = _by_key(left, key), _by_key(right, key)
        common = keyed_left.keys() & keyed_right.keys()
        pairs += [
            FilePair(image_stem(keyed_right[name]), keyed_left[name], keyed_right[name])
            for name in common
        ]
        left = [path for name, path in keyed_left.items() if name not in common]
        right = [path for name, path in keyed_right.items() if name not in common]
    if left or right:
        missing = [f"{_listed(left)} in {pred} without a true label file"] if left else []
        missing += [f"{_listed(right)} in {truth} without a prediction"] if right else []
        raise DatasetError(
            f"Files without a partner: {'; '.join(missing)}.",
            "Names must be the same up to the extension and an ending such as _labels.",
        )
    return sorted(pairs, key=lambda pair: pair.name)


def load_cases(
    pair: FilePair, *, axes: str | None = None, spacing: Sequence[float] | None = None
) -> Iterator[Case]:
    """Read a pair of label files. Each frame of a time series is a case of its own.

    Args:
        pair: see `match_files`.
        axes: overrides the axes of both files, such as "ZYX".
        spacing: in mm, one number per spatial axis; None: as the true label file says.

    Raises:
        DatasetError: the two files differ in shape, axes or position in space.
        ImageError: a file cannot be read or holds no labels.
    """
    pred, truth = load_labels(pair.pred, axes=axes), load_labels(pair.truth, axes=axes)
    _check_same_grid(pair, pred, truth)
    unit = "px" if truth.unit is None and spacing is None else "mm"
    if spacing is None:
        scale = 1.0 if truth.unit is None else _MILLIMETRES[truth.unit]
        spacing = [s * scale for s in truth.spacing]
    spacing = tuple(float(s) for s in spacing)
    if "T" not in truth.axes:
        yield Case(pair.name, pred.array, truth.array, spacing, unit)
        return
    for number, frames in enumerate(zip(pred.array, truth.array, strict=True)):
        yield Case(f"{pair.name} t={number}", *frames, spacing, unit)


def _bare_stem(path: Path) -> str:
    return _ENDING.sub("", image_stem(path))


def _label_files(folder: Path) -> list[Path]:
    files = [
        path
        for path in sorted(folder.iterdir())
        if path.is_file()
        and not path.name.startswith(".")
        and not path.name.lower().endswith("_overlay.png")
        and image_suffix(path) not in ("", *_LOSSY_SUFFIXES)
    ]
    if not files:
        raise DatasetError(
            f"There are no label files in {folder}.",
            "Looked for TIFF, PNG, BMP, NIfTI, NRRD and MHA/MHD files.",
        )
    return files


def _by_key(files: list[Path], key: Callable[[Path], str]) -> dict[str, Path]:
    keyed: dict[str, Path] = {}
    for path in files:
        other = keyed.setdefault(key(path), path)
        if other is not path:
            raise DatasetError(
                f"{other.name} and {path.name} in {path.parent} are both called {key(path)}.",
                "Keep one label file per image in the folder.",
            )
    return keyed


def _listed(files: list[Path], most: int = 10) -> str:
    names = ", ".join(path.name for path in files[:most])
    return names if len(files) <= most else f"{names} and {len(files) - most} more"


def _check_same_grid(pair: FilePair, pred: Image, truth: Image) -> None:
    if pred.array.shape != truth.array.shape or pred.axes != truth.axes:
        raise DatasetError(
            f"{pair.pred} is {pred.axes} {pred.array.shape}, "
            f"{pair.truth} is {truth.axes} {truth.array.shape}.",
            "A prediction must have the shape and the axes of its true labels.",
        )
    for name, ours, theirs, allowed in _comparable_geometry(pair, pred, truth):
        if np.any(np.abs(ours - theirs) > allowed):
            raise DatasetError(
                f"{pair.pred} and {pair.truth} lie on different grids: their {name} is "
                f"{ours.tolist()} and {theirs.tolist()}.",
                "Resample the prediction to the grid of the true labels.",
            )


def _comparable_geometry(
    pair: FilePair, pred: Image, truth: Image
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray | float]]:
    """What both files say about their place in space (mm): name, the two values, tolerance."""
    if pred.unit is None or truth.unit is None:
        return
    ours, theirs = _MILLIMETRES[pred.unit], _MILLIMETRES[truth.unit]
    voxel = np.multiply(truth.spacing, theirs)
    yield "spacing", np.multiply(pred.spacing, ours), voxel, 0.01 * voxel
    # Other formats hold no origin and no direction: there, a missing one means nothing.
    if {image_suffix(pair.pred), image_suffix(pair.truth)} <= set(PLACED_SUFFIXES):
        origins = np.multiply(pred.origin, ours), np.multiply(truth.origin, theirs)
        yield "origin", *origins, 0.1 * voxel
        yield "direction", np.asarray(pred.direction), np.asarray(truth.direction), 0.01
