"""The Batch dock with a real worker: files, runs, stops, files that are broken, YAML, command."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

pytestmark = pytest.mark.usefixtures("one_engine", "own_settings")

SAMPLES = Path(__file__).resolve().parents[2] / "resources" / "samples"
NAMES = ("fluorescence", "fluorescence_crowded", "histology_white")
#: Longer than anything takes, on a busy machine too.
PATIENCE = 120_000


def crop(name: str, target: Path, size: int = 128) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    Pillow.open(SAMPLES / f"{name}.png").crop((0, 0, size, size)).save(target)
    return target


@pytest.fixture
def plate(tmp_path: Path) -> Path:
    """Three images and one that is broken, in the middle."""
    for name in NAMES:
        crop(name, tmp_path / "plate" / f"{name}.png")
    good = (tmp_path / "plate" / "fluorescence.png").read_bytes()
    (tmp_path / "plate" / "fluorescence_broken.png").write_bytes(good[:200])
    return tmp_path / "plate"


@pytest.fixture
def make_dock(viewer: Any, qtbot: Any) -> Callable[[], Any]:
    def make() -> Any:
        from napari_tttunet.batch_dock import BatchDock

        dock = BatchDock(viewer)
        viewer.window.add_dock_widget(dock, name="Batch", area="right")
        qtbot.waitUntil(lambda: dock.form.model.count() > 0, timeout=PATIENCE)
        return dock

    return make


@pytest.fixture
def dock(make_dock: Callable[[], Any]) -> Any:
    return make_dock()


def widget(dock: Any, name: str) -> Any:
    from qtpy.QtWidgets import QWidget

    found = dock.findChild(QWidget, name)
    assert found is not None, name
    return found


def click(qtbot: Any, dock: Any, name: str) -> None:
    from qtpy.QtCore import Qt

    found = widget(dock, name)
    assert found.isEnabled(), name
    qtbot.mouseClick(found, Qt.MouseButton.LeftButton)


def add(qtbot: Any, dock: Any, path: Path, rows: int) -> None:
    dock.add_inputs([str(path)])
    qtbot.waitUntil(lambda: len(dock.table.rows) == rows, timeout=PATIENCE)


def wait_for_end(qtbot: Any, dock: Any) -> None:
    def ended() -> bool:
        return dock.panel.start_button.text() == "Start" and dock.panel.start_button.isEnabled()

    qtbot.waitUntil(ended, timeout=PATIENCE)


def preview(dock: Any) -> str:
    return dock.form.preview.text().replace("\u200b", "")


def shown(dock: Any) -> list[str]:
    """What the table says about each file."""
    return [dock.table.index(row, 1).data() for row in range(len(dock.table.rows))]


def states(dock: Any) -> dict[str, str]:
    return {Path(row.path).stem: row.state for row in dock.table.rows}


def test_one_broken_file_does_not_stop_the_rest(viewer: Any, dock: Any, qtbot: Any, plate: Path):
    assert not dock.panel.start_button.isEnabled()
    add(qtbot, dock, plate, 4)
    assert widget(dock, "batch_output").text() == str(plate / "labels")
    assert preview(dock) == "fluorescence.png gives fluorescence_labels.ome.tif"
    assert set(states(dock).values()) == {"waiting"}
    click(qtbot, dock, "batch_start")
    qtbot.waitUntil(lambda: dock.panel.start_button.text() == "Cancel", timeout=PATIENCE)
    assert not dock.form.isEnabled()
    qtbot.waitUntil(lambda: dock.table.count("done") > 0, timeout=PATIENCE)
    assert "of 4 images" in dock.panel.progress.text
    wait_for_end(qtbot, dock)
    found = states(dock)
    assert found.pop("fluorescence_broken") == "failed"
    assert set(found.values()) == {"done"}
    row = dock.table.rows[1]
    assert "fluorescence_broken.png" in row.text
    assert all(r.text.endswith("objects") for r in dock.table.rows if r.state == "done")
    assert dock.panel.progress.text.startswith("3 done, 1 failed, in")
    assert sorted(p.name for p in (plate / "labels").iterdir()) == sorted(
        f"{name}_labels.ome.tif" for name in NAMES
    )
    assert dock.panel.resume_button.text() == "Try failed again"

    # The broken file is mended, and only it is done again.
    written = (plate / "labels" / "fluorescence_labels.ome.tif").stat().st_mtime_ns
    crop("fluorescence", plate / "fluorescence_broken.png")
    click(qtbot, dock, "batch_resume")
    wait_for_end(qtbot, dock)
    assert set(states(dock).values()) == {"done"}
    assert (plate / "labels" / "fluorescence_labels.ome.tif").stat().st_mtime_ns == written
    assert not dock.panel.resume_button.isVisible()

    # A double click shows the image and its labels on the same grid.
    from qtpy.QtCore import Qt

    place = dock.panel.view.visualRect(dock.table.index(0, 0)).center()
    for act in (qtbot.mouseClick, qtbot.mouseDClick):
        act(dock.panel.view.viewport(), Qt.MouseButton.LeftButton, pos=place)
    qtbot.waitUntil(lambda: len(viewer.layers) == 2, timeout=PATIENCE)
    image, labels = viewer.layers
    assert image.data.shape == labels.data.shape == (128, 128)
    np.testing.assert_array_equal(image.extent.world, labels.extent.world)
    assert f"{labels.data.max()} objects" == dock.table.rows[0].text
    assert labels.metadata["tttunet"]["model"] == "nuclei"
    dock.open_row(dock.table.index(0, 0))
    qtbot.wait(500)
    assert len(viewer.layers) == 2

    # The layers have files: they can be added again. One that has none is named.
    viewer.add_image(np.zeros((8, 8)), name="made by hand")
    dock.clear()
    click(qtbot, dock, "batch_add_open")
    qtbot.waitUntil(lambda: list(states(dock)) == ["fluorescence"], timeout=PATIENCE)
    assert "lack of a file: 'made by hand'. Save it" in dock.message.text

    # A second start skips what is there.
    add(qtbot, dock, plate, 4)
    click(qtbot, dock, "batch_start")
    qtbot.waitUntil(lambda: dock.table.count("skipped") == 4, timeout=PATIENCE)
    wait_for_end(qtbot, dock)


def test_names_alone_are_beside_the_images(
    dock: Any, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Neither the folder of the window nor that of the worker counts."""
    from qtpy.QtCore import Qt

    for name in NAMES[:2]:
        crop(name, tmp_path / "plate" / f"{name}.png", 64)
    monkeypatch.chdir(tmp_path)
    output = widget(dock, "batch_output")
    qtbot.keyClicks(output, "found/here")
    add(qtbot, dock, Path("plate"), 2)
    assert output.text() == str(tmp_path / "plate" / "found" / "here")
    output.selectAll()
    qtbot.keyClicks(output, "found")
    assert dock.plan()["output"] == str(tmp_path / "plate" / "found") + "/"
    assert dock.plan()["inputs"] == [str(tmp_path / "plate")]
    qtbot.keyClick(output, Qt.Key.Key_Return)
    assert output.text() == str(tmp_path / "plate" / "found")
    monkeypatch.chdir("/")
    click(qtbot, dock, "batch_start")
    qtbot.waitUntil(lambda: "working" in shown(dock), timeout=PATIENCE)
    wait_for_end(qtbot, dock)
    assert set(states(dock).values()) == {"done"}
    assert {p.name for p in (tmp_path / "plate" / "found").iterdir()} == {
        f"{name}_labels.ome.tif" for name in NAMES[:2]
    }


def test_cancel_and_resume(make_dock: Any, qtbot: Any, tmp_path: Path):
    names = [f"{i}.png" for i in range(5)]
    for name in names:
        crop("fluorescence", tmp_path / "plate" / name, 200)
    dock = make_dock()
    add(qtbot, dock, tmp_path / "plate", 5)
    click(qtbot, dock, "batch_start")
    qtbot.waitUntil(lambda: dock.table.count("done") == 2, timeout=PATIENCE)
    click(qtbot, dock, "batch_start")
    assert dock.panel.start_button.text() == "Stopping..."
    wait_for_end(qtbot, dock)
    done = dock.table.count("done")
    assert 2 <= done < 5
    assert dock.table.count("waiting") == 5 - done
    assert dock.panel.progress.text.startswith("Stopped")
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "plate" / "labels").iterdir()}
    assert len(times) in (done, done + 1)  # one may have been written when it was stopped

    # Another session is offered the rest; this one goes on.
    other = make_dock()
    assert widget(other, "batch_unfinished_text").isVisible()
    click(qtbot, other, "batch_go_on")
    qtbot.waitUntil(lambda: len(other.table.rows) == 5, timeout=PATIENCE)
    assert other.plan() == dock.plan()

    click(qtbot, dock, "batch_resume")
    wait_for_end(qtbot, dock)
    assert set(states(dock).values()) <= {"done", "skipped"}
    assert dock.table.count("skipped") == len(times) - done
    assert all(path.stat().st_mtime_ns == when for path, when in times.items())
    assert len(list((tmp_path / "plate" / "labels").iterdir())) == 5


def test_a_killed_worker_costs_one_file(dock: Any, qtbot: Any, tmp_path: Path):
    import os
    import signal

    from napari_tttunet.session import session

    for i in range(3):
        crop("fluorescence", tmp_path / "plate" / f"{i}.png", 250)
    add(qtbot, dock, tmp_path / "plate", 3)
    click(qtbot, dock, "batch_start")
    qtbot.waitUntil(lambda: dock.table.rows[1].state == "running", timeout=PATIENCE)
    os.kill(session().engine.worker_pid, signal.SIGKILL)
    qtbot.waitUntil(lambda: dock.table.rows[1].state == "failed", timeout=PATIENCE)
    wait_for_end(qtbot, dock)
    assert [row.state for row in dock.table.rows] == ["done", "failed", "done"]
    assert "engine ended" in dock.table.rows[1].text


def test_yaml_of_the_dock_runs_on_the_command_line(
    dock: Any, qtbot: Any, plate: Path, tmp_path: Path
):
    from qtpy.QtCore import Qt
    from qtpy.QtGui import QGuiApplication
    from qtpy.QtWidgets import QFileDialog

    (plate / "fluorescence_broken.png").unlink()
    add(qtbot, dock, plate, 3)
    ending = widget(dock, "batch_ending")
    ending.selectAll()
    qtbot.keyClicks(ending, "_seg")
    click(qtbot, dock, "batch_more")
    qtbot.mouseClick(dock.form.table, Qt.MouseButton.LeftButton)
    if not dock.form.table.isChecked():
        dock.form.table.click()
    dock.form.format.setCurrentIndex(dock.form.format.findData(".nrrd"))
    qtbot.waitUntil(lambda: preview(dock).endswith("_seg.nrrd"), timeout=PATIENCE)

    click(qtbot, dock, "batch_copy")
    assert "Save the batch as YAML first" in dock.message.text
    click(qtbot, dock, "batch_save")
    dialog = widget(dock, "fileDialog")
    assert isinstance(dialog, QFileDialog)
    dialog.selectFile(str(tmp_path / "plan.yaml"))
    dialog.accept()
    qtbot.waitUntil((tmp_path / "plan.yaml").exists, timeout=PATIENCE)
    qtbot.waitUntil(lambda: "Saved" in dock.panel.progress.text, timeout=PATIENCE)
    click(qtbot, dock, "batch_copy")
    command = QGuiApplication.clipboard().text()
    assert command == f"tttunet batch {tmp_path}/plan.yaml"
    plan = dock.plan()

    words = [sys.executable, "-m", "tttunet", *command.split()[1:]]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    made = {p.name for p in (plate / "labels").iterdir()}
    assert made == {f"{n}_{e}" for n in NAMES for e in ("seg.nrrd", "objects.csv")}

    # It opens again as it was, and the dock finds nothing left to do.
    click(qtbot, dock, "batch_clear")
    qtbot.waitUntil(lambda: not dock.table.rows, timeout=PATIENCE)
    dock.form.format.setCurrentIndex(0)
    with (tmp_path / "plan.yaml").open("a", encoding="utf-8") as file:
        file.write("tile: [96, 96]\n")  # there is no control for it
    plan["tile"] = [96, 96]
    dock.open_plan(str(tmp_path / "plan.yaml"))
    qtbot.waitUntil(lambda: len(dock.table.rows) == 3, timeout=PATIENCE)
    assert dock.plan() == plan
    click(qtbot, dock, "batch_start")
    qtbot.waitUntil(lambda: dock.table.count("skipped") == 3, timeout=PATIENCE)
    wait_for_end(qtbot, dock)


def test_the_command_line_of_a_plain_batch(dock: Any, qtbot: Any, plate: Path, tmp_path: Path):
    from qtpy.QtGui import QGuiApplication

    (plate / "fluorescence_broken.png").unlink()
    add(qtbot, dock, plate / "fluorescence.png", 1)
    dock.form.min_size.setValue(40)
    dock.form.overlay.setChecked(True)
    click(qtbot, dock, "batch_copy")
    command = QGuiApplication.clipboard().text()
    words = [sys.executable, "-m", "tttunet", *command.split()[1:]]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    made = {p.name for p in (plate / "labels").iterdir()}
    assert made == {"fluorescence_labels.ome.tif", "fluorescence_overlay.png"}


def test_a_folder_is_a_film(viewer: Any, dock: Any, qtbot: Any, tmp_path: Path):
    from tttunet.imaging import load_labels

    film = tmp_path / "film"
    film.mkdir()
    for number in (1, 2, 10):
        crop("fluorescence", film / f"frame{number}.png")
    add(qtbot, dock, film, 3)
    dock.form.frames.setChecked(True)
    qtbot.waitUntil(lambda: len(dock.table.rows) == 1, timeout=PATIENCE)
    assert preview(dock) == "film gives film_labels.ome.tif"
    click(qtbot, dock, "batch_copy")
    from qtpy.QtGui import QGuiApplication

    assert "--frames" in QGuiApplication.clipboard().text()
    click(qtbot, dock, "batch_start")
    wait_for_end(qtbot, dock)
    assert states(dock) == {"film": "done"}, shown(dock)
    written = load_labels(dock.table.rows[0].labels)
    assert written.axes == "TYX"
    assert [frame.max() > 0 for frame in written.array] == [True] * 3

    dock.open_row(dock.table.index(0, 0))
    qtbot.waitUntil(lambda: len(viewer.layers) == 2, timeout=PATIENCE)
    image, labels = viewer.layers
    assert image.data.shape == labels.data.shape
    assert not isinstance(image.data, np.ndarray)  # frames are read when they are shown


def test_a_film_is_smoothed_by_its_file(dock: Any, qtbot: Any, tmp_path: Path):
    from tttunet.inference.frames import LARGEST_WINDOW

    assert dock.form.smoothing.maximum() == LARGEST_WINDOW
    dock.form.frames.setChecked(True)
    dock.form.smoothing.setValue(3)
    saved = tmp_path / "film.yaml"
    crop("fluorescence", tmp_path / "frame.png")
    dock.add_inputs([str(tmp_path)])
    dock.form.output.setText(str(tmp_path / "labels"))
    dock.save_plan(str(saved))
    qtbot.waitUntil(saved.exists, timeout=PATIENCE)
    assert "smoothing: 3" in saved.read_text()
    dock.form.frames.setChecked(False)
    dock.form.smoothing.setValue(1)
    dock.open_plan(str(saved))
    qtbot.waitUntil(lambda: dock.form.frames.isChecked(), timeout=PATIENCE)
    assert dock.form.smoothing.value() == 3


def test_models_that_only_a_file_names_stay(dock: Any, qtbot: Any, tmp_path: Path):
    """Also when the library is read again, as after a fine-tuning."""
    from napari_tttunet.dock_work import read_library

    crop("fluorescence", tmp_path / "a.png")
    averaged = [str(tmp_path / name) for name in ("one", "two")]
    for model in (averaged[0], averaged):
        (tmp_path / "plan.yaml").write_text(f"inputs: a.png\noutput: out/\nmodel: {model}\n")
        dock.open_plan(str(tmp_path / "plan.yaml"))
        qtbot.waitUntil(lambda model=model: dock.plan()["model"] == model, timeout=PATIENCE)
        dock.form.show_models(read_library())
        assert dock.plan()["model"] == model
    assert dock.form.model.currentText() == "2 models"


def test_files_are_dropped_removed_and_judged(dock: Any, qtbot: Any, plate: Path, tmp_path: Path):
    from qtpy.QtCore import QMimeData, QPoint, QPointF, Qt, QUrl
    from qtpy.QtGui import QDragEnterEvent, QDropEvent
    from qtpy.QtWidgets import QApplication

    (tmp_path / "notes.txt").write_text("no image")
    mime = QMimeData()
    mime.setUrls([QUrl.fromLocalFile(str(p)) for p in (plate, tmp_path / "notes.txt")])
    how = Qt.DropAction.CopyAction, mime, Qt.MouseButton.LeftButton
    none = Qt.KeyboardModifier.NoModifier
    enter = QDragEnterEvent(QPoint(5, 5), *how, none)
    QApplication.sendEvent(dock, enter)
    assert enter.isAccepted()
    QApplication.sendEvent(dock, QDropEvent(QPointF(5, 5), *how, none))
    qtbot.waitUntil(lambda: len(dock.table.rows) == 5, timeout=PATIENCE)
    assert states(dock)["notes"] == "failed"
    assert "type that cannot be read" in dock.table.rows[-1].text
    dock.panel.view.selectRow(0)
    qtbot.keyClick(dock.panel.view, Qt.Key.Key_Delete)
    qtbot.waitUntil(lambda: len(dock.table.rows) == 4, timeout=PATIENCE)
    assert "fluorescence" not in states(dock)
    # A file that vanishes does not stop the others, and nothing at all is an error.
    shutil.rmtree(plate)
    click(qtbot, dock, "batch_start")
    qtbot.waitUntil(lambda: "None of the files" in dock.message.text, timeout=PATIENCE)
    dock.clear()
    dock.add_open_images()
    assert "opened from a file" in dock.message.text


def test_a_dicom_series_is_one_file(
    viewer: Any, make_dock: Callable[[], Any], qtbot: Any, tmp_path: Path
):
    import SimpleITK as sitk

    from dicom_files import write_series
    from tttunet.imaging import load_labels

    plane = np.asarray(Pillow.open(SAMPLES / "fluorescence.png").convert("L"))[:96, :96]
    volume = sitk.GetImageFromArray(np.stack([plane, plane, plane[::-1], plane]).astype(np.int16))
    volume.SetSpacing((0.5, 0.75, 2.0))
    volume.SetOrigin((-10.0, 20.0, 30.0))
    series = tmp_path / "patient" / "1.2.840.1"
    write_series(series, volume)
    dock = make_dock()
    add(qtbot, dock, series, 1)
    assert states(dock) == {"1.2.840": "waiting"}
    assert widget(dock, "batch_output").text() == str(tmp_path / "patient" / "labels")
    assert preview(dock) == "1.2.840.1 gives 1.2.840.1_labels.nrrd"

    # The folder above holds the same series, next to one whose slices all lie in one place.
    click(qtbot, dock, "batch_clear")
    place = np.array([10.0, -20.0, 30.5])
    write_series(tmp_path / "patient" / "damaged", volume, number=2, move=lambda i, p: place)
    add(qtbot, dock, tmp_path / "patient", 2)
    click(qtbot, dock, "batch_start")
    qtbot.waitUntil(lambda: dock.table.count("waiting", "running") == 0, timeout=PATIENCE)
    wait_for_end(qtbot, dock)
    assert states(dock) == {"1.2.840": "done", "damaged": "failed"}
    labels = load_labels(tmp_path / "patient" / "labels" / "1.2.840.1_labels.nrrd")
    assert labels.array.shape == (4, 96, 96)
    assert labels.array.any()
    np.testing.assert_allclose(labels.spacing, (2.0, 0.75, 0.5))
    np.testing.assert_allclose(labels.origin, (30.0, 20.0, -10.0))
    dock.open_row(dock.table.index(0, 0))
    qtbot.waitUntil(lambda: len(viewer.layers) == 2, timeout=PATIENCE)
    image, shown = viewer.layers
    assert image.data.shape == shown.data.shape
    np.testing.assert_allclose(image.extent.world, shown.extent.world)

    # The layer was opened from that folder: it can be added.
    dock.clear()
    click(qtbot, dock, "batch_add_open")
    qtbot.waitUntil(lambda: list(states(dock)) == ["1.2.840"], timeout=PATIENCE)


def test_offered_formats_are_those_of_the_core():
    from napari_tttunet.batch_form import ENDING, FORMATS
    from tttunet.inference.files import LABELS_ENDING, OFFERED_SUFFIXES

    assert tuple(value for value, _ in FORMATS) == ("auto", *OFFERED_SUFFIXES)
    assert ENDING == LABELS_ENDING


def test_closing_the_dock_stops_the_batch(viewer: Any, make_dock: Any, qtbot: Any, tmp_path: Path):
    for i in range(4):
        crop("fluorescence", tmp_path / "plate" / f"{i}.png", 250)
    dock = make_dock()
    add(qtbot, dock, tmp_path / "plate", 4)
    click(qtbot, dock, "batch_start")
    qtbot.waitUntil(lambda: dock.table.count("done") == 1, timeout=PATIENCE)
    job = dock._run.job
    viewer.window.remove_dock_widget(dock)
    dock.deleteLater()
    qtbot.waitUntil(lambda: job.finished, timeout=PATIENCE)
    assert job.state == "cancelled"
    qtbot.wait(200)
