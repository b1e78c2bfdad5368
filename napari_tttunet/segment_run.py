"""A segmentation from the choices of a person to layers in the viewer; no widgets here."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
from qtpy.QtCore import QObject, QTimer, Signal

from napari_tttunet.class_labels import described_classes, look_of_classes
from napari_tttunet.dock_work import Background
from napari_tttunet.layers import LabelGrid, image_fields, label_grid, layer_array
from napari_tttunet.map_images import MapImages, show_map_images
from napari_tttunet.result_layers import Composed, PreviewLayer, ResultLayers, compose
from napari_tttunet.segment_choices import Choices
from napari_tttunet.session import session
from napari_tttunet.warm_up import warm_up
from tttunet.engine import messages
from tttunet.engine.job import Job, Preview
from tttunet.errors import TTTUNetError

#: Labels of a whole image are made for a part of it only if they are at most so large.
LARGEST_WHOLE = 2**30
#: Milliseconds from the opening of a dock or an image, which shall be drawn first.
_WARM_UP_AFTER = 500
#: A preview is shown only if at least so many seconds are left: napari takes longer to add a layer
#: than a small image takes to be segmented.
_WORTH_PREVIEW = 1.0


@dataclass(frozen=True, eq=False)
class Finished:
    """A segmentation that is shown.

    Attributes:
        layer: the labels.
        record: how they were made.
        again: only the thresholds were changed.
    """

    layer: Any
    record: dict[str, Any]
    again: bool


@dataclass(frozen=True, eq=False)
class _Part:
    """What is segmented at a time."""

    choices: Choices
    number: int
    grid: LabelGrid
    whole: LabelGrid
    key: Any

    @classmethod
    def of(cls, choices: Choices, number: int) -> _Part:
        bounds = choices.bounds(number)
        grid = label_grid(choices.layer, choices.axes, choices.level, bounds)
        whole = label_grid(choices.layer, choices.axes, choices.level)
        size = math.prod(whole.shape) * (4 if choices.instances else 1)
        if choices.parts and size > LARGEST_WHOLE:
            return cls(choices, number, grid, grid, bounds)
        return cls(choices, number, grid, whole, None)

    @property
    def corner(self) -> tuple[int, ...]:
        """Where this part begins in the data of its Labels layer."""
        if self.key is not None:
            return (0,) * len(self.grid.axes)
        return tuple(
            0 if letter == "C" else start
            for letter, (start, _) in zip(self.grid.axes, self.grid.bounds, strict=True)
        )


class SegmentRun(QObject):
    """Runs one segmentation at a time for one viewer, and decodes it again on request.

    Attributes:
        progressed: stage, fraction, seconds left or None.
        noted: a warning of the engine, for example that it goes on with smaller tiles.
        finished: a `Finished`.
        failed: message, hint, details.
        cancelled: the user stopped it; no layer was changed.
    """

    progressed = Signal(str, float, object)
    noted = Signal(str)
    finished = Signal(object)
    failed = Signal(str, str, str)
    cancelled = Signal()

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self.layers = ResultLayers(viewer)
        self._background = Background(self)
        self._viewer = weakref.ref(viewer)
        self._job: Job | None = None
        self._token: object = None
        self._image: Any = None
        self._preview: PreviewLayer | None = None
        self._left = 0.0
        self._last: tuple[_Part, dict[str, Any]] | None = None
        self._decoding: dict[str, Any] | None = None
        self._next_decoding: dict[str, Any] | None = None
        self._closed = False

    def warm_up(self) -> None:
        """Have the first result appear sooner; to be called when there is a layer."""
        QTimer.singleShot(_WARM_UP_AFTER, warm_up)

    @property
    def running(self) -> bool:
        """Whether a segmentation is under way (decoding again does not count)."""
        return self._token is not None and self._decoding is None

    @property
    def image(self) -> Any:
        """The layer that is segmented at the moment; None if nothing runs."""
        return self._image() if self.running and self._image is not None else None

    @property
    def can_decode(self) -> bool:
        """Whether `decode` can change the last result."""
        return self._last is not None and bool(self._last[1].get("maps_id"))

    def source_of(self, layer: Any) -> tuple[_Part, str, np.ndarray] | None:
        """What the labels of a layer were made from, if the worker may still have the maps.

        Returns:
            The part, the number of the maps, and the labels there with the engine's axes.
        """
        own = layer.metadata.get("tttunet") or {}
        if not self.can_decode or self._token is not None or self._last is None:
            return None
        part, record = self._last
        if own.get("maps_id") != record["maps_id"]:
            return None
        corner = part.corner
        inside = tuple(slice(a, a + n) for a, n in zip(corner, part.grid.shape, strict=True))
        labels = np.asarray(layer.data[inside])
        thick = part.grid.axes.find("C")
        return part, record["maps_id"], labels.squeeze(thick) if thick >= 0 else labels

    def start(self, choices: Choices) -> None:
        """Begin.

        Raises:
            ImageError: the image is empty or holds no numbers.
        """
        self._forget()
        self._last = None
        self._begin(_Part.of(choices, 0))

    def _begin(self, part: _Part) -> None:
        choices, viewer = part.choices, self._viewer()
        layer, bounds = choices.layer, choices.bounds(part.number)
        array = layer_array(layer, choices.level, bounds)
        fields = image_fields(layer, choices.axes, choices.level, bounds)
        self._token = token = object()
        self._image = weakref.ref(layer)
        self._left = 0.0
        if viewer is not None:
            self._preview = PreviewLayer(viewer, part.grid, f"{layer.name}: preview")
        self._job = session().engine.segment(
            array,
            axes=choices.axes,
            model=choices.model["name"],
            image=fields,
            preview=True,
            maps=choices.probabilities or choices.uncertainty,
            adaptation_map=bool(choices.adapted),
            adaptation=choices.adaptation,
            device=choices.device,
            tile=choices.tile,
            mirror=choices.mirror,
            decoding=dict(choices.decoding),
            channel=choices.channel,
            on_event=lambda job, event: self._hear(token, part, event),
        )

    def cancel(self) -> None:
        """Stop; `cancelled` follows."""
        if self._job is not None and not self._job.finished:
            self.progressed.emit("cancelling", 0.0, None)
            self._job.cancel()
        elif self.running:  # the labels are being arranged
            self._end()
            self.cancelled.emit()

    def decode(self, decoding: dict[str, Any]) -> None:
        """Change the thresholds of the last result; of calls meanwhile, the last one counts."""
        if not self.can_decode or self.running:
            return
        if self._decoding is not None:
            self._next_decoding = decoding
            return
        assert self._last is not None
        part, record = self._last
        self._decoding, self._token = decoding, object()
        token = self._token
        self._job = session().engine.decode(
            decoding, record["maps_id"], lambda job, event: self._hear(token, part, event)
        )

    def close(self) -> None:
        """Stop, and tell nothing any more: the dock or the viewer is gone."""
        self._closed = True
        self._forget()

    # Events

    def _forget(self) -> None:
        job, self._job = self._job, None
        self._end()
        self._next_decoding = None
        if job is not None and not job.finished:
            job.cancel()

    def _end(self) -> None:
        self._token = self._decoding = None
        preview, self._preview = self._preview, None
        if preview is not None:
            preview.close()

    def _hear(self, token: object, part: _Part, event: Any) -> None:
        if token is not self._token or self._closed:
            return
        if isinstance(event, Preview):
            if self._preview is not None:
                worth = self._left >= _WORTH_PREVIEW
                self._preview.paste(event.bounds, event.labels, show=worth)
        elif isinstance(event, messages.Done):
            self._arrange(token, part, event.result)
        elif isinstance(event, messages.Failed):
            self._fail(event.message, event.hint, event.details)
        elif isinstance(event, messages.Lost):
            self._fail(event.message, event.hint)
        elif isinstance(event, messages.Cancelled):
            self._end()
            self.cancelled.emit()
        elif self._decoding is None:
            self._tell(part, event)

    def _tell(self, part: _Part, event: Any) -> None:
        if isinstance(event, messages.Progress):
            self._left = event.eta or 0.0
            count = max(len(part.choices.parts), 1)
            stage = {"tiles": "finding objects", "finding objects": "separating objects"}.get(
                event.stage, event.stage
            )
            if count > 1:
                stage = f"region {part.number + 1} of {count}, {stage}"
            self.progressed.emit(stage, event.fraction, event.eta)
        elif isinstance(event, messages.Started):
            stage = "starting the engine" if event.cold else "reading the image"
            self.progressed.emit(stage, 0.0, None)
        elif isinstance(event, messages.Log):
            self.noted.emit(event.message)
        elif isinstance(event, messages.Queued) and event.ahead:
            self.progressed.emit("waiting for another job", 0.0, None)

    def _fail(self, message: str, hint: str = "", details: str = "") -> None:
        if self._decoding is not None:
            self._last = None  # the maps are gone
        self._end()
        self._next_decoding = None
        self.failed.emit(message, hint, details)

    # Results

    def _arrange(self, token: object, part: _Part, result: dict[str, Any]) -> None:
        """Arrange the labels in a thread: large ones take their time."""
        choices = part.choices
        name = choices.model["name"]
        old = self.layers.snapshot(choices.layer, name, part.key)
        labels, maps = result.pop("labels"), result.pop("maps", None)
        losses = result.pop("adaptation_map", None)

        def work() -> tuple[Any, ...]:
            composed = compose(labels, part.grid, part.whole, choices.instances, old)
            images = MapImages(part.grid)
            if maps is not None:
                images.add_maps(maps, choices.model, choices.probabilities, choices.uncertainty)
            if losses is not None:
                images.add_losses(losses, choices.adapted)
            return token, part, result, composed, images

        self._background.run(work, self._show, self._broken)

    def _broken(self, error: Exception) -> None:
        hint = "" if isinstance(error, TTTUNetError) else "Choose a smaller region."
        self._fail(f"The labels cannot be shown: {error}", hint)

    def _show(self, arranged: tuple[Any, ...]) -> None:
        token, part, result, composed, images = arranged
        if token is not self._token or self._closed:
            return
        again, viewer = self._decoding is not None, self._viewer()
        record = self._record(part, result, again)
        preview, self._preview = self._preview, None
        self._end()
        layer = self._commit(part, composed, record, images, viewer, preview)
        if preview is not None:
            preview.close()
        if layer is None:
            return
        self._last = (part, record)
        waiting, self._next_decoding = self._next_decoding, None
        if waiting is not None:
            self.decode(waiting)
        elif not again and part.number + 1 < len(part.choices.parts):
            self._begin(_Part.of(part.choices, part.number + 1))
        self.finished.emit(Finished(layer, record, again))

    def _commit(
        self,
        part: _Part,
        composed: Composed,
        record: dict[str, Any],
        images: MapImages,
        viewer: Any,
        preview: PreviewLayer | None,
    ) -> Any:
        choices = part.choices
        if viewer is not None:
            show_map_images(viewer, choices.layer, choices.model["name"], images)
        return self.layers.commit(
            choices.layer,
            choices.model["name"],
            composed,
            record,
            part.key,
            look_of_classes(record),
            preview,
        )

    def _record(self, part: _Part, result: dict[str, Any], again: bool) -> dict[str, Any]:
        """Everything that decides the labels; axes and geometry are those of the layer."""
        before = self._last[1] if again and self._last else {}
        fresh = {key: value for key, value in result.items() if key not in ("axes", "shape")}
        choices = part.choices
        bounds = [list(along) for along in part.grid.bounds]
        return {
            **before,
            **fresh,
            "image": choices.layer.name,
            "image_axes": choices.axes,
            "channel": choices.channel,
            "level": choices.level,
            "region": bounds if choices.parts else None,
            "classes": described_classes(choices.model),
            "accepted": False,
        }
