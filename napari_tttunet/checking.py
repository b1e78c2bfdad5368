"""Going from object to object: in the order of the network's doubt, else by unusual size."""

from __future__ import annotations

from typing import Any

import numpy as np
from qtpy.QtCore import QObject, QTimer, Signal

from napari_tttunet.dock_work import Background, weakly
from napari_tttunet.keys import look_at
from napari_tttunet.objects import DOUBTFUL_FIRST, Objects, odd_first
from napari_tttunet.segment_run import SegmentRun
from napari_tttunet.session import session
from tttunet.engine import messages

#: Milliseconds that the worker has to answer.
PATIENCE = 2000


class Checking(QObject):
    """Where a person looks next in the labels of a viewer.

    The worker ranks the places of its last result, if it still has the network's maps and answers
    soon (it may be training). Otherwise objects whose size differs most from the usual come first.

    Args:
        viewer: napari's viewer.
        run: knows what the labels were made from.

    Attributes:
        told: a sentence about the place.
        failed: the error, if labels cannot be read.
    """

    told = Signal(str)
    failed = Signal(object)

    def __init__(self, viewer: Any, run: SegmentRun) -> None:
        super().__init__()
        self._viewer, self._run = viewer, run
        self._background = Background(self)
        self._order: tuple[Any, Objects] | None = None
        self._at = -1
        self._token: object = None

    def forget(self) -> None:
        """The labels have changed: begin again."""
        self._order, self._token = None, None

    def step(self, layer: Any, by: int) -> None:
        """Go to the next (1) or the previous (-1) place of a Labels layer."""
        if layer is None or layer.multiscale:
            return
        if self._order is not None and self._order[0] is layer.data:
            self._go(layer, by)
            return
        self._token = token = object()
        source = self._run.source_of(layer)
        if source is None:
            self._by_size(token, layer, by)
            return
        part, maps_id, labels = source
        hear = weakly(self._hear)
        job = session().engine.review(
            labels, maps_id, lambda job, event: hear(event, token, part, layer, by)
        )
        late = weakly(self._give_up)
        QTimer.singleShot(PATIENCE, lambda: late(job, token, layer, by))

    def _give_up(self, job: Any, token: object, layer: Any, by: int) -> None:
        """Do not wait any more; the answer counts no more either."""
        if token is self._token and not job.finished:
            job.cancel()
            self._token = other = object()
            self._by_size(other, layer, by)

    def _hear(self, event: Any, token: object, part: Any, layer: Any, by: int) -> None:
        if token is not self._token:
            return
        if isinstance(event, messages.Done):
            offset, channel = np.array(part.corner), part.grid.axes.find("C")
            found = doubtful(event.result["places"], offset, channel)
            self._ordered((token, layer, found, by))
        elif isinstance(event, messages.TERMINAL):
            self._by_size(token, layer, by)

    def _by_size(self, token: object, layer: Any, by: int) -> None:
        data = layer.data
        self._background.run(
            lambda: (token, layer, odd_first(data), by), self._ordered, self.failed.emit
        )

    def _ordered(self, found: tuple[object, Any, Objects, int]) -> None:
        token, layer, objects, by = found
        if token is not self._token:
            return
        self._order, self._at = (layer.data, objects), -1 if by > 0 else 0
        self._go(layer, by)

    def _go(self, layer: Any, by: int) -> None:
        assert self._order is not None
        objects = self._order[1]
        count = len(objects.numbers)
        if not count:
            self.told.emit("There are no objects to check.")
            return
        self._at = (self._at + by) % count
        number = int(objects.numbers[self._at])
        look_at(self._viewer, layer, objects.centres[self._at])
        what = "No label here, perhaps a missed object"
        if number:
            layer.selected_label = number
            what = f"Object {number}"
        self.told.emit(f"{what}: {self._at + 1} of {count} to check, {objects.order}")


def doubtful(places: list[dict[str, Any]], offset: np.ndarray, channel: int) -> Objects:
    """Places as the engine tells them.

    Args:
        places: `Done.result["places"]` of a review.
        offset: of the reviewed part in the layer's data, per axis of the layer.
        channel: the layer's axis that the engine's labels do not have; -1: none.
    """
    centres = np.array([place["centre"] for place in places], float)
    centres = centres.reshape(len(places), len(offset) - (channel >= 0))
    if channel >= 0:
        centres = np.insert(centres, channel, 0.0, axis=1)
    numbers = np.array([place["label"] for place in places], np.int64)
    doubts = np.array([place["doubt"] for place in places], float)
    return Objects(numbers, centres + offset, DOUBTFUL_FIRST, doubts)
