"""What docks do beside showing things: threads, jobs of the engine, and leaving no trace.

Nothing here ever calls into a dock that is gone.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from qtpy.compat import isalive
from qtpy.QtCore import QObject, Qt, QTimer, Signal
from qtpy.QtWidgets import QFileDialog, QWidget

#: Milliseconds between two changes of the bar in napari's activity dock.
_ACTIVITY_EVERY = 200
#: Seconds after each step of a generator in which the window's thread has Python for itself: it
#: takes Python up many times to paint, and would wait for the other thread each time.
_BREATH = 0.002


def weakly(method: Callable[..., Any]) -> Callable[..., None]:
    """Calls a method of a Qt object as long as there is one."""
    reference = weakref.WeakMethod(method)

    def call(*arguments: Any) -> None:
        found = reference()
        if found is not None and isalive(getattr(found, "__self__", None)):
            found(*arguments)

    return call


def delayed(owner: QObject, milliseconds: int, call: Callable[[], None]) -> QTimer:
    """A timer that calls once, so long after its last start."""
    timer = QTimer(owner)
    timer.setSingleShot(True)
    timer.setInterval(milliseconds)
    timer.timeout.connect(call)
    return timer


def read_library() -> list[dict[str, Any]]:
    """The models as the engine lists them, but without waiting for jobs that run.

    Reads files: not for the window's thread.
    """
    import tttunet.engine.batch  # noqa: F401  # so that its first use later takes no time
    from tttunet.engine.library import library

    return library()


class Cleanup:
    """What must be undone when a widget goes, whoever destroys it.

    Args:
        widget: its `destroyed` calls everything; nothing here refers to the widget. None: only
            `close` does.
    """

    def __init__(self, widget: QWidget | None = None) -> None:
        self._calls: list[Callable[[], object]] = []
        if widget is not None:
            widget.destroyed.connect(lambda *_: self.close())

    def add(self, call: Callable[[], object]) -> None:
        self._calls.append(call)

    def connect(self, emitter: Any, method: Callable[..., Any]) -> None:
        """Connect a method of a widget to an event of napari, until the widget goes."""
        # Not the method itself: to find it again, napari would compare widgets that are gone,
        # which PyQt answers with an error.
        call = weakly(method)
        emitter.connect(call)
        self.add(lambda: emitter.disconnect(call))

    def close(self) -> None:
        """Undo all, in the reverse order; a second call does nothing."""
        while self._calls:
            self._calls.pop()()


class Background(QObject):
    """Runs functions in threads and hands their results to the window's thread.

    Results for an owner that is gone are dropped.

    Args:
        owner: a dock or another object of the window's thread.
    """

    _finished = Signal(object)

    def __init__(self, owner: QObject) -> None:
        super().__init__(owner)
        self._finished.connect(self._deliver, Qt.ConnectionType.QueuedConnection)

    def run(
        self,
        work: Callable[[], Any],
        then: Callable[[Any], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """Call `work` in a thread, then `then(result)` or `failed(error)` in this one."""
        self._start(work, then, failed, daemon=True)

    def run_steps(
        self,
        steps: Generator[Any, None, Any],
        then: Callable[[Any], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """Go through a generator in a thread, then `then(what it returns)` or `failed(error)`.

        For long work in Python, which would make the window stutter in one go. Python does not
        end before the generator does: files are written to their end.
        """

        def work() -> Any:
            while True:
                try:
                    next(steps)
                except StopIteration as stop:
                    return stop.value
                time.sleep(_BREATH)

        self._start(work, then, failed, daemon=False)

    def _start(
        self,
        work: Callable[[], Any],
        then: Callable[[Any], None],
        failed: Callable[[Exception], None],
        daemon: bool,
    ) -> None:
        def do() -> None:
            try:
                answer = then, work()
            except Exception as error:
                answer = failed, error
            with contextlib.suppress(RuntimeError):  # the owner is gone
                self._finished.emit(answer)

        threading.Thread(target=do, name="tttunet-dock", daemon=daemon).start()

    def _deliver(self, answer: tuple[Callable[[Any], None], Any]) -> None:
        function, value = answer
        function(value)


class Running:
    """The job of a dock: told to the dock while that exists, stopped when it goes.

    Args:
        dock: the widget.
        hear: its method that gets the events.

    Attributes:
        job: to be set to None before a request, and to the job after it.
    """

    def __init__(self, dock: QWidget, hear: Callable[[Any], None]) -> None:
        self.job: Any = None
        tell = weakly(hear)

        def on_event(job: Any, event: Any) -> None:
            if self.job is None or job is self.job:
                tell(event)

        self.on_event = on_event
        Cleanup(dock).add(self.cancel)

    @property
    def busy(self) -> bool:
        """Whether a job waits or runs; not any more once its last event is on its way."""
        return self.job is not None and self.job.outcome is None

    def cancel(self) -> None:
        """Stop the job, if there is one."""
        if self.job is not None:
            self.job.cancel()


class ActivityBar(QObject):
    """A bar in napari's activity dock, while it is open.

    napari handles all waiting events whenever such a bar changes. In the middle of something (a
    layer that is being removed, an event of the engine) that would draw what is half done, so
    changes wait until nothing else is under way.
    """

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._bar: Any = None
        self._wanted: tuple[str, int] | None = None
        self._drawing = False
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(_ACTIVITY_EVERY)
        self._timer.timeout.connect(self._draw)

    def report(self, text: str, fraction: float) -> None:
        """Show what is under way; the first call opens the bar."""
        self._wanted = text, round(100 * fraction)
        if not self._timer.isActive():
            self._timer.start()

    def close(self) -> None:
        """Remove the bar."""
        self._wanted = None
        if not self._drawing:
            self._remove()

    def _draw(self) -> None:
        from napari.utils import progress

        if self._drawing or self._wanted is None:
            return
        self._drawing = True
        try:
            text, percent = self._wanted
            if self._bar is None:
                self._bar = progress(total=100, desc=text)
            elif self._bar.desc.removesuffix(": ") != text:
                self._bar.set_description(text)
            if percent > self._bar.n:
                self._bar.update(percent - self._bar.n)
        finally:
            self._drawing = False
        if self._wanted is None:  # it was closed meanwhile
            self._remove()

    def _remove(self) -> None:
        from napari.utils import progress

        bar, self._bar = self._bar, None
        if bar is not None and bar in progress._all_instances:  # else napari closed it
            bar.close()


def ask_for_path(
    dock: QWidget,
    title: str,
    chosen: Callable[[list[str]], None],
    *,
    folder: str = "",
    mode: QFileDialog.FileMode = QFileDialog.FileMode.ExistingFile,
    save_as: str = "",
    filters: str = "",
) -> QFileDialog:
    """Open a file dialog that blocks nothing; `chosen` hears the paths.

    Args:
        dock: the dialog's parent.
        folder: where it begins.
        mode: what can be chosen.
        save_as: proposed name of a new file; empty: existing ones are chosen.
        filters: as Qt writes them; the ending of the first is added to names without one.
    """
    dialog = QFileDialog(dock, title, folder)
    dialog.setObjectName("fileDialog")
    dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
    if filters:
        dialog.setNameFilter(filters)
    if save_as:
        dialog.setAcceptMode(QFileDialog.AcceptMode.AcceptSave)
        dialog.setFileMode(QFileDialog.FileMode.AnyFile)
        dialog.setDefaultSuffix(Path(save_as).suffix.lstrip("."))
        dialog.selectFile(save_as)
    else:
        dialog.setFileMode(mode)
    dialog.filesSelected.connect(lambda paths: chosen([str(Path(p)) for p in paths]))
    dialog.open()
    return dialog
