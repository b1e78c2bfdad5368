"""Which layers of the viewer show which image of a project."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

from napari_tttunet.finetune_images import Source


class Shown:
    """The layers of a project's images; of removed ones, nothing is kept alive.

    Args:
        viewer: napari's viewer.
    """

    def __init__(self, viewer: Any) -> None:
        self._viewer = viewer
        self._images: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
        self._labels: WeakKeyDictionary[Any, tuple[str, str, int | None]] = WeakKeyDictionary()

    def forget(self) -> None:
        """Another project is opened."""
        self._images.clear()
        self._labels.clear()

    def remember(self, image_id: str, images: Iterable[Any], labels: Any, source: Source) -> None:
        """Layers belong to an image.

        Args:
            image_id: which.
            images: its Image layers.
            labels: that are corrected.
            source: of the labels.
        """
        self._images.update(dict.fromkeys(images, image_id))
        self._images[source.layer] = image_id
        self._labels[labels] = image_id, source.axes, source.channel

    def image_of(self, labels: Any) -> str:
        """The id of the image that labels belong to; empty if that is not known."""
        return self._labels.get(labels, ("",))[0]

    def find(self, image_id: str) -> tuple[Any, Source] | None:
        """Labels of an image in the viewer, and what they lie on; None: there are none."""
        layers = self._viewer.layers
        image = next((one for one in layers if self._images.get(one) == image_id), None)
        for labels in reversed(layers):
            known, axes, channel = self._labels.get(labels, ("", "", None))
            if known == image_id and image is not None:
                return labels, Source(image, axes, channel)
        return None

    def show_alone(self, image_id: str, labels: Any) -> None:
        """Make labels visible with their image, and hide the project's other images."""
        for layer in self._viewer.layers:
            if layer in self._images:
                layer.visible = self._images[layer] == image_id
            elif layer is labels:
                layer.visible = True
            elif layer in self._labels and self._labels[layer][0] != image_id:
                layer.visible = False
