"""The whole loop in a real viewer: segment, correct, fine-tune, keep or revert, come back."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from finetuning import Tuning
from segmenting import Dock, add_sample

pytestmark = pytest.mark.usefixtures("one_engine", "own_settings")


@pytest.fixture
def tuning(viewer: Any, qtbot: Any) -> Tuning:
    return Tuning(viewer, qtbot)


def test_shots(viewer, qtbot, tmp_path):
    image = add_sample(viewer, size=256)
    seg = Dock(viewer, qtbot)
    t0=time.time()
    labels = seg.segment()
    print("segment", time.time()-t0)
    tuning = Tuning(viewer, qtbot)
    viewer.reset_view(); qtbot.wait(200)
    viewer.window.screenshot("/tmp/s4/shots/ft0.png", canvas_only=False, flash=False)
    tuning.new_project(tmp_path)
    viewer.layers.selection.active = labels
    numbers = np.unique(labels.data)[1:]
    for n in numbers[:6]:
        c = np.argwhere(labels.data == n); p = tuple(c[len(c)//2])
        tuning.press("mark_checked", labels, p)
    qtbot.wait(100)
    print(tuning.message, tuning.used, tuning.dock.work.annotation.counts())
    tuning.click("add_object")
    tuning.drag(labels, (100, 100), (110, 110), (110,120))
    tuning.click("complete_region")
    tuning.drag(labels, (20, 20), (60, 60), (120, 140))
    qtbot.wait(200)
    print([l.name for l in viewer.layers], tuning.message)
    tuning.saved()
    qtbot.wait(1500)
    print(tuning.used)
    viewer.window.screenshot("/tmp/s4/shots/ft1.png", canvas_only=False, flash=False)
    tuning.tiny_budget(20)
    t0=time.time()
    tuning.click("finetune")
    tuning.until(lambda: len(tuning.dock.view.curve.losses) > 3)
    qtbot.wait(2500)
    viewer.window.screenshot("/tmp/s4/shots/ft2.png", canvas_only=False, flash=False)
    tuning.finished()
    print("finetune", time.time()-t0)
    qtbot.wait(300)
    viewer.window.screenshot("/tmp/s4/shots/ft3.png", canvas_only=False, flash=False)
    print(tuning.find("finetune_scores").text())
    print(tuning.dock.result_of)
