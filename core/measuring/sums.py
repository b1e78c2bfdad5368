"""Sums over the pixels of labelled objects, all objects at once, and the shapes they tell.

moments     runs of equal pixels in a row; positions in closed form per run
perimeter   Crofton's formula: how often lines in the 4 (2D) or 13 (3D) directions between
            neighbouring pixels enter and leave the object; the lines of each direction
            stand for the directions closest to it in the world. Legland, Kieu, Devaux:
            "Computation of Minkowski measures on 2D and 3D binary images", Image Analysis
            and Stereology 2007; in 2D on square pixels scikit-image's `perimeter_crofton`.
solidity    the convex hull of the pixels' corners (as ImageJ does), from the leftmost and
            rightmost pixel of every row
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tttunet.measuring.hull import hull_areas

_DIRECTIONS_ON_SPHERE = 20_000
#: Of `BlockSums.bright`.
_BRIGHTNESS = (np.add, np.minimum, np.maximum)


@dataclass(frozen=True, eq=False)
class BlockSums:
    """Sums of the objects in a block, or of their parts in it.

    Attributes:
        labels: [K], ascending.
        sums: float [K, 2 + n + n * (n + 1) / 2]: pixels, border, positions, products.
        bright: float [C, 3, K]: sum, lowest, highest.
        box: int [2, n, K]: first position, and first one outside.
        rows: int [R, 4], in 2D only: label, y, first x, last x + 1 of every run.
    """

    labels: np.ndarray
    sums: np.ndarray
    bright: np.ndarray
    box: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(
        cls,
        padded: np.ndarray,
        corner: Sequence[int],
        bright: Sequence[np.ndarray],
        weights: np.ndarray,
    ) -> BlockSums:
        """Sums of a block.

        Args:
            padded: labels [..., Y, X] with one more pixel on every side.
            corner: position of the first pixel that is not padding.
            bright: per channel, the block without the padding.
            weights: see `crofton_weights`.
        """
        n = padded.ndim
        padded = np.ascontiguousarray(padded)
        core = np.ascontiguousarray(padded[(slice(1, -1),) * n])
        flat, width = core.reshape(-1), core.shape[-1]
        new = np.empty(flat.size, bool)
        np.not_equal(flat[1:], flat[:-1], out=new[1:])
        new[::width] = True
        starts = np.flatnonzero(new)
        lengths = np.diff(starts, append=flat.size)
        chosen = np.flatnonzero(flat[starts])
        starts_in, length = starts[chosen], lengths[chosen]
        labels, index = np.unique(flat[starts_in], return_inverse=True)
        first = [
            p + c for p, c in zip(np.unravel_index(starts_in, core.shape), corner, strict=True)
        ]

        def total(values: np.ndarray) -> np.ndarray:
            return np.bincount(index, values, len(labels))

        step = length - 1.0
        x = np.asarray(first[-1], float)
        along = length * (x + step / 2)
        along2 = length * (x * x + x * step + step * (2 * step + 1) / 6)
        columns = [total(length), _border(padded, core, labels, weights)]
        columns += [total(length * position) for position in first[:-1]] + [total(along)]
        for i, j in _pairs(n):
            if j < n - 1:
                columns.append(total(length * np.multiply(first[i], first[j], dtype=float)))
            else:
                columns.append(total(along2 if i == j else along * first[i]))
        groups = _Groups(index, len(labels))
        last = [p + 1 for p in first[:-1]] + [first[-1] + length]
        box = np.stack(
            [groups.reduce(np.minimum, np.stack(first)), groups.reduce(np.maximum, np.stack(last))]
        )
        values = np.empty((len(bright), 3, len(labels)))
        for k, channel in enumerate(bright):
            flat = channel.reshape(-1)
            for i, ufunc in enumerate(_BRIGHTNESS):
                if len(labels):
                    values[k, i] = groups.reduce(ufunc, ufunc.reduceat(flat, starts)[chosen])
        rows = np.zeros((0, 4), np.int64)
        if n == 2:
            rows = np.stack(
                [labels[index], first[0], first[1], first[1] + length], 1, dtype=np.int64
            )
        return cls(labels.astype(np.int64), np.stack(columns, 1), values, box, rows)


def _pairs(n: int) -> list[tuple[int, int]]:
    return list(itertools.combinations_with_replacement(range(n), 2))


class _Groups:
    """Values of several members per object.

    Args:
        index: of the object, per member.
        count: of objects; each has a member.
    """

    def __init__(self, index: np.ndarray, count: int) -> None:
        self._order = np.argsort(index, kind="stable")
        self._begin = np.searchsorted(index[self._order], np.arange(count))

    def reduce(self, ufunc: np.ufunc, values: np.ndarray) -> np.ndarray:
        """One value per object; members and objects are the last axis."""
        if not len(self._begin):
            return np.zeros((*values.shape[:-1], 0), values.dtype)
        return np.asarray(ufunc.reduceat(values[..., self._order], self._begin, -1))


def _border(
    padded: np.ndarray, core: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Weighted number of neighbours of another label, per object."""
    n = padded.ndim
    same = np.ones(padded.shape, bool)
    for axis in range(n):
        # Of the axes before, `same` tells whether all neighbours along them are alike.
        near = [np.swapaxes(a, 0, axis) for a in (same, padded)]
        inner = near[0][1:-1] & near[0][2:] & near[0][:-2]
        inner &= (near[1][1:-1] == near[1][2:]) & (near[1][1:-1] == near[1][:-2])
        same = np.zeros(padded.shape, bool)
        np.swapaxes(same, 0, axis)[1:-1] = inner
    mixed = ~same[(slice(1, -1),) * n] & (core != 0)
    places = np.nonzero(mixed)
    here = np.ravel_multi_index([p + 1 for p in places], padded.shape)
    flat = padded.reshape(-1)
    own = flat[here]
    weight = np.zeros(len(own))
    strides = np.array(padded.strides) // padded.itemsize
    for offset, value in zip(neighbours(n), weights, strict=True):
        weight += value * (flat[here + int(np.dot(offset, strides))] != own)
    return np.bincount(np.searchsorted(labels, own), weight, len(labels))


def neighbours(n: int) -> np.ndarray:
    """The offsets to all neighbours, [3**n - 1, n]; the second half is the first one's negative."""
    offsets = np.array([o for o in itertools.product((-1, 0, 1), repeat=n) if any(o)])
    half = offsets[: len(offsets) // 2]
    return np.concatenate([half, -half])


def crofton_weights(linear: np.ndarray) -> np.ndarray:
    """What a change of label towards each of `neighbours` adds to the perimeter or surface.

    Args:
        linear: [n, n], pixels to the world.
    """
    n = len(linear)
    offsets = neighbours(n)
    steps = offsets[: len(offsets) // 2] @ linear.T
    lengths = np.linalg.norm(steps, axis=1)
    spacing = abs(np.linalg.det(linear)) / lengths  # length or area per line
    if n == 2:
        angles = np.arctan2(steps[:, 0], steps[:, 1]) % math.pi
        order = np.argsort(angles)
        gaps = np.diff(angles[order], append=angles[order][0] + math.pi)
        share = np.empty(len(angles))
        share[order] = (gaps + np.roll(gaps, 1)) / 2 / math.pi
        weights = math.pi / 2 * share * spacing
    else:
        # Points spread evenly over the half sphere: a spiral with the golden angle.
        k = np.arange(_DIRECTIONS_ON_SPHERE) + 0.5
        z = k / _DIRECTIONS_ON_SPHERE
        turn = k * math.pi * (3 - math.sqrt(5))
        points = np.stack([z, *np.sqrt(1 - z * z) * (np.cos(turn), np.sin(turn))], 1)
        nearest = np.abs(points @ (steps / lengths[:, None]).T).argmax(1)
        share = np.bincount(nearest, minlength=len(steps)) / len(points)
        weights = 2 * share * spacing
    return np.tile(weights, 2)


class FrameSums:
    """The sums of the objects of a frame, from those of its blocks.

    Args:
        n: 2 or 3.
        channels: of which brightness is summed.

    Attributes:
        labels: [K], ascending.
        box: as in `BlockSums`.
        hull: area of the convex hull in pixels, [K]; in 2D only.
    """

    def __init__(self, n: int, channels: int) -> None:
        self.n, self.channels = n, channels
        self._blocks: list[BlockSums] = []
        self.labels = np.zeros(0, np.int64)
        self.sums = np.zeros((0, 2 + n + len(_pairs(n))))
        self.bright = np.zeros((channels, 3, 0))
        self.box = np.zeros((2, n, 0), np.int64)
        self.hull = np.zeros(0)

    def add(self, block: BlockSums) -> None:
        self._blocks.append(block)

    def finish(self) -> None:
        """Joins the blocks, of which there is at least one."""
        blocks, self._blocks = self._blocks, []
        labels = np.concatenate([block.labels for block in blocks])
        self.labels, index = np.unique(labels, return_inverse=True)
        count = len(self.labels)
        sums = np.concatenate([block.sums for block in blocks])
        self.sums = np.stack([np.bincount(index, column, count) for column in sums.T], 1)
        groups = _Groups(index, count)
        bright = np.concatenate([block.bright for block in blocks], 2)
        parts = [groups.reduce(ufunc, bright[:, i]) for i, ufunc in enumerate(_BRIGHTNESS)]
        self.bright = np.stack(parts, 1)
        box = np.concatenate([block.box for block in blocks], 2)
        self.box = np.stack([groups.reduce(np.minimum, box[0]), groups.reduce(np.maximum, box[1])])
        self.hull = np.zeros(count)
        if self.n == 2:
            self.hull = hull_areas(np.concatenate([block.rows for block in blocks]), self.labels)

    @classmethod
    def join(cls, frames: Sequence[FrameSums]) -> FrameSums:
        """The objects of all frames one after the other; there is at least one frame."""
        joined = cls(frames[0].n, frames[0].channels)
        joined.labels = np.concatenate([frame.labels for frame in frames])
        joined.sums = np.concatenate([frame.sums for frame in frames])
        joined.bright = np.concatenate([frame.bright for frame in frames], 2)
        joined.box = np.concatenate([frame.box for frame in frames], 2)
        joined.hull = np.concatenate([frame.hull for frame in frames])
        return joined

    @property
    def centres(self) -> np.ndarray:
        """[K, n] in pixels."""
        return self.sums[:, 2 : 2 + self.n] / self.sums[:, :1]

    def brightness(self, channel: int) -> Iterator[tuple[str, str, np.ndarray]]:
        """Key, title and numbers."""
        total, low, high = self.bright[channel]
        yield "mean", "Mean", total / self.sums[:, 0]
        yield "min", "Min", low
        yield "max", "Max", high

    def shapes(self, linear: np.ndarray) -> Iterator[tuple[str, str, int, str, np.ndarray]]:
        """Key, title, power of the unit of length, explanation and numbers.

        Args:
            linear: [n, n], pixels to the world.
        """
        count, border = self.sums[:, 0], self.sums[:, 1]
        size = count * abs(np.linalg.det(linear))
        if self.n == 2:
            shortest, longest = self._axes(linear).T
            yield "area", "Area", 2, "Pixels of the object times the area of a pixel", size
            yield (
                "diameter",
                "Equivalent diameter",
                1,
                "Diameter of a disc of the same area",
                (np.sqrt(4 / math.pi * size)),
            )
            yield "perimeter", "Perimeter", 1, "Length of the outline, holes included", border
            eccentric = np.sqrt(1 - (shortest / longest) ** 2)
            yield "eccentricity", "Eccentricity", 0, "0: round, near 1: long and thin", eccentric
            tip = "Share of its convex hull that the object fills; 1: no dents"
            yield "solidity", "Solidity", 0, tip, count / self.hull
        else:
            shortest, _, longest = self._axes(linear).T
            yield "volume", "Volume", 3, "Voxels of the object times the volume of a voxel", size
            yield (
                "diameter",
                "Equivalent diameter",
                1,
                "Diameter of a ball of the same volume",
                (np.cbrt(6 / math.pi * size)),
            )
            yield "surface", "Surface", 2, "Area of the surface, holes included", border
            sphericity = np.cbrt(math.pi) * (6 * size) ** (2 / 3) / border
            tip = "Surface of a ball of the same volume, by that of the object; 1: a ball"
            yield "sphericity", "Sphericity", 0, tip, sphericity
            tip = "Longest by shortest axis of the ellipsoid with the same moments; 1: round"
            yield "elongation", "Elongation", 0, tip, longest / shortest
        title = "Pixels" if self.n == 2 else "Voxels"
        yield "pixels", title, 0, "Number in the object", count.astype(np.int64)

    def _axes(self, linear: np.ndarray) -> np.ndarray:
        """[K, n], ascending, in proportion to the axes of the ellipsoid with the same moments."""
        n, count = self.n, self.sums[:, 0]
        covariance = np.empty((len(count), n, n))
        centres = self.centres
        for k, (i, j) in enumerate(_pairs(n)):
            moment = self.sums[:, 2 + n + k] / count - centres[:, i] * centres[:, j]
            # A pixel has an extent of its own.
            covariance[:, i, j] = covariance[:, j, i] = moment + (1 / 12 if i == j else 0)
        world = linear @ covariance @ linear.T
        return np.sqrt(np.maximum(np.linalg.eigvalsh(world), 1e-300))
