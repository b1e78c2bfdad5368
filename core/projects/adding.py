"""Images that come into a project: what is kept about them, and what of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tttunet.projects.images import array_digest, file_fields
from tttunet.projects.schema import ImageReference, ProjectError, now

if TYPE_CHECKING:
    from tttunet.imaging import Image


@dataclass(frozen=True)
class Geometry:
    """What a caller says about the pixels; see `Project.add_image`."""

    axes: str = ""
    shape: Sequence[int] | None = None
    spacing: Sequence[float] | None = None
    origin: Sequence[float] | None = None
    direction: np.ndarray | None = None
    unit: str = ""
    channel_names: Sequence[str] = ()
    rgb: bool = False

    def fields(self) -> dict[str, Any]:
        """As fields of `ImageReference`, for a caller who has read the image."""
        n = 3 if "Z" in self.axes else 2
        matrix = np.eye(n) if self.direction is None else np.asarray(self.direction, np.float64)
        spacing = (1.0,) * n if self.spacing is None else self.spacing
        origin = (0.0,) * n if self.origin is None else self.origin
        return {
            "axes": self.axes,
            "shape": tuple(int(size) for size in self.shape or ()),
            "spacing": tuple(float(x) for x in spacing),
            "origin": tuple(float(x) for x in origin),
            "direction": _rows(matrix),
            "unit": self.unit,
            "channel_names": tuple(self.channel_names),
            "rgb": self.rgb,
        }


@dataclass(frozen=True)
class Source:
    """What is known about an image before it is added.

    Attributes:
        fields: of `ImageReference`, all but `id`, `chunk` and `added`.
        array: the pixels to copy; None: by reference.
    """

    fields: dict[str, Any]
    array: np.ndarray | None


def from_file(path: Path, folder: Path, said: Geometry, name: str, copy: bool) -> Source:
    """A file, or the folder of a DICOM series.

    Args:
        path: where.
        folder: of the project.
        said: with a shape, the file is not read for its geometry; else its axes overrule it.
        name: for people, or empty.
        copy: take the pixels along.

    Raises:
        ProjectError, ImageError: it cannot be read.
    """
    fields = file_fields(path, folder)
    if said.shape is not None and not copy:
        return Source({**fields, **said.fields(), "name": name or path.name}, None)
    from tttunet.imaging import load_image

    file_axes = "" if said.shape is not None else said.axes
    source = from_image(load_image(path, file_axes or None), name)
    if copy:
        return source
    return Source({**source.fields, **fields, "copied": False, "file_axes": file_axes}, None)


def from_array(array: np.ndarray, said: Geometry, name: str) -> Source:
    """An array of the caller, to copy.

    Raises:
        ImageError: its axes are missing or wrong.
    """
    from tttunet.imaging import Image

    image = Image.from_array(
        array,
        said.axes or None,
        spacing=said.spacing,
        origin=said.origin,
        direction=said.direction,
        unit=said.unit or None,
        channel_names=said.channel_names,
        name=name or "image",
    )
    return from_image(image, name)


def from_image(image: Image, name: str) -> Source:
    """An image in memory, to copy."""
    fields = {
        "name": name or image.name,
        "axes": image.axes,
        "shape": tuple(int(size) for size in image.array.shape),
        "spacing": image.spacing,
        "origin": image.origin,
        "direction": _rows(image.direction),
        "unit": image.unit or "",
        "channel_names": image.channel_names,
        "rgb": image.rgb,
        "copied": True,
        "sha256": array_digest(image.array),
    }
    return Source(fields, image.array)


def _rows(matrix: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(x) for x in row) for row in matrix)


def finished(fields: dict[str, Any], dim: int) -> ImageReference:
    """A new reference, checked.

    Raises:
        ProjectError: axes and shape make no sense, or do not fit the project.
    """
    image = ImageReference(**fields, added=now("microseconds")).with_chunk(dim)
    reason = image.fault()
    if not reason and dim == 3 and "Z" not in image.axes:
        reason = f"its axes {image.axes} have no Z, and the project is 3D"
    if reason:
        raise ProjectError(f"'{image.name}' does not fit the project: {reason}.")
    return image
