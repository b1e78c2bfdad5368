"""`tttunet batch` and `tttunet segment --engine`: through a real worker process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from tttunet.imaging import load_labels

from .conftest import Run


def write_images(folder: Path, *names: str, size: int = 40) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        noise = np.random.default_rng(seed).integers(0, 255, (size // 4, size // 4), np.uint8)
        Pillow.fromarray(noise.repeat(4, 0).repeat(4, 1)).save(folder / name)
    return [folder / name for name in names]


@pytest.fixture
def batch_file(tmp_path: Path, instance_model: Path) -> Path:
    write_images(tmp_path / "in", "a.png", "b.png")
    path = tmp_path / "plate.yaml"
    path.write_text(f"inputs: in/\noutput: out/\nmodel: {instance_model}\ntable: true\n")
    return path


def test_batch_is_run_and_gone_on_with(run: Run, tmp_path: Path, batch_file: Path):
    ran = run("batch", batch_file)
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        str(tmp_path / "in" / name) for name in ("a.png", "b.png")
    ]
    assert all(" s -> " in line and "object" in line for line in lines)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        *("a_labels.ome.tif", "a_objects.csv", "b_labels.ome.tif", "b_objects.csv")
    ]
    (tmp_path / "in" / "b.png").write_bytes(b"not an image")
    (tmp_path / "out" / "b_labels.ome.tif").unlink()
    ran = run("batch", batch_file)
    assert ran.code == 1
    assert "a.png: done already" in ran.err
    assert "b.png" in ran.err.splitlines()[-1]
    assert ran.out == ""


def test_the_example_in_the_help_is_a_batch_file(run: Run, tmp_path: Path):
    from tttunet.engine.batch import Batch

    lines = [line.strip() for line in run("batch", "--help").out.splitlines()]
    start = next(i for i, line in enumerate(lines) if line.startswith("inputs:"))
    (tmp_path / "help.yaml").write_text("\n".join(lines[start : start + 5]))
    assert [Path(path).name for path in Batch.read(tmp_path / "help.yaml").inputs] == [
        *("plate1", "*.tif")
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inputs: in/\noutput: out/\ntables: true\n", "tables"),
        ("inputs: nothing/*.png\noutput: out/\n", "No image matches"),
    ],
)
def test_batch_that_cannot_begin(run: Run, tmp_path: Path, text: str, message: str):
    (tmp_path / "plate.yaml").write_text(text)
    ran = run("batch", tmp_path / "plate.yaml")
    assert ran.code == 1
    assert message in ran.err
    assert "Traceback" not in ran.err


def test_engine_writes_the_same_labels(run: Run, tmp_path: Path, instance_model, monkeypatch):
    write_images(tmp_path / "in", "a.png", "b.png", size=100)
    monkeypatch.chdir(tmp_path)
    words = ("segment", "in/a.png", "in/b.png", "-m", instance_model, "--tile", "64")
    words = (*words, "--decoding", "foreground=0.3", "--min-size", "2", "--overlay")
    here = run(*words, "-o", "here/")
    assert here.code == 0, here.err
    there = run(*words, "-o", "there/", "--engine")
    assert there.code == 0, there.err
    assert len(there.out.splitlines()) == 2
    for name in ("a", "b"):
        ours, theirs = (
            load_labels(tmp_path / folder / f"{name}_labels.ome.tif").array
            for folder in ("here", "there")
        )
        np.testing.assert_array_equal(ours, theirs)
    again = run(*words, "-o", "there/", "--engine")
    assert again.code == 1
    assert "exists already" in again.err


def test_engine_names_a_single_label_file(run: Run, tmp_path: Path, instance_model):
    (source,) = write_images(tmp_path, "a.png")
    output = tmp_path / "cells.nrrd"
    ran = run("segment", source, "-m", instance_model, "-o", output, "--engine")
    assert ran.code == 0, ran.err
    assert load_labels(output).array.shape == (40, 40)


def test_thresholds_are_checked(run: Run, tmp_path: Path, instance_model):
    (source,) = write_images(tmp_path, "a.png")
    words = ("segment", source, "-m", instance_model, "-o", tmp_path / "out")
    assert run(*words, "--decoding", "foreground").code == 2
    ran = run(*words, "--decoding", "foreground=3")
    assert ran.code == 1
    assert "foreground" in ran.err
    ran = run(*words, "--decoding", "size=3")
    assert "min_size" in ran.err


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_ctrl_c_ends_after_a_tile(tmp_path: Path, instance_model: Path):
    write_images(tmp_path / "in", "a.png", "b.png", size=1600)
    plan = tmp_path / "plate.yaml"
    plan.write_text(f"inputs: in/\noutput: out/\nmodel: {instance_model}\ntile: 16\noverlap: 0.8\n")
    program = (
        "import sys; from tttunet.cli import batch, main\n"
        "from tttunet.cli.batch import _Display\n"
        "hear = _Display.hear\n"
        "def loud(self, event):\n"
        "    print(event.kind, flush=True)\n"
        "    hear(self, event)\n"
        "_Display.hear = loud\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, "batch", plan],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("file"):
            break
    # As the terminal does it: to the worker too.
    os.killpg(child.pid, signal.SIGINT)
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 130, errors
    assert "Stopped; files that were done stay." in errors
    assert "Traceback" not in errors
    assert not list((tmp_path / "out").iterdir())


def test_engine_takes_the_mode_of_adaptation_and_writes_its_map(run: Run, tmp_path: Path):
    (source,) = write_images(tmp_path, "a.png", size=80)
    words = ("segment", source, "--tile", "32", "--adaptation", "image", "--adaptation-map")
    found = []
    for name, further in (("here", ()), ("there", ("--engine",))):
        ran = run(*words, "-o", tmp_path / name, *further)
        assert ran.code == 0, ran.err
        found.append(tifffile.imread(tmp_path / name / "a_adaptation.ome.tif"))
    assert found[0].shape == (2, 80, 80)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3)
    wrong = run(*words[:4], "--adaptation", "never", "--engine", "-o", tmp_path / "wrong")
    assert wrong.code == 1
    assert "adaptation: Input should be 'off', 'tile', 'image' or 'both'" in wrong.err
