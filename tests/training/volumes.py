"""Small volumes on disk, in nnU-Net's layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import SimpleITK


def write_volume(path: Path, array: np.ndarray, spacing=(1, 1, 1), direction=None, origin=None):
    """Write [Z, Y, X] with a spacing (Z, Y, X) and ITK's direction and origin (x, y, z)."""
    picture = SimpleITK.GetImageFromArray(array)
    picture.SetSpacing([float(value) for value in spacing[::-1]])
    if direction is not None:
        picture.SetDirection(direction)
    if origin is not None:
        picture.SetOrigin(origin)
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(picture, str(path))


def write_case(folder: Path, name: str, image: np.ndarray, label: np.ndarray, **geometry) -> None:
    """An image, [Z, Y, X] or [C, Z, Y, X], with its label."""
    for channel, array in enumerate(image if image.ndim == 4 else image[None]):
        write_volume(folder / "imagesTr" / f"{name}_{channel:04d}.nii.gz", array, **geometry)
    write_volume(folder / "labelsTr" / f"{name}.nii.gz", label, **geometry)


def describe(folder: Path, channels=("MRI",), labels=None, **more) -> Path:
    """nnU-Net's dataset.json."""
    content = {
        "channel_names": {str(i): name for i, name in enumerate(channels)},
        "labels": labels or {"background": 0, "ball": 1},
        "file_ending": ".nii.gz",
        **more,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def ball(shape=(12, 24, 24), spacing=(2.0, 1.0, 1.0), radius=7.0, seed=0):
    """A bright ball, round in millimetres, on noise: float32 image and uint8 label."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.indices(shape), -1) - (np.array(shape) - 1) / 2 - rng.uniform(-1, 1, 3)
    label = (np.linalg.norm(grid * spacing, axis=-1) < radius).astype(np.uint8)
    image = rng.normal(100, 10, shape) + 60 * label
    return image.astype(np.float32), label
