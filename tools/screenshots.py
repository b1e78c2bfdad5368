"""The pictures of the viewer in docs/images, on the shipped samples, all in one command.

    python tools/screenshots.py             every picture
    python tools/screenshots.py batch hero  only these

Needs Xvfb. The viewer is real, and so is what it shows: only the times in the docks differ from
one machine to the next.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

from napari_tttunet.demo import SIZE, virtual_screen

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
PATIENCE = 400
#: Seconds until napari has drawn everything.
DRAWN = 0.8
PLUGIN = "napari-tttunet"
#: Tells the process that draws the pictures where it may write.
INSIDE = "TTTUNET_SCREENSHOTS"


def main() -> int:
    names = sys.argv[1:] or list(PICTURES)
    unknown = set(names) - set(PICTURES)
    if unknown:
        print(f"No such picture: {', '.join(unknown)}. There are {', '.join(PICTURES)}.")
        return 2
    if INSIDE in os.environ:
        for name in names:
            take(name)
        return 0
    # Qt must be gone before its screen; no setting of the person who runs this may show, and no
    # random name: a folder that is there already is somebody's.
    folder = Path(tempfile.gettempdir()) / "pictures"
    folder.mkdir()
    try:
        with virtual_screen() as screen:
            own = {
                INSIDE: str(folder),
                "NAPARI_CONFIG": str(folder / "napari.yaml"),
                "TTTUNET_MODELS": str(folder / "models"),
            }
            command = [sys.executable, str(Path(__file__).resolve()), *names]
            return subprocess.run(command, env={**os.environ, **screen, **own}).returncode
    finally:
        shutil.rmtree(folder)


def take(name: str) -> None:
    """Open a viewer, bring it into the state of a picture, and write that."""
    import napari
    from napari.settings import get_settings

    folder = Path(os.environ[INSIDE], name)
    folder.mkdir()
    os.environ["TTTUNET_SETTINGS"] = str(folder / "settings.json")
    get_settings().appearance.theme = "dark"
    viewer = napari.Viewer(title="napari")
    viewer.window.resize(*SIZE)
    stage = Stage(viewer, folder)
    PICTURES[name](stage)
    if not stage.written:
        stage.pause(DRAWN)
        stage.write()
    print(stage.file.name, flush=True)
    viewer.close()
    stage.pause(0.3)


class Stage:
    """A viewer and what is done in it.

    Args:
        viewer: napari's viewer.
        folder: an empty one for files, named like the picture.

    Attributes:
        written: the picture was taken in the middle of something.
    """

    def __init__(self, viewer: Any, folder: Path) -> None:
        self.viewer, self.folder, self.written = viewer, folder, False
        self.file = IMAGES / f"{folder.name}.png"

    def open_sample(self, name: str) -> tuple[Any, Any]:
        """The image and its true labels, which are hidden."""
        image, truth = self.viewer.open_sample(PLUGIN, name)
        self.viewer.layers.selection.active = image
        return image, truth

    def open_dock(self, name: str, width: int = 330) -> Any:
        from qtpy.QtCore import Qt

        dock, widget = self.viewer.window.add_plugin_dock_widget(PLUGIN, name)
        window = self.viewer.window._qt_window
        window.resizeDocks([dock], [width], Qt.Orientation.Horizontal)
        self.pause(DRAWN)
        self.viewer.reset_view()
        return widget

    def click(self, dock: Any, name: str) -> None:
        from qtpy.QtWidgets import QWidget

        button = dock.findChild(QWidget, name)
        self.until(button.isEnabled, name)
        button.click()

    def start(self, dock: Any) -> None:
        """Press Segment."""
        self.click(dock, "segment")
        self.until(lambda: dock.run.running, "the beginning")

    def segment(self, dock: Any) -> Any:
        """Press Segment and wait for the labels."""
        self.start(dock)
        self.until(lambda: not dock.run.running, "the labels")
        return dock.labels

    def measured(self) -> tuple[Any, Any]:
        """The Results dock with the table of labels that were just found, and these."""
        self.open_sample("fluorescence_crowded")
        labels = self.segment(self.open_dock("Segment"))
        for dock in list(self.viewer.window.dock_widgets.values()):
            self.viewer.window.remove_dock_widget(dock)
        found = self.open_dock("Results", 400)
        self.until(lambda: bool(found.table), "the table")
        return found, labels

    def corrected(self) -> Any:
        """The Fine-tune dock with a project: labels that were found, two places mended."""
        from tttunet.projects import Region

        _, truth = self.open_sample("histology_white")
        labels = self.segment(self.open_dock("Segment"))
        for dock in list(self.viewer.window.dock_widgets.values()):
            self.viewer.window.remove_dock_widget(dock)
        regions = [Region(((20, 150), (20, 170))), Region(((110, 240), (190, 250)))]
        inside = np.zeros(truth.data.shape, bool)
        for region in regions:
            inside[tuple(slice(*along) for along in region.bounds)] = True
        right = np.isin(truth.data, np.unique(truth.data[inside])) & (truth.data > 0)
        wrong = np.isin(labels.data, np.unique(labels.data[right | inside]))
        labels.data[wrong] = 0
        labels.data[right] = truth.data[right] + labels.data.max()
        labels.refresh()
        self.viewer.layers.remove(truth)
        dock = self.open_dock("Fine-tune", 360)
        self.viewer.layers.selection.active = labels
        self.until(lambda: dock.work.annotation is not None and bool(dock.models), "the labels")
        for region in regions:
            dock.work.complete(region)
        what = {"name": "my-cells", "task": "instance", "dim": 2, "classes": {1: "nucleus"}}
        dock.create_project(self.folder / "my-cells", **what)
        self.until(lambda: "2 complete regions" in dock.view.used.text(), "the corrections")
        self.until(lambda: bool(dock.view.time.text()), "the time")
        self.fill(labels)
        return dock

    def train(self, dock: Any, steps: int) -> None:
        """Press Fine-tune."""
        dock.view.expert.steps.setValue(steps)
        self.click(dock, "finetune")
        self.until(lambda: dock.run.running, "the training")

    def scroll_bar(self, dock: Any) -> Any:
        from qtpy.QtWidgets import QScrollArea

        area = dock.findChild(QScrollArea) or dock.parent().findChild(QScrollArea)
        return area.verticalScrollBar()

    def fill(self, layer: Any) -> None:
        """Zoom until no part of the canvas is empty."""
        height, width = self.viewer.window._qt_viewer.canvas.size
        pairs = zip(layer.data.shape, layer.scale, strict=True)
        rows, columns = (size * scale for size, scale in pairs)
        self.camera.zoom = max(height / rows, width / columns)

    @property
    def camera(self) -> Any:
        return getattr(self.viewer, "scene", self.viewer).camera  # napari 0.9 and before

    def pause(self, seconds: float) -> None:
        from qtpy.QtWidgets import QApplication

        end = time.monotonic() + seconds
        while time.monotonic() < end:
            QApplication.processEvents()
            time.sleep(0.005)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"waited {PATIENCE} seconds for {what}")
            self.pause(0.01)

    def write(self) -> None:
        """The whole window, without notifications."""
        from napari._qt.dialogs.qt_notification import NapariQtNotification
        from PIL import Image

        for note in self.viewer.window._qt_window.findChildren(NapariQtNotification):
            note.close()
        picture = self.viewer.screenshot(canvas_only=False, flash=False)
        Image.fromarray(picture).convert("RGB").save(self.file, optimize=True)
        self.written = True


def hero(stage: Stage) -> None:
    """Outlines on a tissue section that fills the canvas."""
    _, truth = stage.open_sample("histology_white")
    dock = stage.open_dock("Segment")
    labels = stage.segment(dock)
    labels.contour, labels.opacity = 2, 1.0
    stage.viewer.layers.remove(truth)
    stage.fill(labels)


def segment_ready(stage: Stage) -> None:
    """Before the button is pressed: what it needs is told."""
    stage.open_sample("fluorescence_crowded")
    dock = stage.open_dock("Segment")
    stage.until(lambda: "Needs about" in dock.view.need.text(), "the estimate")


def segment(stage: Stage) -> None:
    stage.open_sample("fluorescence_crowded")
    stage.segment(stage.open_dock("Segment"))


def polyp(stage: Stage) -> None:
    """Another model than the default one, on a frame of a camera."""
    _, truth = stage.open_sample("colonoscopy_polyp")
    dock = stage.open_dock("Segment")
    dock._set_model("polyp")
    labels = stage.segment(dock)
    labels.contour, labels.opacity = 2, 1.0
    stage.viewer.layers.remove(truth)
    stage.fill(labels)


def organs(stage: Stage) -> None:
    """Liver and kidneys in slices, side by side."""
    dock = stage.open_dock("Segment")
    for sample, model in (("ct_liver", "liver-ct"), ("mr_kidney", "kidney-mr")):
        _, truth = stage.open_sample(sample)
        stage.viewer.layers.remove(truth)
        dock._set_model(model)
        labels = stage.segment(dock)
        labels.contour, labels.opacity = 2, 1.0
    for layer in list(stage.viewer.layers)[:2]:
        layer.scale = (2, 2)  # 256 pixels beside 512
    stage.viewer.grid.enabled, stage.viewer.grid.stride = True, 2
    stage.viewer.reset_view()


def volume(stage: Stage) -> None:
    """Classes of a volume in 3D, with their names, colours and sizes."""
    image, *_ = stage.viewer.open_sample(PLUGIN, "hippocampus")
    for layer in list(stage.viewer.layers)[1:]:
        stage.viewer.layers.remove(layer)
    stage.viewer.layers.selection.active = image
    dock = stage.open_dock("Segment")
    dock._set_model("hippocampus-mr")
    stage.segment(dock)
    stage.viewer.dims.ndisplay = 3
    image.rendering, image.opacity = "attenuated_mip", 0.5
    stage.viewer.reset_view()
    stage.camera.angles = (-25, 30, 120)


def segment_progress(stage: Stage) -> None:
    """The objects of finished tiles, while others are under way."""
    image, _ = stage.open_sample("fluorescence")
    image.contrast_limits = (0, int(image.data.max() * 0.7))
    dock = stage.open_dock("Segment")
    dock.view.options.tile.setValue(96)
    dock.view.options.mirror.setChecked(True)
    seen: list[float] = []
    dock.run.progressed.connect(lambda _stage, fraction, _eta: seen.append(fraction))
    stage.start(dock)
    stage.until(lambda: bool(seen) and seen[-1] > 0.5, "half of the tiles")
    stage.write()
    dock.run.cancel()
    stage.until(lambda: not dock.run.running, "the cancel")


def results(stage: Stage) -> None:
    found, labels = stage.measured()
    # The viewer moves to the object of the row: one in the middle leaves no empty canvas.
    away = found.table.centres - np.divide(labels.data.shape, 2)
    found.form.view.selectRow(int((away**2).sum(axis=1).argmin()))


def results_compared(stage: Stage) -> None:
    found, _ = stage.measured()
    before = len(stage.viewer.layers)
    stage.click(found, "results_scores")
    stage.click(found, "results_compare")
    stage.until(lambda: len(stage.viewer.layers) > before, "the comparison")
    stage.pause(DRAWN)
    bar = found.form.verticalScrollBar()
    bar.setValue(bar.maximum())


def batch(stage: Stage) -> None:
    """Files that are done, left out, broken, under way and waiting; a result in the viewer."""
    images = stage.folder / "cells"
    images.mkdir()
    names = ["histology_purple", "fluorescence", "histology_white", "fluorescence_crowded"]
    with as_file(files("tttunet.resources") / "samples") as samples:
        for number, name in enumerate(names * 3, 1):
            shutil.copy(samples / f"{name}.png", images / f"well_{number:02}.png")
    broken = images / "well_02.png"
    broken.write_bytes(broken.read_bytes()[:300])
    dock = stage.open_dock("Batch", 420)

    def start(path: Path, rows: int) -> None:
        dock.add_inputs([str(path)])
        stage.until(lambda: len(dock.table.rows) == rows, "the files")
        stage.click(dock, "batch_start")

    start(images / "well_01.png", 1)
    stage.until(lambda: dock.table.count("done") == 1, "the first file")
    stage.until(dock.form.isEnabled, "the end of the first batch")
    start(images, 12)
    stage.until(lambda: dock.table.count("done") == 1, "a result")
    dock.open_row(dock.table.index(2, 0))
    stage.until(lambda: len(stage.viewer.layers) == 2, "the layers")
    stage.viewer.reset_view()
    stage.until(lambda: dock.table.count("done") > 1 and dock.table.running is not None, "another")
    stage.write()
    stage.until(lambda: not dock.table.count("waiting", "running"), "the end")


def models(stage: Stage) -> None:
    stage.open_sample("histology_white")
    dock = stage.open_dock("Models", 420)
    stage.until(lambda: dock.panel.list.topLevelItemCount() > 0, "the models")


def finetune_correct(stage: Stage) -> None:
    """Two regions are complete; what will be used and how long it will take is told."""
    stage.corrected()


def finetune_running(stage: Stage) -> None:
    """The curve and the preview of the model of the moment."""
    dock = stage.corrected()
    stage.train(dock, 60)
    shows = [layer.name for layer in stage.viewer.layers]
    stage.until(
        lambda: (
            len(dock.view.curve.scores) > 2
            and any("preview" in layer.name for layer in stage.viewer.layers)
        ),
        f"the preview beside {shows}",
    )
    stage.pause(DRAWN)
    stage.write()
    dock.run.cancel()
    stage.until(lambda: not dock.run.running, "the cancel")


def finetune_result(stage: Stage) -> None:
    """Scores, pictures side by side, and the decision."""
    dock = stage.corrected()
    stage.train(dock, 40)
    stage.until(lambda: dock.decision.run is not None, "the scores")
    stage.pause(DRAWN)
    bar = stage.scroll_bar(dock)
    bar.setValue(bar.maximum())


_ALL = (
    *(hero, segment_ready, segment, segment_progress, results, results_compared, batch, models),
    *(finetune_correct, finetune_running, finetune_result, polyp, organs, volume),
)
PICTURES: dict[str, Callable[[Stage], None]] = {one.__name__: one for one in _ALL}

if __name__ == "__main__":
    sys.exit(main())
