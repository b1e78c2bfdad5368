"""What the network sees lies where it lay in the image, and labels come back there."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from tttunet.errors import ImageError
from tttunet.imaging import Image
from tttunet.imaging.intensity import Intensity
from tttunet.imaging.itk import from_sitk
from tttunet.imaging.orientation import orientation_of
from tttunet.imaging.preprocess import (
    Place,
    Prepared,
    frames,
    image_scales,
    place_of,
    preprocess,
)
from tttunet.models.config import Plan

RAW = (Intensity(scheme="none"),)
ORIENTATIONS = ("LPS", "RAS", "LPI", "SAR", "PIR", "AIL")
orders = st.permutations(range(3)).map(tuple)


def turned(angles: tuple[float, ...]) -> np.ndarray:
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        i, j = (k for k in range(3) if k != axis)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


@st.composite
def directions(draw: st.DrawFn) -> np.ndarray:
    """Any order of axes, any flips, tilted by up to 30 degrees."""
    signs = draw(st.tuples(*[st.sampled_from((-1, 1))] * 3))
    tilt = draw(st.tuples(*[st.floats(-0.5, 0.5)] * 3))
    return turned(tilt) @ np.eye(3)[:, list(draw(orders))] * signs


@st.composite
def volumes(draw: st.DrawFn, smallest: int = 1) -> Image:
    shape = draw(st.tuples(*[st.integers(smallest, smallest + 11)] * 3))
    return Image.from_array(
        np.random.default_rng(draw(st.integers(0, 99))).integers(-9, 9, shape).astype(np.int16),
        "ZYX",
        spacing=draw(st.tuples(*[st.floats(0.3, 6)] * 3)),
        origin=draw(st.tuples(*[st.floats(-300, 300)] * 3)),
        direction=draw(directions()),
        unit="millimeter",
        squeeze="",
    )


plans = st.builds(
    Plan,
    patch_size=st.just((16, 16, 16)),
    intensities=st.just(RAW),
    spacing=st.none() | st.tuples(*[st.floats(0.5, 5)] * 3),
    unit=st.just("millimeter"),
    orientation=st.none() | st.sampled_from(ORIENTATIONS),
    transpose=st.none() | orders,
    crop=st.sampled_from(("none", "nonzero")),
)


def world(image: Image) -> np.ndarray:
    """[3, *spatial]: where every voxel is."""
    index = np.indices(image.spatial_shape).reshape(3, -1) * np.array(image.spacing)[:, None]
    there = np.array(image.origin)[:, None] + image.direction @ index
    return there.reshape(3, *image.spatial_shape)


def one_hot(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    return (labels == values.reshape(-1, *[1] * labels.ndim)).astype(np.float32)


def place_in(image: Image, plan: Plan) -> Place:
    return preprocess(image, plan, 1).place


@settings(max_examples=60, deadline=None)
@given(image=volumes(), plan=plans)
def test_without_another_spacing_everything_comes_back_bit_for_bit(image: Image, plan: Plan):
    place = place_in(image, plan.model_copy(update={"spacing": None}))
    labels = np.where(image.array == 0, 0, image.array % 5).astype(np.uint8)
    there = place.to_network_labels(labels)
    assert there.shape == place.grid
    values = np.arange(5, dtype=np.uint8)
    back = place.to_image_labels(one_hot(there, values), values)
    assert back.flags.c_contiguous
    np.testing.assert_array_equal(back, labels)


@settings(max_examples=60, deadline=None)
@given(image=volumes(8), plan=plans)
def test_the_network_sees_every_place_where_it_is(image: Image, plan: Plan):
    """An image of its own coordinates: linear, so that splines and lines keep it inside."""
    plan = plan.model_copy(update={"crop": "none"})
    place, spacing = place_of(image.spatial_shape, image.spacing, image.direction, image.unit, plan)
    extent = np.array(place.cropped) * [image.spacing[axis] for axis in place.order]
    # The grid covers the same box: the network's voxels are `extent / grid` large.
    step = extent / place.grid
    # Less than half a voxel becomes one all the same.
    wanted = np.maximum(extent / spacing, 1)
    assert (np.abs(wanted - place.grid) <= 0.5 + 1e-6).all()
    for axis, coordinates in enumerate(world(image)):
        ramp = Image.from_array(
            coordinates.astype(np.float32),
            "ZYX",
            spacing=image.spacing,
            origin=image.origin,
            direction=image.direction,
            unit=image.unit,
            squeeze="",
        )
        seen = preprocess(ramp, plan, 1).array[0]
        index = (np.indices(place.grid).reshape(3, -1).T + 0.5) * step
        length = np.array(image.spacing)[list(place.order)]
        index = index / length - 0.5  # in voxels, after turning
        inside = np.ones(len(index), bool)
        for k, n in enumerate(place.cropped):
            if k == place.coarse:
                # Half way between two slices, rounding decides.
                inside &= np.abs(index[:, k] % 1 - 0.5) > 1e-6
                index[:, k] = np.floor(index[:, k] + 0.5)
            inside &= (index[:, k] >= 3) & (index[:, k] <= n - 4)
        stored = np.empty_like(index)
        for k, (source, flip) in enumerate(zip(place.order, place.flips, strict=True)):
            stored[:, source] = place.cropped[k] - 1 - index[:, k] if flip else index[:, k]
        there = image.origin + (stored * image.spacing) @ image.direction.T
        tolerance = 0.03 * max(image.spacing)
        np.testing.assert_allclose(seen.ravel()[inside], there[inside, axis], atol=tolerance)


@settings(max_examples=40, deadline=None)
@given(image=volumes(10), plan=plans, data=st.data())
def test_a_label_stays_where_it_was(image: Image, plan: Plan, data: st.DataObject):
    place = place_in(image, plan.model_copy(update={"crop": "none"}))
    step = np.array(place.cropped) / place.grid  # in voxels of the image, per network axis
    size = [0.0] * 3
    for axis, source in enumerate(place.order):
        size[source] = max(1.0, step[axis])
    low = [
        data.draw(st.integers(0, max(0, int(n - 3 * s))))
        for n, s in zip(image.spatial_shape, size, strict=True)
    ]
    labels = np.zeros(image.spatial_shape, np.uint8)
    labels[tuple(slice(a, a + int(np.ceil(3 * s))) for a, s in zip(low, size, strict=True))] = 7
    values = np.array([0, 7], np.uint8)
    back = place.to_image_labels(one_hot(place.to_network_labels(labels), values), values)
    assert back.shape == labels.shape
    before, after = np.argwhere(labels), np.argwhere(back)
    assert len(after)
    moved = np.abs(before.mean(0) - after.mean(0))
    assert (moved <= np.array(size)).all()
    assert (np.abs(before.min(0) - after.min(0)) <= np.array(size) + 1).all()
    assert (np.abs(before.max(0) - after.max(0)) <= np.array(size) + 1).all()


@settings(max_examples=40, deadline=None)
@given(image=volumes(), orientation=st.sampled_from(ORIENTATIONS))
def test_orientation_is_that_of_itk(image: Image, orientation: str):
    picture = sitk.GetImageFromArray(image.array)
    picture.SetSpacing(image.spacing[::-1])
    picture.SetDirection(image.direction[::-1, ::-1].ravel().tolist())
    expected = from_sitk(sitk.DICOMOrient(picture, orientation))
    plan = Plan(patch_size=(16,) * 3, orientation=orientation, intensities=RAW)
    prepared = preprocess(image, plan, 1)
    np.testing.assert_array_equal(prepared.array[0], expected.array)
    assert prepared.spacing == expected.spacing
    assert orientation_of(expected.direction) == orientation


def test_orientation_of_the_identity_is_lps():
    assert orientation_of(np.eye(3)) == "LPS"
    assert orientation_of(np.diag([1.0, -1, -1])) == "RAS"


def test_transposed_axes_are_nnunets():
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    image = Image.from_array(array, "ZYX", spacing=(3, 2, 1), unit="millimeter")
    plan = Plan(
        patch_size=(8,) * 3,
        transpose=(2, 0, 1),
        spacing=(1, 3, 2),
        unit="millimeter",
        intensities=RAW,
    )
    prepared = preprocess(image, plan, 1)
    np.testing.assert_array_equal(prepared.array[0], array.transpose(2, 0, 1))
    assert prepared.spacing == (1, 3, 2)
    with pytest.raises(ImageError, match="reorders 3 axes"):
        preprocess(Image.from_array(array[0]), plan, 1)


def test_units_are_converted_and_a_missing_one_is_told():
    plan = Plan(patch_size=(16, 16), spacing=(0.002, 0.002), unit="millimeter", intensities=RAW)
    options = {"spacing": (1, 1)}
    image = Image.from_array(np.ones((12, 20), np.uint8), unit="micrometer", **options)
    assert preprocess(image, plan, 1).array.shape == (1, 6, 10)
    with pytest.raises(ImageError, match="does not say how large"):
        preprocess(Image.from_array(np.ones((12, 20), np.uint8)), plan, 1)
    pixels = plan.model_copy(update={"unit": None, "spacing": (2.0, 2.0)})
    assert preprocess(image, pixels, 1).array.shape == (1, 6, 10)


def test_a_flat_model_keeps_the_slices_of_a_volume():
    image = Image.from_array(
        np.ones((5, 12, 20), np.uint8), "ZYX", spacing=(4, 1, 1), unit="millimeter"
    )
    plan = Plan(patch_size=(16, 16), spacing=(2, 0.5), unit="millimeter", intensities=RAW)
    prepared = preprocess(image, plan, 1)
    assert (prepared.array.shape, prepared.spacing) == ((1, 5, 6, 40), (4, 2, 0.5))


def test_crop_to_what_is_not_zero_in_any_channel():
    array = np.zeros((2, 6, 8, 9), np.float32)
    array[0, 1:4, 2:5, 3] = 1
    array[1, 3, 4, 7] = -1
    image = Image.from_array(array, "CZYX", unit="millimeter")
    plan = Plan(patch_size=(8,) * 3, crop="nonzero", intensities=RAW * 2)
    prepared = preprocess(image, plan, 2)
    assert prepared.place.box == (slice(1, 4), slice(2, 5), slice(3, 8))
    np.testing.assert_array_equal(prepared.array, array[:, 1:4, 2:5, 3:8])
    empty = Image.from_array(np.zeros((4, 5, 6), np.float32), "ZYX")
    assert preprocess(empty, plan.model_copy(update={"intensities": RAW}), 1).place.unchanged


def test_outside_of_the_crop_is_what_is_asked_for():
    place = Place((4, 5), (1, 0), (True, False), (slice(1, 4), slice(0, 2)), (3, 2))
    maps = np.random.default_rng(0).random((2, 3, 2)).astype(np.float32)
    whole = place.to_image_maps(maps, np.array([1.0, 0.0]))
    assert whole.shape == (2, 4, 5)
    np.testing.assert_array_equal(place.turned(whole), maps)
    outside = place.turned_back(np.ones((3, 2), bool)) == 0
    assert (whole[0][outside] == 1).all()
    assert (whole[1][outside] == 0).all()


@settings(max_examples=40, deadline=None)
@given(image=volumes(3), plan=plans)
def test_tiles_are_shown_where_they_belong(image: Image, plan: Plan):
    """Tiles of the network's grid cover the cropped part of the image once."""
    place = place_in(image, plan)
    maps = np.random.default_rng(0).random((2, *place.grid)).astype(np.float32)
    middle = [n // 2 for n in place.grid]
    seen = np.zeros(image.spatial_shape, int)
    shown = np.zeros((2, *image.spatial_shape), np.float32)
    for corner in np.ndindex(2, 2, 2):
        box = tuple(
            slice(m, n) if c else slice(0, m)
            for c, m, n in zip(corner, middle, place.grid, strict=True)
        )
        where, there = place.to_image_tile(box, maps[(slice(None), *box)])
        seen[where] += 1
        shown[(slice(None), *where)] = there
    np.testing.assert_array_equal(seen, place.turned_back(np.ones(place.cropped, int)))
    if place.grid == place.cropped:
        np.testing.assert_array_equal(shown, place.to_image_maps(maps))


def test_frames_are_taken_one_by_one():
    image = Image.from_array(np.arange(24).reshape(2, 3, 4), "TYX", spacing=(2, 1))
    first, second = frames(image)
    assert (first.axes, first.spacing, second.array[0, 0]) == ("YX", (2, 1), 12)
    (same,) = frames(first)
    assert same is first


def test_a_plan_must_make_sense():
    for wrong in (
        {"orientation": "LLS"},
        {"transpose": (0, 2)},
        {"spacing": (1.0, 0.0)},
        {"intensities": [{"scheme": "ct", "low": 0}]},
    ):
        with pytest.raises(ValueError, match=r"orientation|transpose|spacing|needs low"):
            Plan.model_validate({"patch_size": (16, 16)} | wrong)


def test_prepared_says_what_it_is():
    image = Image.from_array(np.ones((4, 4), np.uint8))
    prepared = preprocess(image, Plan(patch_size=(16, 16)), 1)
    assert isinstance(prepared, Prepared)
    assert prepared.place.unchanged


FRAMED = Plan(patch_size=(32, 32), intensities=RAW, frame=(48, 64))


@pytest.mark.parametrize("shape", [(480, 333), (48, 64), (20, 30), (3, 96, 100)])
def test_every_frame_is_brought_to_one_size_and_back(shape):
    yx = np.indices(shape[-2:], float) / np.reshape(shape[-2:], (2, 1, 1))
    disc = ((yx - 0.5) ** 2).sum(0) < 0.3**2
    image = Image.from_array(np.broadcast_to(disc, shape).astype(np.float32), "ZYX"[-len(shape) :])
    prepared = preprocess(image, FRAMED, 1)
    assert prepared.array.shape == (1, *shape[:-2], 48, 64)
    maps = np.concatenate([1 - prepared.array, prepared.array])
    labels = prepared.place.to_image_labels(maps, np.array([0, 7], np.uint8))
    assert labels.shape == shape
    found = labels == 7
    assert (found & disc).sum() > 0.95 * (found | disc).sum()
    there = prepared.place.to_network_labels(np.broadcast_to(disc, shape).astype(np.uint8))
    assert there.shape == prepared.array.shape[1:]


def test_a_large_frame_loses_its_noise():
    noise = np.random.default_rng(0).normal(size=(480, 640)).astype(np.float32)
    prepared = preprocess(Image.from_array(noise, "YX"), FRAMED, 1)
    assert prepared.array.std() < 0.2


@pytest.mark.parametrize(
    "wrong", [{"frame": (0, 8)}, {"spacing": (1.0, 1.0)}, {"patch_size": (8, 8, 8)}]
)
def test_frames_are_flat_and_without_scale(wrong):
    with pytest.raises(ValueError, match="frame must be"):
        Plan(**{"patch_size": (32, 32), "frame": (48, 64), **wrong})


CT = Intensity(scheme="ct", low=-5, high=60, mean=3, deviation=7)


@pytest.mark.parametrize(
    "rules",
    [
        {"normalisation": "percentile"},
        {"normalisation": "zscore"},
        {"intensities": (CT,)},
        *({"intensities": (Intensity(scheme=s),)} for s in ("zscore", "rescale", "rgb", "none")),
        {"intensities": (Intensity(scheme="zscore_nonzero"),), "crop": "nonzero"},
    ],
    ids=str,
)
def test_a_part_is_normalised_as_it_is_in_the_whole(rules: dict):
    array = np.random.default_rng(0).normal(50, 9, (24, 30)).astype(np.float32)
    array[:, 15:] *= 4
    array[:3] = 0
    plan = Plan(patch_size=(8, 8), **rules)
    scales = image_scales(Image.from_array(array), plan, 1)
    whole = np.zeros((24, 30), np.float32)
    prepared = preprocess(Image.from_array(array), plan, 1)
    whole[prepared.place.box] = prepared.array[0]
    part = preprocess(Image.from_array(array[5:20, 2:14]), plan, 1, scales)
    np.testing.assert_array_equal(part.array[0], whole[5:20, 2:14])
