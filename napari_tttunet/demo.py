"""`python -m napari_tttunet.demo`: a sample image in napari, segmented by the Segment dock.

With a display the window stays open. Without one, or with --screenshot, the window is drawn where
nobody sees it and a picture of it is written. That is done in another process: what Qt or a
graphics driver lacks ends the process that asks for it.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import importlib.util
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

#: Where a picture goes that nobody named: beside the results of `tttunet demo`.
PICTURE = Path("demo-output") / "napari.png"
SAMPLE = "fluorescence_crowded"
SIZE = (1400, 900)
#: Seconds until a display, the viewer with its result, and Xvfb are given up.
_PROBE, _VIEWER, _XVFB = 60, 240, 30
#: Milliseconds between two looks whether the dock is ready, and until all is drawn.
_LOOK, _DRAWN = 50, 700
_WITHOUT_VIEWER = (
    "The viewer is not installed, so it is not shown. It comes with: pip install '.[gui]' "
    "(from the package index: pip install 'napari-tttunet[gui]')."
)
_WITHOUT_SCREEN = (
    "There is no display, and no Xvfb to draw the viewer on: no picture of it was made. "
    "On Debian and Ubuntu: sudo apt-get install xvfb."
)
_WITHOUT_LIBRARIES = (
    "napari cannot draw its window on this machine, so there is no picture of it; "
    "tools/gui-packages.txt lists the system packages that it needs."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Show the viewer, or write a picture of it; says in a sentence why it cannot.

    Returns:
        The status of the process: 1 if the image could not be segmented, else 0. A machine that
        cannot show the viewer is no failure of the demo.
    """
    options = _options(arguments)
    if options.inside:
        return _show(options.sample, options.screenshot)
    if not all(importlib.util.find_spec(name) for name in ("napari", "qtpy")):
        _say(_WITHOUT_VIEWER)
        return 0
    display = _display_works()
    if display and options.screenshot is None and not os.environ.get("CI"):
        # What is tried out in a demo is nobody's setting.
        os.environ["TTTUNET_SETTINGS"] = str(_own_folder() / "settings.json")
        return _show(options.sample, None)
    return _take_picture(options.sample, options.screenshot or PICTURE, display)


def sample_names() -> list[str]:
    """The shipped samples, as napari's manifest calls them."""
    text = (files("tttunet.resources") / "samples" / "samples.json").read_text(encoding="utf-8")
    content = json.loads(text)
    return [sample["name"] for sample in (*content["images"], *content["others"])]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m napari_tttunet.demo",
        description="Open a sample image in napari and segment it. Without a display, "
        f"a picture of the viewer is written to {PICTURE}.",
    )
    parser.add_argument("--sample", choices=sample_names(), default=SAMPLE, help=SAMPLE)
    parser.add_argument(
        "--screenshot", type=Path, metavar="FILE", help="write a picture (.png) and end"
    )
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _say(sentence: str) -> None:
    print(sentence, flush=True)


def _own_folder() -> Path:
    """A folder that goes when Python ends, after everything that may still write into it."""
    folder = tempfile.mkdtemp(prefix="tttunet-demo-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


# Displays


def _display_works() -> bool:
    """Whether a window can be opened: a display that is named may be gone, or not ours."""
    named = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform.startswith("linux") and not named:
        return False
    code = "from qtpy.QtWidgets import QApplication; QApplication([])"
    try:
        probe = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=_PROBE)
    except subprocess.TimeoutExpired:
        return False
    return probe.returncode == 0


@contextlib.contextmanager
def virtual_screen(size: tuple[int, int] = SIZE) -> Iterator[dict[str, str]]:
    """Xvfb as long as the block runs.

    Args:
        size: width and height in pixels.

    Yields:
        The variables of the environment that lead Qt to it.

    Raises:
        OSError: it is not installed, or does not start.
    """
    receiver, sender = os.pipe()
    with os.fdopen(receiver, "rb", buffering=0) as answers:
        try:
            server = subprocess.Popen(
                ["Xvfb", "-displayfd", str(sender), "-screen", "0", f"{size[0]}x{size[1]}x24"]
                + ["-nolisten", "tcp", "-noreset"],
                pass_fds=(sender,),
                stderr=subprocess.DEVNULL,
            )
        finally:
            os.close(sender)
        try:
            number = b""
            # It writes the number and the end of the line one after the other.
            while not number.endswith(b"\n"):
                ready, _, _ = select.select([answers], [], [], _XVFB)
                answer = answers.read(16) if ready else b""
                if not answer:
                    raise OSError("Xvfb did not start")
                number += answer
            yield {"DISPLAY": f":{number.decode().strip()}", "QT_QPA_PLATFORM": "xcb"}
        finally:
            server.terminate()
            server.wait()


def _take_picture(sample: str, file: Path, display: bool) -> int:
    """Write a picture of the viewer; in another process, which is ended if it takes too long."""
    file = file.absolute()
    file.parent.mkdir(parents=True, exist_ok=True)
    if display:
        return _picture_process(sample, file, {})
    try:
        with virtual_screen() as variables:
            return _picture_process(sample, file, variables)
    except OSError:
        _say(_WITHOUT_SCREEN)
        return 0


def _picture_process(sample: str, file: Path, variables: Mapping[str, str]) -> int:
    folder = _own_folder()
    own = {
        "NAPARI_CONFIG": str(folder / "napari.yaml"),
        "TTTUNET_SETTINGS": str(folder / "settings.json"),
    }
    command = [sys.executable, "-m", "napari_tttunet.demo", "--inside", "--sample", sample]
    try:
        done = subprocess.run(
            [*command, "--screenshot", str(file)],
            env={**os.environ, **own, **variables},
            stderr=subprocess.PIPE,
            text=True,
            timeout=_VIEWER,
        )
    except subprocess.TimeoutExpired:
        _say(f"The viewer was not done after {_VIEWER} seconds: no picture of it was made.")
        return 0
    if done.returncode < 0 or done.returncode > 1:
        _say(_WITHOUT_LIBRARIES)
        return 0
    if done.returncode:
        sys.stderr.write(done.stderr)
    return done.returncode


# The viewer


class _Demo:
    """Segments as soon as the dock is ready, then takes the picture if one is wanted.

    Args:
        viewer: napari's viewer, with an image.
        dock: the Segment dock in it.
        picture: file to write before the viewer closes; None: it stays open.
    """

    def __init__(self, viewer: Any, dock: Any, picture: Path | None) -> None:
        from qtpy.QtCore import QTimer

        self._viewer, self._dock, self._picture = viewer, dock, picture
        self.problem = ""
        self._timer = QTimer(dock)
        self._timer.setInterval(_LOOK)
        self._timer.timeout.connect(self._look)
        dock.run.finished.connect(self._finished)
        dock.run.failed.connect(self._failed)
        self._timer.start()

    def _look(self) -> None:
        if self._dock.run.running:
            self._timer.stop()  # the person was faster
        elif self._dock.view.segment.isEnabled():
            self._timer.stop()
            self._viewer.reset_view()  # the dock has taken some of the canvas
            self._dock.view.segment.click()
            if not self._dock.run.running:
                self._failed(self._dock.view.message.text, "", "")

    def _finished(self, _: object) -> None:
        from qtpy.QtCore import QTimer

        if self._picture is not None:
            QTimer.singleShot(_DRAWN, self._write)

    def _write(self) -> None:
        if self._picture is not None:
            self._viewer.screenshot(str(self._picture), canvas_only=False, flash=False)
            _say(f"Picture of the viewer: {self._picture}")
            self._viewer.close()

    def _failed(self, message: str, hint: str, _: str) -> None:
        self.problem = f"The viewer could not segment the sample: {message} {hint}".strip()
        if self._picture is not None:
            self._viewer.close()


def _show(sample: str, picture: Path | None) -> int:
    """Open the viewer and segment a sample in it; returns when the window is closed."""
    import napari
    from napari.layers import Image

    viewer = napari.Viewer(title="TTT-UNet")
    viewer.window.resize(*SIZE)
    added = viewer.open_sample("napari-tttunet", sample)
    viewer.layers.selection.active = next(layer for layer in added if isinstance(layer, Image))
    _, dock = viewer.window.add_plugin_dock_widget("napari-tttunet", "Segment")
    demo = _Demo(viewer, dock, picture)
    if picture is None:
        _say("napari is open; the demo ends when its window is closed.")
    napari.run()
    if demo.problem:
        print(demo.problem, file=sys.stderr)
    return 1 if demo.problem and picture is not None else 0


if __name__ == "__main__":
    sys.exit(main())
