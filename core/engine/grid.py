"""The client's array and the core's `Image` of it: the same pixels, axes in another order.

The core sorts axes to TCZYX and leaves out those of size 1; results go back to the order and
the shape that the client asked with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tttunet.engine import exchange
from tttunet.engine.messages import ImageRef
from tttunet.imaging import Image, load_image


@dataclass(frozen=True)
class Grid:
    """Where labels belong.

    Attributes:
        axes: of the labels as the client wants them, letters of TZYX.
        shape: of these.
        kept: those that the image has, in the order of the image.
    """

    axes: str
    shape: tuple[int, ...]
    kept: str

    def create(
        self, path: str | Path, dtype: Any, leading: Sequence[int] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        """A new array file, and a view of it on the grid of the image.

        Args:
            path: the file.
            dtype: of the array.
            leading: sizes of further axes before the others.
        """
        array = exchange.create_array(path, (*leading, *self.shape), dtype)
        n = len(leading)
        dropped = tuple(n + i for i, letter in enumerate(self.axes) if letter not in self.kept)
        rest = "".join(letter for letter in self.axes if letter in self.kept)
        order = [n + rest.index(letter) for letter in self.kept]
        return array, array.squeeze(dropped).transpose([*range(n), *order])

    def arranged(self, array: np.ndarray) -> np.ndarray:
        """An array with the client's axes, seen on the grid of the image."""
        dropped = tuple(i for i, letter in enumerate(self.axes) if letter not in self.kept)
        rest = "".join(letter for letter in self.axes if letter in self.kept)
        return array.squeeze(dropped).transpose([rest.index(letter) for letter in self.kept])

    def point(self, at: Sequence[float]) -> tuple[float, ...]:
        """A point with the client's axes from one on the grid of the image."""
        found = dict(zip(self.kept, at, strict=True))
        return tuple(found.get(letter, 0.0) for letter in self.axes)

    def bounds(self, place: Sequence[slice]) -> tuple[tuple[int, int], ...]:
        """[start, stop) per axis of the client from a place on the grid of the image."""
        found = {
            letter: (along.start, along.stop)
            for letter, along in zip(self.kept, place, strict=True)
        }
        return tuple(found.get(letter, (0, 1)) for letter in self.axes)


def open_image(
    ref: ImageRef, channel: str = "", part: Sequence[tuple[int, int]] = ()
) -> tuple[Image, Grid]:
    """The image that a reference names; an array is mapped, not read.

    Args:
        ref: names it.
        channel: name or number of the one channel; empty: all.
        part: [start, stop) per axis of an array but S; empty: all of it. A part has the geometry
            of the whole.

    Raises:
        ImageError: the axes do not fit the array, or the file cannot be read.
    """
    path = Path(ref.path) if ref.path else None
    if ref.array:
        array = exchange.open_array(ref.array)[tuple(slice(*along) for along in part)]
        axes = (ref.axes or "YX").upper()
        image = Image.from_array(
            array,
            axes,
            spacing=ref.spacing or None,
            origin=ref.origin or None,
            direction=np.array(ref.direction) if ref.direction else None,
            unit=ref.unit,
            channel_names=ref.channel_names,
            name=ref.name,
            path=path,
        )
        sizes = {letter: n for letter, n in zip(axes, array.shape, strict=True)}
    else:
        image = load_image(ref.path, ref.axes or None)
        axes = image.axes
        sizes = dict(zip(axes, image.array.shape, strict=True))
    if channel:
        image = image.select_channel(channel)
    wanted = "".join(letter for letter in axes if letter not in "CS")
    kept = image.axes.replace("C", "")
    return image, Grid(wanted, tuple(sizes[letter] for letter in wanted), kept)
