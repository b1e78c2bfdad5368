"""What a person vouches for in a Labels layer: painting, marking, complete regions, undo.

Every pixel is an object that was checked, background that was checked, or not labelled. What is
painted or erased with napari's own tools is vouched for at once; undo and redo take that along.
Qt is not needed here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from napari_tttunet.annotation_restore import Plan, Stored, make_room, parts
from napari_tttunet.strokes import Stroke, apply, bounds_of, old_labels
from tttunet.projects.annotate import (
    pieces,
    unvouch_object,
    vouch_edits,
    vouch_object,
)
from tttunet.projects.chunks import tight_box
from tttunet.projects.regions import Region, covered
from tttunet.projects.schema import Bounds, ProjectError

#: Width of the checked background around a checked object; across slices, and in them.
RIM_Z, RIM = 1, 2
#: How far around a place an object is looked for at first, in pixels.
_REACH = 32
#: Values of the state: not labelled, checked background, checked object.
UNKNOWN, BACKGROUND, OBJECT = 0, 1, 2
_HISTORY = 100
#: What a stroke remembers of a pixel.
_VOUCHED, _OWN = 1, 2


class Annotation:
    """The three states of the pixels of one Labels layer.

    Bounds are (first, first outside) per axis of the project's image, which has neither channels
    nor axes of size 1.

    Args:
        layer: a Labels layer with a numpy array.
        axes: one letter per axis of its data.
        kept: the axes of the project's image, a subsequence of `axes`.
        task: `instance` or `semantic`.
        dim: 2 or 3: what belongs to a slice stays in it in 2D.
        changed: called with the bounds of what must be saved and drawn again.

    Attributes:
        state: uint8 of the layer's shape, see `UNKNOWN`, `BACKGROUND`, `OBJECT`.
        axes: of `labels`.
        regions: the complete regions of this session.
        edits: how often something was vouched for or taken back.

    Raises:
        ProjectError: such a layer cannot be annotated.
    """

    def __init__(
        self,
        layer: Any,
        axes: str,
        kept: str,
        *,
        task: str,
        dim: int,
        changed: Callable[[Bounds], None],
    ) -> None:
        if not isinstance(layer.data, np.ndarray) or not layer.data.flags.writeable:
            raise ProjectError(
                f"'{layer.name}' is not held in memory and cannot be corrected.",
                "Segment a part of the image, or copy the labels to a new layer.",
            )
        if "".join(letter for letter in axes if letter in kept) != kept:
            raise ProjectError(
                f"The axes {axes} of '{layer.name}' are not in the order {kept} of the image.",
                "Bring the axes of the image into the order T, Z, Y, X.",
            )
        self.layer, self.task, self.dim = layer, task, dim
        self.regions: list[Region] = []
        self.axes = kept
        self._thin = tuple(i for i, letter in enumerate(axes) if letter not in kept)
        self.edits = 0
        self._tell = changed
        self._reach: Bounds | None = None
        self._array = layer.data
        self.state = np.zeros(layer.data.shape, np.uint8)
        self._own = np.zeros(layer.data.shape, bool)
        self._done: deque[Stroke] = deque(maxlen=_HISTORY)
        self._undone: deque[Stroke] = deque(maxlen=_HISTORY)
        self._lengths = _history(layer)
        layer.events.paint.connect(self._painted)
        layer.events.set_data.connect(self._followed)
        layer.events.data.connect(self._replaced)

    def close(self) -> None:
        """Follow the layer no more."""
        for emitter, call in (
            (self.layer.events.paint, self._painted),
            (self.layer.events.set_data, self._followed),
            (self.layer.events.data, self._replaced),
        ):
            emitter.disconnect(call)

    @property
    def labels(self) -> np.ndarray:
        """[axes of the project's image], a view of the layer's data."""
        return np.squeeze(self._array, self._thin)

    @property
    def marks(self) -> np.ndarray:
        """The state in the same form."""
        return np.squeeze(self.state, self._thin)

    @property
    def own(self) -> np.ndarray:
        """Boolean, in the same form: vouched for apart from complete regions.

        Outside the regions that is all that is vouched for.
        """
        return np.squeeze(self._own, self._thin)

    @property
    def rim(self) -> tuple[int, ...]:
        """Width of an object's rim per axis."""
        widths = (RIM_Z, RIM, RIM)[-self.dim :]
        return (0,) * (self.labels.ndim - self.dim) + widths

    def read(self, bounds: Bounds) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels, vouched mask and `own` of a box, as copies; for the thread that saves."""
        box = _slices(bounds)
        vouched = (self.marks[box] > 0).astype(np.uint8)
        return self.labels[box].astype(np.int64), vouched, self.own[box].copy()

    def vouched_bounds(self) -> Bounds | None:
        """A box that holds everything vouched for; None: nothing ever was."""
        return self._reach

    def counts(self) -> tuple[int, int]:
        """How many objects and pixels are vouched for here."""
        box = self.vouched_bounds()
        if box is None:
            return 0, 0
        place = _slices(box)
        marks = self.marks[place]
        return len(np.unique(self.labels[place][marks == OBJECT])), int((marks > 0).sum())

    # Marking

    def in_image(self, position: Sequence[float]) -> tuple[float, ...]:
        """Data coordinates of the layer as coordinates of the project's image."""
        return tuple(float(value) for i, value in enumerate(position) if i not in self._thin)

    def index_at(self, position: Sequence[float]) -> tuple[int, ...] | None:
        """The pixel at data coordinates of the layer; None outside."""
        place = [round(value) for value in self.in_image(position)]
        inside = all(0 <= p < n for p, n in zip(place, self.labels.shape, strict=True))
        return tuple(place) if inside else None

    def in_layer(self, point: Sequence[float]) -> np.ndarray:
        """Coordinates of the project's image as data coordinates of the layer."""
        values = list(point)
        for axis in self._thin:
            values.insert(axis, 0.0)
        return np.array(values, float)

    def find(self, number: int, plane: tuple[int, ...]) -> tuple[int, ...] | None:
        """A pixel of an object in the slice (frame) of a pixel; None if there is none."""
        leading = self._plane(plane)
        part = self.labels[leading]
        here = plane[len(leading)]  # in a volume, the slice that is shown comes first
        for index in sorted(parts(part), key=lambda index: abs(sum(index) - here)):
            found = part[index] == number
            first = int(found.argmax())  # stops there
            if found.flat[first]:
                return (*leading, *index, *map(int, np.unravel_index(first, found.shape)))
        return None

    def mark(self, place: tuple[int, ...], checked: bool = True) -> int:
        """Mark the object at a pixel as checked, or take that back; its number, 0 if none."""
        number = int(self.labels[place])
        if number <= 0:
            return 0
        bounds = self._around({number}, tuple((p, p + 1) for p in place))
        box = _slices(bounds)
        labels = self.labels[box]
        if self.task == "semantic":
            numbered = pieces(labels == number)
            chosen = (
                numbered == numbered[tuple(p - a for p, (a, _) in zip(place, bounds, strict=True))]
            )
            labels, number_in = np.where(chosen, labels, 0), number
        else:
            number_in = number
        change = vouch_object if checked else unvouch_object
        self._set(bounds, change(labels, self.own[box], number_in, self._rim_of_task()))
        self._changed(bounds)
        return number

    def erase(self, place: tuple[int, ...]) -> int:
        """Remove the object at a pixel, as napari's undo can take back; its number, 0 if none."""
        number = int(self.labels[place])
        if number <= 0:
            return 0
        bounds = self._around({number}, tuple((p, p + 1) for p in place))
        mine = np.nonzero(self.labels[_slices(bounds)] == number)
        where = [axis + start for axis, (start, _) in zip(mine, bounds, strict=True)]
        for axis in self._thin:
            where.insert(axis, np.zeros_like(where[0]))
        self.layer.data_setitem(tuple(where), 0)
        return number

    def complete(self, region: Region) -> None:
        """Vouch for everything in a region.

        Raises:
            ProjectError: the region holds no pixel.
        """
        if any(start >= stop for start, stop in region.bounds) or not region.mask().any():
            raise ProjectError("The region holds no pixel of the image.", "Draw it on the image.")
        box = _slices(region.bounds)
        self.regions.append(region)
        self._set(region.bounds, self.own[box], (self.marks[box] > 0) | region.mask())
        self._changed(region.bounds)

    def remove_region(self, region: Region) -> None:
        """Vouch no more for what lies in a region, unless another one or `own` has it as well.

        Raises:
            ValueError: it is none of `regions`.
        """
        self.regions.remove(region)
        self._set(region.bounds, self.own[_slices(region.bounds)])
        self._changed(region.bounds)

    def region_at(self, place: tuple[int, ...]) -> Region | None:
        """The smallest complete region that holds a pixel."""
        found = [
            region
            for region in self.regions
            if all(a <= p < b for p, (a, b) in zip(place, region.bounds, strict=True))
            and region.mask()[tuple(p - a for p, (a, _) in zip(place, region.bounds, strict=True))]
        ]
        return min(found, key=lambda region: int(region.mask().sum()), default=None)

    def free_number(self) -> int:
        """A number that no object has."""
        return int(self.labels.max(initial=0)) + 1

    def is_checked(self, place: tuple[int, ...]) -> bool:
        return bool(self.marks[place] > 0)

    def plan(self, stored: Sequence[Stored], regions: Sequence[Region] = ()) -> Plan:
        """What the corrections of a project change here; takes long: not for the window's thread.

        Objects of the layer that nobody checked and that have the number of a stored one get
        another number.

        Raises:
            ProjectError: the layer's kind of numbers is too small.
        """
        plan = Plan(self.edits, stored, regions)
        if not stored:
            return plan
        labels, reach = self.labels, self.vouched_bounds()
        if self.task == "instance":
            box = _slices(reach) if reach is not None else (slice(0, 0),)
            mine = np.unique(labels[box][self.marks[box] == OBJECT])
            plan = Plan(plan.edits, stored, regions, make_room(labels, mine, stored))
        if plan.largest > np.iinfo(labels.dtype).max:
            raise ProjectError(
                f"'{self.layer.name}' holds {labels.dtype} numbers, too small ones for the "
                "corrections of the project.",
                "Convert its data type to int32 (menu of the layer list).",
            )
        return plan

    def restoring(self, plan: Plan) -> Iterator[None]:
        """Put the corrections of a project into the layer, but not over what is vouched for here.

        In steps of some milliseconds; strokes may be made between them, and count. What was done
        before can no longer be undone, unless nothing is stored.

        Args:
            plan: with the `edits` of now.
        """
        if plan.stored:
            self._forget_history()
        for part, where, old, new in plan.renumbered:
            inside = self.labels[part]
            now = inside[where]
            inside[where] = np.where(now == old, new, now)
            yield
        self.regions = [*plan.regions, *(r for r in self.regions if r not in plan.regions)]
        for bounds, labels, vouched, own in plan.stored:
            box = _slices(bounds)
            take = (vouched != 0) & (self.marks[box] == UNKNOWN)
            self.labels[box] = np.where(take, labels, self.labels[box])
            taken = take if own is None else take & own
            self._set(bounds, self.own[box] | taken, (self.marks[box] > 0) | take)
            yield
        if plan.stored:
            self._forget_history()

    def _forget_history(self) -> None:
        """Undoing older strokes would bring back what was there before, and not in the project."""
        layer = self.layer
        self.settle()
        mode, editable = layer.mode, layer.editable
        layer.editable = True
        layer.editable = False  # this is how napari forgets the history
        layer.editable = editable
        layer.mode = mode
        self._done.clear()
        self._undone.clear()
        self._lengths = _history(layer)

    def settle(self) -> None:
        """Count what a stroke that goes on has painted until now."""
        with self.layer.block_history():
            pass  # napari tells of it at the end

    def _changed(self, bounds: Bounds) -> None:
        self.edits += 1
        self._tell(bounds)

    # What napari tells

    def _painted(self, event: Any) -> None:
        self._lengths = _history(self.layer)
        item = [atom for atom in event.value or ()]
        if not item:
            return
        whole = bounds_of(item)
        # Some tools tell before they change the array: it is the same afterwards.
        apply(item, self._array)
        before = old_labels(item, self._array, whole)
        inner = self._kept(whole)
        before = np.squeeze(before, self._thin)
        painted = self.labels[_slices(inner)][before != self.labels[_slices(inner)]]
        bounds = inner
        numbers = set(np.unique(painted[painted > 0]).tolist())
        if numbers and self.task == "instance":
            bounds = self._around(numbers, inner)
        box = _slices(bounds)
        after = self.labels[box]
        old = after.copy()
        old[_slices(_relative(inner, bounds))] = before
        was = self._remembered(box)
        new = vouch_edits(old, after, self.own[box], task=self.task, rim=self.rim)
        self._set(bounds, new, (self.marks[box] > 0) & (after >= 0))
        self._done.append(Stroke(bounds, was, self._remembered(box)))
        self._undone.clear()
        self._changed(bounds)

    def _followed(self, *_: Any) -> None:
        """napari tells of no undo, but its history is shorter and what can be redone longer."""
        undo, redo = _history(self.layer)
        before, self._lengths = self._lengths, (undo, redo)
        for _turn in range(redo - before[1]):
            if self._done:
                self._take(self._done, self._undone, undone=True)
        if undo > before[0]:
            for _turn in range(before[1] - redo):
                if self._undone:
                    self._take(self._undone, self._done, undone=False)

    def _take(self, source: deque[Stroke], target: deque[Stroke], undone: bool) -> None:
        stroke = source.pop()
        target.append(stroke)
        box = _slices(stroke.bounds)
        was, will = (stroke.after, stroke.before) if undone else (stroke.before, stroke.after)
        own = self.own[box]
        # What was marked or unmarked since stays.
        turned = ((was ^ will) & _OWN > 0) & (own == (was & _OWN > 0))
        held = (self.marks[box] > 0) | (will & ~was & _VOUCHED > 0)
        self._set(stroke.bounds, own ^ turned, held)
        self._changed(stroke.bounds)

    def _replaced(self, *_: Any) -> None:
        """Another array: what it says differently was said by nobody."""
        new, old = self.layer.data, self._array
        if new is old or not isinstance(new, np.ndarray) or new.shape != old.shape:
            return
        self.state[new != old] = UNKNOWN
        self._own[new != old] = False
        self._array = new
        self._done.clear()
        self._undone.clear()
        self._lengths = _history(self.layer)
        self._changed(tuple((0, size) for size in self.labels.shape))

    # Boxes

    def _remembered(self, box: tuple[slice, ...]) -> np.ndarray:
        vouched = (self.marks[box] > 0).astype(np.uint8) * _VOUCHED
        return vouched | (self.own[box].astype(np.uint8) * _OWN)

    def _set(self, bounds: Bounds, own: np.ndarray, held: np.ndarray | None = None) -> None:
        """Vouch for a box.

        Args:
            bounds: of the box.
            own: what is vouched for apart from the regions.
            held: what counts if it lies in a region; None: what is vouched for now.
        """
        box = _slices(bounds)
        held = self.marks[box] > 0 if held is None else held
        vouched = (own != 0) | (held & covered(bounds, self.regions))
        self.own[box] = own != 0
        kind = np.where(self.labels[box] > 0, OBJECT, BACKGROUND)
        self.marks[box] = np.where(vouched, kind, UNKNOWN)
        if vouched.any():
            old = self._reach or bounds
            self._reach = tuple(
                (min(a, c), max(b, d)) for (a, b), (c, d) in zip(old, bounds, strict=True)
            )

    def _rim_of_task(self) -> tuple[int, ...]:
        return self.rim if self.task == "instance" else (0,) * self.labels.ndim

    def _plane(self, place: tuple[int, ...]) -> tuple[int, ...]:
        return place[: self.labels.ndim - self.dim]

    def _kept(self, bounds: Bounds) -> Bounds:
        return tuple(pair for i, pair in enumerate(bounds) if i not in self._thin)

    def _around(self, numbers: set[int], bounds: Bounds) -> Bounds:
        """A box that holds the objects with their rims; an object is not looked for elsewhere."""
        labels, reach = self.labels, _REACH
        fixed = labels.ndim - self.dim
        margin = [2 * width for width in self.rim]
        while True:
            steps = [0 if axis < fixed else reach for axis in range(labels.ndim)]
            wide = _grown(bounds, steps, labels.shape)
            inside = np.isin(labels[_slices(wide)], list(numbers))
            tight = tight_box(inside) or tuple((0, 1) for _ in wide)
            found = tuple((a + c, b + c) for (a, b), (c, _) in zip(tight, wide, strict=True))
            hull = tuple(
                (min(a, c), max(b, d)) for (a, b), (c, d) in zip(found, bounds, strict=True)
            )
            ends = zip(hull, wide, labels.shape, strict=True)
            open_ended = any(
                (a <= c and c > 0) or (b >= d and d < size)
                for axis, ((a, b), (c, d), size) in enumerate(ends)
                if axis >= fixed
            )
            if not open_ended:
                return _grown(hull, margin, labels.shape)
            bounds, reach = hull, 2 * reach


def _history(layer: Any) -> tuple[int, int]:
    """How much can be undone and redone; napari has no public way to ask."""
    return len(layer._undo_history), len(layer._redo_history)


def _slices(bounds: Sequence[tuple[int, int]]) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in bounds)


def _relative(inner: Sequence[tuple[int, int]], outer: Bounds) -> Bounds:
    return tuple((a - c, b - c) for (a, b), (c, _) in zip(inner, outer, strict=True))


def _grown(bounds: Bounds, steps: Sequence[int], shape: Sequence[int]) -> Bounds:
    sides = zip(bounds, steps, shape, strict=True)
    return tuple((max(0, a - step), min(b + step, size)) for (a, b), step, size in sides)
