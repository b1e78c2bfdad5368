"""The Segment dock: choose an image and a model, press Segment, adjust, accept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtGui import QGuiApplication
from qtpy.QtWidgets import QWidget

from napari_tttunet.checking import Checking
from napari_tttunet.dock_work import (
    ActivityBar,
    Background,
    Cleanup,
    delayed,
    read_library,
    weakly,
)
from napari_tttunet.keys import DockKeys
from napari_tttunet.layers import layer_array, real_viewer
from napari_tttunet.legend import Legend
from napari_tttunet.model_card import summary_html
from napari_tttunet.result_layers import accept, is_accepted, is_preview, is_result
from napari_tttunet.segment_choices import Choices, chosen_parts, fits_scale
from napari_tttunet.segment_image import ImageChoice
from napari_tttunet.segment_run import Finished, SegmentRun
from napari_tttunet.segment_view import ALL_IS_SEEN, SegmentView
from napari_tttunet.session import session
from napari_tttunet.settings import Settings
from napari_tttunet.widgets import (
    Scrolling,
    device_name,
    duration,
    memory,
    roughly,
    show_text,
)
from tttunet.engine import messages
from tttunet.errors import ImageError, TTTUNetError

if TYPE_CHECKING:
    import napari

#: Milliseconds without a change before the labels are decoded again, or the need is estimated.
DECODE_AFTER = 150
ESTIMATE_AFTER = 300


class SegmentDock(QWidget):
    """Segments the image of the active layer.

    Args:
        napari_viewer: the viewer that the dock belongs to.
        parent: of the widget.
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.viewer = real_viewer(napari_viewer)
        self.settings = Settings()
        self.models: list[dict[str, Any]] = []
        self.labels: Any = None
        self._estimate: Any = None
        self._activity = ActivityBar()
        self._background = Background(self)
        self._cleanup = Cleanup(self)
        self.run = SegmentRun(self.viewer)
        self._cleanup.add(self.run.close)
        self.checking = Checking(self.viewer, self.run)
        self._cleanup.add(self.settings.save_soon)
        self._cleanup.add(self._activity.close)
        self.image = ImageChoice(self.viewer, self._cleanup)
        self.view = SegmentView(self.image, self.settings, Legend(self.viewer))
        Scrolling(self.view, self)
        self._decode_timer = delayed(self, DECODE_AFTER, self._decode)
        self._estimate_timer = delayed(self, ESTIMATE_AFTER, self._ask_estimate)
        self.keys = DockKeys(
            self.viewer,
            {
                name: weakly(action)
                for name, action in {
                    "segment_view": self.segment_view,
                    "accept": self.accept_labels,
                    "next_object": self.next_object,
                    "previous_object": self.previous_object,
                    "toggle_labels": self.toggle_labels,
                }.items()
            },
        )
        self._cleanup.add(self.keys.release)
        self._connect()
        self._show_state()
        self.read_models()
        session().engine.request(messages.Hello(), weakly(self._heard_hello))

    def _connect(self) -> None:
        view, run = self.view, self.run
        self.image.changed.connect(self._image_changed)
        view.model.activated.connect(self._model_picked)
        view.changed.connect(self._show_state)
        view.options.changed.connect(self._show_state)
        view.thresholds.changed.connect(self._decode_timer.start)
        view.segment.clicked.connect(lambda: self.segment())
        view.cancel.clicked.connect(run.cancel)
        view.copy_command.clicked.connect(self.copy_command)
        view.accept.clicked.connect(self.accept_labels)
        view.next.clicked.connect(self.next_object)
        self.checking.told.connect(self._tell_place)
        self.checking.failed.connect(view.message.tell_error)
        view.previous.clicked.connect(self.previous_object)
        view.toggle.clicked.connect(self.toggle_labels)
        view.name_keys(self.keys.text)
        run.progressed.connect(self._progressed)
        run.noted.connect(lambda text: view.message.add("warning", text))
        run.finished.connect(self._finished)
        run.failed.connect(self._failed)
        run.cancelled.connect(self._cancelled)
        layers = self.viewer.layers
        for emitter in (layers.events.inserted, layers.events.removed):
            self._cleanup.connect(emitter, self._layers_changed)
        self._cleanup.connect(layers.selection.events.active, self._active_changed)
        dims = self.viewer.dims.events
        self._cleanup.connect(dims.point, self._moved)
        for emitter in (dims.ndisplay, dims.order):
            self._cleanup.connect(emitter, self._show_state)
        session().models_changed.connect(self.read_models)
        self._layers_changed()

    # Models

    def read_models(self) -> None:
        """Read the library again, in a thread: the engine may be busy for long."""
        self._background.run(read_library, self._list_models, self.view.message.tell_error)

    def _list_models(self, entries: list[dict[str, Any]]) -> None:
        self.models = entries
        chosen = self.entry.get("name") or self.settings.get("segment.model", "")
        self.view.list_models(entries)
        names = [entry["name"] for entry in entries if entry["error"] is None]
        if chosen not in names:
            chosen = self._best_model()
        self._set_model(chosen)

    @property
    def entry(self) -> dict[str, Any]:
        """The chosen model as the library describes it; empty if there is none."""
        name = self.view.model.currentData()
        return next((e for e in self.models if e["name"] == name and e["error"] is None), {})

    def _best_model(self) -> str:
        """A model of the image's scale and number of dimensions, or any that works."""
        dim = 3 if self.image.size_of("Z") > 1 else 2
        unit = self.image.unit

        def misfit(entry: dict[str, Any]) -> tuple[Any, ...]:
            return not fits_scale(entry, unit), entry["dim"] != dim, entry["dim"], entry["task"]

        good = sorted((entry for entry in self.models if entry["error"] is None), key=misfit)
        return good[0]["name"] if good else ""

    def _model_picked(self, *_: Any) -> None:
        self.settings.set("segment.model", self.view.model.currentData())
        self.settings.save_soon()
        self._set_model(self.view.model.currentData())

    def _set_model(self, name: str) -> None:
        self.view.model.setCurrentIndex(self.view.model.findData(name))
        entry = self.entry
        self.view.show_model(entry, summary_html(entry) if entry else "")
        self.view.thresholds.set_model(entry)
        self.view.options.set_model(entry)
        self.image.set_model(entry)
        self._show_state()

    # What would be done

    def _image_changed(self) -> None:
        self.view.options.set_layer(self.image.layer, self.image.axes)
        message, hint = self.image.problem
        if message:
            self.view.message.tell("error", message, hint)
        elif not self.run.running:
            self.view.message.clear()
        self._show_state()

    def _layers_changed(self, *_: Any) -> None:
        from napari.layers import Shapes

        if self.viewer.layers:
            self.run.warm_up()
        self.view.list_shapes([x for x in self.viewer.layers if isinstance(x, Shapes)])
        if self.labels is not None and self.labels not in self.viewer.layers:
            self.labels = None
        if self.run.image is not None and self.run.image not in self.viewer.layers:
            self.run.cancel()
        self._show_state()

    def _active_changed(self, *_: Any) -> None:
        from napari.layers import Labels

        active = self.viewer.layers.selection.active
        if isinstance(active, Labels) and not is_preview(active):
            self.labels = active
        self._show_state()

    def _moved(self, *_: Any) -> None:
        if self.view.planes_choice == "current":
            self._estimate_timer.start()

    def _show_state(self, *_: Any) -> None:
        """What can be pressed, what is shown, and what will happen."""
        view, entry, image = self.view, self.entry, self.image
        view.show_dimensions(entry, image, self._in_3d)
        ready = bool(entry and image.layer is not None and image.axes)
        view.show_running(self.run.running, ready)
        file = _file(image.layer)
        view.copy_command.setEnabled(ready and bool(file))
        view.show_labels(self._checked)
        view.legend.follow(self._checked)
        if self.run.running:
            return
        if image.layer is None:
            need = "Open an image to begin: File > Open, or File > Open Sample."
        elif not self.models:
            need = "Reading the list of models..."
        elif not entry:
            need = "There is no model that works: import one in the Models dock."
        elif not image.axes:
            need = "Correct the axes to go on."
        else:
            need = ""
            self._estimate_timer.start()
        show_text(view.need, need)

    def choices(self, where: str = "") -> Choices:
        """What the controls say.

        Args:
            where: instead of the chosen one.

        Raises:
            ImageError: no image, wrong axes, or nothing of the image is meant.
        """
        image, view, entry = self.image, self.view, self.entry
        if image.layer is None or not entry:
            raise ImageError("There is no image or no model.", "Open an image first.")
        if not image.axes:
            raise ImageError(*image.problem)
        where = where or view.where_choice
        parts = chosen_parts(
            self.viewer,
            image.layer,
            image.axes,
            where,
            view.planes_choice,
            view.shapes.currentData(),
            int(entry["dim"]),
            view.slices,
        )
        options = view.options
        return Choices(
            image.layer,
            entry,
            image.axes,
            parts,
            int(options.level.currentData() or 0),
            image.channel,
            str(options.device.currentData()),
            options.tile_size(),
            options.mirror.isChecked(),
            view.thresholds.decoding(),
            options.probabilities.isChecked(),
            options.uncertainty.isChecked(),
            options.adaptation_mode,
            options.adaptation_shown,
        )

    def _ask_estimate(self) -> None:
        if self.run.running or not self.entry or not self.image.axes:
            return
        self.view.options.show_used(session().engine.about)
        try:
            request = self.choices().estimate()
        except ImageError as error:
            show_text(self.view.need, str(error))
            return
        # One that runs already is left to end: it takes no time.
        if self._estimate is not None and self._estimate.state == "waiting":
            self._estimate.cancel()
        self._estimate = session().engine.request(request, weakly(self._heard_estimate))

    def _heard_estimate(self, job: Any, event: Any) -> None:
        if job is not self._estimate or self.run.running:
            return
        if isinstance(event, messages.Failed) and event.problem == "input":
            show_text(self.view.need, f"{event.message} {event.hint}".strip())
        if not isinstance(event, messages.Done):
            return
        need = event.result
        text = f"Needs about {memory(need['bytes'])}"
        if need["seconds"] is not None:
            text += f" and {roughly(need['seconds']).removeprefix('about ')}"
        text += f" on the {device_name(need['device'], session().engine.about)}"
        if need["tiles"] > 1:
            text += f" ({need['tiles']} tiles)"
        if not need["fits"]:
            text += f"; only {memory(need['available'])} are free, so smaller tiles will be used"
        show_text(self.view.need, text + ".")

    def _heard_hello(self, job: Any, event: Any) -> None:
        if isinstance(event, messages.Done):
            self.view.options.set_devices(session().engine.about)
        elif isinstance(event, messages.Failed | messages.Lost):
            self.view.message.tell_failure(event)

    # Running

    def segment(self, where: str = "") -> None:
        """Begin; what goes wrong is told in the dock."""
        if self.run.running or not self.view.segment.isEnabled():
            return
        self._decode_timer.stop()
        self._estimate_timer.stop()
        self.view.message.clear()
        try:
            choices = self.choices(where)
            layer_array(choices.layer, choices.level)
        except TTTUNetError as error:
            self.view.message.tell_error(error)
            return
        if self._estimate is not None and self._estimate.state == "waiting":
            self._estimate.cancel()
        show_text(self.view.result, "")
        self.run.start(choices)
        self.view.progress.report("waiting for the engine")
        self._activity.report("waiting for the engine", 0.0)
        self._show_state()

    def segment_view(self) -> None:
        """Segment what the canvas shows."""
        self.segment("view")
        if self.run.running and self._in_3d:
            self.view.message.tell("info", ALL_IS_SEEN)

    @property
    def _in_3d(self) -> bool:
        return bool(self.viewer.dims.ndisplay == 3)

    def _decode(self) -> None:
        if self.run.can_decode and not self.run.running:
            self.view.message.clear()
            self.run.decode(self.view.thresholds.decoding())
        elif not self.run.running and self.view.result.text():
            self.view.message.tell(
                "info", "The new thresholds count from the next time.", "Press Segment to see them."
            )

    def _progressed(self, stage: str, fraction: float, eta: float | None) -> None:
        self.view.progress.report(stage, fraction, eta)
        self._activity.report(stage, fraction)

    def _finished(self, done: Finished) -> None:
        self.labels = done.layer
        self.checking.forget()
        record = done.record
        one = "object" if record["model"]["task"] == "instance" else "class"
        count = int(record["count"])
        many = one if count == 1 else {"object": "objects", "class": "classes"}[one]
        device = str(record["device"]).upper()
        when = "" if done.again else f" in {duration(record['seconds'])} on {device}"
        text = f"{count} {many}{when}"
        if done.again:
            text += ", thresholds changed"
        show_text(self.view.result, text)
        if count == 0:
            self.view.message.add(
                "info",
                f"No {many} were found.",
                "Lower the threshold or the certainty, or try another model.",
            )
        if not self.run.running:
            self._ended()

    def _failed(self, message: str, hint: str, details: str) -> None:
        self.view.message.tell("error", message, hint, details)
        self._ended()

    def _cancelled(self) -> None:
        self.view.message.tell("info", "Cancelled; no labels were changed.")
        self._ended()

    def _ended(self) -> None:
        self.view.progress.finish()
        self._activity.close()
        self._show_state()

    # Looking at the result

    def copy_command(self) -> None:
        """Put a command that does the same on the clipboard."""
        from tttunet.engine.batch import command_line
        from tttunet.inference.files import expand_inputs

        try:
            choices = self.choices("whole")
            (file,) = map(str, expand_inputs([_file(choices.layer)]))
        except ImageError as error:
            self.view.message.tell_error(error)
            return
        folder = file.rpartition("/")[0] or "."
        text = command_line(choices.request(file), folder) or ""
        QGuiApplication.clipboard().setText(text)
        partly = self.view.where_choice != "whole" or self.view.planes_choice != "all"
        self.view.message.tell(
            "info",
            "The command is on the clipboard.",
            "It segments the whole image, not the chosen region." if partly else "",
        )

    @property
    def _checked(self) -> Any:
        """The labels that are looked at; None while others are on their way."""
        return None if self.run.running else self.labels

    def accept_labels(self) -> None:
        """Mark the labels as right, or take that back; only labels that a model made."""
        layer = self._checked
        if layer is not None and layer in self.viewer.layers and is_result(layer):
            accept(layer, not is_accepted(layer))
            self._show_state()

    def toggle_labels(self) -> None:
        """Show or hide the labels."""
        if self._checked is not None:
            self._checked.visible = not self._checked.visible

    def next_object(self) -> None:
        """Go to the next object to check, the most doubtful first."""
        self.checking.step(self._checked, 1)

    def _tell_place(self, text: str) -> None:
        show_text(self.view.result, text)

    def previous_object(self) -> None:
        """Go back to the object before."""
        self.checking.step(self._checked, -1)


def _file(layer: Any) -> str:
    """The file that an image was opened from; empty if there is none."""
    path = getattr(getattr(layer, "source", None), "path", None)
    return str(path) if path else ""
