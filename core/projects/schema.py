"""What the files of a project say, and the checks when they are read.

By hand rather than with pydantic: 3D Slicer's Python has the standard library and numpy only.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tttunet.errors import TTTUNetError
from tttunet.files import atomic_write, output_error

FORMAT = "napari-tttunet project"
#: Raised when a file of a project changes its meaning.
VERSION = 1

TASKS = ("instance", "semantic")
#: The geometry of one image may deviate by so much, in voxels: NIfTI headers have float32.
SAME_GRID = 1e-3
#: Chunks of corrections along each axis: an edit of one slice costs one slice.
CHUNK_YX, CHUNK_Z = 256, 16

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)", re.IGNORECASE)  # no file names on Windows
_REQUIRED = object()

#: (first, first outside) per axis.
Bounds = tuple[tuple[int, int], ...]


class ProjectError(TTTUNetError):
    """A project cannot be opened, or a request does not fit it."""


#: A file or its folder is not there; any other `OSError` says nothing about the file's content.
ABSENT = (FileNotFoundError, NotADirectoryError)


class Damaged(ValueError):
    """A file of the project does not hold what it should; the text says why."""


@dataclass(frozen=True)
class ProjectInfo:
    """The content of `project.json`.

    Attributes:
        name: for people.
        task: `instance` or `semantic`.
        dim: 2 or 3, the dimensions of what a model sees; a stack in a 2D project is its slices.
        classes: names of the label numbers (semantic), or of the one kind of object.
        created: when, ISO 8601.
        model: the current model: a name in the library, or a folder inside the project.
        settings: whatever the faces want to remember, JSON.
    """

    name: str
    task: str
    dim: int
    classes: dict[int, str]
    created: str = ""
    model: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        classes = {str(number): name for number, name in sorted(self.classes.items())}
        return {"format": FORMAT, "version": VERSION, **asdict(self), "classes": classes}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ProjectInfo:
        """Raises `Damaged`, or `ProjectError` for a newer version."""
        if take(data, "format", str) != FORMAT:
            raise Damaged(f"its format is not '{FORMAT}'")
        version = take(data, "version", int)
        if version > VERSION:
            raise ProjectError(
                f"The project was saved by a newer version (format {version}, this program "
                f"knows {VERSION}).",
                "Update napari-tttunet to open it.",
            )
        if version < 1:
            raise Damaged(f"its version is {version}")
        info = cls(
            name=take(data, "name", str),
            task=take(data, "task", str),
            dim=take(data, "dim", int),
            classes=_classes_from_json(take(data, "classes", dict)),
            created=take(data, "created", str, default=""),
            model=take(data, "model", str, default=""),
            settings=take(data, "settings", dict, default={}),
        )
        reason = info.fault()
        if reason:
            raise Damaged(reason)
        return info

    def fault(self) -> str:
        """What makes no sense, or an empty text."""
        if not self.name.strip():
            return "it has no name"
        if self.task not in TASKS:
            return f"its task is '{self.task}', not one of {', '.join(TASKS)}"
        if self.dim not in (2, 3):
            return f"its dim is {self.dim}, not 2 or 3"
        if not self.classes:
            return "it has no classes"
        if any(number < 1 for number in self.classes):
            return "its class numbers do not start at 1; 0 is background"
        if not all(name.strip() for name in self.classes.values()):
            return "one of its classes has no name"
        return ""


def _classes_from_json(data: dict[str, Any]) -> dict[int, str]:
    if not all(str(key).isdigit() and isinstance(name, str) for key, name in data.items()):
        raise Damaged("its classes are not numbers with names")
    return {int(key): name for key, name in data.items()}


@dataclass(frozen=True)
class ImageReference:
    """An image of a project: where it is and what it was like when it was added.

    Bounds, labels and chunks are in the order of `label_axes`.

    Attributes:
        id: names the files of this image in the project.
        name: for people.
        path: the file, or the folder of a DICOM series; relative to the project where possible,
            with forward slashes; empty for a copy.
        absolute: the same path in full, for a project that was moved without its images.
        sha256, size, modified: of the file (of the array for a copy), bytes and nanoseconds.
        axes: of the array, from TCZYX.
        shape: of the array, in the order of `axes`.
        spacing, origin: per spatial axis, in `unit`.
        direction: rows of the direction matrix.
        unit: `micrometer`, `millimeter` or empty for pixels.
        channel: the one that is used, or None for all.
        channel_names: one per channel, or empty.
        rgb: the channels are colours.
        copied: the array lies in the project, as `images/<id>.npy`.
        file_axes: what the user said about the axes of the file; empty: as the file says.
        chunk: size of the chunks of corrections per label axis.
        added: when, ISO 8601, to the microsecond: it gives the order.
    """

    id: str
    name: str
    axes: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[tuple[float, ...], ...]
    unit: str = ""
    channel: int | None = None
    channel_names: tuple[str, ...] = ()
    rgb: bool = False
    path: str = ""
    absolute: str = ""
    sha256: str = ""
    size: int = 0
    modified: int = 0
    copied: bool = False
    file_axes: str = ""
    chunk: tuple[int, ...] = ()
    added: str = ""

    @property
    def label_axes(self) -> str:
        """The axes without C."""
        return self.axes.replace("C", "")

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Shape of the labels, in the order of `label_axes`."""
        pairs = zip(self.axes, self.shape, strict=True)
        return tuple(size for axis, size in pairs if axis != "C")

    @property
    def bounds(self) -> Bounds:
        """Of the whole image."""
        return tuple((0, size) for size in self.label_shape)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ImageReference:
        """Raises `Damaged`."""
        image = cls(
            id=check_id(take(data, "id", str)),
            name=take(data, "name", str),
            axes=take(data, "axes", str),
            shape=_numbers(data, "shape", int),
            spacing=_numbers(data, "spacing"),
            origin=_numbers(data, "origin"),
            direction=tuple(_numbers({"direction": row}, "direction") for row in _rows(data)),
            unit=take(data, "unit", str, default=""),
            channel=take(data, "channel", int, type(None), default=None),
            channel_names=tuple(map(str, take(data, "channel_names", list, default=[]))),
            rgb=take(data, "rgb", bool, default=False),
            path=take(data, "path", str, default=""),
            absolute=take(data, "absolute", str, default=""),
            sha256=take(data, "sha256", str, default=""),
            size=take(data, "size", int, default=0),
            modified=take(data, "modified", int, default=0),
            copied=take(data, "copied", bool, default=False),
            file_axes=take(data, "file_axes", str, default=""),
            chunk=_numbers(data, "chunk", int),
            added=take(data, "added", str, default=""),
        )
        reason = image.fault()
        if reason:
            raise Damaged(reason)
        return image

    def fault(self) -> str:
        """What makes no sense, or an empty text."""
        rest = iter("TCZYX")
        if not (all(axis in rest for axis in self.axes) and self.axes.endswith("YX")):
            return f"its axes are '{self.axes}'"
        if len(self.shape) != len(self.axes) or min(self.shape) < 1:
            return f"its shape {self.shape} does not fit the axes {self.axes}"
        n = 3 if "Z" in self.axes else 2
        if len(self.spacing) != n or not all(math.isfinite(x) and x > 0 for x in self.spacing):
            return f"its spacing is {self.spacing}"
        rows = [self.origin, *self.direction]
        if len(rows) != n + 1 or any(len(row) != n for row in rows):
            return "its origin or direction does not fit the axes"
        if not all(math.isfinite(value) for row in rows for value in row):
            return "its origin or direction has a number that is not finite"
        if len(self.chunk) != len(self.label_axes) or min(self.chunk) < 1:
            return f"its chunk is {self.chunk}"
        channels = self.shape[self.axes.index("C")] if "C" in self.axes else 1
        if self.channel is not None and not 0 <= self.channel < channels:
            return f"it has no channel {self.channel}"
        if not (self.copied or self.path or self.absolute):
            return "it names no file"
        return ""

    def with_chunk(self, dim: int) -> ImageReference:
        """The same with the chunk that a project of this dimension uses."""
        sizes = {"T": 1, "Z": CHUNK_Z if dim == 3 else 1, "Y": CHUNK_YX, "X": CHUNK_YX}
        return replace(self, chunk=tuple(sizes[axis] for axis in self.label_axes))


def _rows(data: dict[str, Any]) -> list[Any]:
    return take(data, "direction", list)


def _numbers(data: dict[str, Any], name: str, *kinds: type) -> tuple[Any, ...]:
    values = take(data, name, list)
    allowed = kinds or (int, float)
    if any(isinstance(x, bool) or not isinstance(x, allowed) for x in values):
        raise Damaged(f"its '{name}' are not numbers")
    return tuple(values) if kinds else tuple(float(x) for x in values)


def take(data: dict[str, Any], name: str, *kinds: type, default: Any = _REQUIRED) -> Any:
    """A checked value of a JSON object; `Damaged` if it is missing or of another type."""
    value = data.get(name, default)
    if value is _REQUIRED:
        raise Damaged(f"it has no '{name}'")
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise Damaged(f"its '{name}' is {json.dumps(value, default=str)[:40]}")
    return value


def check_id(text: str) -> str:
    """An id is a plain file name: it never leads out of the project."""
    if not _ID.fullmatch(text):
        raise Damaged(f"'{text[:80]}' is no name of an image")
    return text


def make_id(name: str, used: Iterable[str]) -> str:
    """A file name that resembles `name` and differs from `used` whatever the case."""
    taken = {text.casefold() for text in used}
    base = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-_")[:60].rstrip("-_") or "image"
    if _RESERVED.fullmatch(base):
        base = f"image-{base}"
    candidate, number = base, 2
    while candidate.casefold() in taken:
        candidate, number = f"{base}-{number}", number + 1
    return candidate


def now(timespec: str = "seconds") -> str:
    """The time with its offset."""
    return datetime.now(timezone.utc).astimezone().isoformat(timespec=timespec)


def read_json(path: Path) -> dict[str, Any]:
    """Raises `Damaged` if the file is no JSON object, `OSError` if it cannot be read."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise Damaged("it is not valid JSON") from error
    if not isinstance(data, dict):
        raise Damaged("it is not a JSON object")
    return data


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Raises `OutputError`."""
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    # Lists of numbers in one line each, for people. No text holds a line break in JSON.
    text = re.sub(r"\[\n[^][{}]*\n *\]", _in_one_line, text)
    with atomic_write(path, overwrite=True) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def _in_one_line(found: re.Match[str]) -> str:
    values = (line.strip().removesuffix(",") for line in found[0][1:-1].strip().split("\n"))
    return f"[{', '.join(values)}]"


def unreadable(path: Path, error: OSError | MemoryError) -> ProjectError:
    """Says why a file cannot be read that may be in order: it must not be replaced."""
    reason = (error.strerror if isinstance(error, OSError) else "") or str(error)
    if isinstance(error, MemoryError):
        reason = "there is not enough memory"
    return ProjectError(
        f"'{path}' cannot be read: {reason}.", "It is left as it is; mend the cause and try again."
    )


def set_aside(path: Path) -> None:
    """Keep a damaged file under a name of its own before a good one takes its place.

    Raises:
        OutputError: the folder cannot be written.
    """
    number, kept = 1, path.with_name(f"{path.name}.damaged")
    while os.path.lexists(kept):  # an earlier one is kept as well
        number += 1
        kept = path.with_name(f"{path.name}.damaged-{number}")
    try:
        os.replace(path, kept)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise output_error(path, error) from error
