"""Between the core's images and napari's layers: how a place in a file becomes a place on screen.

A medical file says where each voxel lies in the patient: ITK's world is LPS (x to the left, y to
the back, z to the head), in millimeters. napari's world axes are those of the array (Z, Y, X),
so a layer from such a file has

    scale                   the spacing
    translate               the origin (z, y, x), if the volume is not rotated
    affine                  direction and origin, if it is

and its world coordinates are LPS, read from z to x. A file in RAS (NIfTI) is converted by ITK.

napari can only slice volumes whose axes point along its world axes in the same order. Of a
volume that was stored in another order (sagittal or coronal slices), the axes of the world are
therefore exchanged, and the head is up; `geometry["world"]` in the layer's metadata says which
patient axis each world axis is (z, y, x if none is exchanged, -z towards the feet). Layers of
different orders do not lie on top of each other in napari, but each is shown right, and is
written back to where it was.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from napari_tttunet.axes import guess_axes
from napari_tttunet.geometry import Transform
from napari_tttunet.placement import file_geometry, world_matrix, world_placement
from tttunet.errors import ImageError
from tttunet.imaging.image import Image

#: What napari adds a layer from: data, keyword arguments of the layer, type of the layer.
LayerData = tuple[Any, dict[str, Any], str]

#: Colour maps of separate channels, up to two and more.
_TWO = ("magenta", "green")
_MANY = ("cyan", "yellow", "magenta", "red", "green", "blue")


# From files to layers


def image_layers(image: Image, kind: str = "image") -> list[LayerData]:
    """An image as napari wants it: colour last, other channels as layers of their own.

    Args:
        image: any `Image`.
        kind: `image` or `labels`.
    """
    channel = image.axes.find("C")
    if channel < 0:
        return [(image.array, _arguments(image, image.axes), kind)]
    axes = image.axes.replace("C", "")
    if image.rgb:
        data = np.moveaxis(image.array, channel, -1)
        return [(data, {**_arguments(image, axes), "rgb": True}, kind)]
    layers: list[LayerData] = []
    colours = _TWO if image.channels <= len(_TWO) else _MANY
    for index in range(image.channels):
        arguments = _arguments(image, axes)
        names = image.channel_names
        arguments["name"] = f"{image.name}: {names[index] if names else f'channel {index}'}"
        if image.channels > 1:
            arguments |= {"colormap": colours[index % len(colours)], "blending": "additive"}
        layers.append((np.take(image.array, index, channel), arguments, kind))
    return layers


def _arguments(image: Image, axes: str) -> dict[str, Any]:
    """The keyword arguments of a layer with the axes `axes` (no C) at the place of an image."""
    n, extra = image.ndim_spatial, len(axes) - image.ndim_spatial
    arguments: dict[str, Any] = {
        "name": image.name,
        "scale": (1.0,) * extra + image.spacing,
        "axis_labels": tuple(axes.lower()),
        "metadata": {"tttunet": {"axes": axes}},
    }
    if image.unit:
        arguments["units"] = ("pixel",) * extra + (image.unit,) * n
    if np.array_equal(image.direction, np.eye(n)):
        world = tuple(image.spatial_axes.lower())
        if any(image.origin):
            arguments["translate"] = (0.0,) * extra + image.origin
    else:
        world = _world_axes(image)
        turn = world_matrix(world, image.spatial_axes)
        affine = np.eye(extra + n + 1)
        affine[extra:-1, extra:-1] = turn @ image.direction
        affine[extra:-1, -1] = turn @ image.origin
        arguments["affine"] = affine
    if image.unit == "millimeter" and image.path is not None:
        arguments["metadata"]["tttunet"]["geometry"] = {
            "world": world,
            "spacing": image.spacing,
            "origin": image.origin,
            "direction": image.direction.tolist(),
            "unit": image.unit,
            "path": str(image.path),
        }
    return arguments


def _world_axes(image: Image) -> tuple[str, ...]:
    """The patient axis that each axis of the array follows most; upright in napari's 2D view."""
    weights = np.abs(image.direction)
    order = max(
        itertools.permutations(range(image.ndim_spatial)),
        key=lambda rows: sum(weights[row, column] for column, row in enumerate(rows)),
    )
    letters = [image.spatial_axes[i].lower() for i in order]
    upside_down = letters[-2] == "z"  # napari's second last axis points down
    return tuple("-z" if letter == "z" and upside_down else letter for letter in letters)


# From layers to files


def labels_image(data: Any, meta: dict[str, Any]) -> Image:
    """The labels of a layer as an `Image`, at the place that the layer has in napari's world.

    A layer that still lies where the file it belongs to lies gets the numbers of that file.

    Args:
        data: array, or a list of arrays of which the first is the finest level.
        meta: the layer's attributes as napari hands them to writers.

    Raises:
        ImageError: the layer is sheared, or its axes cannot be named.
    """
    array = np.asarray(
        data[0] if isinstance(data, list | tuple) or meta.get("multiscale") else data
    )
    layer = _Described(array, meta)
    axes = _label_axes(layer)
    kept = [i for i, letter in enumerate(axes) if letter != "C"]
    array = array.reshape([array.shape[i] for i in kept])
    placement = world_placement(layer.transform, axes, layer.units, layer.metadata)
    if placement is None:
        raise ImageError(
            f"'{layer.name}' is sheared, which no file of labels can say.",
            "Remove the shear of the layer, or save the labels without it.",
        )
    geometry = file_geometry(layer.metadata)
    return Image.from_array(
        array,
        axes.replace("C", ""),
        spacing=placement.spacing,
        origin=placement.origin,
        direction=placement.direction,
        unit=placement.unit,
        name=layer.name,
        path=Path(geometry["path"]) if "path" in geometry else None,
        squeeze="",
    )


class _Described:
    """What `guess_axes` asks of a layer, from the attributes that a writer is handed."""

    def __init__(self, array: np.ndarray, meta: dict[str, Any]) -> None:
        self.data, self.ndim = array, array.ndim
        self.name = str(meta.get("name") or "labels")
        self.metadata = meta.get("metadata") or {}
        self.transform = Transform.build(
            array.ndim, *(meta.get(k) for k in ("scale", "translate", "rotate", "shear", "affine"))
        )
        self.scale = self.transform.scale
        self.axis_labels = tuple(meta.get("axis_labels") or ())
        self.units = _units(meta.get("units"), array.ndim)


def _units(units: Any, ndim: int) -> tuple[Any, ...]:
    """napari's units: pint's objects, their names, one name for all, or nothing."""
    import pint

    registry = pint.get_application_registry()
    if units is None:
        units = "pixel"
    listed = [units] * ndim if isinstance(units, str | pint.Unit) else list(units)
    return tuple(registry.Unit(unit) for unit in listed)


def _label_axes(layer: _Described) -> str:
    """The axes of labels; C only for a single plane that stands for all channels."""
    own = layer.metadata.get("tttunet") if isinstance(layer.metadata, dict) else None
    axes = own.get("axes", "") if isinstance(own, dict) else ""
    if len(axes) == layer.ndim and set("YX") <= set(axes) and len(set(axes)) == len(axes):
        single = "C" not in axes or layer.data.shape[axes.index("C")] == 1
        if single and set(axes) <= set("TCZYX"):
            return axes
    return guess_axes(layer).axes
