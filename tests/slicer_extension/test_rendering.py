"""The pictures of the views: a process of its own, since VTK keeps its windows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed: make test-slicer")

from PIL import Image  # noqa: E402

from slicer_nodes import add_volume, noise, save  # noqa: E402

TOOL = Path(__file__).resolve().parents[2] / "tools" / "render_slicer_views.py"
LIVER = np.array([221, 130, 101])


@pytest.mark.slow
def test_every_view_shows_the_segments(scene: Any, tiny_3d: str, tmp_path: Path):
    array = noise((24, 40, 40)) // 4
    array[6:18, 10:30, 10:30] += 800
    path = save(add_volume(array, "oblique"), tmp_path / "volume.nrrd")
    picture = tmp_path / "views.png"
    command = [sys.executable, TOOL, path, "--model", tiny_3d, "-o", picture, "--edge", "160"]
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("liver: ")
    pixels = np.asarray(Image.open(picture)).astype(float)
    assert pixels.shape == (364, 324, 3)
    hue = LIVER - LIVER.mean()
    for top, left in ((20, 0), (20, 164), (204, 0), (204, 164)):
        view = pixels[top : top + 160, left : left + 160]
        deviation = view - view.mean(-1, keepdims=True)
        norm = np.linalg.norm(deviation, axis=-1) * np.linalg.norm(hue)
        alike = (deviation @ hue) / np.maximum(norm, 1e-6)
        coloured = (alike > 0.95) & (norm > 500)
        assert coloured.sum() > 300, (top, left)
