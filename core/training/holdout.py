"""Which labels are kept out of the training, to see what it brought."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tttunet.training.dataset import Task
from tttunet.training.defaults import SHARE
from tttunet.training.prepare import FOREGROUND, IGNORE
from tttunet.training.samples import Sample

#: From this many images on, whole ones are held out.
WHOLE_IMAGES = 4
#: Fewer objects (pixels, for classes) of a sample are not cut in two.
FEWEST = {"instance": 2, "semantic": 200}
_TRIES = 32


def hold_out(
    samples: Sequence[Sample], task: Task, seed: int = 0, share: float = SHARE
) -> tuple[list[Sample], list[Sample]]:
    """Divide samples into those to train on and those to validate on; no pixel is in both.

    From `WHOLE_IMAGES` images (or groups) on, whole ones are held out. Of fewer, or where no choice
    of whole ones leaves the training every class, every sample is cut across the longest side of
    what is labelled, and an object belongs to one side with all its pixels; samples that are too
    small for that are held out whole.

    Args:
        samples: with labels that may be incomplete.
        task: what the labels mean.
        seed: decides which images, or which end.
        share: of the images, objects or (for classes) pixels to hold out.

    Returns:
        To train on, and to validate on: the same samples with `IGNORE` in each other's place. The
        second list is empty if there is too little to divide.
    """
    rng = np.random.default_rng(seed)
    origins = sorted({sample.origin for sample in samples})
    if len(origins) >= WHOLE_IMAGES:
        by_origin = [[s for s in samples if s.origin == origin] for origin in origins]
        train, val = _whole(by_origin, task, rng, share)
        if val:
            return train, val
    train, val = [], []
    for sample in samples:
        held = _cut(sample.labels, task, rng, share)
        if held is None:
            train.append(sample)
            continue
        train.append(replace(sample, labels=np.where(held, IGNORE, sample.labels)))
        val.append(replace(sample, labels=np.where(held, sample.labels, IGNORE)))
    if not val and len(samples) > 1:
        # Objects far apart, one in every sample.
        return _whole([[sample] for sample in samples], task, rng, share)
    return train, val


def _whole(
    parts: list[list[Sample]], task: Task, rng: np.random.Generator, share: float
) -> tuple[list[Sample], list[Sample]]:
    """The first draw of whole parts that leaves both sides foreground, the training every class."""
    count = max(1, round(share * len(parts)))
    everything = [sample for part in parts for sample in part]
    wanted = _classes(everything, task)
    for _ in range(_TRIES):
        held = set(rng.permutation(len(parts))[:count].tolist())
        val = [sample for i in sorted(held) for sample in parts[i]]
        train = [sample for i, part in enumerate(parts) if i not in held for sample in part]
        if _classes(train, task) >= wanted and _classes(val, task):
            return train, val
    return everything, []


def _classes(samples: Sequence[Sample], task: Task) -> set[int]:
    """The classes that occur; objects are all of one."""
    if task == "instance":
        some = any(((s.labels > 0) | (s.labels == FOREGROUND)).any() for s in samples)
        return {1} if some else set()
    return {int(v) for s in samples for v in np.unique(s.labels)} - {0, IGNORE}


def _cut(
    labels: np.ndarray, task: Task, rng: np.random.Generator, share: float
) -> np.ndarray | None:
    """Bool [*spatial], what to validate on; None: there is too little to divide."""
    known = np.nonzero(labels != IGNORE)
    if not known[0].size:
        return None
    axis = int(np.argmax([np.ptp(position) for position in known]))
    end = bool(rng.integers(2))
    cutter = _cut_objects if task == "instance" else _cut_pixels
    for at_end in (end, not end):
        held = cutter(labels, axis, share, at_end)
        if held is not None:
            return held
    return None


def _cut_objects(labels: np.ndarray, axis: int, share: float, at_end: bool) -> np.ndarray | None:
    from scipy import ndimage

    objects = np.where(labels > 0, labels, 0).astype(np.int64)
    clumps, _ = ndimage.label(labels == FOREGROUND)
    objects = np.where(clumps > 0, clumps + objects.max(initial=0), objects)
    numbers = np.unique(objects[objects > 0])
    if len(numbers) < FEWEST["instance"]:
        return None
    centres = np.array(ndimage.center_of_mass(objects > 0, objects, numbers))[:, axis]
    if at_end:
        centres = labels.shape[axis] - 1 - centres
    order = np.argsort(centres, kind="stable")
    count = min(max(1, round(share * len(numbers))), len(numbers) - 1)
    border = (centres[order[count - 1]] + centres[order[count]]) / 2
    held = _side(labels.shape, axis, border, at_end)
    belongs = np.zeros(int(objects.max()) + 1, bool)
    belongs[numbers[order[:count]]] = True
    return np.where(objects > 0, belongs[objects], held) & (labels != IGNORE)


def _cut_pixels(labels: np.ndarray, axis: int, share: float, at_end: bool) -> np.ndarray | None:
    known = labels != IGNORE
    positions = np.nonzero(known)[axis]
    if at_end:
        positions = labels.shape[axis] - 1 - positions
    if len(positions) < FEWEST["semantic"]:
        return None
    held = _side(labels.shape, axis, float(np.quantile(positions, share)), at_end) & known
    classes = set(np.unique(labels[known]).tolist()) - {0}
    left = set(np.unique(labels[known & ~held]).tolist()) - {0}
    return held if left == classes and (labels[held] != 0).any() else None


def _side(shape: tuple[int, ...], axis: int, border: float, at_end: bool) -> np.ndarray:
    """Bool [*shape]: what lies before `border`, counted from the end if `at_end`."""
    position = np.arange(shape[axis])
    if at_end:
        position = position[::-1]
    side = (position < border).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return np.broadcast_to(side, shape)
