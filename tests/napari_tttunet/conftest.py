"""A screen for the tests of the plugin: Xvfb where there is none, and real viewers on it."""

from __future__ import annotations

import ctypes
import functools
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
#: Tests that ask for one of these need a screen.
_NEED_A_SCREEN = {"qapp", "qtbot", "make_napari_viewer", "viewer"}
_START_SECONDS = 60


@functools.cache
def screen_problem() -> str:
    """Why tests of the plugin cannot run here, as one sentence; empty if they can."""
    try:
        import napari  # noqa: F401
        import pytestqt  # noqa: F401
    except ImportError as error:
        return f"{error.name} is not installed: pip install 'napari-tttunet[test]'"
    if sys.platform != "linux":
        return ""
    missing = []
    for line in (REPOSITORY / "tools" / "gui-packages.txt").read_text().splitlines():
        package, _, sign = line.partition(" ")
        if package == "#" or sign == "-" or (sign == "Xvfb" and os.environ.get("DISPLAY")):
            continue
        if not (_loads(sign) if ".so." in sign else shutil.which(sign)):
            missing.append(package)
    return f"no screen: sudo apt-get install {' '.join(missing)}" if missing else ""


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        needs = _NEED_A_SCREEN & set(getattr(item, "fixturenames", ()))
        if needs and here in item.path.parents and screen_problem():
            item.add_marker(pytest.mark.skip(reason=screen_problem()))


@pytest.fixture(scope="session")
def screen() -> Iterator[None]:
    """Starts Xvfb if no DISPLAY is set; it ends with its last client, which is this process."""
    if sys.platform != "linux" or os.environ.get("DISPLAY"):
        yield
        return
    receiver, sender = os.pipe()
    command = ["Xvfb", "-displayfd", str(sender), "-screen", "0", "1600x1000x24"]
    server = subprocess.Popen(
        [*command, "-nolisten", "tcp", "-terminate"], pass_fds=(sender,), stderr=subprocess.DEVNULL
    )
    os.close(sender)
    # It writes the number and the end of the line one after the other.
    number = b""
    while not number.endswith(b"\n"):
        ready, _, _ = select.select([receiver], [], [], _START_SECONDS)
        answer = os.read(receiver, 16) if ready else b""
        assert answer, "Xvfb did not start"
        number += answer
    os.close(receiver)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISPLAY", f":{number.decode().strip()}")
        patch.setenv("QT_QPA_PLATFORM", "xcb")
        yield
    # Qt prints errors if the screen goes before it does.
    from qtpy.QtWidgets import QApplication

    if QApplication.instance() is None:
        server.terminate()


@pytest.fixture(scope="session")
def qapp_args(screen: None) -> list[str]:
    """pytest-qt makes the application with these, so the screen is there before it."""
    return ["napari-tttunet-tests"]


@pytest.fixture(scope="session")
def _garbage(qapp: Any) -> Iterator[None]:
    """Between two sessions of the plugin, too: napari and zarr have threads of their own."""
    from napari_tttunet.garbage import GarbageCollection

    collection = GarbageCollection()
    yield
    collection.close()


@pytest.fixture(autouse=True)
def _widgets_die_in_the_window_thread(request: pytest.FixtureRequest) -> None:
    if _NEED_A_SCREEN & set(request.fixturenames) and not screen_problem():
        request.getfixturevalue("_garbage")


@pytest.fixture(scope="session", autouse=True)
def _own_config_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the settings of the person who runs it, napari's included."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("user-config")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user-cache")))
        yield


@pytest.fixture
def viewer(
    make_napari_viewer: Callable[..., Any], qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """A napari viewer on the screen; it is closed after the test."""
    monkeypatch.setattr("napari._qt.qt_main_window.SHOW_QT_WARNING", False, raising=False)
    shown = make_napari_viewer(show=True)
    qtbot.wait(100)
    return shown


@pytest.fixture(scope="module")
def _spare_references() -> None:
    """PySide6 6.12.0 takes a reference to None, True or False with every call of Qt that returns
    one. Before Python 3.12 the process ends when the last is gone, so there must be enough."""
    if sys.version_info < (3, 12):
        for value in (None, True, False):
            ctypes.c_ssize_t.from_address(id(value)).value += 2**30


@pytest.fixture(scope="session")
def one_engine(qapp: Any) -> Iterator[None]:
    """The worker stays warm for all tests that do not end it, and keeps to one core."""
    from napari_tttunet.session import close_session

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
        close_session()


@pytest.fixture
def own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the docks remember is of this test only."""
    monkeypatch.setenv("TTTUNET_SETTINGS", str(tmp_path / "settings.json"))


@pytest.fixture
def dock(viewer: Any, qtbot: Any) -> Any:
    """A Segment dock, see `segmenting`; files with docks of their own have their own fixture."""
    from segmenting import Dock

    return Dock(viewer, qtbot)


@pytest.fixture(scope="module")
def own_library(one_engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Models that the tests of a file keep are of that file only."""
    from napari_tttunet.session import close_session

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TTTUNET_MODELS", str(tmp_path_factory.mktemp("models")))
        close_session()  # a worker of other tests has another library
        yield
        close_session()


@pytest.fixture
def tuning(viewer: Any, qtbot: Any) -> Any:
    """A Fine-tune dock, see `finetuning`."""
    from finetuning import Tuning

    return Tuning(viewer, qtbot)
