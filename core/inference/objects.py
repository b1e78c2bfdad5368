"""A table of the objects of a segmentation: size, place, intensity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tttunet.errors import ImageError
from tttunet.imaging import Image

_UNIT_SYMBOLS = {"micrometer": "um", "millimeter": "mm"}
_COLOURS = ("red", "green", "blue")


def object_table(
    labels: np.ndarray, image: Image, classes: Mapping[int, str] | None = None
) -> list[dict[str, Any]]:
    """Measure every object.

    Args:
        labels: integers, shape of `image` without its C axis; 0 is background.
        image: what was segmented; its intensities are measured as stored.
        classes: names of the labels, for class labels; None for instances.

    Returns:
        One row per object, in the order of time and label, with the columns `object_columns`.

    Raises:
        ImageError: labels and image have different shapes.
    """
    columns = object_columns(image, classes is not None)
    return [
        dict(zip(columns, values, strict=True))
        for time, frame, intensity in _frames(labels, image)
        for values in _measure(time, frame, intensity, image, classes)
    ]


def object_columns(image: Image, with_classes: bool = False) -> list[str]:
    """Names of the columns of `object_table`.

    `label`, `class` (for class labels), `t` (frame, for time series); `area_px` or, in 3D,
    `volume_voxels`; the same in the image's unit, such as `area_um2`; `centroid_*` and `bbox_*`
    per axis in pixels, where `bbox_max_*` is the first pixel outside; the diameter of a circle or
    ball of the same size; the mean intensity per channel. Physical columns are there if the image
    has a physical pixel size.
    """
    axes = image.spatial_axes.lower()
    unit = _UNIT_SYMBOLS.get(image.unit or "")
    size, pixels = ("area", "px") if len(axes) == 2 else ("volume", "voxels")
    return [
        "label",
        *(["class"] if with_classes else []),
        *(["t"] if "T" in image.axes else []),
        f"{size}_{pixels}",
        *([f"{size}_{unit}{len(axes)}"] if unit else []),
        *(f"centroid_{axis}" for axis in axes),
        *(f"bbox_min_{axis}" for axis in axes),
        *(f"bbox_max_{axis}" for axis in axes),
        "equivalent_diameter_px",
        *([f"equivalent_diameter_{unit}"] if unit else []),
        *_intensity_columns(image),
    ]


def _intensity_columns(image: Image) -> list[str]:
    if "C" not in image.axes:
        return ["mean_intensity"]
    names = _COLOURS if image.rgb else image.channel_names
    if len(set(names)) != image.channels:
        names = tuple(f"channel_{index}" for index in range(image.channels))
    return [f"mean_{name}" for name in names]


def _frames(
    labels: np.ndarray, image: Image
) -> Iterator[tuple[int | None, np.ndarray, np.ndarray]]:
    """(frame number, [*spatial] labels, [*spatial, C] intensities)."""
    position = image.axes.find("C")
    if position < 0:
        intensity = image.array[..., np.newaxis]
    else:
        intensity = np.moveaxis(image.array, position, -1)
    if labels.shape != intensity.shape[:-1]:
        raise ImageError(
            f"Labels of shape {labels.shape} do not fit '{image.name}', "
            f"which needs {intensity.shape[:-1]}."
        )
    if "T" not in image.axes:
        yield None, labels, intensity
        return
    for time, (frame, values) in enumerate(zip(labels, intensity, strict=True)):
        yield time, frame, values


def _measure(
    time: int | None,
    labels: np.ndarray,
    intensity: np.ndarray,
    image: Image,
    classes: Mapping[int, str] | None,
) -> Iterator[list[Any]]:
    from skimage.measure import regionprops_table

    n = labels.ndim
    table = regionprops_table(
        labels, intensity, properties=("label", "area", "centroid", "bbox", "intensity_mean")
    )
    voxel = float(np.prod(image.spacing))
    for label, pixels, *rest in zip(*(column.tolist() for column in table.values()), strict=True):
        centroid, box, means = rest[:n], rest[n : 3 * n], rest[3 * n :]
        size = [int(pixels)] if image.unit is None else [int(pixels), pixels * voxel]
        yield [
            label,
            *([] if classes is None else [classes.get(label, "")]),
            *([] if time is None else [time]),
            *size,
            *centroid,
            *box,
            *(_equivalent_diameter(value, n) for value in size),
            *means,
        ]


def _equivalent_diameter(size: float, dim: int) -> float:
    """Diameter of the circle of this area, or of the ball of this volume."""
    return 2 * (size / np.pi) ** 0.5 if dim == 2 else (6 * size / np.pi) ** (1 / 3)
