"""What the dimensions of an array are: letters, checks, and the one order used everywhere.

T is time, C channel, Z, Y and X are space; S stands for the samples of a colour pixel (RGB or
RGBA) and only occurs on the way in: an `Image` holds colour on its C axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, permutations

import numpy as np

from tttunet.errors import ImageError

CANONICAL = "TCZYX"
SPATIAL = "ZYX"
LETTERS = "TCZYXS"


def spatial_axes(axes: str) -> str:
    """The spatial letters of `axes` in the order Z, Y, X."""
    return "".join(letter for letter in SPATIAL if letter in axes)


def check_array(array: np.ndarray, source: str) -> None:
    """Raises `ImageError` if an array is empty, not numeric, complex or has under 2 dimensions."""
    if array.dtype.kind == "c":
        raise ImageError(
            f"{source} holds complex numbers.", "Save the magnitude or the phase instead."
        )
    if array.dtype.kind not in "buif":
        raise ImageError(f"{source} holds {array.dtype} data, not numbers.")
    if array.ndim < 2:
        raise ImageError(f"{source} has {array.ndim} dimensions; an image needs at least two.")
    if array.size == 0:
        raise ImageError(f"{source} is empty: its shape is {array.shape}.")


def check_axes(axes: str, shape: Sequence[int], source: str) -> str:
    """Checks axes that a person gave against the shape of the array.

    Args:
        axes: one letter of T, C, Z, Y, X, S per dimension, in either case.
        shape: the array's shape.
        source: what the array is called in messages.

    Returns:
        The letters in upper case.

    Raises:
        ImageError: a letter is unknown or occurs twice, Y or X is missing, or the number of
            letters differs from the number of dimensions.
    """
    letters = axes.strip().upper()
    hint = "Give one letter of T, C, Z, Y, X or S (RGB samples) per dimension, e.g. --axes ZYX."
    unknown = sorted(set(letters) - set(LETTERS))
    if unknown:
        raise ImageError(f"The axes '{axes}' have the unknown letter '{unknown[0]}'.", hint)
    if len(set(letters)) != len(letters):
        raise ImageError(f"The axes '{axes}' name an axis twice.", hint)
    if not {"Y", "X"} <= set(letters):
        raise ImageError(f"The axes '{axes}' lack Y or X.", hint)
    if len(letters) != len(shape):
        raise ImageError(
            f"{source} has shape {_text(shape)}, which needs {len(shape)} axes; "
            f"'{axes}' has {len(letters)}.",
            hint,
        )
    return letters


def resolve_axes(array: np.ndarray, axes: str, source: str) -> tuple[np.ndarray, str]:
    """Makes sure that axes found in a file are known; unknown ones of size 1 are dropped.

    Args:
        array: any shape.
        axes: one letter per dimension; letters other than T, C, Z, Y, X, S are unknown.
        source: what the array is called in messages.

    Raises:
        ImageError: an axis could be several things; the message gives the shape and the choices.
    """
    keep = [letter in LETTERS or size != 1 for letter, size in zip(axes, array.shape, strict=True)]
    array = array[tuple(slice(None) if kept else 0 for kept in keep)]
    axes = "".join(letter for letter, kept in zip(axes, keep, strict=True) if kept)
    if set(axes) <= set(LETTERS) and len(set(axes)) == len(axes) and {"Y", "X"} <= set(axes):
        return array, axes
    choices = _choices(axes, array.shape)
    if choices:
        options = ", ".join(choices[:-1]) + f" or {choices[-1]}" if choices[1:] else choices[0]
        hint = f"Say it with --axes (axes= in Python): {options}."
    else:
        hint = "Name every axis with --axes (axes= in Python), e.g. ZYX."
    raise ImageError(
        f"{source} has shape {_text(array.shape)} and nothing says what each axis is.", hint
    )


def to_canonical(
    array: np.ndarray, axes: str, source: str, squeeze: str = "TCZ"
) -> tuple[np.ndarray, str, bool]:
    """Drops alpha and axes of size 1, turns samples into channels and sorts to TCZYX.

    Args:
        array: any numeric dtype; a view of it is returned.
        axes: letters of T, C, Z, Y, X, S, one per dimension.
        source: what the array is called in messages.
        squeeze: axes that are dropped if their size is 1.

    Returns:
        The array, its axes (a subsequence of TCZYX) and whether C holds colour (RGB).

    Raises:
        ImageError: there are both channels and colour samples.
    """
    rgb = False
    if "S" in axes:
        samples = axes.index("S")
        if array.shape[samples] in (2, 4):
            array = array[(slice(None),) * samples + (slice(0, -1),)]
        rgb = array.shape[samples] == 3
    for letter in squeeze + "S":
        if letter in axes and array.shape[axes.index(letter)] == 1:
            array = array.squeeze(axes.index(letter))
            axes = axes.replace(letter, "")
    if {"C", "S"} <= set(axes):
        raise ImageError(
            f"{source} has both channels and colour samples, shape {_text(array.shape)} ({axes}).",
            "Save one of the channels, or the colour image alone.",
        )
    axes = axes.replace("S", "C")
    order = sorted(range(len(axes)), key=lambda i: CANONICAL.index(axes[i]))
    return array.transpose(order), "".join(axes[i] for i in order), rgb


def _choices(axes: str, shape: Sequence[int]) -> list[str]:
    """Plausible readings of `axes`, most likely first, at most six."""
    if axes.count("Y") != 1 or axes.count("X") != 1:
        return []
    unknown = [i for i, letter in enumerate(axes) if letter not in LETTERS]
    free = [
        letter for letter in "ZTC" if letter not in axes and not (letter == "C" and "S" in axes)
    ]
    found = []
    for letters in permutations(free, len(unknown)):
        named = dict(zip(unknown, letters, strict=True))
        found.append("".join(named.get(i, letter) for i, letter in enumerate(axes)))
    # Time and planes are almost always stored before channels, and time first.
    found.sort(key=lambda text: (text.find("T") > 0, text.find("C") == 0))
    if unknown == [0] and axes[1:] == "YX" and shape[-1] in (3, 4):
        found.append("YXS")
    return list(islice(found, 6))


def _text(shape: Sequence[int]) -> str:
    return str(tuple(int(size) for size in shape))
