"""Edits reach the disk within seconds; what kills the process costs the last of them at most."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tttunet.errors import OutputError
from tttunet.projects import Autosaver, Project, ProjectError


class Canvas:
    """What a viewer holds: arrays that change while they are saved."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.labels, self.vouched = np.zeros(shape, np.int32), np.zeros(shape, np.uint8)
        self.reads: list[tuple[tuple[int, int], ...]] = []

    def read(self, bounds):
        self.reads.append(bounds)
        place = tuple(slice(a, b) for a, b in bounds)
        return self.labels[place].copy(), self.vouched[place].copy()

    def paint(self, bounds, number: int) -> None:
        place = tuple(slice(a, b) for a, b in bounds)
        self.labels[place], self.vouched[place] = number, 1


@pytest.fixture
def canvas(blank) -> Canvas:
    return Canvas(blank.label_shape)


def wait_until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_strokes_are_written_together_after_the_delay(project: Project, blank, canvas: Canvas):
    corrections, saved = project.corrections(blank), []
    saver = Autosaver(corrections, canvas.read, delay=0.3, on_saved=saved.append)
    for x in range(10, 40):
        box = ((100, 105), (x, x + 5))
        canvas.paint(box, 3)
        saver.changed(box)
    assert saver.pending
    assert saved == []
    wait_until(lambda: saved)
    assert saved == [1]
    assert canvas.reads == [((100, 105), (10, 44))]  # the changed box, not the image
    assert not saver.pending
    with Project.open(project.folder, read_only=True) as reader:
        found = reader.corrections(blank.id).read(blank.bounds)
    assert np.array_equal(found[0], canvas.labels)
    assert np.array_equal(found[1], canvas.vouched)
    saver.close()


def test_boxes_in_several_chunks_are_not_joined(project: Project, blank, canvas: Canvas):
    saver = Autosaver(project.corrections(blank), canvas.read, delay=60)
    saver.changed(((250, 260), (0, 3)))
    saver.changed(((-5, 2), (690, 900)))  # a brush over the edge
    saver.changed(((700, 800), (0, 3)))  # outside
    canvas.paint(blank.bounds, 1)
    assert saver.flush() == 3
    assert sorted(canvas.reads) == [
        ((0, 2), (690, 700)), ((250, 256), (0, 3)), ((256, 260), (0, 3)),
    ]  # fmt: skip
    assert saver.flush() == 0
    saver.close()
    with pytest.raises(RuntimeError, match="closed"):
        saver.changed(((0, 1), (0, 1)))


def test_closing_writes_and_ends_the_thread(project: Project, blank, canvas: Canvas):
    saver = Autosaver(project.corrections(blank), canvas.read, delay=60)
    canvas.paint(((0, 9), (0, 9)), 2)
    saver.changed(((0, 9), (0, 9)))
    saver.close()
    assert "autosave" not in {thread.name for thread in threading.enumerate()}
    assert project.corrections(blank).summary().objects == 1
    assert project.history()[-1]["event"] == "corrections saved"


def test_reporting_a_change_does_not_wait_for_the_disk(project: Project, blank, canvas: Canvas):
    corrections, slow = project.corrections(blank), threading.Event()

    def read(bounds):
        slow.wait(20)
        return canvas.read(bounds)

    saver = Autosaver(corrections, read, delay=0.0)
    try:
        saver.changed(((0, 1), (0, 1)))
        time.sleep(0.05)  # the thread is reading now
        start = time.perf_counter()
        canvas.paint(((0, 1), (0, 2)), 4)
        saver.changed(((0, 1), (0, 2)))
        assert time.perf_counter() - start < 0.05
    finally:
        slow.set()
    saver.close()
    assert corrections.read(((0, 1), (0, 2)))[0].tolist() == [[4, 4]]


def test_errors_are_told_once_and_the_edit_is_tried_again(project: Project, blank, canvas: Canvas):
    """A file in place of the folder stands for a disk that comes back."""
    errors: list[Exception] = []
    saver = Autosaver(project.corrections(blank), canvas.read, delay=0.05, on_error=errors.append)
    obstacle = project.folder / "corrections" / blank.id
    obstacle.write_text("")
    canvas.paint(((0, 5), (0, 5)), 1)
    saver.changed(((0, 5), (0, 5)))
    wait_until(lambda: errors)
    time.sleep(0.5)  # several trials
    assert len(errors) == 1
    assert isinstance(errors[0], OutputError)
    assert "cannot be written" in str(errors[0])
    with pytest.raises(OutputError):
        saver.flush()
    assert saver.pending
    obstacle.unlink()
    wait_until(lambda: not saver.pending)
    assert project.corrections(blank).summary().objects == 1
    saver.close()


def test_a_box_that_cannot_be_written_keeps_no_other_back(project: Project, blank, canvas: Canvas):
    errors: list[Exception] = []
    saved: list[int] = []
    corrections = project.corrections(blank)
    saver = Autosaver(
        corrections, canvas.read, delay=0.05, on_error=errors.append, on_saved=saved.append
    )
    bad, good, late = ((0, 5), (0, 5)), ((300, 305), (300, 305)), ((550, 555), (0, 5))
    canvas.paint(bad, 2**24)
    canvas.paint(good, 7)
    saver.changed(bad)
    saver.changed(good)
    wait_until(lambda: errors)
    assert "too large" in str(errors[0])
    assert corrections.read(good)[0].min() == 7
    wait_until(lambda: saved)
    canvas.paint(late, 8)
    saver.changed(late)
    with pytest.raises(ProjectError, match="too large"):
        saver.close()
    assert corrections.read(late)[0].min() == 8
    assert len(errors) == 1
    canvas.paint(bad, 3)
    assert saver.pending
    assert saver.flush() == 1, "what could not be written was not forgotten"
    assert not saver.pending


def test_a_reader_that_fails_is_told(project: Project, blank):
    errors: list[Exception] = []

    def read(bounds):
        raise KeyError("the layer was removed")

    saver = Autosaver(project.corrections(blank), read, delay=0.01, on_error=errors.append)
    saver.changed(((0, 1), (0, 1)))
    wait_until(lambda: errors)
    with pytest.raises(KeyError):
        saver.close()
    assert "autosave" not in {thread.name for thread in threading.enumerate()}


def test_a_listener_that_is_gone_does_not_end_the_saving(project: Project, blank, canvas: Canvas):
    heard: list[object] = []

    def gone(what: object) -> None:
        heard.append(what)
        raise RuntimeError("wrapped C/C++ object of type ProjectWork has been deleted")

    corrections = project.corrections(blank)
    saver = Autosaver(corrections, canvas.read, delay=0.01, on_saved=gone, on_error=gone)
    bounds = ((0, 5), (0, 5))
    for turn, number in enumerate((1, 2**24, 3), 1):  # saved, refused, saved
        canvas.paint(bounds, number)
        saver.changed(bounds)
        wait_until(lambda turn=turn: len(heard) == turn)
    wait_until(lambda: not saver.pending)
    assert corrections.read(bounds)[0].min() == 3
    assert [type(what) for what in heard] == [int, ProjectError, int]
    saver.close()


PAINT_FOR_EVER = """
import sys, time
import numpy as np
from tttunet.projects import Autosaver, Project

project = Project.open(sys.argv[1])
corrections = project.corrections("blank")
shape = corrections.image.label_shape
number = int(sys.argv[2])
canvas = [np.full(shape, number, np.int32)]  # replaced as a whole: never half painted

def read(bounds):
    part = canvas[0][tuple(slice(a, b) for a, b in bounds)]
    return part, np.ones(part.shape)

saver = Autosaver(corrections, read, delay=0.0, on_saved=lambda n: print(n, flush=True))
while True:
    number += 1
    canvas[0] = np.full(shape, number, np.int32)
    saver.changed(corrections.image.bounds)
    time.sleep(0.003)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_killed_in_the_middle_of_writing(project: Project, blank):
    """Every chunk is one that was written whole, and the project opens as ever."""
    project.close()
    interrupted = 0
    for trial in range(60):
        if trial >= 6 and interrupted:
            break  # whether a kill hits a writing is chance
        painter = subprocess.Popen(
            [sys.executable, "-c", PAINT_FOR_EVER, str(project.folder), str(1000 * trial)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert painter.stdout is not None
            assert painter.stdout.readline()  # it has saved once and goes on
            time.sleep(0.05 + 0.037 * (trial % 6))
        finally:
            painter.send_signal(signal.SIGKILL)
            painter.communicate()
        folder = project.folder / "corrections" / "blank"
        interrupted += any(path.name.startswith(".") for path in folder.iterdir())
        with Project.open(project.folder) as again:
            assert again.problems == []
            corrections = again.corrections("blank")
            for index in corrections.store.indices():
                labels, vouched = corrections.read(corrections.store.bounds(index))
                assert labels.min() == labels.max() > 0
                assert vouched.all()
            assert corrections.summary().vouched_pixels == 600 * 700
        assert not any(path.name.startswith(".") for path in folder.iterdir())
    assert interrupted > 0, "no kill hit a writing: the test proves nothing"


def test_an_interpreter_that_ends_saves_first(project: Project, blank):
    program = """
import sys
import numpy as np
from tttunet.projects import Autosaver, Project
project = Project.open(sys.argv[1])
read = lambda bounds: (np.full((2, 2), 5), np.ones((2, 2)))
saver = Autosaver(project.corrections("blank"), read, delay=600)
saver.changed(((0, 2), (0, 2)))
"""
    project.close()
    command = [sys.executable, "-c", program, str(project.folder)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    with Project.open(project.folder) as again:
        assert again.corrections("blank").summary().objects == 1


# In the Python of 3D Slicer

BARE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in ALLOWED:
            raise ImportError(f"{name} is not part of this Python")

ALLOWED = {*sys.stdlib_module_names, "numpy", "tttunet", "__editable___napari_tttunet_finder"}
for name in [n for n in sys.modules if n.partition(".")[0] not in ALLOWED]:
    del sys.modules[name]
sys.meta_path.insert(0, Refuse())

import numpy as np
from pathlib import Path
from tttunet.projects import *

folder = Path(sys.argv[1])
(folder / "scan.nrrd").write_bytes(b"voxels")
with Project.create(folder / "p", task="semantic", dim=3, classes={1: "liver"}) as project:
    image = project.add_image(folder / "scan.nrrd", axes="ZYX", shape=(20, 30, 40))
    copy = project.add_image(np.zeros((4, 5, 6), np.int16), axes="ZYX", name="copied")
    labels = np.zeros((20, 30, 40), np.int32)
    labels[5:15, 5:15, 5:15] = 1
    saver = Autosaver(project.corrections(image), lambda b: (
        labels[tuple(slice(*p) for p in b)], np.ones([y - x for x, y in b])))
    saver.changed(((0, 20), (0, 30), (0, 40)))
    saver.close()
    project.corrections(copy).complete(
        Region.around([(0, 0), (0, 4), (4, 4)], ((0, 4),), (4, 5, 6)), np.ones((4, 5, 5), int))
with Project.open(folder / "p") as project:
    assert project.problems == [], project.problems
    assert [s.labels.shape for s in samples(project)] == [(20, 30, 40), (4, 5, 6)]
    assert project.crop(copy, ((0, 4), (0, 5), (0, 6))).array.shape == (4, 5, 6)
    assert check(project) == [], check(project)
    print(describe(project))
"""


def test_numpy_and_the_standard_library_are_enough(tmp_path: Path):
    command = [sys.executable, "-c", BARE, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "24,040 pixels of 1 class and 1 complete region on 2 images\n"
