"""`tttunet check`: the exit code says whether training would start."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tifffile

from .conftest import Run


def squares(folder: Path) -> Path:
    for name in ("a", "b", "c"):
        label = np.zeros((16, 16), np.uint8)
        label[4:9, 4:9] = 1
        for part in ("images", "labels"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        image = label * 100 + np.random.default_rng(len(name) + ord(name)).integers(0, 9, (16, 16))
        tifffile.imwrite(folder / "images" / f"{name}.tif", image.astype(np.uint8))
        tifffile.imwrite(folder / "labels" / f"{name}.tif", label)
    description = {"task": "semantic", "dim": 2, "classes": {"1": "square"}}
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def test_good_and_bad_data(run: Run, tmp_path: Path):
    folder = squares(tmp_path / "squares")
    ran = run("check", folder)
    assert ran.code == 0, ran.err
    assert "squares: 2D, semantic, 1 square" in ran.out
    assert "2 cases to train on, 1 to validate on; no errors, no warnings" in ran.out

    (folder / "labels" / "a.tif").unlink()
    tifffile.imwrite(folder / "labels" / "b.tif", np.full((16, 16), 4, np.uint8))
    ran = run("check", folder)
    assert ran.code == 1
    assert "error: a: The label of a is missing" in ran.out
    assert "error: b: " in ran.out
    assert "values without a class: [4]" in ran.out
    assert "2 errors, no warnings" in ran.out


def test_no_data_set(run: Run, tmp_path: Path):
    ran = run("check", tmp_path / "nowhere")
    assert ran.code == 1
    assert "does not exist" in ran.err
