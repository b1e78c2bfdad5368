"""Where the images of a project are doubtful, asked of the engine one image after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qtpy.QtCore import QObject, Signal

from napari_tttunet.dock_work import weakly
from napari_tttunet.session import session
from tttunet.engine import messages
from tttunet.measuring.places import Place


class Ranking(QObject):
    """The doubtful places of a project's images.

    What was found is kept as long as project and model stay the same.

    Attributes:
        said: what is under way.
        skipped: sentences about images that could not be looked through since the last question.
    """

    said = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self._asked = ("", "")
        self._places: dict[str, list[Place]] = {}
        self._names: dict[str, str] = {}
        self._job: Any = None
        self._then: Callable[[dict[str, list[Place]]], None] | None = None
        self.skipped: list[str] = []

    @property
    def busy(self) -> bool:
        """Whether an answer is awaited."""
        return self._then is not None

    def ask(
        self,
        folder: str,
        model: str,
        images: Mapping[str, str],
        then: Callable[[dict[str, list[Place]]], None],
    ) -> None:
        """Look through images.

        Args:
            folder: of the project.
            model: name or folder; its doubt counts.
            images: id and name of each.
            then: hears the places of every image that was looked through.
        """
        self.forget()
        if self._asked != (folder, model):
            self._asked, self._places = (folder, model), {}
        self._names, self._then, self.skipped = dict(images), then, []
        self._go_on()

    def known(self, folder: str, model: str, image_id: str) -> list[Place] | None:
        """The places of an image; None: nobody asked yet."""
        return self._places.get(image_id) if self._asked == (folder, model) else None

    def hurry(self) -> None:
        """Answer now, if any image was looked through."""
        if self._found:
            self._answer()

    @property
    def complete(self) -> bool:
        """Whether the last answer had all images."""
        return len(self._found) == len(self._names)

    @property
    def _found(self) -> dict[str, list[Place]]:
        return {name: self._places[name] for name in self._names if name in self._places}

    def _answer(self) -> None:
        then = self._then
        self.forget()
        if then is not None:
            then(self._found)

    def forget(self) -> None:
        """The answer is not wanted any more."""
        job, self._job, self._then = self._job, None, None
        if job is not None and not job.finished:
            job.cancel()

    def _go_on(self) -> None:
        missing = [image_id for image_id in self._names if image_id not in self._places]
        if not missing:
            self._answer()
            return
        number, name = len(self._names) - len(missing) + 1, self._names[missing[0]]
        self.said.emit(
            f"Looking through the project: '{name}', {number} of {len(self._names)} images. "
            "Press again to take the best until now."
        )
        hear = weakly(self._hear)
        self._job = session().engine.review_image(
            *(self._asked[0], missing[0], self._asked[1]),
            lambda job, event: hear(job, event, missing[0]),
        )

    def _hear(self, job: Any, event: Any, image_id: str) -> None:
        if job is not self._job or not isinstance(event, messages.TERMINAL):
            return
        if isinstance(event, messages.Done):
            self._places[image_id] = [_place(one) for one in event.result["places"]]
            self._go_on()
            return
        self.skipped.append(getattr(event, "message", ""))
        if isinstance(event, messages.Failed) and event.problem != "busy":
            self._places[image_id] = []
            self._go_on()
        else:
            self._answer()


def _place(told: Mapping[str, Any]) -> Place:
    """A place as the engine tells it."""
    bounds = tuple((int(start), int(stop)) for start, stop in told["bounds"])
    centre = tuple(map(float, told["centre"]))
    return Place(told["kind"], int(told["label"]), centre, bounds, float(told["doubt"]))
