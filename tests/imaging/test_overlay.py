"""Pictures with outlines."""

from __future__ import annotations

import numpy as np
import pytest

from tttunet.imaging import Image, draw_overlay
from tttunet.imaging.overlay import PALETTE, fitting_scale


def squares() -> np.ndarray:
    labels = np.zeros((60, 80), np.uint32)
    labels[10:30, 10:30] = 1
    labels[10:30, 30:50] = 2
    return labels


def test_outlines_are_inside_their_objects_in_their_colours() -> None:
    image = Image.from_array(np.tile(np.arange(80, dtype=np.uint16), (60, 1)))
    drawn = draw_overlay(image, squares())
    assert (drawn.dtype, drawn.shape) == (np.uint8, (60, 80, 3))
    assert tuple(drawn[10, 15]) == PALETTE[0]
    assert tuple(drawn[20, 29]) == PALETTE[0]
    assert tuple(drawn[20, 30]) == PALETTE[1]
    for inside in (drawn[20, 20], drawn[50, 70], drawn[0, 0]):
        assert len(set(inside)) == 1  # the grey image
    assert drawn[50, 79].max() == 255
    assert drawn[50, 0].max() == 0


def test_given_colours() -> None:
    image = Image.from_array(np.zeros((60, 80)))
    drawn = draw_overlay(image, squares(), colors={1: (1, 2, 3)})
    assert tuple(drawn[10, 15]) == (1, 2, 3)
    assert tuple(drawn[10, 45]) == PALETTE[1]


def test_outlines_grow_with_the_picture() -> None:
    image = Image.from_array(np.zeros((2000, 60), np.uint8))
    labels = np.zeros((2000, 60), int)
    labels[100:500, 20:50] = 1
    drawn = draw_overlay(image, labels)
    assert drawn[300, 20:25].any(axis=1).all()
    assert not drawn[300, 25].any()


@pytest.mark.parametrize("axes", ["ZYX", "TYX", "TZYX", "TCZYX"])
def test_busiest_plane_of_a_stack(axes: str) -> None:
    sizes = {"T": 2, "C": 3, "Z": 4, "Y": 30, "X": 40}
    array = np.zeros([sizes[letter] for letter in axes], np.uint8)
    labels = np.zeros([sizes[letter] for letter in axes if letter != "C"], np.uint16)
    labels[..., :10, :10] = 1
    busiest = (-1,) * (labels.ndim - 2)
    labels[(*busiest, slice(0, 20), slice(0, 20))] = 5
    drawn = draw_overlay(Image.from_array(array, axes), labels)
    assert drawn.shape == (30, 40, 3)
    assert tuple(drawn[19, 5]) == PALETTE[4]


def test_no_labels_and_strange_images() -> None:
    assert draw_overlay(Image.from_array(np.zeros((9, 9))), np.eye(9, dtype=bool)).any()
    for array in (np.full((4, 5), np.nan), np.full((1, 1), np.inf), np.zeros((5, 5), bool)):
        drawn = draw_overlay(Image.from_array(array), np.zeros(array.shape, int))
        assert drawn.shape == (*array.shape, 3)
    stack = Image.from_array(np.arange(5).repeat(12).reshape(5, 3, 4), "ZYX")
    assert draw_overlay(stack, np.zeros((5, 3, 4), int)).shape == (3, 4, 3)


def test_colour_image_keeps_its_colours() -> None:
    array = np.zeros((30, 40, 3), np.uint8)
    array[:, :20] = 200, 50, 100
    drawn = draw_overlay(Image.from_array(array, "YXS"), np.zeros((30, 40), int))
    assert drawn[5, 5, 0] > drawn[5, 5, 2] > drawn[5, 5, 1]


@pytest.mark.parametrize(
    ("shape", "scale", "drawn"),
    [((1, 1), 8, (8, 8)), ((256, 200), 4, (1024, 800)), ((1000, 10), 1, (1000, 10))],
)
def test_scale(shape: tuple[int, int], scale: float, drawn: tuple[int, int]) -> None:
    assert fitting_scale(shape) == scale
    picture = draw_overlay(Image.from_array(np.zeros(shape)), np.ones(shape, int), scale=scale)
    assert picture.shape[:2] == drawn


def test_very_large_images_are_reduced() -> None:
    assert fitting_scale((10000, 100)) == pytest.approx(1 / 3)
    image = Image.from_array(np.zeros((90, 60), np.uint8))
    assert draw_overlay(image, np.zeros((90, 60), int), scale=1 / 3).shape == (30, 20, 3)
