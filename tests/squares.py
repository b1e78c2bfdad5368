"""Bright squares on noise as a data set, and a network that trains on it in no time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tifffile

NAMES = ("a", "b", "c")
NETWORK = {
    "features": [4, 8],
    "kernel_sizes": [[3, 3], [3, 3]],
    "strides": [[1, 1], [2, 2]],
    "encoder_blocks": [1, 1],
    "decoder_blocks": [1],
    "ttt": {"heads": 2},
}


def write_squares(folder: Path, task: str = "instance") -> Path:
    """Three images with their labels: `instance` numbers, or `semantic` masks."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for name in NAMES:
        labels = np.zeros((48, 48), np.uint16)
        labels[4:12, 4:12], labels[18:28, 16:26], labels[30:40, 30:44] = 1, 2, 3
        image = rng.integers(0, 40, labels.shape) + 150 * (labels > 0)
        if task == "semantic":
            labels = (labels > 0).astype(np.uint16)
        tifffile.imwrite(folder / "images" / f"{name}.tif", image.astype(np.uint8))
        tifffile.imwrite(folder / "labels" / f"{name}.tif", labels)
    description = {
        "name": folder.name,
        "task": task,
        "dim": 2,
        "licence": "CC0-1.0",
        "classes": {"1": "square"},
        "split": {"train": NAMES[:2], "val": NAMES[2:]},
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder
