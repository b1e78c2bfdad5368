"""From a fingerprint to the grid, the patch, the network's shape and the batch.

nnU-Net v2's published rules; where its planner is told a memory target, these functions take a
`Budget`. `benchmarks/planner.py` compares both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from tttunet.errors import DatasetError
from tttunet.imaging.resample import ANISOTROPY, resampled_shape
from tttunet.training.plan.fingerprint import Fingerprint
from tttunet.training.plan.topology import (
    SMALLEST_MAP,
    Topology,
    feature_elements,
    plan_topology,
    stage_features,
)

ConfigurationName = Literal["2d", "3d_fullres", "3d_lowres"]

#: Percentile of the spacings that an anisotropic axis gets, instead of the median. It is one if it
#: is `ANISOTROPY` times coarser than the others, and as many times shorter.
COARSE_PERCENTILE = 10
#: Voxels of the patch to start from, before it is fitted to the images and the budget.
_FIRST_PATCH = {2: 2048**2, 3: 256**3}
#: Feature numbers (see `feature_elements`) of one sample that fill 8 GB at the given batch size.
_REFERENCE_GIGABYTES = 8.0
_REFERENCE_ELEMENTS = {2: 85e6, 3: 560e6}
_REFERENCE_BATCH = {2: 12, 3: 2}
SMALLEST_BATCH = 2
#: A batch holds at most this share of all voxels.
LARGEST_SHARE = 0.05
#: A low resolution is planned if a patch at full resolution sees less than this share of an image.
SMALL_SHARE = 0.25
#: Its spacing grows by this factor until the share is reached.
_COARSER = 1.03
#: It is dropped if it has more than one voxel for so many at full resolution.
_SMALLEST_GAIN = 2.0


@dataclass(frozen=True)
class Budget:
    """What training may take.

    Attributes:
        gigabytes: on nnU-Net's scale, on which 8 GB is a 3D patch of about 128 x 128 x 128 at
            batch size 2, or a 2D patch of 512 x 512 at 12.
        base_features: channels at full resolution.
        most_features: of the deepest stages, per number of dimensions.
    """

    gigabytes: float
    base_features: int
    most_features: tuple[int, int] = (512, 320)


#: nnU-Net's default, for a GPU.
GPU = Budget(8.0, 32)
#: For training on a few CPU cores: memory is not what is short there but arithmetic, so patch and
#: network are smaller.
CPU = Budget(0.25, 16, (256, 256))


@dataclass(frozen=True)
class Configuration:
    """One way to train on a data set; axes are in the network's order (after `transpose`).

    Attributes:
        name: `2d`, `3d_fullres` or `3d_lowres`.
        spacing: of the grid that the network works on.
        median_shape: of the images on that grid.
        topology: strides, kernels and patch.
        features: channels per stage.
        batch_size: patches per step.
        order: of the axes of volumes (nnU-Net's `transpose_forward`).
    """

    name: ConfigurationName
    spacing: tuple[float, ...]
    median_shape: tuple[float, ...]
    topology: Topology
    features: tuple[int, ...]
    batch_size: int
    order: tuple[int, ...] = ()

    @property
    def patch(self) -> tuple[int, ...]:
        return self.topology.patch


def target_spacing(spacings: np.ndarray, shapes: np.ndarray) -> tuple[float, ...]:
    """The median spacing; a finer one along an axis of few, thick slices.

    Args:
        spacings, shapes: [cases, axes].
    """
    target, size = np.median(spacings, 0), np.median(shapes, 0)
    coarse = int(target.argmax())
    others = [axis for axis in range(len(target)) if axis != coarse]
    next_coarsest = max(target[axis] for axis in others)
    few = size[coarse] * ANISOTROPY < min(size[axis] for axis in others)
    if few and target[coarse] > ANISOTROPY * next_coarsest:
        finer = np.percentile(spacings[:, coarse], COARSE_PERCENTILE)
        # It stays the coarsest axis, by a hair.
        target[coarse] = finer if finer >= next_coarsest else next_coarsest + 1e-5
    return tuple(float(value) for value in target)


def axis_order(spacing: Sequence[float]) -> tuple[int, ...]:
    """The coarsest axis first, the others in their order."""
    coarse = int(np.argmax(spacing))
    return (coarse, *(axis for axis in range(len(spacing)) if axis != coarse))


def configurations(
    fingerprint: Fingerprint, outputs: int, budget: Budget = GPU
) -> dict[ConfigurationName, Configuration]:
    """Everything that can be trained on a data set.

    Args:
        fingerprint: of the data set.
        outputs: channels of the network's head, background included.
        budget: memory, and the width of the network.

    Returns:
        `2d` alone for 2D images; for volumes also `3d_fullres` and, where its patch sees little of
        an image, `3d_lowres`.

    Raises:
        DatasetError: the images are too small for a U-Net.
    """
    spacings = np.array(fingerprint.spacings, float)
    shapes = np.array(fingerprint.shapes, int)
    cases = len(shapes)
    if fingerprint.dim == 2:
        target = tuple(float(value) for value in np.median(spacings, 0))
        median = _median_shape(shapes, spacings, target)
        voxels = math.prod(median) * cases
        return {"2d": _configuration("2d", target, median, voxels, outputs, budget)}
    target = target_spacing(spacings, shapes)
    order = axis_order(target)
    median = _median_shape(shapes, spacings, target)
    target, median = (tuple(row[axis] for axis in order) for row in (target, median))
    voxels = math.prod(median) * cases
    plane = _configuration("2d", target[1:], median[1:], voxels, outputs, budget)
    found: dict[ConfigurationName, Configuration] = {"2d": plane}
    if median[0] > 1:
        full = _configuration("3d_fullres", target, median, voxels, outputs, budget)
        found["3d_fullres"] = full
        low = _low_resolution(full, cases, outputs, budget)
        if low is not None:
            found["3d_lowres"] = low
    return {name: replace(one, order=order) for name, one in found.items()}


def _median_shape(
    shapes: np.ndarray, spacings: np.ndarray, target: Sequence[float]
) -> tuple[float, ...]:
    pairs = zip(shapes, spacings, strict=True)
    return tuple(np.median([resampled_shape(n, s, target) for n, s in pairs], 0).tolist())


def _configuration(
    name: ConfigurationName,
    spacing: tuple[float, ...],
    median: tuple[float, ...],
    voxels: float,
    outputs: int,
    budget: Budget,
) -> Configuration:
    """Fit patch, network and batch to the budget.

    Args:
        voxels: of all images together, on this grid.
    """
    dim = len(spacing)
    most = budget.most_features[dim - 2]
    share = budget.gigabytes / _REFERENCE_GIGABYTES
    reference, batch = _REFERENCE_ELEMENTS[dim] * share, _REFERENCE_BATCH[dim]
    patch: list[float] = _first_patch(spacing, median)
    while True:
        topology = plan_topology(spacing, patch)
        features = stage_features(len(topology.strides), budget.base_features, most)
        elements = feature_elements(topology, features, outputs)
        if elements / batch * SMALLEST_BATCH <= reference:
            break
        smaller = _smaller(topology, spacing, median)
        if smaller is None:
            break
        patch = smaller
    if len(topology.strides) < 2:
        raise DatasetError(
            f"The images are too small for a U-Net: {'x'.join(f'{n:g}' for n in median)}.",
            f"At least two axes need {2 * SMALLEST_MAP} pixels.",
        )
    size = round(reference / elements * batch)
    at_most = round(LARGEST_SHARE * voxels / math.prod(topology.patch))
    batch_size = max(SMALLEST_BATCH, min(size, at_most))
    return Configuration(name, spacing, median, topology, features, batch_size)


def _first_patch(spacing: Sequence[float], median: Sequence[float]) -> list[float]:
    """A large patch, as long along every axis in millimetres, but no larger than the images."""
    dim = len(spacing)
    edge = (_FIRST_PATCH[dim] * math.prod(spacing)) ** (1 / dim)
    return [min(round(edge / s), n) for s, n in zip(spacing, median, strict=True)]


def _smaller(
    topology: Topology, spacing: Sequence[float], median: Sequence[float]
) -> list[float] | None:
    """The next smaller patch, shorter along the axis that sees most of the images.

    The step is the stride of the network that the shorter patch would have, which is finer: a
    shorter axis may be halved less often.
    """
    patch: list[float] = list(topology.patch)
    ratios = [n / m for n, m in zip(patch, median, strict=True)]
    axis = max(range(len(patch)), key=lambda i: (ratios[i], i))
    shorter = patch.copy()
    shorter[axis] -= topology.divisor[axis]
    if shorter[axis] <= 0:
        return None
    patch[axis] -= plan_topology(spacing, shorter).divisor[axis]
    return patch


def _low_resolution(
    full: Configuration, cases: int, outputs: int, budget: Budget
) -> Configuration | None:
    """A coarser grid on which a patch sees `SMALL_SHARE` of an image; None if there is no need."""
    spacing = np.array(full.spacing)
    all_voxels = math.prod(full.median_shape)
    found, voxels, patch = None, all_voxels, math.prod(full.patch)
    while patch / voxels < SMALL_SHARE:
        # Fine axes first, until all are alike.
        fine = spacing.max() / spacing > 2
        spacing = np.where(fine, spacing * _COARSER, spacing) if fine.any() else spacing * _COARSER
        scale = np.array(full.spacing) / spacing
        voxels = float(np.prod(scale * full.median_shape))
        median = tuple(float(round(n)) for n in scale * full.median_shape)
        grid = tuple(float(value) for value in spacing)
        found = _configuration("3d_lowres", grid, median, voxels * cases, outputs, budget)
        patch = math.prod(found.patch)
    return None if all_voxels / voxels < _SMALLEST_GAIN else found
