"""Interpreters that do not serve, other versions, and a client with almost nothing installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import appose
import numpy as np
import pytest

from tttunet.engine import process
from tttunet.engine.client import Engine
from tttunet.engine.messages import Hello, ListModels

from .conftest import Heard, finish, noise


def failure(python: str | Path) -> tuple[str, str]:
    with Engine(python) as engine:
        heard = Heard()
        failed = finish(engine.request(Hello(), heard))
        assert (failed.kind, failed.problem) == ("failed", "worker")
        assert heard.kinds == ["queued", "started", "failed"]
        return failed.message, failed.hint


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_missing_interpreter(tmp_path: Path):
    message, hint = failure(tmp_path / "no" / "python")
    assert message == f"The interpreter of the worker, {tmp_path}/no/python, does not exist."
    assert process.PYTHON_VARIABLE in hint


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell script")
def test_interpreter_without_tttunet(tmp_path: Path):
    bare = script(tmp_path / "python", f'exec {sys.executable} -I -S "$@"')
    message, hint = failure(bare)
    assert message == f"The worker cannot run: {bare} has no napari-tttunet."
    assert f"Install napari-tttunet for {bare}" in hint


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell script")
def test_interpreter_that_fails_is_quoted(tmp_path: Path):
    message, _ = failure(script(tmp_path / "python", "echo The disk is on fire. >&2; exit 3"))
    assert message == "The worker cannot run: The disk is on fire."


def test_no_interpreter_at_all(tmp_path: Path):
    (tmp_path / "python").write_text("not a program")
    (tmp_path / "python").chmod(0o755)
    message, _ = failure(tmp_path / "python")
    assert "cannot be started" in message


def test_other_protocol_names_both(monkeypatch):
    monkeypatch.setattr(process, "PROTOCOL", 99)
    message, hint = failure(sys.executable)
    import tttunet

    assert message == (
        f"The worker is tttunet {tttunet.__version__} with protocol 1, but this program is "
        f"tttunet {tttunet.__version__} with protocol 99."
    )
    assert "Install the same version" in hint


def test_setting_in_the_environment(monkeypatch):
    monkeypatch.setenv(process.PYTHON_VARIABLE, "/nowhere/python")
    with Engine() as engine:
        assert "/nowhere/python" in finish(engine.request(Hello())).message


def test_a_worker_that_printed_is_still_understood(engine: Engine):
    about = finish(engine.request(Hello())).result
    assert about["protocol"] == 1
    assert "cpu" in about["devices"]
    assert about["backend"]
    assert about["memory"]["total"] > about["memory"]["available"] > 0


CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from tttunet.engine.client import Engine
with Engine() as engine:
    image = np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8)
    outcome = engine.segment(image, axes="YX", model=sys.argv[2]).wait(240)
print(outcome.kind, outcome.result["labels"].shape, outcome.result["labels"].sum())
heavy = {"torch", "pydantic", "scipy", "skimage", "yaml", "typer", "rich", "monai"}
print(sorted(heavy & set(sys.modules)))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs symbolic links")
def test_client_needs_numpy_and_appose_only(models, engine: Engine, tmp_path: Path):
    packages = tmp_path / "packages"
    packages.mkdir()
    core = Path(__file__).resolve().parents[2] / "core"
    (packages / "tttunet").symlink_to(core)
    site = Path(appose.__file__).parents[1]
    version = next(site.glob("appose-*.dist-info"))
    found = [Path(np.__file__).parent, site / "appose", version, *site.glob("numpy.libs")]
    for path in found:
        (packages / path.name).symlink_to(path)
    environment = {
        "TTTUNET_PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),  # for the worker: -I ignores it
    }
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", CHILD, packages, models[2, "semantic"]],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    labels = finish(engine.segment(noise((40, 50)), axes="YX", model=models[2, "semantic"]))
    kind, *_ = ran.stdout.split()
    assert kind == "done"
    assert ran.stdout.splitlines()[0].endswith(f" {labels.result['labels'].sum()}")
    assert ran.stdout.splitlines()[1] == "[]"
    assert importlib.util.find_spec("torch") is not None  # it could have been imported


def test_worker_sees_other_variables_than_the_client(models, tmp_path: Path):
    shutil.copytree(models[2, "instance"], tmp_path / "mine")
    with Engine(environment={"TTTUNET_MODELS": str(tmp_path)}) as engine:
        found = finish(engine.request(ListModels())).result["models"]
    assert "mine" in [model["name"] for model in found]
    assert os.environ.get("TTTUNET_MODELS") != str(tmp_path)
