"""Labels of single frames of films, and of single slices of stacks."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from tiny import blobs, make_config
from tttunet.errors import DatasetError
from tttunet.imaging.image import Image
from tttunet.training.prepare import IGNORE
from tttunet.training.samples import Sample, to_cases

SHAPE = (96, 128)


def film(count: int) -> tuple[Image, np.ndarray]:
    """Frames of which each is brighter than the one before, and the labels of all."""
    image, labels = blobs(0, SHAPE, 12)
    first = (image[0].astype(np.float32) * 50 + 60).clip(0, 255)
    array = np.stack([first * (1 + number / count) for number in range(count)]).astype(np.uint8)
    return Image.from_array(array, "TYX", name="film"), labels


def at(number: int, *rest: int) -> tuple[tuple[int, int], ...]:
    return (*((n, n + 1) for n in (number, *rest)), *((0, n) for n in SHAPE))


def test_every_frame_is_normalised_by_itself():
    image, labels = film(6)
    samples = [Sample(f"t{n}", image, labels, at(n)) for n in (4, 1, 1)]
    cases = to_cases(samples, make_config())
    alone = [Image.from_array(image.array[n], "YX") for n in (4, 1, 1)]
    single = [Sample("x", one, labels) for one in alone]
    for ours, theirs in zip(cases, to_cases(single, make_config()), strict=True):
        assert np.array_equal(ours.image, theirs.image)
        assert np.array_equal(ours.label, theirs.label)
    assert not np.array_equal(cases[0].image, cases[1].image)


def test_only_the_labelled_frames_of_a_film_are_normalised():
    image, labels = film(200)
    tracemalloc.start()
    try:
        to_cases([Sample("t7", image, labels, at(7))], make_config())
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < image.array.nbytes  # as 32-bit floats, all frames take four times that


def test_slices_of_stacks_in_time():
    image, labels = film(4)
    stacks = Image.from_array(np.stack([image.array, image.array // 2]), "TZYX")
    sample = Sample("t1z2", stacks, labels, at(1, 2))
    (case,) = to_cases([sample], make_config())
    (other,) = to_cases(
        [Sample("z2", Image.from_array(stacks.array[1], "ZYX"), labels, at(2))], make_config()
    )
    assert np.array_equal(case.image, other.image)
    with pytest.raises(DatasetError, match="not said which slice"):
        to_cases([replace(sample, bounds=at(1))], make_config())
    with pytest.raises(DatasetError, match="is 2D, the model 3D"):
        to_cases([Sample("film", image, np.full((1, 8, 8), IGNORE))], make_config(3))
