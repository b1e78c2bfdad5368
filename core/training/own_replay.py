"""Crops of the corrections that a model was trained on, kept beside it for its next fine-tuning.

They lie in `replay/own/`, beside what came with the model (see `replay`): intensities as the
network saw them, labels with their unlabelled pixels, and `replay.json`, which says where they are
from. Those that were held out are never trained on, but tell what was forgotten. They are the
user's own pictures: a copy of the model within the computer has them, an exported one has not.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from tttunet.errors import DatasetError
from tttunet.files import atomic_write
from tttunet.imaging.image import Image
from tttunet.models.config import DataSource, ModelConfig
from tttunet.training.prepare import FOREGROUND, IGNORE, PreparedCase, find_locations
from tttunet.training.samples import Sample

OWN_NAME = "own"
LIST_NAME = "replay.json"
_FORMAT = 1
#: Largest edge of a crop per number of dimensions.
SIZE = {2: 192, 3: 64}
#: Crops of one fine-tuning to train on and to tell what was forgotten, and crops in all: the
#: oldest ones go.
NEW_TRAIN, NEW_VAL, MOST = 8, 4, 24
#: Where corrections of a person are from.
OWN_SOURCE = "corrections by the user of the model"
OWN_LICENCE = "the user's own data"


def checksum(path: Path) -> str:
    """sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def image_keys(samples: Sequence[Sample]) -> dict[str, str]:
    """Per name of a sample, a hash of its whole image, the same in every project."""
    keys: dict[str, str] = {}
    source, key = None, ""
    for sample in samples:
        if sample.image is not source:
            source = sample.image
            array = source.array if isinstance(source, Image) else source
            total = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
            for part in array:
                total.update(np.ascontiguousarray(part).data)
            key = total.hexdigest()[:32]
        keys[sample.name] = key
    return keys


def load_own(
    replay: Path, config: ModelConfig, samples: Sequence[Sample] = ()
) -> list[tuple[PreparedCase, bool]]:
    """Crops and whether they are for validation; empty if there are none.

    Args:
        replay: the folder `replay` of a model.
        config: of the model.
        samples: what is learnt from now. Crops of the same images are left out: they may be held
            out now, or corrected since.

    Raises:
        OSError, ValueError, KeyError, TypeError, DatasetError: they are damaged.
    """
    rows = _rows(replay)
    now = set(image_keys(samples).values()) if rows else set()
    return [
        (_read(replay / OWN_NAME, row, config), bool(row["val"]))
        for row in rows
        if row["of"] not in now
    ]


def add_own(
    replay: Path,
    train: Sequence[PreparedCase],
    val: Sequence[PreparedCase],
    samples: Sequence[Sample],
    source: DataSource,
) -> None:
    """Put crops of new cases to those that are there; such of the same images are replaced.

    Args:
        replay: the folder `replay` of a model; made if it is missing.
        train, val: cases that were trained on, and that were held out.
        samples: of which the cases are.
        source: where they are from, and their licence.
    """
    folder = replay / OWN_NAME
    folder.mkdir(parents=True, exist_ok=True)
    keys = image_keys(samples)
    rows = [row for row in _rows(replay) if row["of"] not in set(keys.values())]
    numbers = (n for n in itertools.count() if not (folder / f"{n:04d}.tif").exists())
    for cases, count, held in ((train, NEW_TRAIN, False), (val, NEW_VAL, True)):
        for case, image, labels in itertools.islice(_crops(cases, count), count):
            name = f"{next(numbers):04d}"
            row = _write(folder, name, image, labels)
            told = {"val": held, "from": case.name, "of": keys[case.name]}
            rows.append({**row, **told, "source": source.model_dump()})
    rows = rows[-MOST:]
    with atomic_write(folder / LIST_NAME, overwrite=True) as temporary:
        temporary.write_text(json.dumps({"format": _FORMAT, "crops": rows}, indent=1) + "\n")
    listed = {file for row in rows for file in row["sha256"]}
    for path in folder.glob("*.tif"):
        if path.name not in listed:
            path.unlink()


def _rows(replay: Path) -> list[dict[str, Any]]:
    path = replay / OWN_NAME / LIST_NAME
    return json.loads(path.read_text(encoding="utf-8"))["crops"] if path.is_file() else []


def _crops(
    cases: Sequence[PreparedCase], count: int
) -> Iterator[tuple[PreparedCase, np.ndarray, np.ndarray]]:
    """Crops with foreground, image and labels, in turn of `count` cases at most."""
    cases = cases[:: max(1, len(cases) // count)]
    queues = [_of_case(case) for case in cases]
    for turn in itertools.zip_longest(*queues):
        yield from (crop for crop in turn if crop is not None)


def _of_case(case: PreparedCase) -> list[tuple[PreparedCase, np.ndarray, np.ndarray]]:
    """The crops of one case, those with most labelled pixels first."""
    image, labels, _ = case.open()
    edge = SIZE[labels.ndim]
    # As many equal parts along every axis as are needed: no crop is a sliver.
    steps = [-(-n // -(-n // edge)) for n in labels.shape]
    starts = (range(0, n, step) for n, step in zip(labels.shape, steps, strict=True))
    found = []
    for start in itertools.product(*starts):
        place = tuple(slice(low, low + step) for low, step in zip(start, steps, strict=True))
        part = labels[place]
        if ((part > 0) | (part == FOREGROUND)).any():
            known = int((part != IGNORE).sum())
            found.append((known, np.asarray(image[(slice(None), *place)]), np.asarray(part)))
    found.sort(key=lambda crop: -crop[0])
    return [(case, pixels, part) for _, pixels, part in found]


def _write(folder: Path, name: str, image: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    if (image == image[:1]).all():
        image = image[:1]  # grey
    files = {f"{name}.tif": image, f"{name}_labels.tif": labels}
    for file, array in files.items():
        tifffile.imwrite(folder / file, array, compression="zlib", photometric="minisblack")
    image_file, label_file = files
    sums = {file: checksum(folder / file) for file in files}
    return {"image": image_file, "labels": label_file, "sha256": sums}


def _read(folder: Path, row: Mapping[str, Any], config: ModelConfig) -> PreparedCase:
    if {row["image"], row["labels"]} != set(row["sha256"]):
        raise DatasetError(f"'{row['image']}' has no checksum")
    for file, expected in row["sha256"].items():
        if Path(file).name != file or checksum(folder / file) != expected:
            raise DatasetError(f"'{file}' is damaged")
    image = tifffile.imread(folder / row["image"])
    labels = tifffile.imread(folder / row["labels"])
    channels = config.network.input_channels
    if len(image) == 1:
        image = np.repeat(image, channels, 0)
    if len(image) != channels or labels.ndim != config.network.dim:
        raise DatasetError(f"'{row['image']}' is of another model")
    return PreparedCase(row["from"], image, labels, find_locations(labels, config.task))
