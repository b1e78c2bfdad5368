"""`python -m napari_tttunet.demo` as `make demo` runs it: a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageGrab

REPOSITORY = Path(__file__).resolve().parents[2]
#: Of `vivid`: many objects are coloured.
LABELLED = 20_000
PATIENCE = 120
#: Takes the place of an environment without the viewer: no napari and no Qt can be imported.
_WITHOUT_VIEWER = """
import runpy, sys
from importlib.machinery import PathFinder
class Core(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in ("napari", "qtpy", "PySide6")
        return None if hidden else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Core
sys.argv = ["demo"]
runpy.run_module("napari_tttunet.demo", run_name="__main__")
"""


def environment(**changes: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY", "CI")}
    return {**kept, "OMP_NUM_THREADS": "1", **changes}


def demo(folder: Path, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "napari_tttunet.demo", *arguments],
        cwd=folder,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=300,
    )


def vivid(picture: Image.Image) -> int:
    """Pixels of the canvas that have a colour: the sample is grey, and so is the window."""
    shown = picture.convert("HSV").crop((400, 100, 1000, 800))
    found = shown.getcolors(2**24)
    assert found is not None
    return sum(count for count, (_, s, v) in found if s > 80 and v > 60)


@pytest.mark.slow
@pytest.mark.usefixtures("qapp")  # skipped where no screen can be had
def test_without_a_display_a_picture_of_the_segmented_image_is_written(tmp_path: Path) -> None:
    done = demo(tmp_path)
    assert done.returncode == 0, done.stderr
    picture = tmp_path / "demo-output" / "napari.png"
    assert done.stdout.strip() == f"Picture of the viewer: {picture}"
    assert Image.open(picture).size == (1400, 900)
    assert vivid(Image.open(picture)) > LABELLED
    assert not list(tmp_path.glob("*/*.json")), "no settings beside the results"


@pytest.mark.slow
def test_ci_gets_a_picture_although_there_is_a_display(screen_of_a_person: str, tmp_path: Path):
    done = demo(
        tmp_path, "--sample", "fluorescence", DISPLAY=screen_of_a_person, CI="true",
        QT_QPA_PLATFORM="xcb",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert vivid(Image.open(tmp_path / "demo-output" / "napari.png")) > LABELLED


@pytest.mark.slow
def test_with_a_display_labels_appear_and_the_window_stays_open(
    screen_of_a_person: str, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "napari_tttunet.demo"],
        cwd=tmp_path,
        env=environment(
            DISPLAY=screen_of_a_person,
            QT_QPA_PLATFORM="xcb",
            NAPARI_CONFIG=str(tmp_path / "napari.yaml"),
        ),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert "napari is open" in process.stdout.readline()
        end = time.monotonic() + PATIENCE
        while vivid(ImageGrab.grab(xdisplay=screen_of_a_person)) < LABELLED:
            assert time.monotonic() < end, "no labels on the screen"
            time.sleep(0.5)
        time.sleep(2)
        assert process.poll() is None
        assert not (tmp_path / "demo-output").exists()
    finally:
        process.terminate()
        process.wait(20)


def test_a_display_that_is_gone_and_no_xvfb(tmp_path: Path) -> None:
    done = demo(tmp_path, DISPLAY=":98765", PATH="/nowhere")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"There is no display, and no Xvfb .* apt-get install xvfb\.\n", done.stdout
    )
    assert not list(tmp_path.rglob("*.png"))


def test_only_the_core_is_installed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_VIEWER],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "pip install '.[gui]'" in done.stdout
    assert not list(tmp_path.iterdir())


def test_an_unknown_sample_is_named_with_those_that_there_are(tmp_path: Path) -> None:
    done = demo(tmp_path, "--sample", "cheese")
    assert done.returncode == 2
    assert "cheese" in done.stderr
    assert "ovule_nuclei" in done.stderr


def test_the_samples_are_those_of_the_manifest() -> None:
    import yaml

    from napari_tttunet.demo import SAMPLE, sample_names

    manifest = yaml.safe_load((REPOSITORY / "napari_tttunet" / "napari.yaml").read_text())
    offered = [sample["key"] for sample in manifest["contributions"]["sample_data"]]
    assert sorted(sample_names()) == sorted(offered)
    assert SAMPLE in offered


@pytest.fixture
def screen_of_a_person(qapp: Any) -> Iterator[str]:
    """A display, as on a machine with a screen."""
    from napari_tttunet.demo import virtual_screen

    with virtual_screen() as variables:
        yield variables["DISPLAY"]
