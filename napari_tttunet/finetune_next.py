"""Where to correct next: what nobody checked, in the order of the network's doubt."""

from __future__ import annotations

from typing import Any

import numpy as np
from qtpy.QtCore import QObject, QTimer, Signal

from napari_tttunet.annotation import UNKNOWN, Annotation
from napari_tttunet.checking import PATIENCE, doubtful
from napari_tttunet.dock_work import Background, weakly
from napari_tttunet.finetune_images import label_axes
from napari_tttunet.finetune_project import ProjectWork
from napari_tttunet.keys import look_at
from napari_tttunet.objects import Objects, odd_first
from napari_tttunet.session import session
from tttunet.engine import messages


class Unchecked(QObject):
    """Goes from one place to the next in the labels that are corrected.

    The engine ranks the places of the labels that it found last (`tttunet.inference.review`), once
    per result: what is checked meanwhile drops out. If it does not have the network's output any
    more, or is busy, objects whose size differs most from the usual come first.

    Args:
        viewer: napari's viewer.
        work: with the annotation.

    Attributes:
        said: a sentence about the place.
        failed: an exception to tell.
    """

    said = Signal(str)
    failed = Signal(object)

    def __init__(self, viewer: Any, work: ProjectWork) -> None:
        super().__init__()
        self._viewer, self._work = viewer, work
        self._background = Background(self)
        self._annotation: Annotation | None = None
        self._maps_id = ""
        self._ranked: Objects | None = None
        self._job: Any = None
        self._asking = False
        self._seen: set[tuple[float, ...]] = set()

    def next(self, labels: Any) -> None:
        """Go to the next place of a Labels layer, which is annotated."""
        annotation = self._work.annotation
        assert annotation is not None
        own = labels.metadata.get("tttunet") or {}
        maps_id = str(own.get("maps_id") or "")
        if annotation is not self._annotation or maps_id != self._maps_id:
            self._annotation, self._maps_id = annotation, maps_id
            self._ranked, self._seen = None, set()
            self._asking = bool(maps_id) and self._ask(annotation, own)
        if not self._asking:
            self._look(annotation)

    def _ask(self, annotation: Annotation, own: dict[str, Any]) -> bool:
        """Ask the engine for the order; False: it has none for these labels."""
        layer, source = annotation.layer, self._work.source
        if source is None:
            return False
        axes = label_axes(layer, source)
        bounds = own.get("region") or [(0, size) for size in layer.data.shape]
        if len(bounds) != len(axes):
            return False
        thick = axes.find("C")
        box = [(0, 1) if i == thick else tuple(pair) for i, pair in enumerate(bounds)]
        offset = np.array([start for start, _ in box], float)
        part = layer.data[tuple(slice(start, stop) for start, stop in box)]
        part = part.squeeze(thick) if thick >= 0 else part
        hear = weakly(self._hear)
        self._job = session().engine.review(
            part, self._maps_id, lambda job, event: hear(job, event, annotation, offset, thick)
        )
        job, late = self._job, weakly(self._give_up)
        QTimer.singleShot(PATIENCE, lambda: late(job, annotation))
        return True

    def _give_up(self, job: Any, annotation: Annotation) -> None:
        """Do not wait any more; the answer counts no more either."""
        if job is self._job and not job.finished:
            self._job, self._asking = None, False
            job.cancel()
            self._look(annotation)

    def _hear(
        self, job: Any, event: Any, annotation: Annotation, offset: np.ndarray, thick: int
    ) -> None:
        if job is not self._job or not isinstance(event, messages.TERMINAL):
            return
        self._asking = False
        if isinstance(event, messages.Done):
            self._ranked = doubtful(event.result["places"], offset, thick)
        self._look(annotation)

    def _look(self, annotation: Annotation) -> None:
        ranked, seen = self._ranked, self._seen

        def work() -> tuple[Annotation, Objects, int, bool]:
            if ranked is not None:
                found = _unchecked(annotation, ranked)
                if len(found.numbers):
                    return annotation, found, _first(found, seen), False
            found = odd_first(np.where(annotation.marks == UNKNOWN, annotation.labels, 0))
            centres = [annotation.in_layer(centre) for centre in found.centres]
            centred = np.array(centres, float).reshape(len(centres), annotation.layer.ndim)
            found = Objects(found.numbers, centred, found.order)
            own = annotation.layer.metadata.get("tttunet") or {}
            known = "model" in own or bool((annotation.marks != UNKNOWN).all())
            return annotation, found, _first(found, seen), not known

        self._background.run(work, self._go, self.failed.emit)

    def _go(self, found: tuple[Annotation, Objects, int, bool]) -> None:
        asked, places, at, rest = found
        annotation = self._work.annotation
        if annotation is not asked or asked.layer not in self._viewer.layers:
            return
        if not len(places.numbers):
            more = "" if not rest else (
                " These labels hold nothing else of the image: press Segment to see what there is "
                "to check."
            )  # fmt: skip
            self.said.emit(f"Every object is checked.{more}")
            return
        if at < 0:  # all were seen: begin again
            self._seen.clear()
            at = 0
        self._seen.add(_key(places, at))
        look_at(self._viewer, asked.layer, places.centres[at])
        number, what = int(places.numbers[at]), "No label here, perhaps a missed object"
        if number:
            asked.layer.selected_label = number
            what = f"Object {number}" if asked.task == "instance" else f"Class {number}"
        left = len(places.numbers)
        self.said.emit(
            f"{what}, {places.order}; {left} {'is' if left == 1 else 'are'} not checked."
        )


def _unchecked(annotation: Annotation, places: Objects) -> Objects:
    """Without the objects of which all is checked, and without gaps that are."""
    left = np.unique(annotation.labels[annotation.marks == UNKNOWN])
    instances = annotation.task == "instance"
    shape = annotation.layer.data.shape

    def counts(number: int, centre: np.ndarray) -> bool:
        if number and instances:
            return bool(np.isin(number, left))
        place = np.clip(np.round(centre).astype(int), 0, np.array(shape) - 1)
        return bool(annotation.state[tuple(place)] == UNKNOWN)

    pairs = zip(places.numbers.tolist(), places.centres, strict=True)
    keep = np.array([counts(number, centre) for number, centre in pairs], bool)
    return Objects(places.numbers[keep], places.centres[keep], places.order)


def _key(places: Objects, at: int) -> tuple[float, ...]:
    """What tells a place from others: an object may change its shape, a gap has no number."""
    number = float(places.numbers[at])
    return (number, *(() if number else np.round(places.centres[at]).tolist()))


def _first(places: Objects, seen: set[tuple[float, ...]]) -> int:
    """The first one that was not seen; -1: there is none."""
    every = range(len(places.numbers))
    return next((at for at in every if _key(places, at) not in seen), -1)
