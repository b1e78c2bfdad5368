"""Labels of one layer that are corrected: until a project has them, nothing of that is lost."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from napari_tttunet.annotation import Annotation
from napari_tttunet.annotation_restore import Plan
from napari_tttunet.finetune_images import Opened, Source, add_image
from napari_tttunet.layers import image_fields, layer_array
from tttunet.projects import Project, ProjectError, Region
from tttunet.projects.schema import ImageReference


class Begun:
    """What is done to one Labels layer, and what of it the project does not have yet.

    Args:
        annotation: of the layer.
        source: its image.

    Attributes:
        pending: regions that were completed (True) or taken back (False), in their order.
    """

    def __init__(self, annotation: Annotation, source: Source) -> None:
        self.annotation, self.source = annotation, source
        self.pending: deque[tuple[Region, bool]] = deque()
        self._known: tuple[Project, ImageReference] | None = None
        self._adding, self._writing = threading.Lock(), threading.Lock()

    @property
    def holds(self) -> bool:
        """Whether something was vouched for."""
        return bool(self.pending) or self.annotation.vouched_bounds() is not None

    def place(self, project: Project) -> Callable[[], ImageReference]:
        """A function that has the image in a project; call it in a thread, as often as you like."""
        source = self.source
        layer = source.layer
        path = getattr(getattr(layer, "source", None), "path", None)
        window = layer_array(layer)
        fields = image_fields(layer, source.axes)
        fields.pop("rgb")
        axes = fields.pop("axes")

        def add() -> ImageReference:
            with self._adding:  # a large file is read once
                if self._known is None or self._known[0] is not project:
                    image = add_image(project, path, window, axes, source, fields)
                    self._known = project, image
                return self._known[1]

        return add

    def plan(self, opened: Opened) -> Plan:
        """What an image's corrections change in the labels; not for the window's thread.

        Raises:
            ProjectError: they do not fit the labels.
        """
        self._check(opened.image)
        return self.annotation.plan(opened.stored, opened.regions)

    def _check(self, image: ImageReference) -> None:
        layer, shape = self.annotation.layer, self.annotation.labels.shape
        if shape != image.label_shape:
            raise ProjectError(
                f"'{layer.name}' has the shape {shape}, its image {image.label_shape}.",
                "Correct labels that cover the whole image at its full resolution.",
            )

    def store(self, project: Project, image: ImageReference) -> None:
        """Write what was vouched for, beside what the project has; not for the window's thread.

        Raises:
            ProjectError, OutputError: see `Corrections.write`.
        """
        self._check(image)
        corrections, reach = project.corrections(image), self.annotation.vouched_bounds()
        for index in corrections.store.overlapping(reach) if reach is not None else ():
            bounds = corrections.store.bounds(index)
            labels, vouched, own = self.annotation.read(bounds)
            if vouched.any():
                old_labels, old_vouched = corrections.read(bounds)
                merged = np.where(vouched != 0, labels, old_labels)
                own = np.where(vouched != 0, own, corrections.own(bounds))
                corrections.write(bounds, merged, vouched | old_vouched, own)
        self.write_regions(project, image)

    def write_regions(self, project: Project, image: ImageReference) -> None:
        """Write what is pending; what cannot be written stays so, and keeps nothing else back.

        Raises:
            ProjectError, OutputError: the first one.
        """
        first: Exception | None = None
        with self._writing:  # one after the other, in their order
            corrections, failed = project.corrections(image), list[tuple[Region, bool]]()
            for _ in range(len(self.pending)):
                region, complete = self.pending[0]
                try:
                    if region in (other for other, _ in failed):
                        failed.append((region, complete))  # not before what was done to it earlier
                    elif complete:
                        labels, _, own = self.annotation.read(region.bounds)
                        corrections.complete(region, labels, own)
                    elif region in corrections.regions:
                        corrections.remove_region(corrections.regions.index(region))
                except Exception as error:
                    first = first or error
                    failed.append((region, complete))
                self.pending.popleft()
            self.pending.extendleft(reversed(failed))
        if first is not None:
            raise first


def store_all(begun: Sequence[Begun], project: Project) -> None:
    """Have all labels in a project that it does not have yet; not for the window's thread.

    Raises:
        TTTUNetError: the first one; the others are written nevertheless.
    """
    do_all([partial(_store, one, project) for one in begun])


def _store(begun: Begun, project: Project) -> None:
    begun.store(project, begun.place(project)())


def do_all(calls: Sequence[Callable[[], object]]) -> None:
    """Call all of them, then raise the first error."""
    first: Exception | None = None
    for call in calls:
        try:
            call()
        except Exception as error:
            first = first or error
    if first is not None:
        raise first
