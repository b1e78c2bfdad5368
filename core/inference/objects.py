"""A table of the objects of a segmentation: size, place, intensity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tttunet.errors import ImageError
from tttunet.imaging import Image
from tttunet.measuring.objects import Grid, finish, measure

_UNIT_SYMBOLS = {"micrometer": "um", "millimeter": "mm"}
#: The outline, then pure numbers, by the number of axes.
_SHAPES = {
    2: ("perimeter", "eccentricity", "solidity"),
    3: ("surface", "sphericity", "elongation"),
}
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
    table = finish(measure(labels, _grid(image), _channels(labels, image)))
    n, values, size = len(image.spatial_axes), table.values, table.values[table.size_key]
    pixels = values["pixels"]
    columns = [values["label"].tolist()]
    if classes is not None:
        columns.append([classes.get(label, "") for label in columns[0]])
    if "T" in image.axes:
        columns.append(table.centres[:, image.axes.index("T")].astype(int).tolist())
    sizes = [pixels] if image.unit is None else [pixels, size]
    columns += [one.tolist() for one in sizes]
    columns += table.centres[:, -n:].T.tolist()
    columns += table.boxes.reshape(len(table), 2 * n).T.tolist()
    columns += [_equivalent_diameter(one, n).tolist() for one in sizes]
    columns += [values[key].tolist() for key in _SHAPES[n]]
    columns += [values[f"mean_{k}"].tolist() for k in range(image.channels)]
    names = object_columns(image, classes is not None)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def object_columns(image: Image, with_classes: bool = False) -> list[str]:
    """Names of the columns of `object_table`.

    `label`, `class` (for class labels), `t` (frame, for time series); `area_px` or, in 3D,
    `volume_voxels`; the same in the image's unit, such as `area_um2`; `centroid_*` and `bbox_*`
    per axis in pixels, where `bbox_max_*` is the first pixel outside; the diameter of a circle or
    ball of the same size; `perimeter_*`, `eccentricity` and `solidity` or, in 3D, `surface_*`,
    `sphericity` and `elongation` (see `tttunet.measuring.sums`); the mean intensity per channel.
    Physical columns are there if the image has a physical pixel size.
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
        *_shape_columns(len(axes), unit),
        *_intensity_columns(image),
    ]


def _shape_columns(n: int, unit: str | None) -> list[str]:
    border, *pure = _SHAPES[n]
    return [f"{border}_{unit or 'px'}{'' if n == 2 else 2}", *pure]


def _intensity_columns(image: Image) -> list[str]:
    if "C" not in image.axes:
        return ["mean_intensity"]
    names = _COLOURS if image.rgb else image.channel_names
    if len(set(names)) != image.channels:
        names = tuple(f"channel_{index}" for index in range(image.channels))
    return [f"mean_{name}" for name in names]


def _grid(image: Image) -> Grid:
    """Of the labels of an image, in its unit."""
    axes = image.axes.replace("C", "")
    n = len(image.spatial_axes)
    matrix = np.zeros((n, len(axes) + 1))
    matrix[:, len(axes) - n : -1] = np.diag(image.spacing if image.unit else (1.0,) * n)
    return Grid(axes, image.spatial_axes, matrix)


def _channels(labels: np.ndarray, image: Image) -> list[tuple[str, np.ndarray]]:
    """Arrays of the labels' shape."""
    position = image.axes.find("C")
    arrays = [image.array] if position < 0 else list(np.moveaxis(image.array, position, 0))
    if labels.shape != arrays[0].shape:
        raise ImageError(
            f"Labels of shape {labels.shape} do not fit '{image.name}', "
            f"which needs {arrays[0].shape}."
        )
    return list(zip(_intensity_columns(image), arrays, strict=True))


def _equivalent_diameter(sizes: np.ndarray, dim: int) -> np.ndarray:
    """Diameters of circles of these areas, or of balls of these volumes."""
    return 2 * (sizes / np.pi) ** 0.5 if dim == 2 else (6 * sizes / np.pi) ** (1 / 3)
