"""How often a network halves which axis, its kernels, and what its feature maps take.

The rules are those that nnU-Net v2 publishes (Isensee et al. 2021, supplementary note 2 and the
planner of version 2); the wording is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Shortest edge of the bottleneck's map.
SMALLEST_MAP = 4
#: Axes whose spacing is less than this many times the finest are treated alike.
ALIKE = 2.0


@dataclass(frozen=True)
class Topology:
    """Shape of a U-Net, one row per stage, highest resolution first.

    Attributes:
        strides: halvings on entering the stage; the first row is all ones.
        kernels: 1 along a coarse axis until the others have been halved down to it, then 3; the
            bottleneck always has 3.
        patch: the patch, padded to a multiple of the total stride.
    """

    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    patch: tuple[int, ...]

    @property
    def divisor(self) -> tuple[int, ...]:
        """The total stride per axis."""
        return tuple(math.prod(column) for column in zip(*self.strides, strict=True))


def plan_topology(spacing: Sequence[float], patch: Sequence[float]) -> Topology:
    """Halve the axes with the finest spacing until the maps are small.

    Args:
        spacing: of the grid that the network works on, per axis.
        patch: edge lengths to start from; halves occur, where they are medians.
    """
    dim = len(patch)
    size, step, kernel = list(patch), list(spacing), [1] * dim
    strides, kernels = [(1,) * dim], []
    while axes := _axes_to_halve(size, step):
        finest = min(step)
        kernel = [
            3 if k == 3 or s < ALIKE * finest else 1 for k, s in zip(kernel, step, strict=True)
        ]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in axes else 1 for axis in range(dim)))
        for axis in axes:
            size[axis], step[axis] = math.ceil(size[axis] / 2), 2 * step[axis]
    kernels.append((3,) * dim)
    rows = tuple(strides)
    divisor = Topology(rows, (), ()).divisor
    padded = tuple(math.ceil(n / d) * d for n, d in zip(patch, divisor, strict=True))
    return Topology(rows, tuple(kernels), padded)


def _axes_to_halve(size: Sequence[float], step: Sequence[float]) -> list[int]:
    """Axes that are long enough and about as fine as the finest of those; empty: stop here."""
    long = [axis for axis, n in enumerate(size) if n >= 2 * SMALLEST_MAP]
    if not long:
        return []
    finest = min(step[axis] for axis in long)
    axes = [axis for axis in long if step[axis] < ALIKE * finest]
    # A single axis is halved only if it is clearly longer than the others can be.
    return [] if len(axes) == 1 and size[axes[0]] < 3 * SMALLEST_MAP else axes


def stage_features(stages: int, base: int, most: int) -> tuple[int, ...]:
    """Channels per stage: doubled at every stage up to `most`."""
    return tuple(min(base * 2**stage, most) for stage in range(stages))


def feature_elements(topology: Topology, features: Sequence[int], outputs: int) -> int:
    """Numbers in the feature maps of one sample, which training keeps for the backward pass.

    Counted for a U-Net of two convolutions per stage on either side, one upsampling per decoder
    stage and one head: nnU-Net's measure of memory, so that its reference values apply.

    Args:
        topology: with the padded patch.
        features: channels per stage.
        outputs: channels of the head.
    """
    size, total = topology.patch, 0
    for stage, (stride, channels) in enumerate(zip(topology.strides, features, strict=True)):
        size = tuple(n // s for n, s in zip(size, stride, strict=True))
        maps = 2 if stage == len(features) - 1 else 5
        total += maps * channels * math.prod(size)
        if stage == 0:
            total += outputs * math.prod(size)
    return total
