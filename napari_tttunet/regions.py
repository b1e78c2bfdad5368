"""The part of an image that the user means: what is in view, a rectangle, this plane.

napari moves the planes of all layers by world coordinates; these functions ask the viewer or a
Shapes layer for theirs and give `Bounds`, indices into the image's data at level 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from napari_tttunet.axes import data_shape
from napari_tttunet.geometry import Bounds, Transform, bounds_of_points, corners, full_bounds
from tttunet.errors import ImageError


def view_bounds(viewer: Any, layer: Any, axes: str, planes: str = "all") -> Bounds:
    """The pixels that the canvas shows at the moment.

    Args:
        viewer: napari's viewer, after its first drawing.
        layer: an Image layer.
        axes: its axes.
        planes: `all`, or `current` for those that the sliders stand at. Channels are all taken.

    Raises:
        ImageError: the canvas shows no part of the image.
    """
    shape = data_shape(layer)
    bounds = dict(enumerate(full_bounds(shape)))
    if planes == "current":
        bounds |= _current_planes(viewer, layer, axes)
    shown = displayed_axes(viewer, layer)
    if viewer.dims.ndisplay == 2 and len(shown) == 2:
        low, high = _canvas_world(viewer)
        factors = world_factors(viewer, layer)[shown]
        points = corners(low, high) / factors
        bounds |= bounds_of_points(Transform.of(layer), points, shown, shape)
    return tuple(bounds[axis] for axis in range(layer.ndim))


def plane_bounds(viewer: Any, layer: Any, axes: str) -> Bounds:
    """The planes and frames that the sliders stand at, whole; all channels.

    Raises:
        ImageError: the sliders stand beside the image.
    """
    bounds = dict(enumerate(full_bounds(data_shape(layer))))
    bounds |= _current_planes(viewer, layer, axes)
    return tuple(bounds[axis] for axis in range(layer.ndim))


def shape_bounds(
    viewer: Any, shapes: Any, layer: Any, axes: str, planes: str = "all"
) -> list[Bounds]:
    """The pixels around the shapes of a Shapes layer: the selected ones, or all if none is.

    Args:
        viewer: napari's viewer.
        shapes: a Shapes layer.
        layer: an Image layer.
        axes: its axes.
        planes: `all`, or `current` for the planes that the shape was drawn in.

    Raises:
        ImageError: there is no shape, or one lies outside the image.
    """
    chosen = sorted(shapes.selected_data) or list(range(len(shapes.data)))
    if not chosen:
        raise ImageError(
            f"'{shapes.name}' has no shapes.", "Draw a rectangle around the region first."
        )
    return [_around(viewer, shapes, i, layer, axes, planes) for i in chosen]


def _around(viewer: Any, shapes: Any, index: int, layer: Any, axes: str, planes: str) -> Bounds:
    vertices = np.asarray(shapes.data[index], float)
    shift = layer.ndim - shapes.ndim
    # The mouse draws in a plane: the other coordinates of all vertices are the same number.
    drawn = [a for a in range(shapes.ndim) if np.ptp(vertices[:, a]) > 0 and a + shift >= 0]
    if not drawn:
        raise ImageError("The chosen shape is a single point.", "Draw a rectangle instead.")
    world = Transform.of(shapes).to_world(vertices) * world_factors(viewer, shapes)
    inside = [a + shift for a in drawn]
    points = world[:, drawn] / world_factors(viewer, layer)[inside]
    shape = data_shape(layer)
    bounds = dict(enumerate(full_bounds(shape)))
    if planes == "current":
        point = np.array(viewer.dims.point, float)[-layer.ndim :]
        common = min(layer.ndim, shapes.ndim)
        point[layer.ndim - common :] = world[0, shapes.ndim - common :]
        bounds |= _planes_at(viewer, layer, axes, point, inside)
    bounds |= bounds_of_points(Transform.of(layer), points, inside, shape)
    return tuple(bounds[axis] for axis in range(layer.ndim))


def _current_planes(viewer: Any, layer: Any, axes: str) -> dict[int, tuple[int, int]]:
    point = np.array(viewer.dims.point, float)[-layer.ndim :]
    return _planes_at(viewer, layer, axes, point, displayed_axes(viewer, layer))


def _planes_at(
    viewer: Any, layer: Any, axes: str, point: np.ndarray, shown: Sequence[int]
) -> dict[int, tuple[int, int]]:
    """One plane per axis that is neither shown nor that of the channels."""
    hidden = [axis for axis in range(layer.ndim) if axis not in shown]
    if not hidden:
        return {}
    local = (point / world_factors(viewer, layer))[hidden]
    try:
        planes = bounds_of_points(Transform.of(layer), local[None], hidden, data_shape(layer))
    except ImageError as error:
        raise ImageError(
            f"The sliders stand beside '{layer.name}'.", "Move them to a plane of the image."
        ) from error
    return {axis: found for axis, found in planes.items() if axes[axis] != "C"}


def displayed_axes(viewer: Any, layer: Any) -> list[int]:
    """The layer's axes that the canvas shows; layers are lined up at their last axes."""
    shift = layer.ndim - viewer.dims.ndim
    return [axis + shift for axis in sorted(viewer.dims.displayed) if axis + shift >= 0]


def _canvas_world(viewer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest world coordinates that the canvas shows, of the two displayed axes."""
    camera = viewer_camera(viewer)
    centre = np.array(camera.center, float)[-2:]
    # napari has no public size of the canvas.
    size = np.array(viewer.window._qt_viewer.canvas.size, float)
    if list(viewer.dims.displayed) != sorted(viewer.dims.displayed):
        centre, size = centre[::-1], size[::-1]
    half = size / (2 * camera.zoom)
    return centre - half, centre + half


def viewer_camera(viewer: Any) -> Any:
    """The camera, which napari 0.9 moved to the scene."""
    return getattr(viewer, "scene", viewer).camera


def world_factors(viewer: Any, layer: Any) -> np.ndarray:
    """World units of the viewer per unit of a layer's axes; all 1 before napari mixes units."""
    units = getattr(viewer.dims, "units", None)
    if not units:
        return np.ones(layer.ndim)
    factors = []
    for own, shared in zip(layer.units, tuple(units)[-layer.ndim :], strict=True):
        alike = own.dimensionality == shared.dimensionality
        factors.append(float((1 * own).to(shared).magnitude) if alike else 1.0)
    return np.array(factors)
