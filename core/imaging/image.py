"""The one object that carries an image from the reader to the writer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tttunet.errors import ImageError
from tttunet.imaging.axes import (
    CANONICAL,
    check_array,
    check_axes,
    resolve_axes,
    spatial_axes,
    to_canonical,
)

#: Millimetres of a unit of length.
MILLIMETERS = {"micrometer": 1e-3, "millimeter": 1.0}


@dataclass(frozen=True, eq=False)
class Image:
    """An array and what is known about it. Make one with `load_image` or `Image.from_array`.

    A voxel with spatial index i lies at `origin + direction @ (i * spacing)`; the world's axes
    are in the array's order (z, y, x), and follow LPS where a medical format defines them.

    Attributes:
        array: numeric dtype as stored, dimensions in the order of `axes`.
        axes: a subsequence of TCZYX that ends in YX.
        spacing: distance between voxels per spatial axis (Z, Y, X), in `unit`.
        origin: world position of the first voxel's centre, same order and unit.
        direction: [n, n] float64, the world direction of each spatial axis as columns.
        unit: "micrometer", "millimeter", or None where the distance is in pixels.
        channel_names: one per channel, or empty where unknown.
        rgb: the C axis holds red, green and blue rather than separate stains.
        name: the file name without folder and suffixes.
        path: the file it came from, if any.
        notes: what the reader met that a person should know, one sentence each.
    """

    array: np.ndarray = field(repr=False)
    axes: str
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: np.ndarray = field(repr=False)
    unit: str | None = None
    channel_names: tuple[str, ...] = ()
    rgb: bool = False
    name: str = "image"
    path: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def spatial_axes(self) -> str:
        """Y and X, or Z, Y and X, as letters."""
        return spatial_axes(self.axes)

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        return self.array.shape[-self.ndim_spatial :]

    @property
    def ndim_spatial(self) -> int:
        return len(self.spatial_axes)

    @property
    def channels(self) -> int:
        """Number of channels; 1 without a C axis."""
        return self.array.shape[self.axes.index("C")] if "C" in self.axes else 1

    @classmethod
    def from_array(
        cls,
        array: np.ndarray,
        axes: str | None = None,
        *,
        spacing: Sequence[float] | None = None,
        origin: Sequence[float] | None = None,
        direction: np.ndarray | None = None,
        unit: str | None = None,
        channel_names: Sequence[str] = (),
        name: str = "image",
        path: Path | None = None,
        squeeze: str = "TCZ",
    ) -> Image:
        """Brings an array of any axis order to an `Image`.

        Alpha is dropped, axes of size 1 are dropped, and the rest is sorted to TCZYX (as a view).

        Args:
            array: integer, floating-point or boolean.
            axes: one letter of T, C, Z, Y, X, S per dimension; None is allowed in 2D only.
            spacing, origin: one number per spatial axis of `axes`, in the order Z, Y, X;
                1 and 0 by default.
            direction: [n, n] in the same order; identity by default.
            unit: of spacing and origin: "micrometer", "millimeter" or None (pixels).
            channel_names: ignored unless there is one per channel.
            name: used in messages and for output files.
            path: the file the array came from.
            squeeze: axes that are dropped if their size is 1.

        Raises:
            ImageError: the array is empty or not numeric, or the axes are missing or wrong.
        """
        array = np.asarray(array)
        source = f"'{path}'" if path else f"'{name}'"
        check_array(array, source)
        if axes is None:
            guess = ("Q" * array.ndim + "YX")[-array.ndim :]
            array, axes = resolve_axes(array, guess, source)
        else:
            axes = check_axes(axes, array.shape, source)
        given = len(spatial_axes(axes))
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        array, axes, rgb = to_canonical(array, axes, source, squeeze)

        n = len(spatial_axes(axes))
        space = _per_axis(spacing, 1.0, given, "spacing")[-n:]
        if not all(np.isfinite(value) and value > 0 for value in space):
            raise ImageError(f"{source} has the spacing {space}.", "Distances must be positive.")
        matrix = np.eye(given) if direction is None else np.asarray(direction, np.float64)
        if matrix.shape != (given, given):
            raise ImageError(f"direction has shape {matrix.shape}, {(given, given)} is expected.")
        image = cls(
            array=array,
            axes=axes,
            spacing=space,
            origin=_per_axis(origin, 0.0, given, "origin")[-n:],
            direction=matrix[-n:, -n:].copy(),
            unit=unit,
            rgb=rgb,
            name=name,
            path=path,
        )
        names = tuple(channel_names)
        return replace(image, channel_names=names if len(names) == image.channels else ())

    def with_array(self, array: np.ndarray, axes: str) -> Image:
        """The same place in the world with another array, e.g. one frame, or labels.

        Args:
            array: dimensions in the order of `axes`.
            axes: a subsequence of TCZYX with no spatial axis that this image lacks.

        Raises:
            ImageError: the axes are not of that kind or do not fit the array.
        """
        check_axes(axes, array.shape, f"'{self.name}'")
        kept = spatial_axes(axes)
        if not (_is_subsequence(axes, CANONICAL) and _is_subsequence(kept, self.axes)):
            raise ImageError(f"The axes '{axes}' do not follow from '{self.axes}' in TCZYX order.")
        n = len(kept)
        channels = array.shape[axes.index("C")] if "C" in axes else 1
        same_channels = "C" in axes and "C" in self.axes and channels == self.channels
        return replace(
            self,
            array=array,
            axes=axes,
            spacing=self.spacing[-n:],
            origin=self.origin[-n:],
            direction=self.direction[-n:, -n:],
            channel_names=self.channel_names if same_channels else (),
            rgb=self.rgb and same_channels,
        )

    def select_channel(self, channel: int | str) -> Image:
        """One channel, by number (from 0) or by name, without the C axis.

        Raises:
            ImageError: there is no such channel.
        """
        names = self.channel_names
        index = names.index(channel) if channel in names else -1
        if index < 0 and str(channel).isdigit():
            index = int(channel)
        if not 0 <= index < self.channels:
            known = ", ".join(names) if names else f"0 to {self.channels - 1}"
            raise ImageError(f"'{self.name}' has no channel '{channel}'.", f"It has {known}.")
        if "C" not in self.axes:
            return self
        position = self.axes.index("C")
        image = self.with_array(self.array.take(index, position), self.axes.replace("C", ""))
        return replace(image, channel_names=names[index : index + 1])


def _is_subsequence(text: str, whole: str) -> bool:
    rest = iter(whole)
    return all(letter in rest for letter in text)


def _per_axis(
    values: Sequence[float] | None, default: float, count: int, what: str
) -> tuple[float, ...]:
    if values is None:
        return (default,) * count
    if len(values) != count:
        raise ImageError(f"{what} has {len(values)} numbers, {count} are expected.")
    return tuple(float(value) for value in values)
