"""Pictures of an image with the outlines of its labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from tttunet.errors import ImageError
from tttunet.imaging.image import Image
from tttunet.imaging.normalise import normalise

#: Bright on grey, on dark fluorescence and on pink histology alike (8-bit RGB).
PALETTE = (
    (255, 225, 25),
    (0, 255, 255),
    (255, 64, 64),
    (64, 255, 64),
    (255, 0, 255),
    (255, 140, 0),
    (60, 120, 255),
    (200, 255, 160),
)
_COMFORTABLE, _LARGEST, _MOST_ENLARGED = 1024, 4096, 8


def fitting_scale(shape: Sequence[int]) -> float:
    """Enlargement (a whole number) or reduction (1 over one) that makes a plane good to look at."""
    longest = max(shape)
    if longest > _LARGEST:
        return 1 / math.ceil(longest / _LARGEST)
    return float(min(_MOST_ENLARGED, max(1, _COMFORTABLE // longest)))


def draw_overlay(
    image: Image,
    labels: np.ndarray,
    *,
    colors: Mapping[int, tuple[int, int, int]] | None = None,
    scale: float = 1.0,
) -> np.ndarray:
    """Draws the outlines of labels over the contrast-stretched image.

    Of a stack, the plane with most labelled pixels is drawn (the middle one if there are none).
    Separate stains are drawn in grey, the brightest of them at every pixel.

    Args:
        image: any image.
        labels: integers, shape of `image` without its C axis; 0 is background.
        colors: 8-bit RGB per label; labels without one, or all if None, take turns in `PALETTE`.
        scale: a whole number enlarges, one over a whole number reduces.

    Returns:
        uint8 [Y * scale, X * scale, 3].

    Raises:
        ImageError: labels and image have different shapes.
    """
    plane, outlined = _busiest_plane(image, np.asarray(labels))
    step = max(1, round(1 / scale))
    plane, outlined = plane[:, ::step, ::step], outlined[::step, ::step]
    picture = np.clip(normalise(plane, "percentile") * 255, 0, 255).astype(np.uint8)
    picture = picture if image.rgb else picture.max(axis=0, keepdims=True)
    picture = np.repeat(picture.transpose(1, 2, 0), 1 if image.rgb else 3, axis=2)
    factor = max(1, round(scale))
    picture = picture.repeat(factor, 0).repeat(factor, 1)
    outlined = outlined.repeat(factor, 0).repeat(factor, 1)

    thickness = max(min(factor, 2), round(max(outlined.shape) / 400))
    edge = _inner_edge(outlined, thickness)
    numbers = outlined[edge]
    drawn = np.array(PALETTE, np.uint8)[(numbers.astype(np.int64) - 1) % len(PALETTE)]
    for number, color in (colors or {}).items():
        drawn[numbers == number] = color
    picture[edge] = drawn
    return picture


def _busiest_plane(image: Image, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[C, Y, X] of the image and [Y, X] of the labels."""
    position = image.axes.find("C")
    array = image.array[np.newaxis] if position < 0 else np.moveaxis(image.array, position, 0)
    if labels.shape != array.shape[1:]:
        raise ImageError(
            f"Labels of shape {labels.shape} do not fit '{image.name}', "
            f"which needs {array.shape[1:]}."
        )
    if labels.ndim == 2:
        return array, labels
    counts = np.count_nonzero(labels, axis=(-2, -1))
    busiest = np.argmax(counts) if counts.any() else counts.size // 2
    place = np.unravel_index(busiest, counts.shape)
    return array[(slice(None), *place)], labels[place]


def _inner_edge(labels: np.ndarray, thickness: int) -> np.ndarray:
    """Labelled pixels that have another label within `thickness` pixels."""
    from scipy import ndimage

    size = 2 * thickness + 1
    lowest = ndimage.minimum_filter(labels, size, mode="nearest")
    highest = ndimage.maximum_filter(labels, size, mode="nearest")
    return (labels > 0) & (lowest != highest)
