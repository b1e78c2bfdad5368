"""Whether napari's window answers while the plugin works, and how soon the plugin is there.

A real viewer (on Xvfb where there is no DISPLAY), a timer of 5 ms in its thread, and the docks
operated by their buttons: segmenting 2048 x 2048 pixels with previews, a batch over files, a short
training, measuring 100 000 objects, and nothing at all for comparison. Every phase runs twice: for
the gaps between ticks, and for the time spent in the plugin's own code, apart from what napari does
there (draws a layer that is added); what napari takes without the plugin is told, too. Then, each
in a fresh process: how long a dock takes to open and what it imports, and the time to the first
labels of a 512 x 512 image with a cold and a warm worker.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from window_gaps import LIMIT, PERIOD, GapMeter, OwnTime

DOCKS = ("Segment", "Results", "Batch", "Models")
PHASES = ("idle", "segment", "batch", "training", "measure")
HEAVY = ("torch", "monai", "skimage", "scipy")
PATIENCE = 300.0
#: Seconds of the idle phase, and after each phase for the drawing of its result.
_IDLE, _AFTER = 5.0, 1.0
_SAMPLE = "fluorescence_crowded"
_INSIDE = "TTTUNET_RESPONSIVENESS"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("phases", nargs="*", help=f"of {', '.join(PHASES)}; all, and recorded")
    parser.add_argument("--threads", type=int, default=2, help="of the worker")
    parser.add_argument("--rounds", type=int, default=3, help="of fresh processes")
    options = parser.parse_args()
    unknown = set(options.phases) - set(PHASES)
    if unknown:
        parser.error(f"There is no phase {', '.join(unknown)}.")
    if _INSIDE in os.environ:
        print(json.dumps(INSIDE[os.environ[_INSIDE]](options.phases or PHASES)))
        return
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with screen():
        phases = inside("phases", *options.phases)
        for name, values in phases.items():
            print(name, values)
        if options.phases:
            return
        docks = {name: rounds(f"dock {name}", options.rounds) for name in DOCKS}
        first = rounds("first", options.rounds)
        napari = rounds("napari", options.rounds)
    result = {
        "timer_period_ms": PERIOD,
        "limit_ms": LIMIT,
        "worker_threads": options.threads,
        "phases": phases,
        "docks": docks,
        "first_labels_512": first,
        "napari_itself": napari,
    }
    for name in ("docks", "first_labels_512", "napari_itself"):
        print(name, result[name])
    from record import write_result

    write_result("responsiveness", result)


@contextmanager
def screen() -> Iterator[None]:
    """A display for the processes that are started meanwhile: the one there is, or Xvfb."""
    from napari_tttunet.demo import virtual_screen

    if os.environ.get("DISPLAY") or not sys.platform.startswith("linux"):
        yield
        return
    with virtual_screen() as variables:
        os.environ.update(variables)
        yield


def inside(what: str, *arguments: str) -> dict[str, Any]:
    """Run one of `INSIDE` in a fresh process without anybody's settings; what it found."""
    with tempfile.TemporaryDirectory() as folder:
        own = {
            _INSIDE: what,
            "NAPARI_CONFIG": str(Path(folder) / "napari.yaml"),
            "TTTUNET_SETTINGS": str(Path(folder) / "settings.json"),
            "TTTUNET_MODELS": str(Path(folder) / "models"),
        }
        ran = subprocess.run(
            [sys.executable, __file__, *arguments],
            env={**os.environ, **own},
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def rounds(what: str, count: int) -> dict[str, Any]:
    """Medians of the numbers of several processes; other values are those of the last one."""
    found = [inside(what) for _ in range(count)]
    return {
        key: round(statistics.median(one[key] for one in found), 3)
        if isinstance(value, float)
        else value
        for key, value in found[-1].items()
    }


# In a process with a viewer


class Stage:
    """A viewer, and what a person does in it."""

    def __init__(self) -> None:
        import napari

        self.viewer = napari.Viewer(title="napari")
        self.viewer.window.resize(1400, 900)
        self.folder = Path(os.environ["TTTUNET_SETTINGS"]).parent
        self.wait(1.0)

    def dock(self, name: str) -> Any:
        _, dock = self.viewer.window.add_plugin_dock_widget("napari-tttunet", name)
        return dock

    def wait(self, seconds: float) -> None:
        """The window goes on as it does when nobody touches it."""
        from qtpy.QtCore import QEventLoop, QTimer

        loop = QEventLoop()
        QTimer.singleShot(round(1000 * seconds), loop.quit)
        loop.exec_() if hasattr(loop, "exec_") else loop.exec()

    def until(self, condition: Callable[[], Any]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError("The window waited in vain.")
            self.wait(0.02)

    def click(self, button: Any) -> None:
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        self.until(button.isEnabled)
        QTest.mouseClick(button, Qt.MouseButton.LeftButton)

    def close(self) -> None:
        from napari_tttunet.session import close_session

        close_session()
        self.viewer.close()
        self.wait(0.3)


def sample_image(size: int) -> np.ndarray:
    """A shipped sample, tiled to `size` x `size`."""
    return _tiled(f"{_SAMPLE}.png", size)


def sample_labels(objects: int) -> np.ndarray:
    """True labels of a shipped sample at half its size, tiled until there are enough objects."""
    plane = _tiled(f"{_SAMPLE}_labels.tif", 0)[::2, ::2].astype(np.int32)
    count = int(plane.max())
    side = int(np.ceil(np.sqrt(objects / len(np.unique(plane[plane > 0])))))
    numbers = np.arange(side * side, dtype=np.int32).reshape(side, side) * count
    repeated = np.tile(plane, (side, side))
    shifts = np.kron(numbers, np.ones(plane.shape, np.int32))
    return np.where(repeated > 0, repeated + shifts, 0)


def _tiled(name: str, size: int) -> np.ndarray:
    from tttunet import load_image

    array = load_image(str(files("tttunet.resources") / "samples" / name)).array
    array = array[0] if array.ndim == 3 else array
    if not size:
        return array
    repeats = [-(-size // n) for n in array.shape]
    return np.ascontiguousarray(np.tile(array, repeats)[:size, :size])


def measure_phases(names: Any) -> dict[str, Any]:
    """Every phase twice: gaps, then our own time."""
    import napari
    import vispy

    import napari_tttunet
    import tttunet

    own, theirs = _folders(napari_tttunet, tttunet), _folders(napari, vispy)
    found = {}
    for name in names:
        stage = Stage()
        act = ACTS[name](stage)
        stage.until(lambda: not _engine_busy())
        stage.wait(_AFTER)
        with GapMeter() as meter:
            act()
            stage.wait(_AFTER)
        stage.wait(_AFTER)
        with OwnTime(own, theirs) as times:
            act()
            stage.wait(_AFTER)
        found[name] = {"gaps": meter.summary(), "ours": times.summary()}
        print(name, found[name], *times.longest(), sep="\n  ", file=sys.stderr, flush=True)
        stage.close()
    return found


def _folders(*packages: Any) -> list[Path]:
    """Where their code is, with and without links."""
    return [
        path for package in packages
        for path in (Path(package.__file__).parent, Path(package.__file__).resolve().parent)
    ]  # fmt: skip


def _engine_busy() -> bool:
    from napari_tttunet.session import session

    engine = session().engine
    return bool(engine._jobs or engine._running)


def idle(stage: Stage) -> Callable[[], None]:
    stage.viewer.add_image(sample_image(2048))
    for name in DOCKS:
        stage.dock(name)
    return lambda: stage.wait(_IDLE)


def segment(stage: Stage) -> Callable[[], None]:
    stage.viewer.add_image(sample_image(2048), name="tiled")
    dock = stage.dock("Segment")

    def act() -> None:
        stage.click(dock.view.segment)
        stage.until(lambda: not dock.run.running)
        if dock.labels is None:
            raise RuntimeError(dock.view.message.text)

    return act


def batch(stage: Stage) -> Callable[[], None]:
    from tifffile import imwrite

    stage.viewer.add_image(sample_image(512))
    dock = stage.dock("Batch")
    paths = [stage.folder / f"image_{i}.tif" for i in range(8)]
    for i, path in enumerate(paths):
        imwrite(path, np.roll(sample_image(512), 40 * i, 0))
    turn = iter(range(100))

    def act() -> None:
        dock.clear()
        stage.until(lambda: not dock.table.rows)
        dock.form.output.setText(str(stage.folder / f"labels_{next(turn)}"))
        dock.add_inputs([str(path) for path in paths])
        stage.until(lambda: len(dock.table.rows) == len(paths))
        stage.click(dock.panel.start_button)
        stage.until(lambda: dock.table.count("done") == len(paths))

    return act


def training(stage: Stage) -> Callable[[], None]:
    """Of a small network, its events heard as a dock hears them."""
    from tifffile import imwrite

    from napari_tttunet.session import session
    from tttunet.engine.messages import Done, Train

    stage.viewer.add_image(sample_image(2048))
    stage.dock("Segment")
    dataset, names = stage.folder / "dataset", ("a", "b", "c", "d")
    for kind in ("images", "labels"):
        (dataset / kind).mkdir(parents=True)
    for i, name in enumerate(names):
        part = np.s_[64 * i : 64 * i + 256]
        imwrite(dataset / "images" / f"{name}.tif", _tiled(f"{_SAMPLE}.png", 512)[part, :256])
        labels = _tiled(f"{_SAMPLE}_labels.tif", 512)[part, :256].astype(np.uint16)
        imwrite(dataset / "labels" / f"{name}.tif", labels)
    about = {"name": "crowded", "task": "instance", "dim": 2, "licence": "CC0-1.0"}
    about["split"] = {"train": names[:3], "val": names[3:]}
    (dataset / "dataset.json").write_text(json.dumps(about))
    turn = iter(range(100))

    def act() -> None:
        heard: list[Any] = []
        output = str(stage.folder / f"run_{next(turn)}")
        request = Train(str(dataset), output, {"start": "nuclei", "steps": 20})
        job = session().engine.request(request, lambda _, event: heard.append(event))
        stage.until(lambda: job.finished)
        if not isinstance(job.outcome, Done):
            raise RuntimeError(str(job.outcome))

    return act


def measure(stage: Stage) -> Callable[[], None]:
    """Measured; then a row, a bar and a header are clicked, and all rows are copied."""
    from qtpy.QtCore import QPoint, Qt
    from qtpy.QtTest import QTest

    labels = sample_labels(100_000)
    image = np.tile(_tiled(f"{_SAMPLE}.png", 0)[::2, ::2], (40, 40))
    stage.viewer.add_image(image[: labels.shape[0], : labels.shape[1]], name="cells")
    stage.viewer.add_labels(labels, name="many")
    dock = stage.dock("Results")
    form = dock.form
    left = Qt.MouseButton.LeftButton

    def act() -> None:
        dock._show_table(None)
        stage.click(form.refresh)
        stage.until(lambda: dock.table is not None and not dock.busy)
        if len(dock.table) < 100_000:
            raise RuntimeError(f"{len(dock.table)} objects")
        stage.wait(0.3)
        header, histogram, view = form.view.horizontalHeader(), form.histogram, form.view
        for column in (1, 1, 3):
            place = QPoint(header.sectionViewportPosition(column) + 5, 5)
            QTest.mouseClick(header.viewport(), left, pos=place)
            stage.wait(0.2)
        QTest.mouseClick(view.viewport(), left, pos=QPoint(20, 40))
        stage.wait(0.2)
        bar = histogram.bar_rect(int(np.argmax(histogram.counts))).center().toPoint()
        QTest.mouseClick(histogram, left, pos=bar)
        stage.wait(0.2)
        stage.click(form.show_all)
        stage.viewer.layers["many"].selected_label = 77_777
        view.setFocus()
        QTest.keyClick(view, Qt.Key.Key_A, Qt.KeyboardModifier.ControlModifier)
        stage.wait(0.2)
        form.export.outcome.clear()
        QTest.keyClick(view, Qt.Key.Key_C, Qt.KeyboardModifier.ControlModifier)
        stage.until(lambda: "copied" in form.export.outcome.text())

    return act


ACTS = {"idle": idle, "segment": segment, "batch": batch, "training": training, "measure": measure}


def open_dock(name: str) -> dict[str, Any]:
    """Seconds from a viewer that is up to a dock that is drawn, and to its code imported."""
    stage = Stage()
    stage.viewer.add_image(sample_image(512))
    stage.wait(1.0)
    before = set(sys.modules)
    start = time.perf_counter()
    dock = stage.dock(name)
    opened = time.perf_counter() - start
    stage.wait(0)
    stage.until(dock.isVisible)
    drawn = time.perf_counter() - start
    stage.wait(1.0)
    new = set(sys.modules) - before
    heavy = sorted({module for module in HEAVY if module in new})
    present = sorted(set(HEAVY) & set(sys.modules))
    stage.close()
    imports = subprocess.run(
        [sys.executable, "-c", _IMPORT.format(module=f"napari_tttunet.{name.lower()}_dock")],
        capture_output=True,
        text=True,
        check=True,
    )
    return {
        "opened_seconds": opened,
        "drawn_seconds": drawn,
        "import_seconds": float(imports.stdout),
        "heavy_modules_it_imports": heavy,
        "heavy_modules_present": present,
    }


#: What a dock's code costs where napari is imported already.
_IMPORT = """
import time
import napari.layers, napari.qt, napari.viewer
start = time.perf_counter()
import {module}
print(time.perf_counter() - start)
"""


def napari_itself(_: Any = None) -> dict[str, Any]:
    """Milliseconds that napari takes for a labels layer of 2048 x 2048 pixels, without us."""
    stage = Stage()
    stage.viewer.add_image(sample_image(2048))
    labels = np.tile(sample_labels(1), (8, 8))[:2048, :2048]
    stage.viewer.layers.remove(stage.viewer.add_labels(labels))
    stage.wait(1.0)
    found = {}
    layer: Any = None

    def take(name: str, act: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = act()
        found[name] = 1000 * (time.perf_counter() - start)
        stage.wait(0.5)
        return result

    layer = take("add_ms", lambda: stage.viewer.add_labels(labels))
    take("refresh_ms", layer.refresh)
    take("new_pixels_ms", lambda: setattr(layer, "data", labels[::-1].copy()))
    take("remove_ms", lambda: stage.viewer.layers.remove(layer))
    stage.close()
    return found


def first_labels(_: Any = None) -> dict[str, Any]:
    """Seconds to the labels of an image of 512 x 512 pixels."""
    stage = Stage()
    stage.viewer.add_image(sample_image(512))
    stage.wait(1.0)
    start = time.perf_counter()
    dock = stage.dock("Segment")
    told: list[float] = []
    dock.run.progressed.connect(lambda *_: told.append(time.perf_counter()))
    times = []
    for _ in range(4):
        told.clear()
        stage.click(dock.view.segment)
        stage.until(lambda: not dock.run.running)
        times.append((time.perf_counter() - start, told[0] - start))
        stage.wait(1.0)
        start = time.perf_counter()
    stage.close()
    warm, progress = zip(*times[1:], strict=True)
    return {
        "cold_seconds_from_opening_the_dock": times[0][0],
        "warm_seconds_from_pressing_segment": statistics.median(warm),
        "warm_seconds_to_progress": statistics.median(progress),
    }


INSIDE: dict[str, Callable[..., dict[str, Any]]] = {
    "phases": measure_phases,
    "first": first_labels,
    "napari": napari_itself,
    **{f"dock {name}": lambda _, name=name: open_dock(name) for name in DOCKS},
}

if __name__ == "__main__":
    main()
