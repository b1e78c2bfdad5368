"""Preprocessing once, before training: read, normalise, remember where the foreground is."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tttunet.errors import DatasetError
from tttunet.files import atomic_write
from tttunet.imaging.image import Image
from tttunet.imaging.preprocess import preprocess
from tttunet.imaging.readers import load_channels, load_image, load_labels
from tttunet.models.config import Plan
from tttunet.models.nnunet import slug
from tttunet.training.dataset import Case, Dataset, Split
from tttunet.training.grids import grid_problems

#: Pixels that nobody labelled, whatever number the data set uses for them.
IGNORE = -1

#: Pixels of an object, or of some class, which nobody said more about.
FOREGROUND = -2

#: Raise it when the content of the cache changes its meaning.
_CACHE_VERSION = 2

#: Foreground positions kept per object, or per class and image.
_LOCATIONS = {"instance": 16, "semantic": 2000}

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PreparedCase:
    """A case ready for training: arrays in memory, or paths of `.npy` files.

    Paths are opened memory-mapped, so a patch costs the reading of that patch and a case can be
    handed to a worker process for nothing.

    Attributes:
        image: [C, *spatial] float16, normalised.
        label: [*spatial] int32; `IGNORE` where nothing is known.
        locations: [n, 1 + dim] int32, rows (label, position) sorted by label, foreground only.
    """

    name: str
    image: Path | np.ndarray
    label: Path | np.ndarray
    locations: Path | np.ndarray
    group: str | None = None
    modality: str | None = None

    def open(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Image, label and locations; read-only where they come from disk."""
        image, label, locations = (
            _map(part) if isinstance(part, Path) else part
            for part in (self.image, self.label, self.locations)
        )
        return image, label, locations


@functools.cache
def _header(path: Path) -> tuple[np.dtype, tuple[int, ...], int]:
    """Parsing the header of a `.npy` file takes longer than reading a patch, so do it once."""
    array = np.load(path, mmap_mode="r")
    return array.dtype, array.shape, array.offset


def _map(path: Path) -> np.ndarray:
    dtype, shape, offset = _header(path)
    return np.memmap(path, dtype, "r", offset, shape)


def prepare(
    dataset: Dataset,
    plan: Plan,
    cache_dir: str | Path | None = None,
    progress: Progress | None = None,
    *,
    split: Split = "train",
    channels: int | None = None,
) -> list[PreparedCase]:
    """Bring the cases of one split into the form that training reads.

    Args:
        dataset: from `open_dataset`.
        plan: everything before the network is used, as `imaging.preprocess` does it.
        cache_dir: where to keep the result; used again as long as neither the source files nor
            the plan's preprocessing change. None: keep everything in memory.
        progress: called with (cases done, cases in all).
        split: "train" or "val".
        channels: input channels of the network; by default 3 for `rgb`, else the image's own.

    Raises:
        DatasetError: an image does not fit its label, the plan or the classes.
        ImageError: a file cannot be read.
    """
    cases = dataset.cases[split]
    folder = None if cache_dir is None else Path(cache_dir) / slug(dataset.name)
    prepared = []
    for done, case in enumerate(cases, start=1):
        prepared.append(_prepare_case(case, dataset, plan, folder, channels))
        if progress is not None:
            progress(done, len(cases))
    return prepared


def _prepare_case(
    case: Case, dataset: Dataset, plan: Plan, folder: Path | None, channels: int | None
) -> PreparedCase:
    if folder is None:
        arrays = _compute(case, dataset, plan, channels)
        return PreparedCase(case.name, *arrays, case.group, case.modality)
    key = _cache_key(case, dataset, plan, channels)
    image, label, locations = (
        folder / f"{case.name}-{key}.{part}.npy" for part in ("image", "label", "locations")
    )
    if not (image.exists() and label.exists() and locations.exists()):
        arrays = _compute(case, dataset, plan, channels)
        for path, array in zip((image, label, locations), arrays, strict=True):
            with atomic_write(path, overwrite=True) as temporary:
                np.save(temporary, array)
    return PreparedCase(case.name, image, label, locations, case.group, case.modality)


def _cache_key(case: Case, dataset: Dataset, plan: Plan, channels: int | None) -> str:
    sources = []
    for path in (*case.images, case.label):
        state = path.stat()
        sources.append((str(path.resolve()), state.st_mtime_ns, state.st_size))
    # Everything but what only the network and the decoding use.
    settings = plan.model_dump(exclude={"patch_size", "decoding", "mirror_axes", "keep_largest"})
    content = (
        _CACHE_VERSION,
        sources,
        settings,
        channels,
        dataset.task,
        dataset.dim,
        dataset.ignore,
        dataset.merged,
        sorted(dataset.classes),
    )
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _compute(
    case: Case, dataset: Dataset, plan: Plan, channels: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    image, label = read_pair(case, dataset)
    if image.ndim_spatial != dataset.dim or len(plan.patch_size) != dataset.dim:
        raise DatasetError(
            f"{case.images[0]} has {image.ndim_spatial} spatial dimensions, the data set "
            f"{dataset.dim} and the plan {len(plan.patch_size)}."
        )
    count = channels or (3 if plan.channels == "rgb" else image.channels)
    prepared = preprocess(image, plan, count)
    label = prepared.place.to_network_labels(label)
    largest = float(np.finfo(np.float16).max)
    image16 = prepared.array.clip(-largest, largest).astype(np.float16)
    return image16, label, find_locations(label, dataset.task)


def read_image(case: Case) -> Image:
    """The image of a case; several files are one channel each, with the geometry of the first.

    Raises:
        DatasetError: it has a time axis.
        ImageError: a file cannot be read, or the files do not fit together.
    """
    image = load_image(case.images[0]) if len(case.images) == 1 else load_channels(case.images)
    if "T" in image.axes:
        raise DatasetError(
            f"{image.path} is a time series.", "Save its time points as separate images."
        )
    return image


def read_pair(case: Case, dataset: Dataset) -> tuple[Image, np.ndarray]:
    """The image of a case and its labels, see `PreparedCase.label`.

    Raises:
        DatasetError: they lie on different voxels, a value has no class or is out of range, or as
            for `read_image`.
        ImageError: a file cannot be read, or the channels do not fit together.
    """
    image, stored = read_image(case), load_labels(case.label)
    for problem in grid_problems(image, stored, case):
        if problem.fatal:
            raise DatasetError(
                problem.text, "Leave the case out, or find all such cases with `tttunet check`."
            )
    return image, known_labels(stored.array, case.label, dataset)


def known_labels(stored: np.ndarray, path: Path, dataset: Dataset) -> np.ndarray:
    """The numbers of a label file as training knows them: one per class, `IGNORE`.

    Args:
        stored: integers.
        path: of the file, for messages.
        dataset: says what the numbers mean.

    Raises:
        DatasetError: as for `read_pair`.
    """
    stored = stored.astype(np.int64)
    label = stored.copy()
    for value, written in dataset.merged.items():
        label[stored == value] = written
    if dataset.ignore is not None:
        label[stored == dataset.ignore] = IGNORE
    if dataset.task == "semantic":
        unknown = set(np.unique(label).tolist()) - {IGNORE, 0, *dataset.classes}
        if unknown:
            raise DatasetError(f"{path} has values without a class: {sorted(unknown)[:5]}.")
    if label.min(initial=0) < IGNORE or label.max(initial=0) >= 2**24:
        raise DatasetError(f"{path} has values outside 0..{2**24 - 1}.")
    return label.astype(np.int32)


def find_locations(label: np.ndarray, task: str) -> np.ndarray:
    """Up to `_LOCATIONS[task]` random positions of every label above 0, see `PreparedCase`."""
    flat = label.ravel()
    positions = np.random.default_rng(0).permutation(np.flatnonzero(flat > 0))
    positions = positions[np.argsort(flat[positions], kind="stable")]
    _, first, counts = np.unique(flat[positions], return_index=True, return_counts=True)
    rank = np.arange(len(positions)) - np.repeat(first, counts)
    positions = positions[rank < _LOCATIONS[task]]
    coordinates = np.unravel_index(positions, label.shape)
    return np.stack([flat[positions], *coordinates], axis=1).astype(np.int32)
