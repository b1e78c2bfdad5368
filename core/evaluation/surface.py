"""Normalised surface Dice (NSD): how much of two surfaces lies within a tolerance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tttunet.errors import DatasetError


def surface_dice(
    pred: np.ndarray,
    truth: np.ndarray,
    *,
    tolerance: float,
    spacing: Sequence[float] | None = None,
    valid: np.ndarray | None = None,
) -> float:
    """Share of both surfaces that lies within `tolerance` of the other one.

    This is "surface Dice at tolerance" of Nikolov et al. 2018 (arXiv:1809.04430): surface elements
    lie between the pixels and are weighted by their length (2D) or area (3D), so the score does
    not depend on how the grid's spacing differs between the axes. The image's edge closes an
    object. It is the definition of the DeepMind package `surface-distance` and of the FLARE and
    U-Mamba evaluation scripts.

    Args:
        pred: bool mask, [Y, X] or [Z, Y, X].
        truth: bool mask of the same shape.
        tolerance: in the unit of `spacing`, >= 0.
        spacing: pixel size per axis; None: 1.
        valid: bool, same shape. Pixels outside it belong to neither mask, and surface elements
            that touch them are not counted: that surface is cut, not drawn.

    Returns:
        0 to 1; 0 if only one mask is empty; NaN if there is no surface to compare.

    Raises:
        DatasetError: shapes, spacing or tolerance make no sense.
    """
    pred, truth = np.asarray(pred, dtype=bool), np.asarray(truth, dtype=bool)
    spacing = (1.0,) * pred.ndim if spacing is None else tuple(float(s) for s in spacing)
    _check(pred, truth, tolerance, spacing)
    valid = np.ones(pred.shape, dtype=bool) if valid is None else np.asarray(valid, dtype=bool)
    pred, truth = pred & valid, truth & valid
    if not pred.any() or not truth.any():
        return 0.0 if pred.any() or truth.any() else math.nan
    pred, truth, valid = _crop([pred, truth, valid], around=pred | truth)
    within, total = _measure(pred, truth, valid, spacing, tolerance)
    return within / total if total else math.nan


def _check(
    pred: np.ndarray, truth: np.ndarray, tolerance: float, spacing: tuple[float, ...]
) -> None:
    if pred.shape != truth.shape:
        raise DatasetError(
            f"The predicted mask has the shape {pred.shape}, the true one {truth.shape}."
        )
    if pred.ndim not in (2, 3):
        raise DatasetError(f"The NSD is defined in 2D and 3D, not for {pred.ndim} dimensions.")
    if len(spacing) != pred.ndim or not all(math.isfinite(s) and s > 0 for s in spacing):
        raise DatasetError(
            f"The NSD of a {pred.ndim}D image needs {pred.ndim} spacings above 0, not {spacing}."
        )
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise DatasetError(f"An NSD tolerance must be 0 or more, not {tolerance}.")


def _crop(arrays: list[np.ndarray], around: np.ndarray) -> list[np.ndarray]:
    """Cut [pred, truth, valid] to the bounding box of `around` and one pixel more, so that the
    surface is closed; beyond the image's edge that pixel is background, and valid."""
    box, padding = [], []
    for axis in range(around.ndim):
        other = tuple(a for a in range(around.ndim) if a != axis)
        filled = np.flatnonzero(around.any(axis=other))
        first, last = int(filled[0]) - 1, int(filled[-1]) + 2
        box.append(slice(max(first, 0), last))
        padding.append((max(-first, 0), max(last - around.shape[axis], 0)))
    fills = (False, False, True)
    return [
        np.pad(array[tuple(box)], padding, constant_values=fill)
        for array, fill in zip(arrays, fills, strict=True)
    ]


def _measure(
    pred: np.ndarray,
    truth: np.ndarray,
    valid: np.ndarray,
    spacing: tuple[float, ...],
    tolerance: float,
) -> tuple[float, float]:
    """Size of both surfaces that is within the tolerance, and size of both surfaces."""
    # MONAI's pieces rather than its `compute_surface_dice`: that one cannot leave out the cuts
    # along ignored pixels. MONAI rather than PyPI's `surface-distance` (same tables): it is
    # maintained, and says where the elements are. It takes seconds to import, hence here.
    import torch
    from monai.metrics.utils import get_mask_edges, get_surface_distance

    edges_pred, edges_truth, sizes_pred, sizes_truth = (
        found.numpy()
        for found in get_mask_edges(
            torch.from_numpy(pred), torch.from_numpy(truth), crop=False, spacing=spacing
        )
    )
    counted = valid
    for axis in range(valid.ndim):  # a surface element lies between 2, 4, 8 pixels
        counted = np.moveaxis(counted, axis, 0)
        counted = np.moveaxis(counted[1:] & counted[:-1], 0, axis)
    within = total = 0.0
    for edges, sizes, other in (
        (edges_pred, sizes_pred, edges_truth),
        (edges_truth, sizes_truth, edges_pred),
    ):
        distances = np.asarray(get_surface_distance(edges, other, spacing=spacing))
        weights = np.where(counted, sizes, 0)[edges].astype(np.float64)
        total += float(weights.sum())
        # In float32, like the distances: three pixels of 0.1 mm are within 0.3 mm.
        within += float(weights[distances <= np.float32(tolerance)].sum())
    return within, total
