"""From an image to the network's grid, and labels back to exactly the image's own.

In nnU-Net v2's order: axes are permuted and flipped, the image is cropped, normalised and
resampled. Every step is remembered in a `Place`, which takes labels and maps back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from tttunet.errors import ImageError
from tttunet.imaging.image import MILLIMETERS, Image
from tttunet.imaging.intensity import Intensity, channel_scales, normalise_channels
from tttunet.imaging.normalise import Scales, find_scales, normalise, prepare_channels
from tttunet.imaging.orientation import towards
from tttunet.imaging.resample import (
    Box,
    box_around,
    coarse_axis,
    likeliest,
    nearest,
    resample_image,
    resample_labels,
    resample_maps,
    resampled_shape,
)

#: Spacings that agree to this share are the same: NIfTI stores 32-bit numbers.
_SAME = 1e-4


class Preprocessing(Protocol):
    """What `preprocess` takes of a `models.config.Plan`; see there."""

    @property
    def spacing(self) -> tuple[float, ...] | None: ...
    @property
    def unit(self) -> str | None: ...
    @property
    def frame(self) -> tuple[int, int] | None: ...
    @property
    def channels(self) -> Literal["rgb", "as_is"]: ...
    @property
    def normalisation(self) -> Literal["percentile", "zscore"]: ...
    @property
    def percentiles(self) -> tuple[float, float]: ...
    @property
    def intensities(self) -> tuple[Intensity, ...] | None: ...
    @property
    def orientation(self) -> str | None: ...
    @property
    def transpose(self) -> tuple[int, ...] | None: ...
    @property
    def crop(self) -> Literal["none", "nonzero"]: ...


@dataclass(frozen=True)
class Place:
    """Where an array on the network's grid belongs in the image.

    Attributes:
        shape: spatial shape of the image.
        order: for every axis of the network's grid, which axis of the image it is.
        flips: for every axis of the network's grid, whether it runs the other way.
        box: what was cropped out, after permuting and flipping.
        grid: spatial shape on the network's grid.
        coarse: axis of the network's grid that takes the nearest slice on the way there, or None.
        coarse_back: the same on the way back.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    flips: tuple[bool, ...]
    box: Box
    grid: tuple[int, ...]
    coarse: int | None = None
    coarse_back: int | None = None

    @property
    def cropped(self) -> tuple[int, ...]:
        """Spatial shape after cropping, before resampling."""
        return tuple(along.stop - along.start for along in self.box)

    @property
    def unchanged(self) -> bool:
        """The network's grid is that of the image."""
        return not self.is_turned and self.grid == self.shape == self.cropped

    @property
    def is_turned(self) -> bool:
        """Axes are permuted or flipped."""
        return self.order != tuple(range(len(self.shape))) or any(self.flips)

    def turned(self, array: np.ndarray) -> np.ndarray:
        """[..., *image] -> [..., *cropped]: permuted, flipped and cropped, a view."""
        lead = array.ndim - len(self.order)
        array = array.transpose([*range(lead), *(lead + axis for axis in self.order)])
        flipped = tuple(lead + axis for axis, flip in enumerate(self.flips) if flip)
        return np.flip(array, flipped)[(slice(None),) * lead + self.box]

    def turned_back(self, array: np.ndarray, fill: float | np.ndarray = 0) -> np.ndarray:
        """[..., *cropped] -> [..., *image], the opposite of `turned`.

        Args:
            array: any dtype.
            fill: value outside of the crop; an array has the shape of the leading axes.

        Returns:
            A C-contiguous array of the same dtype; `array` itself where nothing changes.
        """
        if not self.is_turned and self.cropped == self.shape:
            return np.ascontiguousarray(array)
        lead = array.shape[: array.ndim - len(self.order)]
        result = np.empty((*lead, *self.shape), array.dtype)
        if self.cropped != tuple(self.shape[axis] for axis in self.order):
            result[...] = np.reshape(fill, np.shape(fill) + (1,) * len(self.shape))
        self.turned(result)[...] = array
        return result

    def to_network_labels(self, labels: np.ndarray) -> np.ndarray:
        """Labels of the image on the network's grid, for training.

        Args:
            labels: [*image] integer, see `resample_labels`.

        Returns:
            [*grid], same dtype.
        """
        return np.ascontiguousarray(resample_labels(self.turned(labels), self.grid, self.coarse))

    def to_image_labels(self, maps: np.ndarray, values: np.ndarray) -> np.ndarray:
        """The likeliest class on the image's grid, without the maps on it ever being in memory.

        Peak memory beside the 4 K n bytes of `maps`, for N voxels in the image, n on the network's
        grid and b bytes per label: 2 b N + 5 n, and 8 bytes for each of `resample.SLAB` voxels.
        With the image and the maps, a CT of 512 x 512 x 600 at 0.8 x 0.8 x 1 mm and 14 classes at
        1.5 mm takes 2.3 GB at its peak (benchmarks/volume_memory.py).

        Args:
            maps: [K, *grid] float32.
            values: [K], the label of every class; outside of a crop it is the first.

        Returns:
            [*image] of the dtype of `values`.
        """
        labels = likeliest(maps, self.cropped, self.coarse_back, values)
        return self.turned_back(labels, values[0])

    def to_image_maps(self, maps: np.ndarray, fill: float | np.ndarray = 0) -> np.ndarray:
        """Maps on the image's grid, interpolated linearly.

        Args:
            maps: [K, *grid] float32.
            fill: value outside of a crop; an array has one number per map.

        Returns:
            [K, *image] float32.
        """
        return self.turned_back(resample_maps(maps, self.cropped, self.coarse_back), fill)

    def to_image_tile(self, place: Box, maps: np.ndarray) -> tuple[Box, np.ndarray]:
        """A tile of the network's grid on the image's, each voxel from the nearest; for previews.

        Args:
            place: in the network's grid.
            maps: [K, *size of the place].

        Returns:
            The place in the image and the maps there; it may be empty.
        """
        begin, size = [], []
        for axis, along in enumerate(place):
            index = nearest(self.grid[axis], self.cropped[axis])
            low, high = np.searchsorted(index, (along.start, along.stop))
            maps = maps.take(index[low:high] - along.start, axis + 1)
            start = int(low) + self.box[axis].start
            if self.flips[axis]:
                start = self.shape[self.order[axis]] - start - int(high - low)
                maps = np.flip(maps, axis + 1)
            begin.append(start)
            size.append(int(high - low))
        back = np.argsort(self.order)
        box = tuple(slice(begin[axis], begin[axis] + size[axis]) for axis in back)
        return box, maps.transpose([0, *(1 + axis for axis in back)])


@dataclass(frozen=True, eq=False)
class Prepared:
    """What the network sees of an image.

    Attributes:
        array: [C, *spatial] float32, normalised, on the network's grid. For a 2D model and a
            volume the first spatial axis is that of the slices, at its own spacing.
        place: takes labels there and back.
        spacing: of the network's grid, per spatial axis, in the image's unit.
    """

    array: np.ndarray
    place: Place
    spacing: tuple[float, ...]


def frames(image: Image) -> Iterator[Image]:
    """The time points of an image one by one; the image itself if it has no T axis."""
    if "T" not in image.axes:
        yield image
        return
    axes = image.axes.replace("T", "")
    for array in image.array:
        yield image.with_array(array, axes)


def place_of(
    shape: Sequence[int],
    spacing: Sequence[float],
    direction: np.ndarray,
    unit: str | None,
    plan: Preprocessing,
    box: Box | None = None,
) -> tuple[Place, tuple[float, ...]]:
    """Where an image lies on the network's grid, from its geometry alone.

    Args:
        shape, spacing, direction, unit: of the image, as in `Image`.
        plan: of the model.
        box: what is cropped out, after permuting and flipping; None: everything.

    Returns:
        The place, and the spacing of the network's grid per axis in the image's unit.

    Raises:
        ImageError: the plan has a spacing in a unit and the image does not tell its own, or the
            plan permutes or orients volumes and the image is flat.
    """
    n = len(shape)
    order, flips = tuple(range(n)), (False,) * n
    if plan.orientation is not None:
        order, flips = towards(direction, plan.orientation)
    if plan.transpose is not None and plan.transpose != tuple(range(len(plan.transpose))):
        if len(plan.transpose) != n:
            raise ImageError(
                f"The model reorders {len(plan.transpose)} axes, and the image has {n}.",
                "Choose a volume, or a model for single images.",
            )
        order = tuple(order[axis] for axis in plan.transpose)
        flips = tuple(flips[axis] for axis in plan.transpose)
    box = box or tuple(slice(0, shape[axis]) for axis in order)
    cropped = tuple(along.stop - along.start for along in box)
    own = tuple(spacing[axis] for axis in order)
    wanted = _wanted(own, unit, plan) if plan.frame is None else _framed(own, cropped, plan.frame)
    grid = resampled_shape(cropped, own, wanted)
    there, back = coarse_axis(own, wanted), coarse_axis(wanted, own)
    return Place(tuple(shape), order, flips, box, grid, there, back), wanted


def preprocess(
    image: Image, plan: Preprocessing, channels: int, scales: Scales | None = None
) -> Prepared:
    """Bring an image to what a network takes.

    Args:
        image: without a T axis, see `frames`.
        plan: of the model.
        channels: input channels of the network.
        scales: of the whole image that this is a part of, see `image_scales`: the part is
            normalised as it is within the whole. None: this is the whole.

    Returns:
        The normalised array on the network's grid, and its place in the image.

    Raises:
        ImageError: the image has other channels than the model takes, or as for `place_of`.
    """
    array, place, spacing = _turned(image, plan, channels)
    if plan.intensities is None:
        values = normalise(array, plan.normalisation, plan.percentiles, scales)
    else:
        inside = _inside(array, plan.intensities)
        values = normalise_channels(array, plan.intensities, inside, scales)
    if plan.frame is not None:
        values = _smoothed(values, plan.frame)
    return Prepared(resample_image(values, place.grid, place.coarse), place, spacing)


def image_scales(image: Image, plan: Preprocessing, channels: int) -> Scales:
    """The statistics by which `preprocess` normalises an image; arguments and errors as there."""
    array, _, _ = _turned(image, plan, channels)
    if plan.intensities is None:
        return find_scales(array, plan.normalisation, plan.percentiles)
    return channel_scales(array, plan.intensities, _inside(array, plan.intensities))


def _turned(
    image: Image, plan: Preprocessing, channels: int
) -> tuple[np.ndarray, Place, tuple[float, ...]]:
    """[C, *cropped], intensities as they are; its place, and the spacing of the network's grid."""
    array = prepare_channels(image, plan.channels, channels)
    geometry = (image.spatial_shape, image.spacing, image.direction, image.unit, plan)
    place, spacing = place_of(*geometry)
    if plan.crop == "nonzero":
        place, spacing = place_of(*geometry, box_around((place.turned(array) != 0).any(0)))
    if plan.intensities is not None and len(plan.intensities) != channels:
        raise ImageError(
            f"The model has rules for {len(plan.intensities)} channels and takes {channels}.",
            "Its model.json is damaged: install it again.",
        )
    return place.turned(array), place, spacing


def _inside(array: np.ndarray, rules: Sequence[Intensity]) -> np.ndarray | None:
    """Where masked rules look; None: there are none."""
    masked = any(rule.scheme == "zscore_nonzero" for rule in rules)
    return _nonzero(array) if masked else None


def _wanted(own: tuple[float, ...], unit: str | None, plan: Preprocessing) -> tuple[float, ...]:
    """The plan's spacing in the image's unit; axes that it says nothing of keep their own."""
    if plan.spacing is None:
        return own
    scale = 1.0
    if plan.unit is not None:
        if unit not in MILLIMETERS:
            size = " x ".join(f"{value:g}" for value in plan.spacing)
            raise ImageError(
                f"The model works on voxels of {size} {plan.unit}, and the image does not say how "
                "large its own are.",
                "Set the voxel size (scale and unit in napari), or save it in the file.",
            )
        scale = MILLIMETERS[plan.unit] / MILLIMETERS[unit]
    wanted = tuple(value * scale for value in plan.spacing)[-len(own) :]
    wanted = (*own[: len(own) - len(wanted)], *wanted)
    return tuple(
        mine if abs(mine - value) <= _SAME * value else value
        for mine, value in zip(own, wanted, strict=True)
    )


def _framed(
    own: tuple[float, ...], cropped: tuple[int, ...], frame: tuple[int, int]
) -> tuple[float, ...]:
    """The spacing that makes the last two axes `frame` pixels long."""
    pairs = zip(own[-2:], cropped[-2:], frame, strict=True)
    return (*own[:-2], *(mine * n / pixels for mine, n, pixels in pairs))


def _smoothed(values: np.ndarray, frame: tuple[int, int]) -> np.ndarray:
    """Without the detail that the frame's pixels cannot hold, as in scikit-image's `resize`.

    A full HD frame shrunk by interpolation alone would be mostly noise.
    """
    from scipy import ndimage

    pairs = zip(values.shape[-2:], frame, strict=True)
    sigma = [max(0.0, (n / pixels - 1) / 2) for n, pixels in pairs]
    if max(sigma) == 0:
        return values
    return ndimage.gaussian_filter(values, [0] * (values.ndim - 2) + sigma, mode="mirror")


def _nonzero(array: np.ndarray) -> np.ndarray:
    """[*spatial] bool: where any channel is not zero, holes filled."""
    from scipy import ndimage

    return ndimage.binary_fill_holes((array != 0).any(0))
