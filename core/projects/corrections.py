"""What the user corrected and vouches for in one image."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tttunet.projects.chunks import ChunkStore, ChunkSummary, Index
from tttunet.projects.regions import Region, covered
from tttunet.projects.schema import (
    ABSENT,
    Bounds,
    Damaged,
    ImageReference,
    ProjectError,
    read_json,
    set_aside,
    take,
    unreadable,
    write_json,
)

REGIONS_NAME = "regions.json"
#: Training cannot tell larger numbers apart.
LARGEST_LABEL = 2**24 - 1
#: Part of a mark in the files: vouched for apart from a complete region.
OWN = 2
#: Seconds between two lines about the same image in the history.
_RECORD_EVERY = 60.0

Slices = tuple[slice, ...]


@dataclass(frozen=True)
class Summary:
    """How much is vouched for.

    Attributes:
        objects: different objects (instance; one per slice where slices are trained on), 0 for
            semantic.
        vouched_pixels: background included.
        classes: vouched pixels per class number (semantic), 0 included.
        foreground_pixels: vouched pixels that are not background.
        regions: complete regions.
    """

    objects: int
    vouched_pixels: int
    foreground_pixels: int
    classes: dict[int, int]
    regions: int


class Corrections:
    """Labels and vouched mask of one image, in chunks on the disk. Safe in several threads.

    Get one with `Project.corrections`. All bounds are (first, first outside) per axis of
    `image.label_axes`. Pixels that were never written are 0 and not vouched for.

    Attributes:
        image: whose corrections these are.
        task, dim: of the project.
    """

    def __init__(
        self,
        folder: Path,
        image: ImageReference,
        *,
        task: str,
        dim: int,
        tell: Callable[[str], None],
        note: Callable[..., None] | None,
    ) -> None:
        self.image, self.task, self.dim = image, task, dim
        self.store = ChunkStore(folder, image.label_shape, image.chunk, tell)
        self._regions_path = folder / REGIONS_NAME
        self._tell, self._note = tell, note
        self._lock = threading.RLock()
        self._unrecorded, self._recorded_at = 0, -_RECORD_EVERY

    def read(self, bounds: Bounds) -> tuple[np.ndarray, np.ndarray]:
        """Labels int32 and vouched uint8 (1: vouched for) of a box, as new arrays.

        Raises:
            ProjectError: the bounds do not lie in the image, or a file cannot be read at the
                moment; a damaged one is told, and its pixels are 0.
        """
        labels, marks = self._marks(self._checked(bounds))
        return labels, (marks != 0).astype(np.uint8)

    def own(self, bounds: Bounds) -> np.ndarray:
        """Boolean: what of a box is vouched for on its own, not only by a complete region.

        That is what was written so, and what lies in no region.

        Raises:
            ProjectError: see `read`.
        """
        bounds = self._checked(bounds)
        with self._lock:
            return self._own(self._marks(bounds)[1], bounds)

    def _own(self, marks: np.ndarray, bounds: Bounds) -> np.ndarray:
        return (marks & OWN != 0) | ((marks != 0) & ~covered(bounds, self.regions))

    def _marks(self, bounds: Bounds) -> tuple[np.ndarray, np.ndarray]:
        """Labels, and the marks as the files have them: 0, 1, or 1 + `OWN`."""
        shape = tuple(stop - start for start, stop in bounds)
        labels, vouched = np.zeros(shape, np.int32), np.zeros(shape, np.uint8)
        with self._lock:
            for index in self._existing(bounds):
                content = self.store.read(index)
                if content is not None:
                    inner, outer = self._slices(index, bounds)
                    labels[outer], vouched[outer] = content[0][inner], content[1][inner]
        return labels, vouched

    def write(
        self,
        bounds: Bounds,
        labels: np.ndarray,
        vouched: np.ndarray,
        own: np.ndarray | None = None,
    ) -> int:
        """Store a box; each chunk's file is replaced as a whole or not at all.

        Args:
            bounds: the box.
            labels: integers of its shape; negative: not labelled.
            vouched: boolean or integer, not 0 where the user vouches for the label.
            own: the same where the user does so apart from a complete region, by painting or
                checking: removing the region leaves that. None: as it is known until now.

        Returns:
            The number of files written: chunks whose content did not change are left alone.

        Raises:
            ProjectError: bounds or arrays do not fit, the project is open for reading only, or a
                file that is to be changed cannot be read; those before it are written.
            OutputError: a file cannot be written; those before it are.
        """
        bounds = self._checked(bounds)
        labels, vouched = self._arrays(bounds, labels, vouched)
        if own is not None and np.shape(own) != vouched.shape:
            raise ProjectError(f"A mask of shape {np.shape(own)} does not fit the labels.")
        written = 0
        with self._lock:
            self._check_writable()
            if own is None:
                own = self._marks(bounds)[1] & OWN
            vouched |= (vouched != 0) * np.where(own, OWN, 0).astype(np.uint8)
            try:
                for index in self.store.overlapping(bounds):
                    inner, outer = self._slices(index, bounds)
                    written += self._write_chunk(index, inner, labels[outer], vouched[outer])
            finally:
                self._unrecorded += written
            if self._unrecorded and time.monotonic() - self._recorded_at >= _RECORD_EVERY:
                self.record()
        return written

    def _write_chunk(
        self, index: Index, inner: Slices, labels: np.ndarray, vouched: np.ndarray
    ) -> bool:
        content = self.store.read(index)
        if content is None:
            shape = tuple(stop - start for start, stop in self.store.bounds(index))
            old_labels, old_vouched = np.zeros(shape, np.int32), np.zeros(shape, np.uint8)
            if not labels.any() and not vouched.any():
                return False
            self.store.set_aside(index)
        else:
            old_labels, old_vouched = content
        same = np.array_equal(old_labels[inner], labels)
        if same and np.array_equal(old_vouched[inner], vouched):
            return False
        old_labels[inner], old_vouched[inner] = labels, vouched
        self.store.write(index, old_labels, old_vouched)
        return True

    def _arrays(
        self, bounds: Bounds, labels: np.ndarray, vouched: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        labels, vouched = np.asarray(labels), np.asarray(vouched)
        shape = tuple(stop - start for start, stop in bounds)
        if labels.shape != shape or vouched.shape != shape:
            raise ProjectError(
                f"Labels of shape {labels.shape} and a mask of shape {vouched.shape} do not fit "
                f"a box of shape {shape}."
            )
        if labels.dtype.kind not in "bui":
            raise ProjectError(f"Labels are whole numbers, not {labels.dtype}.")
        if labels.size and int(labels.max()) > LARGEST_LABEL:
            raise ProjectError(
                f"The label {int(labels.max())} is too large.",
                f"Number the objects from 1; {LARGEST_LABEL} is the largest possible number.",
            )
        known = np.asarray(labels >= 0)
        clean = np.where(known, labels, 0).astype(np.int32)
        return clean, (known & (vouched != 0)).astype(np.uint8)

    def _checked(self, bounds: Bounds) -> Bounds:
        shape = self.image.label_shape
        plain = tuple((int(start), int(stop)) for start, stop in bounds)
        if len(plain) != len(shape) or not all(
            0 <= start < stop <= size for (start, stop), size in zip(plain, shape, strict=True)
        ):
            raise ProjectError(
                f"The box {plain} does not lie in '{self.image.name}', which has the shape {shape}."
            )
        return plain

    def _check_writable(self) -> None:
        if self._note is None:
            raise ProjectError(
                f"The corrections of '{self.image.name}' cannot be changed: the project is closed "
                "or open for reading only.",
                "Open it for writing.",
            )

    def _existing(self, bounds: Bounds) -> Iterator[Index]:
        wanted = set(self.store.overlapping(bounds))
        return (index for index in self.store.indices() if index in wanted)

    def _slices(self, index: Index, bounds: Bounds) -> tuple[Slices, Slices]:
        """The common part of a chunk and a box, in the chunk and in the box."""
        inner, outer = [], []
        for (a, b), (start, stop) in zip(self.store.bounds(index), bounds, strict=True):
            first, last = max(a, start), min(b, stop)
            inner.append(slice(first - a, last - a))
            outer.append(slice(first - start, last - start))
        return tuple(inner), tuple(outer)

    def summaries(self) -> list[tuple[Index, ChunkSummary]]:
        """Every chunk with a vouched pixel; each file is read once, then remembered."""
        with self._lock:
            pairs = [(index, self.store.summary(index)) for index in self.store.indices()]
        return [(index, summary) for index, summary in pairs if summary.bounds is not None]

    def summary(self) -> Summary:
        """Count what is vouched for, from the chunks' counts."""
        leading = len(self.image.label_shape) - self.dim
        objects: set[tuple[int, ...]] = set()
        classes: dict[int, int] = {}
        for index, part in self.summaries():
            for number, count in part.pixels.items():
                classes[number] = classes.get(number, 0) + count
                if number:
                    objects.add((*index[:leading], number))
        total, instance = sum(classes.values()), self.task == "instance"
        return Summary(
            objects=len(objects) if instance else 0,
            vouched_pixels=total,
            foreground_pixels=total - classes.get(0, 0),
            classes={} if instance else dict(sorted(classes.items())),
            regions=len(self.regions),
        )

    @property
    def regions(self) -> list[Region]:
        """The complete regions; empty if the file is damaged, which the project tells.

        Raises:
            ProjectError: the file is there, but cannot be read at the moment.
        """
        try:
            return self._read_regions()
        except ABSENT:
            return []
        except Damaged as error:
            self._tell(
                f"The list of complete regions of '{self.image.name}' is lost: {error}. What they "
                "vouch for is kept."
            )
            return []

    def _read_regions(self) -> list[Region]:
        try:
            found = take(read_json(self._regions_path), "regions", list)
        except ABSENT:
            raise
        except (OSError, MemoryError) as error:
            raise unreadable(self._regions_path, error) from error
        return [Region.from_json(region, self.image.label_shape) for region in found]

    def check(self) -> None:
        """Tell about damaged files, as far as it is seen without reading the chunks."""
        try:
            self.store.check()
            _ = self.regions
        except ProjectError as error:
            self._tell(str(error))

    def complete(self, region: Region, labels: np.ndarray, own: np.ndarray | None = None) -> int:
        """Vouch for everything in a region, and remember the region, once.

        Args:
            region: where.
            labels: integers of the shape of `region.bounds`; what lies outside the polygon is
                not used.
            own: boolean or integer of the same shape, see `write`; None: what is vouched for
                already stays so when the region is removed, unless another region is the reason.

        Returns:
            The number of chunk files written.

        Raises:
            ProjectError: the region does not lie in the image or holds no pixel; or see `write`.
            OutputError: see `write`.
        """
        bounds = self._checked(region.bounds)
        mask = region.mask()
        if not mask.any():
            raise ProjectError("The region holds no pixel.", "Draw it larger.")
        with self._lock:
            old_labels, marks = self._marks(bounds)
            if np.shape(labels) != old_labels.shape:
                raise ProjectError(
                    f"Labels of shape {np.shape(labels)} do not fit a region of shape "
                    f"{old_labels.shape}."
                )
            known = self._own(marks, bounds)
            own = known if own is None else np.where(mask, own, known)
            merged = np.where(mask, labels, old_labels)
            written = self.write(bounds, merged, (marks != 0) | mask, own)
            region = Region(bounds, region.polygon)
            self._save_regions([*(one for one in self.regions if one != region), region])
        return written

    def remove_region(self, number: int) -> int:
        """Forget a region; only what another one covers or `own` has stays vouched for.

        Args:
            number: its place in `regions`.

        Returns:
            The number of chunk files written.

        Raises:
            ProjectError: there is no such region, or the project is open for reading only.
            OutputError: see `write`.
        """
        with self._lock:
            self._check_writable()
            regions = self.regions
            if not 0 <= number < len(regions):
                raise ProjectError(f"There is no complete region {number + 1}.")
            region = regions.pop(number)
            labels, marks = self._marks(region.bounds)
            stays = ~region.mask() | covered(region.bounds, regions) | (marks & OWN != 0)
            written = self.write(region.bounds, labels, (marks != 0) & stays, marks & OWN)
            self._save_regions(regions)
        return written

    def _save_regions(self, regions: list[Region]) -> None:
        try:
            self._read_regions()
        except ABSENT:
            pass
        except Damaged:
            set_aside(self._regions_path)
        write_json(self._regions_path, {"regions": [region.to_json() for region in regions]})

    def record(self) -> None:
        """Put a line with the counts into the history, if anything was written since the last."""
        with self._lock:
            if not self._unrecorded or self._note is None:
                return
            counts: dict[str, Any] = {"chunks": self._unrecorded}
            summary = self.summary()
            counts |= {"objects": summary.objects} if self.task == "instance" else {}
            counts |= {"vouched_pixels": summary.vouched_pixels, "regions": summary.regions}
            self._unrecorded, self._recorded_at = 0, time.monotonic()
            self._note("corrections saved", image=self.image.id, **counts)

    def close(self) -> None:
        """Record what was written and refuse further writing."""
        with self._lock, contextlib.suppress(Exception):
            self.record()
        self._note = None
