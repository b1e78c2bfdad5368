"""What clicks and strokes mean for the mask of vouched pixels: pure functions on arrays.

`labels` are integers [*spatial], 0 background; `vouched` has the same shape, 1 where the user
vouches for the label. Nothing is changed in place. Give a crop around the object of a large
image; for a slice of a stack give the slice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tttunet.projects.chunks import tight_box

Rim = int | Sequence[int]


def vouch_object(labels: np.ndarray, vouched: np.ndarray, number: int, rim: Rim = 2) -> np.ndarray:
    """Mark an object as checked, with a rim of background around it.

    The rim tells the network where the object ends. Its pixels inside other objects keep their
    state: those may be unchecked.

    Args:
        labels: [*spatial] integers.
        vouched: [*spatial].
        number: of the object, above 0.
        rim: width in pixels, diagonal neighbours included; or one width per axis.

    Returns:
        The new mask, uint8. Without such an object it is the old one.
    """
    _check_number(number)
    return _vouch_objects(labels, vouched, [number], rim)


def _vouch_objects(
    labels: np.ndarray, vouched: np.ndarray, numbers: Sequence[int], rim: Rim
) -> np.ndarray:
    new = (np.asarray(vouched) != 0).astype(np.uint8)
    chosen = np.isin(labels, numbers)
    box = _box(chosen, rim)
    if box is not None:
        near = grow(chosen[box], rim)
        new[box][chosen[box] | (near & (labels[box] == 0))] = 1
    return new


def unvouch_object(
    labels: np.ndarray,
    vouched: np.ndarray,
    number: int,
    rim: Rim = 2,
) -> np.ndarray:
    """Take back `vouch_object`.

    Background in the rim of another checked object stays vouched for.

    Args:
        labels, vouched, number, rim: as for `vouch_object`.

    Returns:
        The new mask, uint8.
    """
    _check_number(number)
    new = (np.asarray(vouched) != 0).astype(np.uint8)
    chosen = labels == number
    # The rims of the neighbours reach into this object's rim: twice the width decides.
    box = _box(chosen, tuple(2 * width for width in _widths(rim, labels.ndim)))
    if box is None:
        return new
    inside, mine = labels[box], chosen[box]
    others = (inside > 0) & ~mine & (new[box] != 0)
    drop = mine | (grow(mine, rim) & (inside == 0) & ~grow(others, rim))
    new[box][drop] = 0
    return new


def vouch_edits(
    before: np.ndarray,
    after: np.ndarray,
    vouched: np.ndarray,
    *,
    task: str = "instance",
    rim: Rim = 2,
) -> np.ndarray:
    """What painting and erasing vouches for.

    A painted object becomes a checked object, with its rim; an erased pixel becomes checked
    background. For class labels, the changed pixels and no others are vouched for. A pixel that
    was set to a negative number is no longer vouched for.

    Args:
        before, after: [*spatial] labels on both sides of the edit.
        vouched: [*spatial], before the edit.
        task: `instance` or `semantic`.
        rim: as for `vouch_object`.

    Returns:
        The new mask, uint8.
    """
    changed = before != after
    painted = np.unique(after[changed & (after > 0)]).tolist()
    if task == "instance" and painted:
        new = _vouch_objects(after, vouched, painted, rim)
    else:
        new = (np.asarray(vouched) != 0).astype(np.uint8)
    new[changed] = 1
    new[after < 0] = 0
    return new


def training_labels(labels: np.ndarray, vouched: np.ndarray) -> np.ndarray:
    """Labels as training reads them: int32, -1 where nobody vouches for them."""
    return np.where(np.asarray(vouched) != 0, labels, -1).astype(np.int32)


def pieces(labels: np.ndarray) -> np.ndarray:
    """Number the connected pieces of every object, diagonal neighbours included.

    In numpy, for Pythons without scipy: runs of equal pixels along the last axis are joined with
    the runs that they touch, by hooking and pointer jumping, in a number of rounds that grows
    with the logarithm of a piece's length.

    Args:
        labels: [*spatial] integers, 0 and below are outside; or a boolean mask.

    Returns:
        [*spatial] int32, 0 outside, pieces from 1 in the order of their first pixel.
    """
    begins = labels > 0
    begins[..., 1:] &= labels[..., 1:] != labels[..., :-1]
    runs = np.cumsum(begins, dtype=np.int32).reshape(labels.shape)
    count = int(runs.max(initial=0))
    runs[labels <= 0] = 0
    parent = np.arange(count + 1)
    a, b = _touching(labels, runs)
    while len(a):
        roots_a, roots_b = parent[a], parent[b]
        differ = roots_a != roots_b
        a, b, roots_a, roots_b = a[differ], b[differ], roots_a[differ], roots_b[differ]
        np.minimum.at(parent, np.maximum(roots_a, roots_b), np.minimum(roots_a, roots_b))
        while True:
            above = parent[parent]
            if np.array_equal(above, parent):
                break
            parent = above
    numbers = np.unique(parent, return_inverse=True)[1].reshape(-1).astype(np.int32)
    return numbers[runs]  # 0 is its own root, and the first


def _touching(labels: np.ndarray, runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of runs of the same number that are neighbours, in neighbouring rows."""
    pairs = [np.zeros((2, 0), np.int32)]
    for step in np.ndindex(*(3,) * labels.ndim):
        offset = tuple(s - 1 for s in step)
        if offset[:-1] <= (0,) * (labels.ndim - 1):  # within the row, or a pair's second time
            continue
        sizes = list(zip(offset, labels.shape, strict=True))
        here = tuple(slice(max(0, -o), n - max(0, o)) for o, n in sizes)
        there = tuple(slice(max(0, o), n - max(0, -o)) for o, n in sizes)
        same = (labels[here] == labels[there]) & (runs[here] > 0)
        pair = np.stack([runs[here][same], runs[there][same]])
        new = np.ones(pair.shape[1], bool)
        new[1:] = (pair[:, 1:] != pair[:, :-1]).any(axis=0)  # long runs touch in many pixels
        pairs.append(pair[:, new])
    a, b = np.concatenate(pairs, axis=1)
    return a, b


def _check_number(number: int) -> None:
    if number <= 0:
        raise ValueError(f"{number} is not the number of an object")


def _widths(rim: Rim, ndim: int) -> tuple[int, ...]:
    widths = (rim,) * ndim if isinstance(rim, int) else tuple(rim)
    if len(widths) != ndim:
        raise ValueError(f"{len(widths)} widths for {ndim} axes")
    return widths


def _box(mask: np.ndarray, rim: Rim) -> tuple[slice, ...] | None:
    """Where the True pixels are, with a margin."""
    box = tight_box(mask)
    if box is None:
        return None
    widths = _widths(rim, mask.ndim)
    return tuple(slice(max(0, a - w), b + w) for (a, b), w in zip(box, widths, strict=True))


def grow(mask: np.ndarray, rim: Rim) -> np.ndarray:
    """Dilation by a box of `rim` pixels in each direction."""
    grown = mask.copy()
    for axis, width in enumerate(_widths(rim, mask.ndim)):
        source = grown.copy()
        for step in range(1, min(width, mask.shape[axis] - 1) + 1):
            ahead: list[slice] = [slice(None)] * mask.ndim
            behind = list(ahead)
            ahead[axis], behind[axis] = slice(step, None), slice(None, -step)
            grown[tuple(ahead)] |= source[tuple(behind)]
            grown[tuple(behind)] |= source[tuple(ahead)]
    return grown
