"""A layer that shows what is checked: objects and background in two quiet colours."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from napari_tttunet.geometry import Transform

#: Not labelled, checked background, checked object.
_COLOURS = ((0.0, 0.0, 0.0, 0.0), (0.25, 0.55, 0.85, 0.18), (0.35, 0.85, 0.45, 0.32))


class Overlay:
    """Shows the state of an `Annotation` above its labels, until the layer is removed.

    Args:
        viewer: napari's viewer.
        labels: the Labels layer.
        state: uint8 of its shape; changed in place by its owner.
    """

    def __init__(self, viewer: Any, labels: Any, state: np.ndarray) -> None:
        from napari.layers import Image
        from napari.utils.colormaps import Colormap

        self._viewer = weakref.ref(viewer)
        colours = Colormap(
            np.array(_COLOURS), "checked", interpolation="zero", controls=(0, 1 / 3, 2 / 3, 1)
        )
        arguments = Transform.of(labels).arguments()
        self.layer = Image(
            state,
            name="checked",
            rgb=False,
            contrast_limits=(-0.5, 2.5),
            colormap=colours,
            blending="translucent",
            interpolation2d="nearest",
            interpolation3d="nearest",
            units=labels.units,
            axis_labels=labels.axis_labels,
            # `shows` keeps it out of the lists of images to segment.
            metadata={"tttunet": {"shows": "checked"}},
            **arguments,
        )
        chosen = viewer.layers.selection.active
        place = viewer.layers.index(labels) + 1 if labels in viewer.layers else len(viewer.layers)
        viewer.layers.insert(place, self.layer)
        viewer.layers.selection.active = chosen

    def draw(self) -> None:
        """The state was changed."""
        viewer = self._viewer()
        if viewer is not None and self.layer in viewer.layers:
            self.layer.refresh(extent=False)

    def close(self) -> None:
        """Remove the layer."""
        viewer = self._viewer()
        if viewer is not None and self.layer in viewer.layers:
            chosen = viewer.layers.selection.active
            viewer.layers.remove(self.layer)
            if chosen in viewer.layers:
                viewer.layers.selection.active = chosen
