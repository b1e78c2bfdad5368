"""Correcting labels by buttons and keys: which object is meant, regions, the next place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from qtpy.QtCore import QObject, QTimer, Signal

from napari_tttunet.annotation import Annotation
from napari_tttunet.axes import guess_axes
from napari_tttunet.dock_work import weakly
from napari_tttunet.finetune_images import Source
from napari_tttunet.finetune_next import Unchecked
from napari_tttunet.finetune_project import ProjectWork
from napari_tttunet.geometry import Transform
from napari_tttunet.keys import look_at
from napari_tttunet.layers import label_grid
from napari_tttunet.regions import world_factors
from tttunet.errors import ImageError, TTTUNetError
from tttunet.projects import ProjectError, Region

#: The layer in which a region is drawn.
REGION_LAYER = "complete region"


def source_of(viewer: Any, labels: Any) -> Source:
    """The image that labels lie on, with its axes.

    Raises:
        ImageError: there is none.
    """
    from napari.layers import Image

    own = labels.metadata.get("tttunet")
    own = own if isinstance(own, dict) else {}
    images = [
        layer
        for layer in reversed(viewer.layers)
        if isinstance(layer, Image)
        and not layer.multiscale
        and "shows" not in (layer.metadata.get("tttunet") or {})
    ]
    images.sort(key=lambda layer: layer.name != own.get("image"))
    for layer in images:
        named = layer.name == own.get("image")
        try:
            axes = own.get("image_axes", "") if named else ""
            axes = axes or guess_axes(layer, viewer.dims.axis_labels).axes
            grid = label_grid(layer, axes)
        except ImageError:
            continue
        same = np.allclose(Transform.of(labels).matrix, grid.transform.matrix) if (
            labels.data.shape == grid.shape
        ) else False  # fmt: skip
        if same:
            channel = str(own.get("channel", "")) if named else ""
            return Source(layer, axes, int(channel) if channel.isdigit() else None)
    raise ImageError(
        f"No image lies under all of '{labels.name}'.",
        "Correct labels that cover a whole image at its full resolution.",
    )


class Corrections(QObject):
    """What the buttons do with the labels that are corrected.

    Args:
        viewer: napari's viewer.
        work: with the project.
        model: see `Unchecked`.

    Attributes:
        failed: an exception to tell.
        said: what happened, or what to do next.
    """

    failed = Signal(object)
    said = Signal(str)

    def __init__(self, viewer: Any, work: ProjectWork, model: Callable[[], str]) -> None:
        super().__init__()
        self._viewer, self._work = viewer, work
        self.unchecked = Unchecked(viewer, work, model)
        self._shapes: Any = None
        self.depth = 0
        # Of removed labels, nothing is kept alive.
        self._removed: WeakKeyDictionary[Annotation, list[Region]] = WeakKeyDictionary()
        self.labels: Any = None

    # Which labels

    def choose(self, labels: Any) -> None:
        """Correct another Labels layer from now on."""
        if labels is self.labels and self._following:
            return
        self.labels = labels
        if labels is None:
            return
        try:
            source = source_of(self._viewer, labels)
        except ImageError:
            return  # told when something is to be done with them
        self._work.annotate(labels, source)

    @property
    def _following(self) -> bool:
        annotation = self._work.annotation
        return annotation is not None and annotation.layer is self.labels

    def _ready(self) -> bool:
        """Whether the labels can be corrected now; if not, that is told."""
        if self.labels is None or self.labels not in self._viewer.layers:
            self.said.emit("Select the labels that you want to correct.")
            return False
        if not self._following:
            try:
                source = source_of(self._viewer, self.labels)
            except ImageError as error:
                self.failed.emit(error)
                return False
            return self._work.annotate(self.labels, source)
        return True

    def _data(self, world: Any) -> tuple[int, ...] | None:
        annotation = self._work.annotation
        assert annotation is not None
        point = np.array(world, float)[-self.labels.ndim :]
        point = Transform.of(self.labels).to_data(point / world_factors(self._viewer, self.labels))
        return annotation.index_at(point.tolist())

    def _under_mouse(self) -> tuple[int, ...] | None:
        return self._data(self._viewer.cursor.position)

    def _selected(self) -> tuple[int, ...] | None:
        """A pixel of the selected label in the slice that is shown."""
        annotation = self._work.annotation
        assert annotation is not None
        number = int(self.labels.selected_label)
        place = self._data(self._viewer.dims.point)
        if place is None:
            place = (0,) * annotation.labels.ndim
        return annotation.find(number, place) if number > 0 else None

    # Objects

    def mark(self, checked: bool = True, mouse: bool = False) -> None:
        """Mark an object as checked, or take that back.

        Args:
            checked: which of the two.
            mouse: the object under the mouse is meant, else that of the selected label.
        """
        if not self._ready():
            return
        annotation = self._work.annotation
        assert annotation is not None
        place = self._under_mouse() if mouse else self._selected()
        number = annotation.mark(place, checked) if place is not None else 0
        if not number:
            where = "under the mouse" if mouse else "with the selected label here"
            self.said.emit(f"There is no object {where}.")
            return
        if checked:
            self.said.emit(f"Object {number} is checked.")
        elif place is not None and annotation.is_checked(place):
            self.said.emit(f"Object {number} lies in a complete region and stays checked.")
        else:
            self.said.emit(f"Object {number} is not checked any more.")

    def add_object(self) -> None:
        """Choose napari's brush with a number that no object has."""
        if not self._ready():
            return
        annotation = self._work.annotation
        assert annotation is not None
        self._viewer.layers.selection.active = self.labels
        if annotation.task == "instance":
            self.labels.selected_label = annotation.free_number()
        self.labels.mode = "paint"
        self.said.emit("Paint the object: it counts as checked.")

    def erase_object(self) -> None:
        """Remove the object of the selected label."""
        if not self._ready():
            return
        annotation = self._work.annotation
        assert annotation is not None
        place = self._selected()
        number = annotation.erase(place) if place is not None else 0
        if number:
            self.said.emit(f"Object {number} is erased, and its place is checked background.")
        else:
            self.said.emit("There is no object with the selected label here.")

    # Regions

    def complete_region(self) -> None:
        """Complete the chosen shapes, or have a rectangle drawn."""
        from napari.layers import Shapes

        if not self._ready():
            return
        active = self._viewer.layers.selection.active
        if isinstance(active, Shapes) and active is not self._shapes and len(active.data):
            chosen = sorted(active.selected_data) or list(range(len(active.data)))
            self._complete(active, chosen)
            return
        if self._shapes is None or self._shapes not in self._viewer.layers:
            self._shapes = Shapes(
                ndim=max(self.labels.ndim, 2),
                name=REGION_LAYER,
                edge_color="#5b8fc7",
                face_color="transparent",
                edge_width=1,
                **Transform.of(self.labels).arguments(),
            )
            self._shapes.events.data.connect(weakly(self._drawn))
            self._viewer.layers.append(self._shapes)
        self._viewer.layers.selection.active = self._shapes
        self._shapes.mode = "add_rectangle"
        self.said.emit(
            "Draw a rectangle around a place where every object is right, or choose the polygon "
            "tool for another shape."
        )

    def remove_region(self, region: Region | None = None) -> None:
        """Take back a complete region; without one, that under the mouse."""
        if not self._ready():
            return
        annotation = self._work.annotation
        assert annotation is not None
        if region is None:
            place = self._under_mouse()
            region = annotation.region_at(place) if place is not None else None
        if region is None or region not in annotation.regions:
            self.said.emit("There is no complete region under the mouse.")
            return
        self._work.remove_region(region)
        self._removed.setdefault(annotation, []).append(region)
        self.said.emit("The region is not complete any more; Put back undoes this.")

    @property
    def can_put_back(self) -> bool:
        """Whether a region of these labels was removed."""
        annotation = self._work.annotation
        return annotation is not None and bool(self._removed.get(annotation))

    def put_back(self) -> None:
        """Complete the region again that was removed last."""
        if self.can_put_back and self._ready():
            assert self._work.annotation is not None
            self._work.complete(self._removed[self._work.annotation].pop())
            self.said.emit("The region is complete again.")

    def show_region(self, region: Region) -> None:
        """Go to a complete region."""
        if self._ready() and self._work.annotation is not None:
            middle = [(start + stop - 1) / 2 for start, stop in region.bounds]
            look_at(self._viewer, self.labels, self._work.annotation.in_layer(middle))

    def next_place(self) -> None:
        """Go to the next place that nobody checked, the most doubtful first."""
        if self._ready():
            self.unchecked.next(self.labels)

    def _drawn(self, event: Any) -> None:
        from napari.layers.base._base_constants import ActionType

        if event.action == ActionType.ADDED and self._shapes is not None:
            QTimer.singleShot(0, weakly(self._take_drawn))  # napari has not finished yet

    def _take_drawn(self) -> None:
        shapes, self._shapes = self._shapes, None
        if shapes is None or shapes not in self._viewer.layers:
            return
        if len(shapes.data) and self._ready():
            self._complete(shapes, [len(shapes.data) - 1])
        self._viewer.layers.remove(shapes)
        if self.labels in self._viewer.layers:
            self._viewer.layers.selection.active = self.labels

    def _complete(self, shapes: Any, chosen: list[int]) -> None:
        done = 0
        for index in chosen:
            try:
                self._work.complete(self._region(shapes, index))
                done += 1
            except TTTUNetError as error:
                self.failed.emit(error)
        if done:
            self.said.emit(f"{done} region{'s' if done > 1 else ''} completed.")

    def _region(self, shapes: Any, index: int) -> Region:
        """A shape in pixels of the labels; in a stack, in its slice and `depth` ones around it."""
        annotation = self._work.annotation
        assert annotation is not None
        kind = str(shapes.shape_type[index])
        if kind not in ("rectangle", "ellipse", "polygon"):
            raise ProjectError(
                f"A {kind} encloses nothing.", "Draw a rectangle, an ellipse, a polygon or a lasso."
            )
        viewer, labels = self._viewer, self.labels
        world = np.tile(np.array(viewer.dims.point, float), (len(shapes.data[index]), 1))
        vertices = Transform.of(shapes).to_world(np.asarray(shapes.data[index], float))
        world[:, -shapes.ndim :] = vertices * world_factors(viewer, shapes)
        inside = world[:, -labels.ndim :] / world_factors(viewer, labels)
        corners = Transform.of(labels).to_data(inside)
        if np.ptp(corners[:, -2]) < 1 or np.ptp(corners[:, -1]) < 1:
            raise ProjectError("The region is no area.", "Draw a rectangle around some objects.")
        place = annotation.index_at((*corners[0, :-2], 0, 0))
        if place is None:
            raise ProjectError("The region lies beside the image.", "Draw it on the image.")
        leading = [(p, p + 1) for p in place[:-2]]
        if annotation.axes[:-2].endswith("Z"):
            z, count = place[-3], annotation.labels.shape[-3]
            leading[-1] = max(0, z - self.depth), min(count, z + self.depth + 1)
        outline = _ellipse(corners[:, -2:]) if kind == "ellipse" else corners[:, -2:]
        polygon = [(float(y), float(x)) for y, x in outline]
        return Region.around(polygon, tuple(leading), annotation.labels.shape)


def _ellipse(corners: np.ndarray) -> np.ndarray:
    """A polygon in place of an ellipse, of which napari gives the four corners of its box.

    Args:
        corners: [4, 2] in pixels, one after the other; of a parallelogram too.

    Returns:
        [n, 2], nowhere further than a twentieth of a pixel from the ellipse.
    """
    one, other = (corners[1] - corners[0]) / 2, (corners[3] - corners[0]) / 2
    radius = max(float(np.hypot(*one)), float(np.hypot(*other)))
    count = max(16, int(np.ceil(np.pi * np.sqrt(radius / 0.1))))
    angle = 2 * np.pi * np.arange(count)[:, None] / count
    return corners.mean(axis=0) + np.cos(angle) * one + np.sin(angle) * other
