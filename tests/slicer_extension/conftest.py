"""Slicer's real scene, and the engine in another interpreter: as in Slicer, without its window.

These tests need `slicer-core` and run in a process of their own: `make test-slicer`. The worker's
interpreter is named by TTTUNET_PYTHON.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MODULE = REPOSITORY / "slicer_extension" / "TTTUNet"
AVAILABLE = importlib.util.find_spec("slicer") is not None
PYTHON = os.environ.get("TTTUNET_PYTHON", "")

if AVAILABLE:
    sys.path.insert(0, str(MODULE))
    from slicer_application import set_up


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say why these tests do not run."""
    if AVAILABLE and not PYTHON:
        reason = "TTTUNET_PYTHON names no interpreter for the worker: make test-slicer"
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def application(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the application sets up and the package `slicer-core` does not."""
    return set_up(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def worker() -> str:
    """The interpreter that has napari-tttunet."""
    return PYTHON


@pytest.fixture
def scene(application: Any) -> Iterator[Any]:
    """An empty scene."""
    import slicer

    slicer.mrmlScene.Clear(0)
    yield slicer.mrmlScene
    slicer.mrmlScene.Clear(0)


@pytest.fixture(scope="session")
def logic(application: Any) -> Iterator[Any]:
    """One engine for all tests."""
    from TTTUNetLib.Logic import TTTUNetLogic

    found = TTTUNetLogic()
    yield found
    found.close()


def _run_python(*arguments: str | Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "tests")}
    done = subprocess.run(
        [PYTHON, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def run_python() -> Callable[..., str]:
    """Runs the worker's interpreter with arguments; what it printed."""
    return _run_python


_TINY = """
import sys, torch
from tiny import make_config
from tttunet.models.config import Label
from tttunet.models.model import Model
torch.manual_seed(5)
config = make_config(3, "semantic")
code = "SCT^10200004^Liver~SCT^24028007^Right"
labels = (Label(value=1, name="liver", color=(221, 130, 101), code=code),)
Model.create(config.model_copy(update={"labels": labels})).save(sys.argv[1])
"""


@pytest.fixture(scope="session")
def tiny_3d(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a 3D model that was not trained: it calls about half of all voxels liver."""
    folder = tmp_path_factory.mktemp("models") / "tiny3d"
    _run_python("-c", _TINY, folder)
    return str(folder)


@pytest.fixture(scope="session")
def by_command_line(
    application: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[list[Path], str], dict[str, Path]]:
    """A function: label files that `tttunet segment` writes, by the stem of the image."""

    def run(paths: list[Path], model: str) -> dict[str, Path]:
        output = tmp_path_factory.mktemp("labels")
        _run_python("-m", "tttunet", "segment", *paths, "-o", output, "--model", model)
        written = {path.name.partition("_labels")[0]: path for path in output.iterdir()}
        return {path.name.partition(".")[0]: written[path.name.partition(".")[0]] for path in paths}

    return run


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, tiny_3d: str) -> Iterator[Path]:
    """The user's library, with the tiny 3D model as "organs"."""
    folder = tmp_path_factory.mktemp("library")
    os.symlink(tiny_3d, folder / "organs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TTTUNET_MODELS", str(folder))
        yield folder


@pytest.fixture
def window(scene: Any, library: Path) -> Iterator[Any]:
    """The module's window under the stand-in."""
    from PySide6 import QtWidgets

    from slicer_standin import Settings
    from slicer_window import Window

    Settings.shared.clear()
    found = Window()
    yield found
    found.widget.cleanup()
    found.parent.deleteLater()
    QtWidgets.QApplication.processEvents()
    assert gc.isenabled()
