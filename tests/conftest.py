"""Fixtures for all tests: the reference data, and the same threads and folders everywhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch is imported: it reads these once. Child processes inherit them.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ["MPLBACKEND"] = "Agg"

# A busy machine is not a failure.
settings.register_profile("tttunet", deadline=None)
settings.load_profile("tttunet")

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    """Without the system's graphics libraries pytest-qt would end the whole run."""
    try:
        from qtpy import QtGui  # noqa: F401
    except Exception:  # no qtpy, no binding, or no libEGL: qtpy raises its own error
        plugin = pluginmanager.get_plugin("pytest-qt")
        if plugin is not None:
            pluginmanager.unregister(plugin)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of tests that run side by side, the files that take longest begin."""
    if hasattr(config, "workerinput"):  # pytest-xdist's
        first = ("kernels/test_interpreter.py", "napari_tttunet/", "training/", "engine/")
        items.sort(key=lambda item: [not item.nodeid.startswith(f"tests/{x}") for x in first])


@pytest.fixture(autouse=True)
def _clean_themes() -> None:
    """In place of napari's own fixture, which would import napari for every test."""


@pytest.fixture(autouse=True)
def _disable_qt_warnings() -> None:
    """As `_clean_themes`."""


def _reference_folder(variable: str, default: str) -> Path:
    folder = Path(os.environ.get(variable) or REPOSITORY.parent / "shared" / default)
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist; {variable} names another folder")
    return folder


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of the golden cases: `TTTUNET_GOLDEN`, by default `../shared/golden`."""
    return _reference_folder("TTTUNET_GOLDEN", "golden")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real data sets: `TTTUNET_DATA`, by default `../shared/data`."""
    return _reference_folder("TTTUNET_DATA", "data")


@pytest.fixture(scope="session", autouse=True)
def _own_user_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test writes a model into the library of the person who runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("user-data")))
        yield
