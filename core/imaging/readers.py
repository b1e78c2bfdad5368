"""Reading images and labels from files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tttunet.errors import ImageError, TTTUNetError
from tttunet.imaging import itk, raster, tiff
from tttunet.imaging.image import Image

SUFFIXES = tuple(sorted({*tiff.SUFFIXES, *raster.SUFFIXES, *itk.SUFFIXES}, key=len, reverse=True))


class _Format(NamedTuple):
    name: str
    magic: tuple[bytes, ...]
    suffixes: tuple[str, ...]


_FORMATS = (
    _Format("PNG", (b"\x89PNG\r\n\x1a\n",), (".png",)),
    _Format("JPEG", (b"\xff\xd8\xff",), (".jpg", ".jpeg")),
    _Format("TIFF", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), tiff.SUFFIXES),
    _Format("NRRD", (b"NRRD000",), (".nrrd", ".nhdr")),
    _Format("BMP", (b"BM",), (".bmp",)),
)
#: Stands for the suffix of a folder of DICOM files; their names end in anything.
_DICOM = "DICOM"
#: Series of at most this share of the largest one's files are scouts, reports and the like.
_SCOUT_SHARE = 0.25
#: So many series of a folder are named in a message.
_LISTED = 6
#: Geometries of channels agree to this share; NIfTI stores 32-bit numbers.
_SAME_PLACE = 1e-3
_LARGEST_LABEL = np.iinfo(np.uint32).max


def image_suffix(path: str | Path) -> str:
    """The suffix that decides the format, in lower case (".nii.gz", ".ome.tif"), or ""."""
    name = Path(path).name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def image_stem(path: str | Path) -> str:
    """The file name without folder and suffixes: "case.1.nii.gz" is "case.1"."""
    path = Path(path)
    suffix = image_suffix(path)
    return path.name[: -len(suffix)] if suffix else path.stem


def load_image(path: str | Path, axes: str | None = None) -> Image:
    """Reads an image: TIFF, OME-TIFF, PNG, JPEG, BMP, NIfTI, NRRD, MetaImage or a DICOM series.

    Args:
        path: the file, or the folder of one DICOM series.
        axes: one letter per dimension of what is stored (T time, C channel, Z, Y, X, S colour
            samples), if the file does not say it or says it wrongly.

    Returns:
        The image, with alpha and axes of size 1 dropped, sorted to TCZYX, dtype as stored.

    Raises:
        ImageError: the file is missing, unreadable, damaged or no image, or its axes are
            ambiguous or contradict `axes`; or no pixel holds a number (all are NaN or infinite).
    """
    image = _load(path, axes, palette_numbers=False)
    check_numbers(image.array, f"'{path}'", "Export it again from the program that wrote it.")
    return image


def check_numbers(array: np.ndarray, name: str, hint: str) -> None:
    """Refuses pixels that are all NaN or infinite.

    Raises:
        ImageError: not one of them is a number.
    """
    # Row by row: mostly the first one tells, and a large image is not read for it.
    if array.dtype.kind == "f" and not any(np.isfinite(part).any() for part in array):
        raise ImageError(f"{name} holds no numbers: every pixel is NaN or infinite.", hint)


def load_channels(paths: Sequence[str | Path]) -> Image:
    """Reads several files of one grid as the channels of one image, as nnU-Net stores them.

    Args:
        paths: single-channel images, in the order of the channels.

    Raises:
        ImageError: a file cannot be read or has channels, or its grid is not that of the first.
    """
    images = [load_image(path) for path in paths]
    first = images[0]
    for path, image in zip(paths, images, strict=True):
        if "C" in image.axes:
            raise ImageError(f"'{path}' has {image.channels} channels; one is expected.")
        if image.array.shape != first.array.shape or image.axes != first.axes:
            raise ImageError(
                f"'{path}' has the shape {image.array.shape}, but '{paths[0]}' "
                f"{first.array.shape}: they are no channels of one image.",
                "Resample it to the grid of the first channel.",
            )
        here, there = (
            [*one.spacing, *one.origin, *one.direction.ravel()] for one in (image, first)
        )
        if not np.allclose(here, there, rtol=_SAME_PLACE, atol=_SAME_PLACE):
            raise ImageError(
                f"'{path}' and '{paths[0]}' lie in different places: they are no channels of one "
                "image.",
                "Resample it to the grid of the first channel.",
            )
    channel = int("T" in first.axes)
    array = np.stack([image.array for image in images], channel)
    joined = first.with_array(array, first.axes[:channel] + "C" + first.axes[channel:])
    notes = tuple(dict.fromkeys(note for image in images for note in image.notes))
    return replace(joined, notes=notes)


def load_dicom(path: str | Path) -> list[Image]:
    """Reads all DICOM series of a folder, or a single DICOM file.

    Returns:
        One image per series, named by the folder and, if there are several, a number.

    Raises:
        ImageError: there is no DICOM image, or a series is damaged or incomplete.
    """
    path = Path(path)
    if not itk.is_dicom(path):
        raise ImageError(f"'{path}' is no DICOM file, nor a folder with DICOM files.")
    series = itk.dicom_series(path) if path.is_dir() else [[path]]
    if not series:
        raise ImageError(
            f"'{path}' holds no DICOM images.", "Choose the folder below it that has the slices."
        )
    names = [path.stem if path.is_file() else path.name]
    if len(series) > 1:
        names = [f"{path.name}-{number}" for number in range(1, len(series) + 1)]
    with errors_told(path, _DICOM):
        found = zip(series, names, strict=True)
        return [itk.read_dicom(files, None, name, path) for files, name in found]


def load_labels(path: str | Path, axes: str | None = None) -> Image:
    """Reads a label image: one whole number per pixel, 0 for background.

    Args:
        path: a file of any format that `load_image` reads; a palette image gives its numbers.
        axes: as for `load_image`.

    Returns:
        The labels, an integer dtype without C axis. Booleans become uint8, whole floating-point
        numbers uint32.

    Raises:
        ImageError: as for `load_image`; or there are several channels, fractions, negative or
            non-finite numbers.
    """
    image = _load(path, axes, palette_numbers=True)
    if "C" in image.axes:
        kind = "a colour image" if image.rgb else f"an image of {image.channels} channels"
        raise ImageError(
            f"'{path}' is {kind}; labels need one whole number per pixel.",
            "Save the label numbers as a single-channel TIFF or PNG file.",
        )
    return image.with_array(_whole_numbers(image.array, path), image.axes)


def _whole_numbers(array: np.ndarray, path: str | Path) -> np.ndarray:
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or (array != np.floor(array)).any():
            raise ImageError(
                f"'{path}' has fractions or non-finite numbers, so it holds no labels.",
                "Labels are whole numbers; is this an image or a probability map?",
            )
        if array.max() > _LARGEST_LABEL:
            raise ImageError(f"'{path}' has labels above {_LARGEST_LABEL}.")
    if array.min() < 0:
        raise ImageError(
            f"'{path}' has negative labels.", "Use 0 for background and 1, 2, ... for objects."
        )
    return array.astype(np.uint32) if array.dtype.kind == "f" else array


def _load(path: str | Path, axes: str | None, palette_numbers: bool) -> Image:
    path = Path(path)
    suffix, name = _check_file(path), image_stem(path)
    with errors_told(path, suffix):
        if suffix == _DICOM:
            return _only_series(path, axes)
        if suffix in tiff.SUFFIXES:
            return tiff.read_tiff(path, axes, name)
        if suffix in raster.SUFFIXES:
            return raster.read_raster(path, axes, name, palette_numbers)
        return itk.read_itk(path, suffix, axes, name)


def _only_series(folder: Path, axes: str | None) -> Image:
    series = sorted(itk.dicom_series(folder), key=len, reverse=True)
    if not series:
        raise ImageError(
            f"'{folder}' holds no DICOM images.", "Choose a folder with the slices of a series."
        )
    largest, *others = series
    if others and len(others[0]) > _SCOUT_SHARE * len(largest):
        listed = "; ".join(itk.describe_series(files) for files in series[:_LISTED])
        more = "; ..." if len(series) > _LISTED else ""
        raise ImageError(
            f"'{folder}' holds {len(series)} DICOM series: {listed}{more}.",
            "Put the files of the one that you mean into a folder of their own.",
        )
    image = itk.read_dicom(largest, axes, folder.name, folder)
    if not others:
        return image
    left = "; ".join(itk.describe_series(files) for files in others[:_LISTED])
    note = (
        f"'{folder}' holds {len(series)} DICOM series; the largest was read "
        f"({itk.describe_series(largest)}), not: {left}."
    )
    return replace(image, notes=(*image.notes, note))


@contextlib.contextmanager
def errors_told(path: Path, suffix: str) -> Iterator[None]:
    """Turns whatever the decoders raise into one sentence that names the file."""
    try:
        yield
    except TTTUNetError:
        raise
    except ImportError as error:
        raise ImageError(
            f"'{path}' needs the missing package '{error.name}'.", f"pip install {error.name}"
        ) from error
    except Exception as error:  # the decoders raise whatever they meet in a damaged file
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise ImageError(
                f"'{path}' does not fit into memory.", "Crop it or save it at a lower resolution."
            ) from error
        if "orthonormal" in str(error):
            raise ImageError(
                f"'{path}' has axes that are not at right angles.",
                "Resample it to a regular grid, e.g. in 3D Slicer.",
            ) from error
        content = _recognise(path) if path.is_file() else None
        if content is not None and suffix not in content.suffixes:
            raise ImageError(
                f"'{path}' is a {content.name} file, but its name ends in {suffix}.",
                f"Rename it so that it ends in {content.suffixes[0]}.",
            ) from error
        raise ImageError(
            f"'{path}' cannot be read: it is damaged, incomplete or not a {suffix} file.",
            "Open it in the program that wrote it and export it again.",
        ) from error


def _recognise(path: Path) -> _Format | None:
    """The format by the first bytes, whatever the name says."""
    with path.open("rb") as file:
        start = file.read(16)
    return next((f for f in _FORMATS if start.startswith(f.magic)), None)


def _check_file(path: Path) -> str:
    """Checks what can be checked without reading the file; gives its suffix."""
    try:
        status = os.stat(path)
    except PermissionError as error:
        raise ImageError(f"'{path}' cannot be read: permission denied.") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"'{path}' does not exist.", "Check the name and the folder.") from error
    if path.is_dir():
        if os.access(path, os.R_OK) and itk.is_dicom(path):
            return _DICOM
        raise ImageError(
            f"'{path}' is a folder.", "Give an image file, or a folder of DICOM files."
        )
    suffix = image_suffix(path)
    if not suffix:
        raise ImageError(
            f"'{path}' is of a type that cannot be read.",
            "Known are TIFF, PNG, JPEG, BMP, NIfTI (.nii, .nii.gz), NRRD and MHA/MHD.",
        )
    if status.st_size == 0:
        raise ImageError(f"'{path}' is empty (0 bytes).", "Copy or download it again.")
    if not os.access(path, os.R_OK):
        raise ImageError(f"'{path}' cannot be read: permission denied.")
    return suffix
