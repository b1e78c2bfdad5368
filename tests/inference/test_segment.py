import numpy as np
import pytest
import torch

from tiny import make_config
from tttunet.errors import Cancelled, ImageError, TTTUNetError
from tttunet.imaging import Image
from tttunet.inference.device import pick_device
from tttunet.inference.segment import segment
from tttunet.models.model import Model


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    return {
        (dim, task): Model.create(make_config(dim, task))
        for dim in (2, 3)
        for task in ("instance", "semantic")
    }


def image(axes, shape, **options):
    array = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    return Image.from_array(array, axes=axes, **options)


@pytest.mark.parametrize(
    ("axes", "shape", "dim"),
    [
        ("YX", (37, 51), 2),
        ("YX", (1, 5), 2),
        ("CYX", (1, 20, 20), 2),
        ("TYX", (2, 20, 24), 2),
        ("ZYX", (3, 20, 24), 2),
        ("TZYX", (2, 3, 20, 24), 2),
        ("ZYX", (9, 20, 24), 3),
        ("TZYX", (2, 9, 20, 24), 3),
    ],
)
@pytest.mark.parametrize("task", ["instance", "semantic"])
def test_labels_are_on_the_grid_of_the_image(models, axes, shape, dim, task):
    result = segment(image(axes, shape), models[dim, task], device="cpu")
    assert result.axes == axes.replace("C", "")
    assert result.labels.shape == tuple(n for n, a in zip(shape, axes, strict=True) if a != "C")
    assert result.labels.dtype == (np.uint32 if task == "instance" else np.uint8)
    assert result.model == "tiny 1.0.0"
    assert result.seconds > 0


def test_objects_of_different_slices_have_different_numbers(models, monkeypatch):
    from tttunet.inference import segment as module

    plane = np.zeros((8, 8), np.uint32)
    plane[:2], plane[5:] = 1, 2
    monkeypatch.setattr(module, "predict_labels", lambda *args, **options: plane.copy())
    result = segment(image("ZYX", (3, 8, 8)), models[2, "instance"], device="cpu")
    assert sorted(np.unique(result.labels)) == [0, 1, 2, 3, 4, 5, 6]
    assert result.count == 6


@pytest.mark.parametrize("value", [0, 7, 255])
@pytest.mark.parametrize("task", ["instance", "semantic"])
def test_constant_images_are_background(models, value, task):
    flat = Image.from_array(np.full((33, 40), value, np.uint8))
    labels = segment(flat, models[2, task], device="cpu").labels
    assert labels.shape == (33, 40)
    assert labels.dtype == (np.uint32 if task == "instance" else np.uint8)
    assert not labels.any()


def test_a_single_pixel_is_refused(models):
    with pytest.raises(ImageError, match="single pixel"):
        segment(image("YX", (1, 1)), models[2, "instance"], device="cpu")


def test_not_finite_pixels_do_not_fail(models):
    array = np.random.default_rng(0).random((33, 40)).astype(np.float32)
    array[0, 0], array[1, 1], array[2, 2] = np.nan, np.inf, -np.inf
    labels = segment(Image.from_array(array), models[2, "instance"], device="cpu").labels
    assert labels.shape == (33, 40)


def test_progress_covers_all_planes_and_cancel_stops(models):
    seen: list[tuple[int, int]] = []
    stack = image("ZYX", (3, 64, 100))
    options = {"device": "cpu", "tile": (64, 64)}
    segment(stack, models[2, "semantic"], progress=lambda *a: seen.append(a), **options)
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert {total for _, total in seen} == {len(seen)}
    with pytest.raises(Cancelled):
        segment(stack, models[2, "semantic"], cancel=lambda: True, **options)


def test_a_volume_model_refuses_a_plane(models):
    with pytest.raises(ImageError, match="takes volumes"):
        segment(image("YX", (20, 20)), models[3, "semantic"], device="cpu")


def test_the_wrong_number_of_channels_is_named(models):
    with pytest.raises(ImageError, match="channel"):
        segment(image("CYX", (4, 20, 20)), models[2, "semantic"], device="cpu")


def test_devices():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(TTTUNetError, match="Unknown device"):
        pick_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(TTTUNetError, match="not available"):
            pick_device("cuda")
