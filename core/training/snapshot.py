"""The corrections of a project as they were when a fine-tuning began.

The user goes on correcting while a model trains. A training that is resumed must not learn what it
had held out, so it goes on with what it began with.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tttunet.errors import DatasetError
from tttunet.files import atomic_write
from tttunet.training.samples import Sample

#: The file in the working folder.
SNAPSHOT_NAME = "corrections.npz"
_PARTS = "parts"


def save_snapshot(folder: Path, samples: Sequence[Sample]) -> Path:
    """Write the labels of samples, without their images, as `SNAPSHOT_NAME` into a folder.

    Raises:
        OutputError: it cannot be written.
    """
    parts = [{"name": one.name, "group": one.group, "bounds": one.bounds} for one in samples]
    arrays: dict[str, Any] = {_PARTS: np.array(json.dumps(parts))}
    arrays |= {str(number): one.labels for number, one in enumerate(samples)}
    path = folder / SNAPSHOT_NAME
    with atomic_write(path, overwrite=True) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    return path


def restore_snapshot(folder: Path, samples: Sequence[Sample]) -> list[Sample]:
    """The samples as they were.

    Args:
        folder: the working folder.
        samples: those of now, which have the images.

    Raises:
        DatasetError: there is no snapshot, it is damaged, or an image of it is gone.
    """
    images = {one.origin: one for one in samples}
    try:
        with np.load(folder / SNAPSHOT_NAME, allow_pickle=False) as content:
            parts = json.loads(str(content[_PARTS]))
            labels = [content[str(number)] for number in range(len(parts))]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        raise DatasetError(
            f"The corrections that this fine-tuning began with cannot be read in '{folder}'.",
            "Start again with --overwrite.",
        ) from None
    missing = sorted({part["name"] for part in parts if _origin(part) not in images})
    if missing:
        raise DatasetError(
            f"It began with corrections of {', '.join(missing)}, of which there are none now.",
            "Start again with --overwrite.",
        )
    return [
        replace(
            images[_origin(part)],
            name=part["name"],
            labels=found,
            bounds=None if part["bounds"] is None else tuple(map(tuple, part["bounds"])),
        )
        for part, found in zip(parts, labels, strict=True)
    ]


def _origin(part: dict[str, Any]) -> str:
    return part["group"] or part["name"]
