"""The chunk files of one image's corrections: which there are, reading, writing, counting."""

from __future__ import annotations

import errno
import io
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from tttunet.files import atomic_write, output_error
from tttunet.projects.schema import ABSENT, Bounds, set_aside, unreadable

Index = tuple[int, ...]
_NAME = re.compile(r"\d{1,9}(_\d{1,9}){1,3}\.npz")


@dataclass(frozen=True)
class ChunkSummary:
    """What is vouched for in a chunk.

    Attributes:
        pixels: how many vouched pixels each label number has, 0 included.
        bounds: the tightest box around them, in the image; None if there are none.
    """

    pixels: dict[int, int]
    bounds: Bounds | None


class ChunkStore:
    """Labels and vouched masks in files of one chunk each; a missing file is all zero.

    Args:
        folder: of the files; need not exist.
        shape: of the labels.
        chunk: size of the chunks per axis.
        tell: called with a sentence about a damaged file.
    """

    def __init__(
        self, folder: Path, shape: Index, chunk: Index, tell: Callable[[str], None]
    ) -> None:
        self.folder, self.shape, self.chunk, self._tell = folder, shape, chunk, tell
        self.grid = tuple(-(-size // step) for size, step in zip(shape, chunk, strict=True))
        self._summaries: dict[Index, tuple[tuple[int, int], ChunkSummary]] = {}

    def path(self, index: Index) -> Path:
        return self.folder / f"{'_'.join(map(str, index))}.npz"

    def indices(self) -> list[Index]:
        """The chunks that have a file, sorted.

        Raises:
            ProjectError: the folder cannot be read.
        """
        try:
            names = os.listdir(self.folder)
        except ABSENT:
            return []
        except OSError as error:
            raise unreadable(self.folder, error) from error
        found = (tuple(map(int, n[:-4].split("_"))) for n in names if _NAME.fullmatch(n))
        return sorted(index for index in found if self._inside(index))

    def _inside(self, index: Index) -> bool:
        return len(index) == len(self.grid) and all(
            i < count for i, count in zip(index, self.grid, strict=True)
        )

    def bounds(self, index: Index) -> Bounds:
        """Where a chunk lies; the last ones are cut off at the image's edge."""
        parts = zip(index, self.chunk, self.shape, strict=True)
        return tuple((i * step, min((i + 1) * step, size)) for i, step, size in parts)

    def overlapping(self, bounds: Bounds) -> Iterator[Index]:
        """All chunks, with a file or without, that share a pixel with `bounds`."""
        pairs = zip(bounds, self.chunk, strict=True)
        return product(*(range(a // step, -(-b // step)) for (a, b), step in pairs))

    def read(self, index: Index) -> tuple[np.ndarray, np.ndarray] | None:
        """Labels int32 and vouched uint8, writable; None without a file or if it is damaged.

        Raises:
            ProjectError: the file is there, but cannot be read at the moment.
        """
        path = self.path(index)
        shape = tuple(stop - start for start, stop in self.bounds(index))
        content = b""
        try:
            # In memory first: what fails after that is the content's fault, not the disk's.
            content = path.read_bytes()
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                labels, vouched = arrays["labels"], arrays["vouched"]
        except ABSENT:
            return None
        except Exception as error:  # numpy's parsers raise whatever they meet
            if not content and isinstance(error, (OSError, MemoryError)):
                raise unreadable(path, error) from error
            if isinstance(error, MemoryError) and _is_whole(content):
                raise unreadable(path, error) from error
            self._damaged(path, str(error) or type(error).__name__)
            return None
        if labels.shape != shape or vouched.shape != shape:
            self._damaged(path, f"its shape is {labels.shape}, not {shape}")
            return None
        if labels.dtype != np.int32 or vouched.dtype != np.uint8:
            self._damaged(path, "its numbers are of another type")
            return None
        return labels, vouched

    def check(self) -> None:
        """Tell about files that end too early; cheap, the content is checked when it is read."""
        for index in self.indices():
            path = self.path(index)
            try:
                with path.open("rb") as file, zipfile.ZipFile(file) as archive:
                    complete = {"labels.npy", "vouched.npy"} <= set(archive.namelist())
            except ABSENT:
                continue
            except Exception as error:  # as above
                # Some Pythons' zipfile goes to a place before the file's start.
                before = isinstance(error, OSError) and error.errno == errno.EINVAL
                if isinstance(error, (OSError, MemoryError)) and not before:
                    self._tell(str(unreadable(path, error)))
                    continue
                complete = False
            if not complete:
                self._damaged(path, "it is incomplete")

    def _damaged(self, path: Path, reason: str) -> None:
        place = f"{path.parent.parent.name}/{path.parent.name}/{path.name}"
        self._tell(f"The corrections in '{place}' are lost: the file is damaged ({reason}).")

    def write(self, index: Index, labels: np.ndarray, vouched: np.ndarray) -> None:
        """Replace a chunk's file, or remove it if everything is zero.

        Raises:
            OutputError: it cannot be written; the old file is still there.
        """
        path = self.path(index)
        if not labels.any() and not vouched.any():
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise output_error(path, error) from error
            self._summaries.pop(index, None)
            return
        with atomic_write(path, overwrite=True) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, labels=labels, vouched=vouched)
        self._remember(index, labels, vouched)

    def set_aside(self, index: Index) -> None:
        """Keep a damaged file under another name before a good one takes its place."""
        path = self.path(index)
        set_aside(path)

    def summary(self, index: Index) -> ChunkSummary:
        """Read from the file once; again only if another process replaced it."""
        known = self._summaries.get(index)
        if known is not None and known[0] == self._signature(index):
            return known[1]
        signature, content = self._signature(index), self.read(index)
        if content is None:
            summary = ChunkSummary({}, None)
        else:
            summary = _summarise(*content, self.bounds(index))
        self._summaries[index] = (signature, summary)
        return summary

    def _remember(self, index: Index, labels: np.ndarray, vouched: np.ndarray) -> None:
        summary = _summarise(labels, vouched, self.bounds(index))
        self._summaries[index] = (self._signature(index), summary)

    def _signature(self, index: Index) -> tuple[int, int]:
        try:
            state = self.path(index).stat()
        except OSError:
            return 0, 0
        return state.st_mtime_ns, state.st_size


def _is_whole(content: bytes) -> bool:
    """Whether the checksums of an archive are right; needs little memory."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.testzip() is None
    except MemoryError:
        return True  # nobody knows: nothing is called damaged
    except Exception:  # as in `read`
        return False


def _summarise(labels: np.ndarray, vouched: np.ndarray, bounds: Bounds) -> ChunkSummary:
    inside = vouched > 0
    numbers, counts = np.unique(labels[inside], return_counts=True)
    pixels = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    box = tight_box(inside)
    if box is None:
        return ChunkSummary({}, None)
    placed = zip(box, bounds, strict=True)
    return ChunkSummary(pixels, tuple((a + start, b + start) for (a, b), (start, _) in placed))


def tight_box(mask: np.ndarray) -> Bounds | None:
    """The smallest bounds that hold all True pixels of [*spatial], or None."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        hits = np.flatnonzero(mask.any(axis=others))
        if not len(hits):
            return None
        box.append((int(hits[0]), int(hits[-1]) + 1))
    return tuple(box)
