"""`tttunet review`: which images to correct first."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image as Pillow

from .conftest import Run

SAMPLES = Path(__file__).resolve().parents[2] / "resources" / "samples"


def crop(name: str) -> np.ndarray:
    return np.asarray(Pillow.open(SAMPLES / f"{name}.png").convert("L"))[:128, :128]


def test_images_and_slices_are_ranked(run: Run, tmp_path: Path):
    """A picture that is like nothing it was trained on is more doubtful than one that is."""
    stack = np.stack([crop("fluorescence"), crop("colonoscopy_polyp"), crop("fluorescence") * 0])
    tifffile.imwrite(
        tmp_path / "stack.tif", stack, photometric="minisblack", metadata={"axes": "ZYX"}
    )
    tifffile.imwrite(tmp_path / "plain.tif", crop("fluorescence"), metadata={"axes": "YX"})
    (tmp_path / "broken.png").write_bytes(b"no picture")
    table = tmp_path / "places.csv"
    ran = run("review", tmp_path, "--csv", table)
    assert ran.code == 1
    assert "broken.png" in ran.err
    rows = list(csv.DictReader(table.open()))
    doubts = [float(row["doubt"]) for row in rows]
    assert doubts == sorted(doubts, reverse=True)
    assert {(Path(row["image"]).name, row["slice"]) for row in rows} == {
        ("stack.tif", "0"),
        ("stack.tif", "1"),
        ("plain.tif", ""),
    }
    assert {row["kind"] for row in rows} <= {"object", "gap"}
    ranked = [line for line in ran.out.splitlines() if ".tif" in line]
    assert len(ranked) == 3
    assert "stack.tif" in ranked[0].replace(" ", "")
    assert " 1 " in ranked[0], "the slice of the other kind comes first"

    again = run("review", tmp_path / "plain.tif", "--csv", table)
    assert again.code == 1
    assert "exists already" in again.err
