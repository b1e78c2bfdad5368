"""Files of a project's images: where they are now, whether they changed, reading them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tttunet.files import atomic_write, remove_leftovers
from tttunet.projects.schema import Bounds, Damaged, ImageReference, ProjectError

if TYPE_CHECKING:
    from tttunet.imaging import Image


def digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's files with their names."""
    total = hashlib.sha256()
    for file in _files(path):
        if path.is_dir():
            total.update(file.relative_to(path).as_posix().encode() + b"\0")
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def state(path: Path) -> tuple[int, int]:
    """(bytes, time of the last change in nanoseconds) of a file or of a folder's files."""
    states = [file.stat() for file in _files(path)]
    return sum(s.st_size for s in states), max((s.st_mtime_ns for s in states), default=0)


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def array_digest(array: np.ndarray) -> str:
    """SHA-256 of an array's type, shape and content."""
    total = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    for part in array if array.ndim > 2 else (array,):  # never a second copy of a volume
        total.update(np.ascontiguousarray(part).data)
    return total.hexdigest()


def file_fields(path: Path, folder: Path) -> dict[str, Any]:
    """Where a file is, seen from the project and in full, and what it holds.

    Raises:
        ProjectError: it cannot be read.
    """
    try:
        path = path.expanduser().resolve()
        if not path.exists():
            raise ProjectError(f"'{path}' does not exist.", "Check the name and the folder.")
        size, modified = state(path)
        content = digest(path)
    except OSError as error:
        raise ProjectError(f"'{path}' cannot be read: {error.strerror or error}.") from error
    return {
        "path": _relative(path, folder),
        "absolute": path.as_posix(),
        "sha256": content,
        "size": size,
        "modified": modified,
    }


def _relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive of Windows
        return path.as_posix()


def find(image: ImageReference, folder: Path) -> tuple[Path, bool]:
    """The file of an image, and whether it is unchanged.

    Looked for where it was as seen from the project, where it was in full, and under its name in
    the project's folder and beside it.

    Raises:
        ProjectError: there is no such file.
    """
    changed = None
    for path in _candidates(image, folder):
        try:
            if not path.exists():
                continue
            size, modified = state(path)
            same = size == image.size
            if same and modified != image.modified:
                same = digest(path) == image.sha256
        except OSError:
            continue
        if same:
            return path, True
        changed = changed or path
    if changed is not None:
        return changed, False
    raise ProjectError(
        f"The image '{image.name}' is not at '{image.absolute or image.path}' any more.",
        "Put it back there, or copy it into the folder of the project.",
    )


def _candidates(image: ImageReference, folder: Path) -> Iterator[Path]:
    if image.path:
        yield Path(os.path.normpath(folder / image.path))
    if image.absolute:
        yield Path(image.absolute)
    name = Path(image.absolute or image.path).name
    yield from (folder / name, folder.parent / name)


def copy_path(image_id: str, folder: Path) -> Path:
    """Where the array of a copied image lies."""
    return folder / "images" / f"{image_id}.npy"


def save_copy(array: np.ndarray, path: Path) -> dict[str, Any]:
    """Put an array into the project; the fields of `ImageReference` that tell about it.

    Raises:
        OutputError: it cannot be written.
    """
    remove_leftovers(path)
    with atomic_write(path, overwrite=True) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    size, modified = state(path)
    return {"copied": True, "size": size, "modified": modified}


def read_image(image: ImageReference, path: Path) -> Image:
    """The pixels with the geometry that the project knows.

    Raises:
        ImageError: the file cannot be read.
        ProjectError: it has another shape than when it was added.
    """
    from tttunet.imaging import Image, load_image

    if image.copied:
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ProjectError(
                f"The copy of '{image.name}' in the project is missing or damaged ({error})."
            ) from error
    else:
        array = load_image(path, image.file_axes or None).array
    if array.shape != image.shape:
        raise ProjectError(
            f"'{path}' has the shape {array.shape}, but its corrections were made for "
            f"{image.shape}.",
            "Put the old file back, or add the new one as another image.",
        )
    whole = Image(
        array=array,
        axes=image.axes,
        spacing=image.spacing,
        origin=image.origin,
        direction=np.asarray(image.direction),
        unit=image.unit or None,
        channel_names=image.channel_names,
        rgb=image.rgb,
        name=image.name,
        path=None if image.copied else path,
    )
    if image.channel is None:
        return whole
    return replace(whole.select_channel(image.channel), rgb=False)


def crop(image: Image, bounds: Bounds, dim: int) -> Image:
    """A box of an image, without the axes that a model of `dim` dimensions does not see.

    Args:
        image: of an image's axes.
        bounds: per axis but C; one index thick in the axes that are dropped.
        dim: 2 or 3.

    Returns:
        Axes YX or ZYX, after C if there is one; a view with its own origin.
    """
    label_axes = image.axes.replace("C", "")
    boxes = dict(zip(label_axes, bounds, strict=True))
    dropped = label_axes[:-dim]
    place = tuple(
        slice(None) if axis == "C" else boxes[axis][0] if axis in dropped else slice(*boxes[axis])
        for axis in image.axes
    )
    axes = "".join(axis for axis in image.axes if axis not in dropped)
    starts = np.array([boxes[axis][0] for axis in image.spatial_axes], np.float64)
    origin = np.asarray(image.origin) + image.direction @ (starts * image.spacing)
    moved = replace(image, origin=tuple(float(value) for value in origin))
    return moved.with_array(image.array[place], axes)


def checked_chunk(image: ImageReference, dim: int) -> ImageReference:
    """Raises `Damaged` if the reference belongs to a project of other dimensions."""
    leading = len(image.label_shape) - dim
    if leading < 0 or any(size != 1 for size in image.chunk[:leading]):
        raise Damaged(f"its axes {image.axes} or chunks {image.chunk} do not fit {dim}D")
    return image
