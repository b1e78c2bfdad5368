"""nnU-Net's published rules, on cases computed by hand and on its own published plans."""

from __future__ import annotations

import numpy as np
import pytest

from tttunet.errors import DatasetError
from tttunet.training.plan.fingerprint import Fingerprint
from tttunet.training.plan.rules import (
    CPU,
    GPU,
    axis_order,
    configurations,
    target_spacing,
)
from tttunet.training.plan.topology import feature_elements, plan_topology, stage_features


def data_set(shape, spacing, cases=50) -> Fingerprint:
    return Fingerprint(
        dim=len(shape),
        unit="millimeter",
        names=tuple(map(str, range(cases))),
        shapes=(shape,) * cases,
        spacings=(spacing,) * cases,
        relative_size=1.0,
        orientation=None,
        channels=("MR",),
        rgb=False,
        statistics=None,
    )


def test_equal_axes_are_halved_together_until_four_are_left():
    # 40 -> 20 -> 10 -> 5 and 56 -> 28 -> 14 -> 7: neither 5 nor 7 can be halved again.
    found = plan_topology((1, 1, 1), (36, 50, 35))
    assert found.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert found.kernels == ((3, 3, 3),) * 4
    assert found.patch == (40, 56, 40)
    assert found.divisor == (8, 8, 8)


def test_a_coarse_axis_waits_until_the_others_are_as_coarse():
    # In-plane 1.5, 3, 6: only then 10 is less than twice as much. Then 10 -> 5 voxels is the end.
    found = plan_topology((10, 1.5, 1.5), (10, 160, 192))
    assert found.strides == (
        (1, 1, 1),
        (1, 2, 2),
        (1, 2, 2),
        (2, 2, 2),
        (1, 2, 2),
        (1, 2, 2),
    )
    assert found.kernels[:3] == ((1, 3, 3), (1, 3, 3), (3, 3, 3))
    assert found.kernels[-1] == (3, 3, 3)


def test_a_lonely_axis_is_halved_only_from_twelve():
    assert plan_topology((1, 1), (11, 7)).strides == ((1, 1),)
    assert plan_topology((1, 1), (12, 7)).strides == ((1, 1), (2, 1))
    assert plan_topology((1, 1), (13, 7)).patch == (14, 7)


def test_feature_elements():
    topology = plan_topology((1, 1), (8, 8))
    assert topology.strides == ((1, 1), (2, 2))
    # Full resolution: two convolutions, one upsampling and two convolutions of 2 channels, a head
    # of 3 on 64 pixels; below: two convolutions of 4 channels on 16.
    assert feature_elements(topology, (2, 4), 3) == 5 * 2 * 64 + 3 * 64 + 2 * 4 * 16
    assert stage_features(6, 32, 320) == (32, 64, 128, 256, 320, 320)


def test_target_spacing_is_the_median():
    spacings = np.array([[2.0, 1.0, 1.0], [2.5, 1.0, 1.0], [6.0, 0.8, 0.8]])
    shapes = np.full((3, 3), 100)
    assert target_spacing(spacings, shapes) == (2.5, 1.0, 1.0)


def test_target_spacing_of_few_thick_slices_is_finer():
    coarse = np.array([5.0] * 2 + [10.0] * 9)
    spacings = np.stack([coarse, np.full(11, 1.5), np.full(11, 1.5)], 1)
    shapes = np.array([[10, 200, 200]] * 11)
    # The second smallest of eleven is the 10th percentile.
    assert target_spacing(spacings, shapes) == (5.0, 1.5, 1.5)
    many = np.array([[100, 200, 200]] * 11)
    assert target_spacing(spacings, many) == (10.0, 1.5, 1.5)
    spacings[:2, 0] = 0.5
    assert target_spacing(spacings, shapes) == pytest.approx((1.5 + 1e-5, 1.5, 1.5), abs=1e-9)


def test_axis_order():
    assert axis_order((0.8, 0.8, 4.0)) == (2, 0, 1)
    assert axis_order((1.0, 5.0, 1.0)) == (1, 0, 2)
    assert axis_order((1.0, 1.0, 1.0)) == (0, 1, 2)


def test_published_plans():
    """What nnU-Net v2 reports for Medical Segmentation Decathlon data of these sizes."""
    hippocampus = configurations(data_set((36, 50, 35), (1, 1, 1), 260), 3)["3d_fullres"]
    assert (hippocampus.patch, hippocampus.batch_size) == ((40, 56, 40), 9)
    assert hippocampus.features == (32, 64, 128, 256)
    brain = configurations(data_set((138, 170, 140), (1, 1, 1), 480), 4)
    assert brain["3d_fullres"].patch == (128, 128, 128)
    assert brain["3d_fullres"].batch_size == 2
    assert set(brain) == {"2d", "3d_fullres"}
    prostate = configurations(data_set((20, 320, 320), (3.6, 0.62, 0.62), 32), 3)["3d_fullres"]
    assert (prostate.patch, prostate.batch_size) == ((20, 320, 256), 2)


def test_axes_and_low_resolution():
    found = configurations(data_set((512, 512, 300), (0.8, 0.8, 2.5)), 14)
    full, low = found["3d_fullres"], found["3d_lowres"]
    assert full.order == (2, 0, 1)
    assert full.spacing == (2.5, 0.8, 0.8)
    assert full.median_shape == (300, 512, 512)
    assert np.prod(low.patch) >= 0.25 * np.prod(low.median_shape)
    assert max(low.spacing) / min(low.spacing) <= 2.1
    assert np.prod(full.median_shape) > 2 * np.prod(low.median_shape)
    assert found["2d"].spacing == (0.8, 0.8)
    assert found["2d"].patch == (512, 512)


def test_a_smaller_budget_gives_a_smaller_training():
    data = data_set((138, 170, 140), (1, 1, 1))
    large, small = (configurations(data, 4, b)["3d_fullres"] for b in (GPU, CPU))
    assert np.prod(small.patch) < np.prod(large.patch) / 5
    assert small.features[0] == 16
    assert small.batch_size == 2
    for found, budget in ((large, GPU), (small, CPU)):
        elements = feature_elements(found.topology, found.features, 4)
        assert elements * found.batch_size <= 2 * 560e6 * budget.gigabytes / 8


def test_a_batch_holds_a_twentieth_of_the_data_at_most():
    assert configurations(data_set((64, 64), (1, 1), 20), 2)["2d"].batch_size == 2
    assert configurations(data_set((64, 64), (1, 1), 200), 2)["2d"].batch_size == 10


def test_too_small_for_a_network():
    with pytest.raises(DatasetError, match="too small"):
        configurations(data_set((7, 7), (1, 1)), 2)
