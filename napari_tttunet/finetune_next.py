"""Where to correct next: what nobody checked, in the order of the network's doubt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from qtpy.QtCore import QObject, QTimer, Signal

from napari_tttunet.annotation import UNKNOWN, Annotation
from napari_tttunet.checking import PATIENCE, doubtful
from napari_tttunet.dock_work import Background, weakly
from napari_tttunet.finetune_images import label_axes
from napari_tttunet.finetune_open import (
    as_places,
    fresh,
    in_labels,
    most_doubtful,
    not_seen,
    not_vouched,
    odd,
    unchecked,
)
from napari_tttunet.finetune_project import ProjectWork
from napari_tttunet.finetune_ranking import Ranking
from napari_tttunet.keys import look_at
from napari_tttunet.objects import Objects
from napari_tttunet.session import session
from tttunet.engine import messages
from tttunet.measuring.places import ADDED_UP, Place
from tttunet.projects.runs import model_folder


@dataclass(frozen=True, eq=False)
class _Found:
    """What is left to check in labels, and which of it was not seen yet (-1: nothing)."""

    annotation: Annotation
    places: Objects
    at: int


class Unchecked(QObject):
    """Goes from one place to the next, in the labels that are corrected and to other images.

    The engine ranks the places of the labels that it found last (`tttunet.inference.review`), once
    per result: what is checked meanwhile drops out. If it does not have the network's output any
    more, or is busy, objects whose size differs most from the usual come first.

    The score of an image is the sum of its most doubtful places (`rank_groups`). When these were
    seen, or nothing is left, the image of the project with the highest score comes next; for that,
    the engine segments every image once.

    Args:
        viewer: napari's viewer.
        work: with the annotation.
        model: the reference of the model whose doubt counts; empty: there is none.

    Attributes:
        said: a sentence about the place.
        failed: an exception to tell.
        ranking: looks through the project; to be forgotten when the dock goes.
    """

    said = Signal(str)
    failed = Signal(object)

    def __init__(self, viewer: Any, work: ProjectWork, model: Callable[[], str]) -> None:
        super().__init__()
        self._viewer, self._work, self._model = viewer, work, model
        self._background = Background(self)
        self.ranking = Ranking()
        self.ranking.said.connect(self.said)
        self._going = ""
        self._visits = 0
        self._points: dict[str, list[tuple[float, ...]]] = {}
        self._last = ""
        work.opened.connect(self._forget)
        work.shown.connect(self._arrived)
        self._annotation: Annotation | None = None
        self._maps_id = ""
        self._ranked: Objects | None = None
        self._job: Any = None
        self._asking = False
        self._seen: set[int] = set()

    def next(self, labels: Any) -> None:
        """Go to the next place of a Labels layer, which is annotated."""
        if self.ranking.busy:
            self.ranking.hurry()
            return
        annotation = self._work.annotation
        assert annotation is not None
        own = labels.metadata.get("tttunet") or {}
        maps_id = str(own.get("maps_id") or "")
        if annotation is not self._annotation or maps_id != self._maps_id:
            self._annotation, self._maps_id = annotation, maps_id
            self._ranked, self._seen, self._visits = None, set(), 0
            if self._last == self._here:  # its labels are new
                self._points.pop(self._here, None)
            self._last = self._here
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
        ranked, seen, points = self._ranked, set(self._seen), self._points_of(self._here)
        known = self._known()

        def work() -> _Found:
            places = Objects(np.zeros(0, np.int64), np.zeros((0, annotation.layer.ndim)), "")
            if ranked is not None:
                places = unchecked(annotation, ranked)
            if not len(places.numbers) and known is not None:
                places = unchecked(annotation, in_labels(annotation, known))
            if not len(places.numbers):
                places = odd(annotation)
            left = np.flatnonzero(fresh(annotation, places, seen, points))
            return _Found(annotation, places, int(left[0]) if len(left) else -1)

        self._background.run(work, self._go, self.failed.emit)

    def _points_of(self, image_id: str) -> list[tuple[float, ...]]:
        """Where the user was led in an image."""
        return list(self._points.get(image_id, ()))

    @property
    def _here(self) -> str:
        """Id of the image that is corrected; empty: the project does not have it."""
        return self._work.image.id if self._work.image is not None else ""

    def _asked_model(self) -> tuple[str, str]:
        """Folder of the project, and name or folder of the model; empty: there is none."""
        project, reference = self._work.project, self._model()
        if project is None or not reference:
            return "", ""
        return str(project.folder), model_folder(project, reference)

    def _known(self) -> list[Place] | None:
        """What the model doubts in the image, if the project was looked through."""
        return self.ranking.known(*self._asked_model(), self._here)

    def _go(self, found: _Found) -> None:
        if not self._is_here(found):
            return
        if (found.at >= 0 and self._visits < ADDED_UP) or not self._ask_for_images(found):
            self._stay(found)

    def _is_here(self, found: _Found) -> bool:
        annotation = self._work.annotation
        return annotation is found.annotation and annotation.layer in self._viewer.layers

    # The same image

    def _stay(self, found: _Found) -> None:
        annotation, places, at = found.annotation, found.places, found.at
        if not len(places.numbers):
            more = "" if _is_known(annotation) else (
                " These labels hold nothing else of the image: press Segment to see what there is "
                "to check."
            )  # fmt: skip
            self.said.emit(f"Every object is checked.{more}")
            return
        if at < 0:  # all were seen: begin again
            self._seen.clear()
            self._points.pop(self._here, None)
            at = 0
        self._visits += 1
        self._seen.add(int(places.numbers[at]))
        point = annotation.in_image(places.centres[at])
        self._points.setdefault(self._here, []).append(point)
        look_at(self._viewer, annotation.layer, places.centres[at])
        self.said.emit(self._describe(annotation, places, at))

    def _describe(self, annotation: Annotation, places: Objects, at: int) -> str:
        number, what = int(places.numbers[at]), "No label here, perhaps a missed object"
        if number:
            annotation.layer.selected_label = number
            what = f"Object {number}" if annotation.task == "instance" else f"Class {number}"
        elif "model" not in (annotation.layer.metadata.get("tttunet") or {}):
            what = "The model sees something here, which has no label (Segment shows it)"
        project, image, left = self._work.project, self._work.image, len(places.numbers)
        several = project is not None and image is not None and len(project.images) > 1
        where = f"'{image.name}': " if several and image is not None else ""
        return f"{where}{what}, {places.order}; {left} {'is' if left == 1 else 'are'} not checked."

    # Other images

    def _ask_for_images(self, found: _Found) -> bool:
        """Find the image that comes next; False: there is no other one, or no model to ask."""
        project = self._work.project
        folder, model = self._asked_model()
        images = {image.id: image.name for image in project.images} if project is not None else {}
        if not model or not set(images) - {self._here}:
            return False
        if found.places.doubts is not None:
            images.pop(self._here, None)
        rank = weakly(self._rank)
        self.ranking.ask(folder, model, images, lambda known: rank(found, known))
        return True

    def _rank(self, found: _Found, known: dict[str, list[Place]]) -> None:
        project, here, seen = self._work.project, self._here, set(self._seen)
        if project is None or not self._is_here(found):
            return
        others = {
            image: not_seen(places, self._points_of(image))
            for image, places in known.items()
            if image != here
        }
        points = self._points_of(here)

        def work() -> tuple[_Found, str]:
            left = {
                image: list(not_vouched(project.corrections(image), places))
                for image, places in others.items()
            }
            annotation, places = found.annotation, found.places
            if here in known:
                places = unchecked(annotation, in_labels(annotation, known[here]))
            left[here] = as_places(places.chosen(fresh(annotation, places, seen, points)))
            return found, most_doubtful(left)

        self._background.run(work, self._choose, self.failed.emit)

    def _choose(self, answer: tuple[_Found, str]) -> None:
        found, best = answer
        project = self._work.project
        if project is None or not self._is_here(found):
            return
        self._visits = 0
        if best and best != self._here:
            self._going = best
            self._work.show_image(best)
        elif best:
            self._look(found.annotation)
        elif found.at >= 0:
            self._stay(found)
        else:
            self._seen.clear()
            self._points.clear()
            self.said.emit(self._nothing_left(len(project.images)))

    def _nothing_left(self, count: int) -> str:
        why = f" {self.ranking.skipped[0]}" if self.ranking.skipped else ""
        if not self.ranking.complete:
            return f"There is no doubtful place in the images looked through until now.{why}"
        return (
            f"Every place that the model doubts is checked or was seen, on all {count} images. "
            f"Press again to go through them once more.{why}"
        )

    def _arrived(self) -> None:
        """Labels are ready: go on in them, if they are of the image that was to come next."""
        annotation = self._work.annotation
        if annotation is not None and self._going and self._going == self._here:
            self._going = ""
            self.next(annotation.layer)

    def _forget(self) -> None:
        """Another project was opened."""
        self.ranking.forget()
        self._going = ""
        self._points.clear()


def _is_known(annotation: Annotation) -> bool:
    """Whether labels hold all of their image."""
    own = annotation.layer.metadata.get("tttunet") or {}
    return "model" in own or bool((annotation.marks != UNKNOWN).all())
