"""The layers that a segmentation makes: which one is replaced, and which one must never be.

The plugin owns a labels layer as long as its pixels are those that the plugin put there. Whoever
paints in it, or accepts it, makes it theirs: the next result then gets a layer of its own.
"""

from __future__ import annotations

import math
import time
import weakref
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from napari_tttunet.layers import LabelGrid

#: Ends the name of a layer that was accepted.
TICK = " \N{CHECK MARK}"
#: A preview is made coarser until a plane has at most so many pixels along an axis.
PREVIEW_PIXELS = 2048
#: There is no preview of more pixels than this.
LARGEST_PREVIEW = 2**28
#: Of labels, and of a preview of them.
OPACITY, _PREVIEW_OPACITY = 0.7, 0.4
#: Seconds between two drawings of a preview.
_REDRAW_EVERY = 0.25


def checksum(data: np.ndarray) -> int:
    """A number that changes with the pixels; to be called outside the window's thread."""
    if data.flags.c_contiguous:
        return zlib.crc32(data.reshape(-1).view(np.uint8).data)
    found = 0
    for part in data:
        found = zlib.crc32(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data, found)
    return found


@dataclass(eq=False)
class Own:
    """A labels layer that the plugin made.

    Attributes:
        layer, image: weak references.
        model: name of the model.
        part: bounds of a layer that covers a part of the image only; None: all of it.
        checksum: of the pixels as the plugin left them.
        touched: counts what may have changed the pixels since.
    """

    layer: Any
    image: Any
    model: str
    part: Any
    checksum: int
    touched: int = 0


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A layer's state at the moment when a result arrived."""

    own: Own
    data: np.ndarray
    checksum: int
    touched: int


@dataclass(frozen=True, eq=False)
class Composed:
    """The pixels of a labels layer, ready to be shown.

    Attributes:
        grid: of the layer.
        data: of `grid`.
        checksum: of `data`.
        replaces: the snapshot of the layer to replace; None if somebody changed that.
    """

    grid: LabelGrid
    data: np.ndarray
    checksum: int
    replaces: Snapshot | None


def compose(
    labels: np.ndarray, part: LabelGrid, whole: LabelGrid, instances: bool, old: Snapshot | None
) -> Composed:
    """Put the labels of a part among those that the layer has; not for the window's thread.

    Args:
        labels: of the engine, for `part`.
        part: what was segmented.
        whole: the grid of the layer.
        instances: numbers are objects, not classes.
        old: the layer that would be replaced.
    """
    if old is not None and checksum(old.data) != old.checksum:
        old = None
    found = part.arrange(labels)
    if found.dtype == np.uint32:
        found = found.view(np.int32)
    if part.bounds == whole.bounds:
        data = np.ascontiguousarray(found)
    else:
        kept = old is not None and old.data.shape == whole.shape
        data = old.data.astype(found.dtype) if kept and old else whole.empty(found.dtype)
        whole.paste(part, found, data, new=instances)
    return Composed(whole, data, checksum(data), old)


class ResultLayers:
    """The labels layers that the plugin made in a viewer.

    Args:
        viewer: napari's viewer.
    """

    def __init__(self, viewer: Any) -> None:
        self._viewer = weakref.ref(viewer)
        self._own: list[Own] = []

    def own(self, image: Any, model: str, part: Any = None) -> Own | None:
        """The layer that a new result of this image and model replaces, if it is still there."""
        viewer = self._viewer()
        for own in list(self._own):
            layer = own.layer()
            if viewer is None or layer is None or layer not in viewer.layers:
                self._own.remove(own)
            elif own.image() is image and (own.model, own.part) == (model, part):
                return None if is_accepted(layer) or is_corrected(layer) else own
        return None

    def snapshot(self, image: Any, model: str, part: Any = None) -> Snapshot | None:
        """The state of that layer now, for `compose`."""
        own = self.own(image, model, part)
        if own is None or not isinstance(own.layer().data, np.ndarray):
            return None
        return Snapshot(own, own.layer().data, own.checksum, own.touched)

    def commit(
        self,
        image: Any,
        model: str,
        composed: Composed,
        record: Mapping[str, Any],
        part: Any = None,
        arguments: Mapping[str, Any] | None = None,
        preview: PreviewLayer | None = None,
    ) -> Any:
        """Show a result.

        Args:
            image: the layer that was segmented.
            model: its name.
            composed: the result.
            record: how it was made, for the layer's metadata.
            part: as for `own`.
            arguments: further ones of a new Labels layer.
            preview: of this result; it becomes the new layer if it has the same pixels, for
                napari takes long to add and remove layers.

        Returns:
            The labels layer; None if the viewer is gone.
        """
        from napari.layers import Labels

        viewer = self._viewer()
        if viewer is None:
            return None
        old = composed.replaces
        own = self.own(image, model, part)
        if old is None or own is not old.own or own.touched != old.touched:
            own = None
        given = composed.grid.arguments()
        metadata = {"tttunet": {**given["metadata"]["tttunet"], **record}}
        if own is not None and _on_grid(own.layer(), composed.grid):
            layer = own.layer()
            own.checksum = composed.checksum
            _set_data(layer, composed.data)
            own.touched = old.touched if old else 0
            layer.metadata = {**layer.metadata, **metadata}
            return layer
        place, name = len(viewer.layers), f"{image.name}: {model}"
        layer = preview.give(composed.grid) if preview is not None and own is None else None
        if own is not None:
            place, name = viewer.layers.index(own.layer()), own.layer().name
            viewer.layers.remove(own.layer())
            self._own.remove(own)
        else:
            self._own = [x for x in self._own if (x.image(), x.model, x.part) !=
                         (image, model, part)]  # fmt: skip
        given |= {"metadata": metadata, "name": name, **(arguments or {})}
        if layer is None:
            layer = Labels(composed.data, **given)
            viewer.layers.insert(place, layer)
        else:
            _set_data(layer, composed.data)
            layer.name, layer.metadata, layer.opacity = name, metadata, OPACITY
            for key, value in (arguments or {}).items():
                setattr(layer, key, value)
            viewer.layers.selection.active = layer
        self._watch(layer, image, model, part, composed.checksum)
        return layer

    def _watch(self, layer: Any, image: Any, model: str, part: Any, found: int) -> None:
        own = Own(weakref.ref(layer), weakref.ref(image), model, part, found)
        self._own.append(own)

        def touch(*_: Any) -> None:
            own.touched += 1

        layer.events.paint.connect(touch)
        layer.events.data.connect(touch)

        def pressed(layer: Any, event: Any) -> None:
            # A stroke tells of itself when it ends; until then the pixels change already.
            if layer.mode not in ("pan_zoom", "transform", "pick"):
                own.touched += 1

        layer.mouse_drag_callbacks.append(pressed)


def _on_grid(layer: Any, grid: LabelGrid) -> bool:
    """Whether a layer lies where labels of this grid would."""
    from napari_tttunet.geometry import Transform

    return (
        layer.ndim == len(grid.shape)
        and layer.data.shape == grid.shape
        and np.array_equal(Transform.of(layer).matrix, grid.transform.matrix)
        and tuple(layer.units) == grid.units
        and tuple(layer.axis_labels) == grid.axis_labels
    )


def _set_data(layer: Any, data: np.ndarray) -> None:
    """New pixels, without the history of the old ones, which an undo would mix in."""
    mode = layer.mode
    layer.data = data
    layer.editable = False  # this is how napari forgets the history
    layer.editable = True
    layer.mode = mode


# Accepting


def is_result(layer: Any) -> bool:
    """Whether a model made these labels; others are a person's own, whatever is done here."""
    own = layer.metadata.get("tttunet")
    return bool(isinstance(own, dict) and own.get("model"))


def is_accepted(layer: Any) -> bool:
    """Whether a person said that these labels are right."""
    own = layer.metadata.get("tttunet")
    return bool(isinstance(own, dict) and own.get("accepted"))


def is_corrected(layer: Any) -> bool:
    """Whether a person vouches for parts of these labels, see `finetune_project`."""
    own = layer.metadata.get("tttunet")
    return bool(isinstance(own, dict) and own.get("corrected"))


def accept(layer: Any, accepted: bool = True) -> None:
    """Mark labels as right: in the metadata, and by a tick at the end of the name."""
    own = dict(layer.metadata.get("tttunet") or {})
    own["accepted"] = accepted
    layer.metadata = {**layer.metadata, "tttunet": own}
    name = layer.name.removesuffix(TICK)
    layer.name = name + TICK if accepted else name


# While it runs

_PREVIEW = "preview"


def is_preview(layer: Any) -> bool:
    """Whether a layer shows what a running segmentation has found so far."""
    own = layer.metadata.get("tttunet")
    return bool(isinstance(own, dict) and own.get("shows") == _PREVIEW)


class PreviewLayer:
    """Finished tiles of a running segmentation, in a layer of their own that goes with it.

    Args:
        viewer: napari's viewer.
        grid: of what is segmented.
        name: of the layer.
    """

    def __init__(self, viewer: Any, grid: LabelGrid, name: str) -> None:
        self._viewer, self._grid, self._name = weakref.ref(viewer), grid, name
        self.layer: Any = None
        self._data: np.ndarray | None = None
        self._drawn = -math.inf
        self._steps = [
            math.ceil(size / PREVIEW_PIXELS) if letter in "YX" else 1
            for letter, size in zip(grid.axes, grid.shape, strict=True)
        ]
        self._shape = tuple(
            math.ceil(size / step) for size, step in zip(grid.shape, self._steps, strict=True)
        )
        self._closed = math.prod(self._shape) > LARGEST_PREVIEW

    def paste(
        self, bounds: Sequence[tuple[int, int]], labels: np.ndarray, show: bool = True
    ) -> None:
        """Show a finished part.

        Args:
            bounds: of the engine's labels, without C.
            labels: of the part.
            show: begin to show the layer; else the part is only kept until then.
        """
        viewer = self._viewer()
        if self._closed or viewer is None:
            return
        if self.layer is not None and self.layer not in viewer.layers:
            self._closed = True  # the user does not want to see it
            return
        if self._data is None:
            self._data = np.zeros(self._shape, labels.dtype)
        thick = self._grid.axes.find("C")
        if thick >= 0:
            labels = np.expand_dims(labels, thick)
            bounds = [*bounds[:thick], (0, 1), *bounds[thick:]]
        target, source = [], []
        for (start, stop), step in zip(bounds, self._steps, strict=True):
            first = -(-start // step)
            target.append(slice(first, -(-stop // step)))
            source.append(slice(first * step - start, None, step))
        part = labels[tuple(source)]
        if part.size:
            self._data[tuple(target)] = part
        if self.layer is None:
            if show:
                self._add(viewer)
        elif time.monotonic() - self._drawn >= _REDRAW_EVERY:
            self.layer.refresh()
            self._drawn = time.monotonic()

    def _add(self, viewer: Any) -> None:
        from napari.layers import Labels

        steps = np.array(self._steps, float)
        arguments = self._grid.arguments()
        arguments |= self._grid.transform.regrid(steps, (steps - 1) / 2).arguments()
        arguments["metadata"] = {"tttunet": {"shows": _PREVIEW}}
        self.layer = Labels(self._data, **arguments, name=self._name, opacity=_PREVIEW_OPACITY)
        self.layer.editable = False
        self._data = self.layer.data
        chosen = viewer.layers.selection.active
        viewer.layers.append(self.layer)
        if chosen is not None:
            viewer.layers.selection.active = chosen

    def give(self, grid: LabelGrid) -> Any:
        """The layer, which is no preview any more; None if there is none on this grid."""
        viewer = self._viewer()
        if viewer is None or self.layer not in viewer.layers or not _on_grid(self.layer, grid):
            return None
        layer, self.layer = self.layer, None
        self._closed = True
        return layer

    def close(self) -> None:
        """Remove the layer."""
        viewer = self._viewer()
        self._closed = True
        if viewer is not None and self.layer is not None and self.layer in viewer.layers:
            chosen = viewer.layers.selection.active
            viewer.layers.remove(self.layer)
            if chosen is not None and chosen in viewer.layers:
                viewer.layers.selection.active = chosen
        self.layer = None
