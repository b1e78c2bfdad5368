"""The NSD against a twin that measures every 2x2(x2) neighbourhood and every distance by itself."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage import measure

from tttunet.errors import DatasetError
from tttunet.evaluation import surface_dice


def element_size(block: np.ndarray, spacing: tuple[float, ...]) -> float:
    """Length or area of the surface inside one 2x2 or 2x2x2 neighbourhood (marching squares, and
    cubes in which ambiguous diagonals are cut apart, for a block and its complement alike)."""
    if 2 * block.sum() > block.size:
        block = ~block
    if block.ndim == 2:
        if block.sum() == 2 and block[0, 0] != block[1, 1]:
            return spacing[1] if block[0, 0] == block[0, 1] else spacing[0]
        return block.sum() * math.hypot(*spacing) / 2
    vertices, faces, _, _ = measure.marching_cubes(
        block.astype(float), 0.5, spacing=spacing, method="lorensen"
    )
    return measure.mesh_surface_area(vertices, faces)


def surface(mask: np.ndarray, valid: np.ndarray, spacing) -> tuple[np.ndarray, np.ndarray, list]:
    """Positions [E, n], sizes [E] and whether each element counts."""
    padded, known = np.pad(mask, 1), np.pad(valid, 1, constant_values=True)
    positions, sizes, counts = [], [], []
    for corner in itertools.product(*(range(n - 1) for n in padded.shape)):
        window = tuple(slice(c, c + 2) for c in corner)
        if padded[window].any() and not padded[window].all():
            positions.append(np.multiply(corner, spacing))
            sizes.append(element_size(padded[window], spacing))
            counts.append(bool(known[window].all()))
    return np.array(positions), np.array(sizes), counts


def twin(pred, truth, tolerance, spacing, valid=None) -> float:
    valid = np.ones(pred.shape, bool) if valid is None else valid
    sides = [surface(mask & valid, valid, spacing) for mask in (pred, truth)]
    within = total = 0.0
    for (ours, sizes, counts), (theirs, _, _) in (sides, sides[::-1]):
        distances = np.linalg.norm(ours[:, None] - theirs[None], axis=-1).min(axis=1)
        total += sizes[counts].sum()
        within += sizes[counts][distances[counts] <= tolerance + 1e-9].sum()
    return within / total


def blobs(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.2) > 0.08


CASES = [
    ((12, 15), (1.0, 1.0), 1.0),
    ((12, 15), (0.5, 2.0), 1.1),
    ((12, 15), (3.0, 0.7), 0.0),
    ((6, 7, 8), (1.0, 1.0, 1.0), 1.0),
    ((6, 7, 8), (5.0, 0.8, 0.7), 2.0),
]


@pytest.mark.parametrize(("shape", "spacing", "tolerance"), CASES)
def test_agrees_with_brute_force(shape, spacing, tolerance):
    for seed in range(3):
        pred, truth = blobs(shape, 2 * seed), blobs(shape, 2 * seed + 1)
        expected = twin(pred, truth, tolerance, spacing)
        assert 0 < expected < 1
        found = surface_dice(pred, truth, tolerance=tolerance, spacing=spacing)
        assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("shape", "spacing", "tolerance"), CASES)
def test_agrees_with_brute_force_inside_a_valid_area(shape, spacing, tolerance):
    pred, truth, valid = blobs(shape, 1), blobs(shape, 2), ~blobs(shape, 3)
    expected = twin(pred, truth, tolerance, spacing, valid)
    found = surface_dice(pred, truth, tolerance=tolerance, spacing=spacing, valid=valid)
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
@pytest.mark.parametrize(("shape", "spacing", "tolerance"), CASES)
def test_agrees_with_monai(shape, spacing, tolerance):
    import torch
    from monai.metrics import compute_surface_dice

    pred, truth = blobs(shape, 8), blobs(shape, 9)
    theirs = compute_surface_dice(
        torch.from_numpy(pred)[None, None],
        torch.from_numpy(truth)[None, None],
        [tolerance],
        include_background=True,
        spacing=list(spacing),
        use_subvoxels=True,
    )
    ours = surface_dice(pred, truth, tolerance=tolerance, spacing=spacing)
    assert ours == pytest.approx(theirs.item(), abs=1e-5)


def box(shape: tuple[int, ...], start: tuple[int, ...], stop: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return mask


@pytest.mark.parametrize(
    ("axis", "tolerance", "perfect"), [(0, 2.9, False), (0, 3.0, True), (1, 0.5, True)]
)
def test_spacing_says_how_far_a_shift_is(axis, tolerance, perfect):
    # One voxel is 3 mm along the first axis and 0.5 mm along the others.
    truth = box((10, 10, 10), (3, 3, 3), (7, 7, 7))
    shifted = np.roll(truth, 1, axis=axis)
    score = surface_dice(shifted, truth, tolerance=tolerance, spacing=(3, 0.5, 0.5))
    assert (score == 1.0) is perfect


def test_a_distance_of_exactly_the_tolerance_is_within():
    truth = box((20, 20), (5, 5), (9, 9))
    for pixels in range(1, 6):
        shifted = np.roll(truth, pixels, axis=1)
        tolerance = np.float64(f"{pixels * 0.1:.1f}")
        assert surface_dice(shifted, truth, tolerance=tolerance, spacing=(0.1, 0.1)) == 1.0


def test_it_is_symmetric():
    pred, truth = blobs((14, 14), 4), blobs((14, 14), 5)
    there = surface_dice(pred, truth, tolerance=1, spacing=(1, 2))
    back = surface_dice(truth, pred, tolerance=1, spacing=(1, 2))
    assert there == pytest.approx(back)


def test_an_object_at_the_edge_is_closed_there():
    whole = np.ones((4, 5), dtype=bool)
    assert surface_dice(whole, whole, tolerance=0) == 1.0
    assert 0 < surface_dice(box((4, 5), (0, 0), (4, 3)), whole, tolerance=0.5) < 1


def test_the_cut_along_ignored_pixels_does_not_count():
    # Both end at the ignored columns; without `valid` that end would count as agreement.
    shape = (9, 20)
    pred, truth = box(shape, (2, 2), (5, 20)), box(shape, (5, 2), (8, 20))
    valid = box(shape, (0, 0), (9, 18))
    assert surface_dice(pred, truth, tolerance=0.4, valid=valid) == pytest.approx(
        twin(pred, truth, 0.4, (1, 1), valid)
    )
    nothing_but_cuts = box(shape, (6, 4), (7, 5))
    assert math.isnan(surface_dice(truth, truth, tolerance=1, valid=nothing_but_cuts))


def test_empty_masks():
    empty, full = np.zeros((4, 4), dtype=bool), box((4, 4), (1, 1), (3, 3))
    assert math.isnan(surface_dice(empty, empty, tolerance=1))
    assert surface_dice(empty, full, tolerance=100) == 0.0
    assert surface_dice(full, empty, tolerance=100) == 0.0


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((3, 3), (3, 4)), {"tolerance": 1}, r"\(3, 3\).*\(3, 4\)"),
        (((3,), (3,)), {"tolerance": 1}, "2D and 3D"),
        (((3, 3), (3, 3)), {"tolerance": 1, "spacing": (1, 1, 1)}, "needs 2 spacings"),
        (((3, 3), (3, 3)), {"tolerance": 1, "spacing": (1, 0)}, "above 0"),
        (((3, 3), (3, 3)), {"tolerance": -1}, "tolerance"),
        (((3, 3), (3, 3)), {"tolerance": math.nan}, "tolerance"),
    ],
)
def test_impossible_arguments_are_refused(shapes, options, message):
    with pytest.raises(DatasetError, match=message):
        surface_dice(*(np.ones(shape, dtype=bool) for shape in shapes), **options)
