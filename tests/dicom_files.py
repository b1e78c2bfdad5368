"""DICOM series as a scanner writes them: one file per slice, through ITK's own writer."""

from __future__ import annotations

import locale
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import SimpleITK as sitk

_CT = "1.2.840.10008.5.1.4.1.1.2"
_UIDS = {"study": "1.2.3.4.5", "frame": "1.2.3.4.6"}


def write_series(
    folder: Path,
    volume: sitk.Image,
    *,
    number: int = 1,
    tags: Mapping[str, str] | None = None,
    move: Callable[[int, np.ndarray], np.ndarray] = lambda index, place: place,
) -> list[Path]:
    """Writes the slices of a volume of whole numbers.

    Args:
        folder: made if needed; file names do not follow the order of the slices.
        volume: 3D.
        number: of the series.
        tags: further ones, such as the rescaling of intensities.
        move: gives a slice another position.
    """
    folder.mkdir(parents=True, exist_ok=True)
    direction = np.array(volume.GetDirection()).reshape(3, 3)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    paths = []
    language = locale.setlocale(locale.LC_CTYPE)
    for index in range(volume.GetSize()[2]):
        place = np.array(volume.TransformIndexToPhysicalPoint((0, 0, index)))
        all_tags = {
            "0008|0008": "DERIVED\\SECONDARY",
            "0008|0016": _CT,
            "0008|0018": f"{_UIDS['study']}.{number}.{index + 1}",
            "0008|0060": "CT",
            "0018|0050": f"{volume.GetSpacing()[2]!r}",
            "0020|000d": _UIDS["study"],
            "0020|000e": f"{_UIDS['study']}.{number}",
            "0020|0011": str(number),
            "0020|0013": str(index + 1),
            "0020|0032": _numbers(move(index, place)),
            "0020|0037": _numbers(direction[:, :2].T.ravel()),
            "0020|0052": _UIDS["frame"],
        }
        picture = volume[:, :, index]
        for tag, value in (all_tags | dict(tags or {})).items():
            picture.SetMetaData(tag, value)
        paths.append(folder / f"IM{number}{(index * 7) % 97:04d}.dcm")
        writer.SetFileName(str(paths[-1]))
        writer.Execute(picture)
    # ITK leaves the language at C, and Python would read later files as ASCII.
    locale.setlocale(locale.LC_CTYPE, language)
    return paths


def _numbers(values: np.ndarray) -> str:
    # A number of DICOM has at most 16 characters.
    return "\\".join(f"{value:.10g}"[:16] for value in values)
