"""Between objects and the viewer: going to one, and telling which one is meant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from napari_tttunet.geometry import Transform
from napari_tttunet.regions import viewer_camera, world_factors
from tttunet.measuring.table import ObjectTable

#: Pixels of the screen that a mouse may move during a click.
_STILL = 4


def go_to(viewer: Any, layer: Any, point: np.ndarray) -> None:
    """Move the sliders and the camera of a viewer to a point of a layer.

    Args:
        viewer: its zoom is left alone.
        layer: one of its layers.
        point: data coordinates, all axes.
    """
    world = Transform.of(layer).to_world(point) * world_factors(viewer, layer)
    shift = viewer.dims.ndim - layer.ndim
    for axis in viewer.dims.not_displayed:
        if axis >= shift:
            viewer.dims.set_point(axis, world[axis - shift])
    shown = [world[a - shift] if a >= shift else 0.0 for a in viewer.dims.displayed]
    camera = viewer_camera(viewer)
    camera.center = tuple(float(x) for x in shown)


def row_of_label(viewer: Any, layer: Any, table: ObjectTable, label: int) -> int:
    """The row of a label; of several (frames or slices), the one that the viewer shows; or -1."""
    rows = np.flatnonzero(table.values["label"] == label)
    if len(rows) > 1:
        world = np.array(viewer.dims.point, float)[-layer.ndim :] / world_factors(viewer, layer)
        shift = viewer.dims.ndim - layer.ndim
        hidden = [axis - shift for axis in viewer.dims.not_displayed if axis >= shift]
        apart = np.abs(table.centres[rows] - Transform.of(layer).to_data(world))[:, hidden]
        rows = rows[[np.argmin(apart.sum(1))]]
    return int(rows[0]) if len(rows) else -1


def label_at(layer: Any, event: Any) -> int:
    """The label under the mouse; 0: none.

    Args:
        layer: a Labels layer; one that is hidden has labels in the 2D view only.
        event: of the mouse, as a viewer's callbacks get it.
    """
    if not layer.visible:  # napari knows nothing of it
        return _hidden_label_at(layer, event)
    value = layer.get_value(
        event.position,
        view_direction=event.view_direction,
        dims_displayed=event.dims_displayed,
        world=True,
    )
    value = value[-1] if isinstance(value, tuple) else value  # of a pyramid
    return int(value or 0)


def _hidden_label_at(layer: Any, event: Any) -> int:
    if layer.multiscale or len(event.dims_displayed) == 3:
        return 0
    place = tuple(np.round(layer.world_to_data(event.position)).astype(int))
    inside = all(0 <= at < size for at, size in zip(place, layer.data.shape, strict=True))
    return int(np.asarray(layer.data[place])) if inside else 0


def click_listener(clicked: Callable[[Any], None]) -> Callable[[Any, Any], Iterator[None]]:
    """A mouse callback of a viewer that hears clicks, not drags."""

    def on_drag(viewer: Any, event: Any) -> Iterator[None]:
        start = np.array(event.pos, float)
        yield
        while event.type == "mouse_move":
            yield
        if np.abs(np.array(event.pos, float) - start).max() < _STILL:
            clicked(event)

    return on_drag
