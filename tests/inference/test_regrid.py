"""Models with a grid of their own: labels come back on the image's, from any orientation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tiny import make_config
from tttunet.imaging import Image
from tttunet.imaging.intensity import Intensity
from tttunet.inference.segment import segment
from tttunet.models.config import Plan
from tttunet.models.model import Model

TILT = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])


def model_with(dim: int, task: str, **changes) -> Model:
    config = make_config(dim, task)
    plan = config.plan.model_dump() | {"unit": "millimeter"} | changes
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Model.create(config.model_copy(update={"plan": Plan.model_validate(plan)}))


def volume(shape=(13, 22, 27), **changes) -> Image:
    """Smooth, so that the untrained network finds both classes in places larger than a voxel."""
    from scipy import ndimage

    array = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=shape), 2)
    options = {"spacing": (3, 0.9, 1.2), "direction": TILT, "unit": "millimeter"} | changes
    return Image.from_array((2000 * array).astype(np.int16), "ZYX"[-len(shape) :], **options)


GEOMETRY = {
    "spacing": (2.0, 1.1, 1.0),
    "orientation": "LPS",
    "transpose": (1, 0, 2),
    "crop": "nonzero",
    "intensities": (
        Intensity(scheme="ct", low=-300, high=300, mean=0, deviation=100).model_dump(),
    ),
}


@pytest.mark.parametrize(("dim", "task"), [(2, "semantic"), (3, "semantic"), (3, "instance")])
def test_the_same_volume_stored_otherwise_has_the_same_labels(dim: int, task: str):
    spacing = GEOMETRY["spacing"][-dim:]
    model = model_with(dim, task, **GEOMETRY | {"spacing": spacing})
    image = volume()
    # Its axes in another order, one of them backwards.
    order = (2, 0, 1)
    other = Image.from_array(
        np.flip(image.array.transpose(order), 1),
        "ZYX",
        spacing=[image.spacing[axis] for axis in order],
        direction=image.direction[:, order] * [1, -1, 1],
        unit=image.unit,
    )
    ours, theirs = (segment(one, model, device="cpu").labels for one in (image, other))
    assert ours.shape == image.array.shape
    assert 0.01 < (ours > 0).mean() < 1
    back = np.flip(theirs, 1).transpose(np.argsort(order))
    if task == "semantic":
        np.testing.assert_array_equal(back, ours)
    else:
        np.testing.assert_array_equal(back > 0, ours > 0)


@pytest.mark.parametrize(
    ("dim", "shape", "axes"),
    [(2, (22, 27), "YX"), (2, (3, 22, 27), "TYX"), (3, (2, 9, 22, 27), "TZYX")],
)
@pytest.mark.parametrize("task", ["semantic", "instance"])
def test_labels_are_on_the_grid_of_the_image(dim: int, shape, axes: str, task: str):
    model = model_with(dim, task, spacing=(1.7,) * dim)
    array = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    array[0] = 7  # with time, a constant frame
    spacing = (3, 1, 0.7)[-dim:]
    image = Image.from_array(array, axes, spacing=spacing, unit="millimeter")
    result = segment(image, model, device="cpu", adaptation_map=True)
    assert result.labels.shape == shape
    assert result.labels.dtype == (np.uint32 if task == "instance" else np.uint8)
    assert result.adaptation_map.shape == (2, *shape)
    assert np.isfinite(result.adaptation_map).all()
    if "T" in axes:
        assert not result.labels[0].any()
        assert result.adaptation_map[:, 1].any()


@pytest.mark.parametrize("dim", [2, 3])
def test_with_maps_the_labels_are_the_same(dim: int):
    model = model_with(dim, "semantic", **GEOMETRY | {"spacing": GEOMETRY["spacing"][-dim:]})
    image = volume()
    found: dict[tuple[int, ...], np.ndarray] = {}
    whole = segment(image, model, device="cpu", maps_done=found.__setitem__)
    slabs = segment(image, model, device="cpu")
    # Where two classes are equally likely, rounding decides.
    assert (whole.labels != slabs.labels).mean() < 1e-3
    assert sorted(found) == ([()] if dim == 3 else [(i,) for i in range(13)])
    for index, maps in found.items():
        assert maps.shape == (2, *image.array.shape[len(index) :])
        np.testing.assert_allclose(maps.sum(0), 1, atol=1e-4)
        np.testing.assert_array_equal(maps.argmax(0), whole.labels[index])


@pytest.mark.parametrize("dim", [2, 3])
def test_tiles_are_shown_on_the_image(dim: int):
    model = model_with(dim, "semantic", **GEOMETRY | {"spacing": GEOMETRY["spacing"][-dim:]})
    image, steps = volume(), []
    shown = np.zeros(image.array.shape, np.uint8)

    def show(place, maps):
        shown[place] = maps.argmax(0)

    labels = segment(image, model, device="cpu", tile_done=show).labels
    # Shown from the nearest voxel of a network that knows nothing: near, and not mirrored.
    assert (shown == labels).mean() > 0.85
    assert all((np.flip(shown, axis) == labels).mean() < 0.75 for axis in range(3))
    options = {"tile": (16,) * dim, "progress": lambda *step: steps.append(step)}
    shown[...] = 9
    segment(image, model, device="cpu", tile_done=show, **options)
    assert (shown < 9).all()
    assert len(steps) > 5
    assert [done for done, _ in steps] == list(range(1, steps[-1][1] + 1))


def test_what_was_cut_off_is_background():
    model = model_with(3, "semantic", crop="nonzero")
    array = np.zeros((24, 30, 28), np.int16)
    array[3:20, 4:25, 5:25] = volume((17, 21, 20)).array
    labels = segment(Image.from_array(array, "ZYX"), model, device="cpu").labels
    inside = labels[3:20, 4:25, 5:25]
    assert inside.any()
    assert labels.sum() == inside.sum()


@pytest.mark.parametrize("changes", [{}, {"spacing": (1.1, 1.0)}])
def test_largest_components_of_a_flat_model_are_those_of_each_slice(changes):
    from scipy import ndimage

    model = model_with(2, "semantic", keep_largest=((1,),), **changes)
    image = volume()
    labels = segment(image, model).labels
    for plane in labels:
        assert ndimage.label(plane, np.ones((3, 3)))[1] == 1
    by_maps = segment(image, model, maps_done=lambda index, maps: None).labels
    assert (labels != by_maps).mean() < 1e-3
