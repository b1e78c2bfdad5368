"""The public API: complete, and free until it is used."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

import tttunet


def test_import_is_cheap(tmp_path: Path):
    program = (
        "import sys, tttunet\n"
        "assert set(tttunet.__all__) <= set(dir(tttunet))\n"
        "assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_name_is_there():
    for name in tttunet.__all__:
        assert getattr(tttunet, name) is not None
    assert tttunet.load_image.__module__ == "tttunet.imaging.readers"


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'segmnt'"):
        _ = tttunet.segmnt  # type: ignore[attr-defined]


def test_version_of_a_tree_that_is_not_installed(monkeypatch):
    from importlib import metadata

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert tttunet.__version__ == "0+unknown"


def test_samples_are_what_their_description_says():
    pytest.importorskip("tttunet.resources")
    folder = files("tttunet.resources") / "samples"
    description = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    assert description["licence"] == "CC0-1.0"
    for sample in description["images"]:
        image = tttunet.load_image(folder / f"{sample['name']}.png")
        labels = tttunet.load_labels(folder / f"{sample['name']}_labels.tif")
        assert labels.array.shape == image.spatial_shape
        assert labels.array.max() == sample["objects"]
        assert sample["original"] in (folder / "ATTRIBUTION.md").read_text(encoding="utf-8")
