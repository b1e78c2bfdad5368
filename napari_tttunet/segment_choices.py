"""What a person chose to segment, and which pixels that means; no widgets here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from napari_tttunet.axes import data_shape
from napari_tttunet.geometry import Bounds, full_bounds, scale_bounds
from napari_tttunet.layers import image_fields, layer_array, levels
from napari_tttunet.regions import displayed_axes, plane_bounds, shape_bounds, view_bounds
from tttunet.engine import messages
from tttunet.errors import ImageError


def fits_scale(entry: Mapping[str, Any], unit: str | None) -> bool:
    """Whether a model is for images of this unit: one for millimeters is of no use for cells.

    Args:
        entry: of the library.
        unit: `micrometer`, `millimeter`; empty or None: the image has no physical size.
    """
    return not entry.get("spacing") or entry.get("unit") == unit


@dataclass(frozen=True)
class Choices:
    """What to segment and how.

    Attributes:
        layer: an Image layer.
        model: an entry of `ListModels`.
        axes: one letter per axis of the layer.
        parts: bounds at level 0 of what to segment one after the other; empty: everything.
        level: of a multiscale layer.
        channel: name or number of the one channel; empty: all.
        device, tile, mirror, decoding: as in `messages.Segment`.
        probabilities, uncertainty: show these as images, too.
        adaptation: as in `messages.Segment`.
        adapted: show where the model adapted: `before`, `after` or `difference`; empty: do not.
    """

    layer: Any
    model: dict[str, Any]
    axes: str
    parts: tuple[Bounds, ...] = ()
    level: int = 0
    channel: str = ""
    device: str = "auto"
    tile: tuple[int, ...] = ()
    mirror: bool = False
    decoding: dict[str, Any] = field(default_factory=dict)
    probabilities: bool = False
    uncertainty: bool = False
    adaptation: str = "tile"
    adapted: str = ""

    @property
    def instances(self) -> bool:
        return self.model.get("task") == "instance"

    def bounds(self, number: int = 0) -> Bounds:
        """What part `number` is at the chosen level, per data axis without colours."""
        level = levels(self.layer)[self.level]
        if not self.parts:
            return full_bounds(level.shape)
        return scale_bounds(self.parts[number], level.factors, level.shape)

    def estimate(self) -> messages.Estimate:
        """The request that tells what this would need (its largest part)."""
        several = [self.bounds(i) for i in range(max(len(self.parts), 1))]
        largest = max(several, key=lambda part: math.prod(b - a for a, b in part))
        array = layer_array(self.layer, self.level, largest)
        fields = image_fields(self.layer, self.axes, self.level, largest)
        sizes = {
            letter: size
            for letter, size in zip(self.axes, array.shape, strict=True)
            if not (letter == "C" and self.channel)
        }
        return messages.Estimate(
            tuple(sizes.values()),
            "".join(sizes),
            self.model["name"],
            str(array.dtype),
            self.device,
            self.tile,
            mirror=self.mirror,
            adaptation=self.adaptation,
            adaptation_map=bool(self.adapted),
            **{name: fields[name] for name in ("spacing", "unit", "direction") if name in fields},
        )

    def request(self, path: str) -> messages.Segment:
        """The same for a whole file: for the command line."""
        return messages.Segment(
            messages.ImageRef(path=path, axes=self.axes.replace("S", "C")),
            self.model["name"],
            "",
            device=self.device,
            tile=self.tile,
            mirror=self.mirror,
            decoding=dict(self.decoding),
            channel=self.channel,
            adaptation=self.adaptation,
            adaptation_map="wanted" if self.adapted else "",
        )


def chosen_parts(
    viewer: Any,
    layer: Any,
    axes: str,
    where: str,
    planes: str,
    shapes: Any,
    dim: int,
    slices: tuple[int, int] = (0, 0),
) -> tuple[Bounds, ...]:
    """The parts of an image that a person means, at level 0; empty: everything.

    Args:
        viewer: napari's viewer.
        layer: an Image layer.
        axes: its axes.
        where: `whole`, `view` or `shapes`.
        planes: `all`; `current`: the slice and frame that the sliders stand at; or `range`.
        shapes: the Shapes layer for `shapes`.
        dim: 2 or 3, of the model; `current` is no single slice for a 3D model.
        slices: for `range`: the first and the last slice, which belong to it.

    Raises:
        ImageError: nothing of the image is meant.
    """
    if where == "shapes":
        if shapes is None:
            raise ImageError(
                "There is no Shapes layer.", "Add one and draw a rectangle around the region."
            )
        parts = shape_bounds(viewer, shapes, layer, axes)
    elif where == "view":
        parts = [view_bounds(viewer, layer, axes)]
    elif planes == "all":
        return ()
    else:
        parts = [full_bounds(data_shape(layer))]
    if planes == "range" and "Z" in axes:
        place = axes.index("Z")
        first, last = sorted(slices)
        if first >= data_shape(layer)[place]:
            raise ImageError(f"'{layer.name}' has no slice {first}.", "Choose slices of the image.")
        along = (first, min(last + 1, data_shape(layer)[place]))
        parts = [(*part[:place], along, *part[place + 1 :]) for part in parts]
    if planes == "current":
        moving = "T" if dim == 3 else "TZ"
        shape, shown = data_shape(layer), displayed_axes(viewer, layer)
        if any(axes[axis] in moving and shape[axis] > 1 for axis in shown):
            raise ImageError(
                "The viewer shows several slices at once, so none of them is 'this slice'.",
                "Switch it back to 2D, or choose all slices and frames.",
            )
        here = plane_bounds(viewer, layer, axes)
        parts = [
            tuple(
                at if letter in moving and at[1] - at[0] == 1 else along
                for letter, at, along in zip(axes, here, part, strict=False)
            )
            for part in parts
        ]
    return tuple(parts)
