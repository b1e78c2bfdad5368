"""Images beside the labels: probabilities, uncertainty, and where the model adapted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from napari_tttunet.layers import LabelGrid

#: Colours of what is not a probability.
_COLORMAPS = {"uncertainty": "magma", "adaptation": "inferno"}
#: Of the values of a map without limits of its own, the share between which its colours lie.
_SHOWN_SHARE = (1.0, 99.8)
#: So many of its pixels are enough to tell.
_SEEN_PIXELS = 10**6


@dataclass(frozen=True, eq=False)
class MapImages:
    """Images made of what the network computed, arranged for the grid of what was segmented.

    Attributes:
        grid: of the labels.
        images: by what they show.
        limits: values of the darkest and the brightest colour, where they are not 0 and 1.
        hidden: what is shown only when the user asks for it.
    """

    grid: LabelGrid
    images: dict[str, np.ndarray] = field(default_factory=dict)
    limits: dict[str, tuple[float, float]] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)

    def add_maps(
        self, maps: np.ndarray, model: Mapping[str, Any], probabilities: bool, uncertainty: bool
    ) -> None:
        """Images of the network's maps; not for the window's thread.

        Args:
            maps: [K, *labels]; of an instance model background, interior, boundary, distance.
            model: its entry in the library.
            probabilities: that a pixel is not background, and of every class if there are several.
            uncertainty: entropy of the class probabilities, 0 (certain) to 1 (all alike).
        """
        instances = model.get("task") == "instance"
        classes = maps[:3] if instances else maps
        if probabilities:
            self.images["probability"] = self.grid.arrange(1.0 - classes[0])
            names = [] if instances else [one["name"] for one in model.get("labels") or []]
            if len(names) > 1:
                for name, one in zip(names, classes[1:], strict=True):
                    kind = f"probability of {name}"
                    self.images[kind] = self.grid.arrange(one)
                    self.hidden.add(kind)
        if uncertainty:
            entropy = np.zeros(classes.shape[1:], np.float32)
            for one in classes:
                entropy -= one * np.log(np.maximum(one, 1e-12))
            self.images["uncertainty"] = self.grid.arrange(
                np.clip(entropy / math.log(len(classes)), 0.0, 1.0)
            )

    def add_losses(self, losses: np.ndarray, shown: str) -> None:
        """An image of where TTT layers adapted; not for the window's thread.

        Args:
            losses: [2, *labels] before they adapted and after.
            shown: `before`, `after`, or `difference`: by how much it fell.
        """
        before, after = losses
        found = {"before": before, "after": after}.get(shown)
        image = self.grid.arrange(before - after if found is None else np.array(found))
        self.images["adaptation"] = image
        seen = image.reshape(-1)[:: max(1, image.size // _SEEN_PIXELS)]
        low, high = np.percentile(seen, _SHOWN_SHARE).tolist()
        self.limits["adaptation"] = (low, max(high, low + 1e-6))


def show_map_images(viewer: Any, image: Any, model: str, found: MapImages) -> list[Any]:
    """Show images of maps below the labels; those of the same name are replaced."""
    from napari.layers import Image

    shown = []
    chosen = viewer.layers.selection.active
    for kind, data in found.images.items():
        name = f"{image.name}: {kind} ({model})"
        arguments = found.grid.arguments()
        arguments["metadata"] = {"tttunet": {**arguments["metadata"]["tttunet"], "shows": kind}}
        for old in [x for x in viewer.layers if x.name == name]:
            own = old.metadata.get("tttunet")
            if isinstance(own, dict) and own.get("shows") == kind:
                viewer.layers.remove(old)
        layer = Image(
            data,
            **arguments,
            name=name,
            rgb=False,
            contrast_limits=found.limits.get(kind, (0.0, 1.0)),
            colormap=_COLORMAPS.get(kind, "viridis"),
            blending="additive",
            opacity=0.6,
            visible=kind not in found.hidden,
        )
        viewer.layers.insert(_above(viewer, image), layer)
        shown.append(layer)
    if chosen is not None and chosen in viewer.layers:
        viewer.layers.selection.active = chosen
    return shown


def _above(viewer: Any, image: Any) -> int:
    return viewer.layers.index(image) + 1 if image in viewer.layers else len(viewer.layers)
