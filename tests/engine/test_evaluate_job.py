"""Evaluation through the worker: arrays and files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile

from tttunet.engine.client import Engine
from tttunet.engine.messages import Evaluate
from tttunet.measuring.agreement import DIFFERENT, FALSE, MATCHED, MISSED

from .conftest import finish


def pair() -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true objects: one matched, one missed, one false."""
    pred, truth = np.zeros((20, 20), np.uint32), np.zeros((20, 20), np.uint32)
    truth[:8, :8], truth[12:, 12:] = 3, 9
    pred[:8, :7], pred[:6, 12:] = 5, 6
    return pred, truth


def test_arrays_with_the_objects_that_match(engine: Engine):
    result = finish(engine.evaluate(*pair(), "instance")).result
    assert result["matched"] == [[5, 3, 7 / 8]]
    assert (result["missed"], result["false"]) == ([9], [6])
    assert result["scores"][0]["f1"] == 0.5
    assert result["threshold"] == 0.5


def test_where_objects_and_classes_agree(engine: Engine):
    pred, truth = pair()
    painted = finish(engine.evaluate(pred, truth, "instance", painted=True)).result["painted"]
    assert (painted.dtype, painted.shape) == (np.uint8, pred.shape)
    assert (painted[0, 0], painted[15, 15], painted[0, 15]) == (MATCHED, MISSED, FALSE)
    assert painted[0, 7] == painted[10, 10] == 0  # only the truth of a match; background
    classes = pred.astype(np.uint8)
    classes[12:16, 12:] = 8
    result = finish(engine.evaluate(classes, truth, "semantic", painted=True)).result
    corners = [result["painted"][place] for place in ((13, 13), (18, 18), (0, 15))]
    assert corners == [DIFFERENT, MISSED, FALSE]


def test_classes(engine: Engine):
    pred, truth = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)
    pred[0], truth[:2] = 1, 1
    result = finish(engine.evaluate(pred, truth, "semantic")).result
    assert result["dice"] == 2 * 4 / 12
    assert [one["label"] for one in result["classes"]] == [1]


def test_shapes_that_differ_and_unknown_tasks(engine: Engine):
    pred, truth = pair()
    failed = finish(engine.evaluate(pred[:10], truth, "instance"))
    assert (failed.problem, "shape" in failed.message) == ("input", True)
    failed = finish(engine.evaluate(pred, truth, "panoptic"))
    assert (failed.problem, "panoptic" in failed.message) == ("input", True)


def test_files(engine: Engine, tmp_path: Path):
    for name, array in zip(("pred.tif", "truth.tif"), pair(), strict=True):
        tifffile.imwrite(tmp_path / name, array)
    request = Evaluate(str(tmp_path / "pred.tif"), str(tmp_path / "truth.tif"), "instance")
    result = finish(engine.request(request)).result
    assert result["summary"]["pooled"]["scores"][0]["f1"] == 0.5
