"""Shapes that are made complete regions, and the next place, without a window."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from napari.components import ViewerModel
from napari.layers import Shapes

from napari_tttunet.annotation import UNKNOWN
from napari_tttunet.finetune_correct import Corrections
from napari_tttunet.finetune_project import ProjectWork
from napari_tttunet.settings import Settings
from tttunet.projects import Region

SIZE = 128


class Bench:
    """Labels on an image whose pixels are half a unit wide, and what the buttons do with them."""

    def __init__(self, folder: Path) -> None:
        self.viewer = ViewerModel()
        noise = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE), dtype=np.uint8)
        self.viewer.add_image(noise, name="noise", scale=(0.5, 0.5))
        data = np.zeros((SIZE, SIZE), np.int32)
        data[30:40, 80:90] = 1
        self.labels = self.viewer.add_labels(data, scale=(0.5, 0.5))
        self.work = ProjectWork(self.viewer, Settings(folder / "own.json"))
        self.correct = Corrections(self.viewer, self.work, lambda: "")
        self.correct.choose(self.labels)
        self.said: list[str] = []
        self.correct.said.connect(self.said.append)
        self.correct.unchecked.said.connect(self.said.append)
        self.correct.failed.connect(lambda error: self.said.append(str(error)))

    @property
    def vouched(self) -> np.ndarray:
        return self.work.annotation.state != UNKNOWN

    def complete(self, shapes: list[np.ndarray], kind: str) -> np.ndarray:
        """By a Shapes layer of one's own, in units; what it adds."""
        before = self.vouched
        layer = Shapes(shapes, shape_type=kind, scale=(1, 1))
        self.viewer.layers.append(layer)
        self.viewer.layers.selection.active = layer
        self.correct.complete_region()
        return self.vouched & ~before


@pytest.fixture
def bench(qapp: Any, own_settings: None, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.work.close()


def test_an_ellipse_holds_what_lies_in_it(bench: Bench) -> None:
    y, x = np.indices((SIZE, SIZE))
    box = np.array([[20, 70], [20, 120], [50, 120], [50, 70]])
    turn = np.array([[0.8, 0.6], [-0.6, 0.8]])
    turned = (box - box.mean(0)) @ turn + (90, 50)
    for corners, turning in ((box, np.eye(2)), (turned, turn)):
        found = bench.complete([corners / 2], "ellipse")
        middle = corners.mean(0)
        offset = np.stack([y - middle[0], x - middle[1]], -1) @ turning.T
        distance = (offset[..., 0] / 15) ** 2 + (offset[..., 1] / 25) ** 2
        assert found[distance < 0.99].all()
        assert not found[distance > 1.0001].any()
        assert bench.said.pop() == "1 region completed."
    assert len(bench.work.annotation.regions) == 2


def test_a_polygon_holds_what_lies_in_it(bench: Bench) -> None:
    found = bench.complete([np.array([[10, 10], [10, 50], [50, 10]])], "polygon")
    assert found[30, 30]
    assert not found[90, 90]
    assert abs(int(found.sum()) - 80 * 80 / 2) < 100


@pytest.mark.parametrize("kind", ["line", "path"])
def test_a_line_is_no_region(bench: Bench, kind: str) -> None:
    corners = [[10, 10], [10, 50], [50, 10]][: 2 if kind == "line" else 3]
    assert not bench.complete([np.array(corners)], kind).any()
    assert f"A {kind} encloses nothing. Draw a rectangle" in bench.said[-1]
    assert bench.work.annotation.regions == []


def test_labels_that_hold_corrections_only_say_so(bench: Bench, qtbot: Any) -> None:
    bench.work.annotation.mark((35, 85))
    bench.correct.next_place()
    qtbot.waitUntil(lambda: bool(bench.said), timeout=60_000)
    assert "hold nothing else of the image: press Segment" in bench.said.pop()
    bench.work.complete(Region(((0, SIZE), (0, SIZE))))
    bench.correct.next_place()
    qtbot.waitUntil(lambda: bool(bench.said), timeout=60_000)
    assert bench.said.pop() == "Every object is checked."
