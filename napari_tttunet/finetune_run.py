"""A fine-tuning in the engine, told as Qt signals; no widgets here."""

from __future__ import annotations

import contextlib
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtpy.QtCore import QObject, Signal

from napari_tttunet.axes import data_shape
from napari_tttunet.geometry import Bounds
from napari_tttunet.layers import image_fields, label_grid, layer_array
from napari_tttunet.regions import view_bounds
from napari_tttunet.result_layers import PreviewLayer
from napari_tttunet.session import session
from tttunet.engine import messages
from tttunet.engine.job import Job, Preview
from tttunet.errors import ImageError, OutputError
from tttunet.projects.runs import CONTROL, TRAINING

#: The preview shows at most so many pixels along an axis, by the dimensions of the model: it must
#: not slow the training down.
PREVIEW_EDGE = {2: 320, 3: 64}


@dataclass(frozen=True, eq=False)
class View:
    """What the user looks at: a part of an image.

    Attributes:
        layer: an Image layer.
        axes: of its data.
        bounds: per data axis without colours.
        channel: number of the one channel; empty: all.
    """

    layer: Any
    axes: str
    bounds: Bounds
    channel: str = ""

    @classmethod
    def of(cls, viewer: Any, source: Any) -> View | None:
        """Of the image that is corrected, a `finetune_images.Source`; None: it is not in view."""
        if source is None or source.layer not in viewer.layers:
            return None
        channel = "" if source.channel is None else str(source.channel)
        try:
            planes = view_bounds(viewer, source.layer, source.axes, "current")
        except ImageError:
            return None
        return cls(source.layer, source.axes, planes, channel)

    def limited(self, dim: int) -> View:
        """The middle of it, if it is large; for a 3D model with the slices around."""
        shape, edge = data_shape(self.layer), PREVIEW_EDGE[dim]
        bounds = list(self.bounds)
        for axis, letter in enumerate(self.axes[: len(bounds)]):
            if letter in "CS":
                continue
            start, stop = bounds[axis]
            length = stop - start
            if letter not in "ZYX"[-dim:]:
                size = 1
            elif length == 1:
                size = min(edge, shape[axis])
            else:
                size = min(edge, length)
            first = start + (length - size) // 2
            first = min(max(first, 0), shape[axis] - size)
            bounds[axis] = (first, first + size)
        return View(self.layer, self.axes, tuple(bounds), self.channel)

    def whole(self) -> Bounds:
        """Everything that decides how this is normalised: all of its time point."""
        sizes = zip(self.axes, self.bounds, data_shape(self.layer), strict=False)
        return tuple(bounds if axis == "T" else (0, n) for axis, bounds, n in sizes)


class FinetuneRun(QObject):
    """Runs one fine-tuning at a time.

    Attributes:
        progressed: stage, fraction, seconds left or None.
        point: step, and `loss`, `score` or both.
        noted: a sentence.
        done: the result, see `tttunet.engine.finetuning.run_finetune`.
        failed: message, hint, details.
        lost: message, hint: the worker died, what is done can be resumed.
        cancelled: the user stopped it.
    """

    progressed = Signal(str, float, object)
    point = Signal(int, dict)
    noted = Signal(str)
    done = Signal(object)
    failed = Signal(str, str, str)
    lost = Signal(str, str)
    cancelled = Signal()

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self._viewer = weakref.ref(viewer)
        self._job: Job | None = None
        self._token: object = None
        self._folder: Path | None = None
        self._preview: PreviewLayer | None = None
        self.paused = False
        self.stopping = False
        self._began = self._waited = self._paused_at = 0.0

    @property
    def running(self) -> bool:
        return self._token is not None

    def start(
        self,
        project: Path,
        model: str,
        folder: Path,
        options: dict[str, Any],
        view: View | None,
        dim: int = 2,
        resume: bool = False,
    ) -> None:
        """Begin, or go on.

        Args:
            project: its folder.
            model: name or folder of the model to start from; empty: a new one.
            folder: of the run, in the project.
            options: further arguments of `tttunet.finetune`.
            view: to preview the model on; None: no preview.
            dim: dimensions of the model.
            resume: from the checkpoint in `folder`.
        """
        self._folder, self._token = folder, object()
        self.paused = self.stopping = False
        with contextlib.suppress(OSError):
            (folder / CONTROL).unlink(missing_ok=True)
        token, viewer = self._token, self._viewer()
        given: dict[str, Any] = {}
        if view is not None and viewer is not None:
            view = view.limited(dim)
            grid = label_grid(view.layer, view.axes, 0, view.bounds)
            name = f"{view.layer.name}: preview of fine-tuning"
            self._preview = PreviewLayer(viewer, grid, name)
            whole = view.whole()
            fields = image_fields(view.layer, view.axes, 0, whole)
            axes = fields.pop("axes")
            given = {
                "view": layer_array(view.layer, 0, whole),
                "axes": axes,
                "image": fields,
                "channel": view.channel,
                "part": [(a - c, b - c) for (a, b), (c, _) in zip(view.bounds, whole, strict=True)],
            }
        self._job = session().engine.finetune(
            model,
            project,
            folder / TRAINING,
            control=folder / CONTROL,
            on_event=lambda job, event: self._hear(token, event),
            resume=resume,
            **given,
            **options,
        )

    def pause(self, paused: bool) -> None:
        """Wait, or go on.

        Raises:
            OutputError: the project cannot be written.
        """
        self._say("pause" if paused else "")
        now = time.monotonic()
        if self.paused:
            self._waited += now - self._paused_at
        self.paused, self._paused_at = paused, now

    def stop(self) -> None:
        """End now with the best model so far.

        Raises:
            OutputError: the project cannot be written.
        """
        self._say("stop")
        self.paused, self.stopping = False, True
        self.progressed.emit("keeping the best model", 0.0, None)

    def _say(self, word: str) -> None:
        assert self._folder is not None
        try:
            (self._folder / CONTROL).write_text(word, encoding="utf-8")
        except OSError as error:
            raise OutputError(f"The engine cannot be told: {error}.") from error

    @property
    def seconds(self) -> float:
        """How long it has run so far, without its pauses."""
        return time.monotonic() - self._began - self._waited

    def cancel(self) -> None:
        """Stop; `cancelled` follows."""
        if self._job is not None and not self._job.finished:
            self.progressed.emit("cancelling", 0.0, None)
            with contextlib.suppress(OutputError):
                self._say("")  # what waits hears nothing
            self._job.cancel()

    def close(self) -> None:
        """Stop, and tell nothing any more: the dock or the viewer is gone."""
        job, self._job = self._job, None
        self._end()
        if job is not None and not job.finished:
            job.cancel()

    def _end(self) -> None:
        self._token = None
        preview, self._preview = self._preview, None
        if preview is not None:
            preview.close()

    def _hear(self, token: object, event: Any) -> None:
        if token is not self._token:
            return
        if isinstance(event, Preview):
            if self._preview is not None:
                self._preview.paste(event.bounds, event.labels)
        elif isinstance(event, messages.Metric):
            self.point.emit(event.step, dict(event.values))
        elif isinstance(event, messages.Progress):
            if not (self.paused or self.stopping):
                self.progressed.emit(event.stage, event.fraction, event.eta)
        elif isinstance(event, messages.Started):
            self._began, self._waited = time.monotonic(), 0.0
            stage = "starting the engine" if event.cold else "preparing the corrections"
            self.progressed.emit(stage, 0.0, None)
        elif isinstance(event, messages.Queued) and event.ahead:
            self.progressed.emit("waiting for another job", 0.0, None)
        elif isinstance(event, messages.Log):
            self.noted.emit(event.message)
        elif isinstance(event, messages.TERMINAL):
            self._end()
            self._finish(event)

    def _finish(self, event: Any) -> None:
        if isinstance(event, messages.Done):
            self.done.emit(event.result)
        elif isinstance(event, messages.Cancelled):
            self.cancelled.emit()
        elif isinstance(event, messages.Lost):
            self.lost.emit(event.message, event.hint)
        else:
            self.failed.emit(event.message, event.hint, event.details)
