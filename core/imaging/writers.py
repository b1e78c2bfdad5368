"""Writing labels, overlays and tables; every file appears whole or not at all."""

from __future__ import annotations

import csv
import hashlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tttunet.errors import ImageError, OutputError
from tttunet.files import atomic_write
from tttunet.imaging import itk, tiff
from tttunet.imaging.image import Image
from tttunet.imaging.overlay import draw_overlay, fitting_scale
from tttunet.imaging.readers import image_suffix

# Detached headers (.mhd, .nhdr) would need two files to appear at once.
_ITK_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha")
LABEL_SUFFIXES = (".tif", ".tiff", ".ome.tif", ".ome.tiff", *_ITK_SUFFIXES)
_OME_UNITS = {"micrometer": "µm", "millimeter": "mm", None: "pixel"}
_PER_CENTIMETER = {"micrometer": 1e4, "millimeter": 10.0}


def label_axes(image: Image) -> str:
    """The axes of labels for `image`: its own without C."""
    return image.axes.replace("C", "")


def save_labels(
    path: str | Path, labels: np.ndarray, like: Image, *, overwrite: bool = False
) -> Path:
    """Writes labels on the grid of an image.

    OME-TIFF (.tif, .tiff, .ome.tif) carries axes, pixel size and unit, but neither origin nor
    direction; NIfTI, NRRD and MetaImage carry the whole geometry, in millimeters.

    Args:
        path: its suffix decides the format.
        labels: integer or boolean, shape of `like` without its C axis. The dtype is kept, except
            that booleans become uint8 and 64-bit numbers uint32.
        like: the image that the labels belong to.
        overwrite: replace an existing file.

    Returns:
        The path written.

    Raises:
        ImageError: labels and image have different shapes, or the labels are no whole numbers
            from 0 to 2**32 - 1.
        OutputError: the format is not known, or the file cannot be written.
    """
    path = Path(path)
    suffix = image_suffix(path)
    if suffix not in LABEL_SUFFIXES:
        raise OutputError(
            f"'{path}' is of a type that labels cannot be written to.",
            "Choose .ome.tif, .nii.gz, .nrrd or .mha.",
        )
    image = like.with_array(_label_array(labels, like), label_axes(like))
    with atomic_write(path, overwrite=overwrite) as temporary:
        if suffix in tiff.SUFFIXES:
            _write_ome_tiff(temporary, image)
        else:
            itk.write_itk(temporary, suffix, image)
    return path


def save_maps(path: str | Path, maps: np.ndarray, like: Image, *, overwrite: bool = False) -> Path:
    """Writes float maps on the grid of an image as the channels of an OME-TIFF.

    Args:
        path: must end in .ome.tif.
        maps: [K, *labels] float32, of the shape of labels for `like`.
        like: the image that the maps belong to.
        overwrite: replace an existing file.

    Raises:
        OutputError: the path is no .ome.tif, or cannot be written.
    """
    path = Path(path)
    if not path.name.endswith(".ome.tif"):
        raise OutputError(f"The maps '{path}' must be an .ome.tif file.")
    axes = label_axes(like)
    frames = int("T" in axes)
    image = like.with_array(np.moveaxis(maps, 0, frames), axes[:frames] + "C" + axes[frames:])
    with atomic_write(path, overwrite=overwrite) as temporary:
        _write_ome_tiff(temporary, image)
    return path


def save_overlay(
    path: str | Path,
    image: Image,
    labels: np.ndarray,
    *,
    colors: Mapping[int, tuple[int, int, int]] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a PNG of the image with the outlines of the labels in colour.

    Of a stack, the plane with most labelled pixels is drawn. Small images are enlarged and very
    large ones reduced, so that the outlines can be seen.

    Args:
        path: must end in .png.
        image: any image.
        labels: integers, shape of `image` without its C axis.
        colors: 8-bit RGB per label; None: neighbouring numbers get different colours.
        overwrite: replace an existing file.

    Raises:
        ImageError: labels and image have different shapes.
        OutputError: the path is no .png, or cannot be written.
    """
    from PIL import Image as Pillow

    path = Path(path)
    if path.suffix.lower() != ".png":
        raise OutputError(f"The overlay '{path}' must be a .png file.")
    scale = fitting_scale(image.array.shape[-2:])
    drawn = draw_overlay(image, labels, colors=colors, scale=scale)
    with atomic_write(path, overwrite=overwrite) as temporary:
        Pillow.fromarray(drawn).save(temporary, "PNG")
    return path


def save_table(
    path: str | Path,
    rows: Sequence[Mapping[str, object]],
    *,
    columns: Iterable[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes rows as CSV (UTF-8, comma, one header line).

    Args:
        path: any name.
        rows: one mapping per line; what a row lacks stays empty.
        columns: the header; None: the keys in order of their first appearance.
        overwrite: replace an existing file.

    Raises:
        OutputError: the file cannot be written.
    """
    path = Path(path)
    header = (
        list(columns) if columns is not None else list(dict.fromkeys(k for r in rows for k in r))
    )
    with (
        atomic_write(path, overwrite=overwrite) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        table = csv.DictWriter(file, header, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    return path


def _label_array(labels: np.ndarray, like: Image) -> np.ndarray:
    labels = np.asarray(labels)
    axes = label_axes(like)
    expected = tuple(like.array.shape[like.axes.index(letter)] for letter in axes)
    if labels.shape != expected:
        raise ImageError(
            f"Labels of shape {labels.shape} do not fit '{like.name}', which needs {expected} "
            f"({axes})."
        )
    if labels.dtype.kind == "b":
        return labels.astype(np.uint8)
    if labels.dtype.kind not in "ui":
        raise ImageError(f"Labels are whole numbers, not {labels.dtype}.")
    if labels.dtype.kind == "i" and labels.min() < 0:
        raise ImageError("Labels must not be negative.")
    if labels.dtype.itemsize == 8:
        if labels.max() > np.iinfo(np.uint32).max:
            raise ImageError("Labels above 2**32 - 1 cannot be written.")
        return labels.astype(np.uint32)
    return labels


def _write_ome_tiff(path: Path, image: Image) -> None:
    import tifffile

    array = np.ascontiguousarray(image.array)
    # Equal labels give equal files; tifffile's own identifier is the time.
    content = hashlib.sha256(array.data).hexdigest()
    metadata = {
        "axes": image.axes,
        "UUID": str(uuid.uuid5(uuid.NAMESPACE_OID, content)),
        **ome_metadata(image),
    }
    tifffile.imwrite(
        path,
        array,
        ome=True,
        bigtiff=array.nbytes > 2**32 - 2**25,
        photometric="minisblack",
        compression="zlib",
        metadata=metadata,
        **tiff_resolution(image),
    )


def ome_metadata(image: Image) -> dict[str, object]:
    """The size of the pixels in the words of OME; empty where it is not known."""
    metadata: dict[str, object] = {}
    if image.unit or set(image.spacing) != {1.0}:
        for letter, value in zip(image.spatial_axes, image.spacing, strict=True):
            metadata[f"PhysicalSize{letter}"] = value
            metadata[f"PhysicalSize{letter}Unit"] = _OME_UNITS[image.unit]
    return metadata


def tiff_resolution(image: Image) -> dict[str, Any]:
    """The size of the pixels as arguments of tifffile; empty where it cannot be said."""
    if not image.unit:
        return {}
    spacing = dict(zip(image.spatial_axes, image.spacing, strict=True))
    per_centimeter = tuple(_PER_CENTIMETER[image.unit] / spacing[letter] for letter in "XY")
    if not all(1e-3 < value < 1e9 for value in per_centimeter):
        return {}
    return {"resolution": per_centimeter, "resolutionunit": "CENTIMETER"}
