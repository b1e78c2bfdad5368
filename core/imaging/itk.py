"""Medical formats through SimpleITK: the only place that knows about ITK's conventions.

ITK counts axes from x to z, numpy from z to x; both the index axes and the world axes (LPS) are
reversed here, so that an `Image` is in array order throughout. ITK's unit is the millimetre.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tttunet.errors import ImageError
from tttunet.imaging import nifti, nrrd, slices
from tttunet.imaging.axes import check_axes, spatial_axes
from tttunet.imaging.image import MILLIMETERS, Image

if TYPE_CHECKING:
    import SimpleITK

NIFTI_SUFFIXES = (".nii", ".nii.gz")
_IMAGE_IO = {
    ".nii": "NiftiImageIO",
    ".nii.gz": "NiftiImageIO",
    ".nrrd": "NrrdImageIO",
    ".nhdr": "NrrdImageIO",
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
}
SUFFIXES = tuple(_IMAGE_IO)
_AXES = {2: "YX", 3: "ZYX", 4: "TZYX"}
#: What ITK says of axes that are not at right angles.
_BENT = "orthonormal"
_FULL = "the disk may be full"
#: Bytes 128 to 131 of a DICOM file.
_DICOM_MAGIC = b"DICM"
#: So many files of a folder are looked at; exports mix a few other files among the slices.
_LOOKED_AT = 50
_POSITION, _MODALITY, _DESCRIPTION = "0020|0032", "0008|0060", "0008|103e"


def read_itk(path: Path, suffix: str, axes: str | None, name: str) -> Image:
    """Reads NIfTI, NRRD or MetaImage.

    A volume of one slice keeps its Z axis, so that what is written back has the same grid. The
    fourth dimension is taken for time unless `axes` says otherwise.

    Args:
        path: an existing file.
        suffix: one of `SUFFIXES`.
        axes: the array's axes, slowest first (such as "CZYX"); None: by dimension.
        name: name of the image.

    Raises:
        ImageError: `axes` do not fit, or the file is incomplete. Errors of ITK pass through.
    """
    import SimpleITK

    if suffix not in NIFTI_SUFFIXES:
        picture = SimpleITK.ReadImage(str(path), imageIO=_IMAGE_IO[suffix])
        return from_sitk(picture, axes, name=name, path=path)
    nifti.check_complete(path)
    notes = nifti.check_placement(path)
    try:
        picture = SimpleITK.ReadImage(str(path), imageIO=_IMAGE_IO[suffix])
    except RuntimeError as error:
        if _BENT not in str(error):
            raise
        with nifti.straightened(path) as (copy, note):
            picture = SimpleITK.ReadImage(str(copy), imageIO=_IMAGE_IO[suffix])
            notes = (note,)
    return replace(from_sitk(picture, axes, name=name, path=path), notes=notes)


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, or a folder has DICOM files in it (not in folders below)."""
    if path.is_dir():
        files = (entry for entry in sorted(path.iterdir()) if entry.is_file())
        return any(is_dicom(entry) for _, entry in zip(range(_LOOKED_AT), files, strict=False))
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == _DICOM_MAGIC
    except OSError:
        return False


def dicom_series(folder: Path) -> list[list[Path]]:
    """The files of each DICOM series in a folder, slices in the order of their positions."""
    import SimpleITK

    reader = SimpleITK.ImageSeriesReader
    numbers = reader.GetGDCMSeriesIDs(str(folder))
    return [[Path(f) for f in reader.GetGDCMSeriesFileNames(str(folder), n)] for n in numbers]


def describe_series(files: Sequence[Path]) -> str:
    """A DICOM series in a few words: `120 files, CT, 'Abdomen portal venous'`."""
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(files[0]))
    words = [f"{len(files)} file{'s' * (len(files) != 1)}"]
    try:
        reader.ReadImageInformation()
    except RuntimeError:  # a report, or damaged
        return words[0]
    for tag, form in ((_MODALITY, "{}"), (_DESCRIPTION, "'{}'")):
        if reader.HasMetaDataKey(tag) and (text := reader.GetMetaData(tag).strip()):
            words.append(form.format(text))
    return ", ".join(words)


def read_dicom(files: Sequence[Path], axes: str | None, name: str, path: Path) -> Image:
    """Reads the slices of one DICOM series as a volume, or one file of several frames.

    Values are rescaled as the files say (Hounsfield units for CT). Slices that a tilted gantry has
    shifted, or of which some are missing, are resampled to a straight grid, which is noted (see
    `slices.straightened`).

    Args:
        files: in the order of the slices.
        axes: as for `read_itk`.
        name: name of the image.
        path: what the image's path shall be, and what messages name.

    Raises:
        ImageError: slices are doubled, many are missing, or they are shifted irregularly.
    """
    import SimpleITK

    if len(files) == 1:
        picture = SimpleITK.ReadImage(str(files[0]), imageIO="GDCMImageIO")
        return from_sitk(picture, axes, name=name, path=path)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(file) for file in files])
    reader.MetaDataDictionaryArrayUpdateOn()
    picture, notes = reader.Execute(), tuple[str, ...]()
    if all(reader.HasMetaDataKey(i, _POSITION) for i in range(len(files))):
        texts = [reader.GetMetaData(i, _POSITION) for i in range(len(files))]
        places = np.array([[float(x) for x in text.split("\\")] for text in texts])
        picture, notes = slices.straightened(picture, places, path)
    return replace(from_sitk(picture, axes, name=name, path=path), notes=notes)


def from_sitk(
    picture: SimpleITK.Image,
    axes: str | None = None,
    *,
    name: str = "image",
    path: Path | None = None,
) -> Image:
    """Converts a SimpleITK image; three or four 8-bit components per voxel are colour."""
    import SimpleITK

    dimension, components = picture.GetDimension(), picture.GetNumberOfComponentsPerPixel()
    colour = components in (3, 4) and "8-bit unsigned" in picture.GetPixelIDTypeAsString()
    array = SimpleITK.GetArrayFromImage(picture)
    source = f"'{path}'" if path else f"'{name}'"
    if axes is None:
        if dimension not in _AXES:
            raise ImageError(
                f"{source} has {dimension} dimensions, so nothing says what each axis is.",
                "Name every axis with --axes (axes= in Python).",
            )
        axes = _AXES[dimension] + ("" if components == 1 else "S" if colour else "C")
    else:
        axes = check_axes(axes, array.shape, source)
        spatial = spatial_axes(axes)
        if [letter for letter in axes if letter in "ZYX"] != list(spatial):
            raise ImageError(
                f"The axes '{axes}' change the order of the spatial axes of {source}.",
                "Its header fixes them: Z, Y, X in this order.",
            )
    places = [axes.index(letter) for letter in spatial_axes(axes)]
    if max(places) >= dimension:
        raise ImageError(
            f"The axes '{axes}' take the components of {source} for space.",
            "Its last axis is C or S.",
        )
    direction = np.array(picture.GetDirection()).reshape(dimension, dimension)[::-1, ::-1]
    direction = direction[np.ix_(places, places)]
    if not np.allclose(direction @ direction.T, np.eye(len(places)), atol=1e-4):
        # A slice of an oblique volume, taken as 2D, has no orientation of its own.
        direction = np.eye(len(places))
    return Image.from_array(
        array,
        axes,
        spacing=[picture.GetSpacing()[::-1][i] for i in places],
        origin=[picture.GetOrigin()[::-1][i] for i in places],
        direction=direction,
        unit="millimeter",
        name=name,
        path=path,
        squeeze="TC",
    )


def to_sitk(image: Image) -> SimpleITK.Image:
    """Converts an image without channels; time becomes the last dimension, of spacing 1."""
    import SimpleITK

    if "C" in image.axes:
        raise ImageError(f"'{image.name}' has channels, which cannot be converted.")
    picture = SimpleITK.GetImageFromArray(image.array, isVector=False)
    n, extra = image.ndim_spatial, image.array.ndim - image.ndim_spatial
    scale = 1.0 if image.unit is None else MILLIMETERS[image.unit]
    direction = np.eye(n + extra)
    direction[:n, :n] = image.direction[::-1, ::-1]
    picture.SetSpacing([value * scale for value in image.spacing[::-1]] + [1.0] * extra)
    picture.SetOrigin([value * scale for value in image.origin[::-1]] + [0.0] * extra)
    picture.SetDirection(direction.ravel().tolist())
    return picture


def write_itk(path: Path, suffix: str, image: Image) -> None:
    """Writes an image without channels to NIfTI, NRRD or MetaImage, compressed.

    If the image came from a file of the same format and grid, the placement fields of that file
    are copied, so that they agree bit for bit (MetaImage keeps every digit by itself).

    Raises:
        OSError: ITK cannot write the file, or not all of it.
    """
    picture, source = to_sitk(image), _source(image, suffix)
    if suffix in NIFTI_SUFFIXES:
        _write_nifti(picture, path, suffix, source)
        return
    _write(picture, path, suffix, compressed=True)
    if source and suffix == ".nrrd":
        nrrd.copy_placement(source, path)


def _write_nifti(picture: SimpleITK.Image, path: Path, suffix: str, source: Path | None) -> None:
    plain = path.with_name(path.name[:-3]) if suffix == ".nii.gz" else path
    try:
        _write(picture, plain, ".nii", compressed=False)
        nifti.check_complete(plain)
        if source:
            nifti.copy_placement(source, plain)
        if plain != path:
            nifti.compress(plain, path)
    except ImageError as error:
        raise OSError(errno.EIO, _FULL) from error
    finally:
        if plain != path:
            plain.unlink(missing_ok=True)


def _write(picture: SimpleITK.Image, path: Path, suffix: str, compressed: bool) -> None:
    import SimpleITK

    try:
        SimpleITK.WriteImage(picture, str(path), compressed, imageIO=_IMAGE_IO[suffix])
    except RuntimeError as error:
        raise OSError(errno.EIO, _FULL) from error


def _source(image: Image, suffix: str) -> Path | None:
    """The file that the image came from, if it has this format and still the same placement."""
    import SimpleITK

    path = image.path
    if path is None or not path.is_file() or image.unit != "millimeter":
        return None
    same = [known for known, io in _IMAGE_IO.items() if io == _IMAGE_IO[suffix]]
    if not path.name.lower().endswith(tuple(same)):
        return None
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO(_IMAGE_IO[suffix])
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        if suffix not in NIFTI_SUFFIXES or _BENT not in str(error):
            return None
        with nifti.straightened(path, header_only=True) as (copy, _):
            reader.SetFileName(str(copy))
            reader.ReadImageInformation()
    n, dimension = image.ndim_spatial, reader.GetDimension()
    direction = np.array(reader.GetDirection()).reshape(dimension, dimension)[:n, :n]
    unchanged = (
        reader.GetSpacing()[:n] == image.spacing[::-1]
        and reader.GetOrigin()[:n] == image.origin[::-1]
        and np.array_equal(direction, image.direction[::-1, ::-1])
    )
    return path if unchanged else None
