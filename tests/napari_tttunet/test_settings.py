"""What is remembered between sessions, and what happens when the file is lost or damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from napari_tttunet import settings as module
from napari_tttunet.settings import FILE_VARIABLE, SCHEMA, Settings, settings_file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "napari.json"


def test_values_survive_the_session(file: Path) -> None:
    first = Settings(file)
    values = {"a.model": "nuclei", "a.tta": True, "b.size": 15, "b.x": 0.5, "b.recent": ["x", "y"]}
    for name, value in values.items():
        first.set(name, value)
        assert first.get(name, value) == value
    assert not file.exists()
    first.save()
    second = Settings(file)
    assert {name: second.get(name, type(value)()) for name, value in values.items()} == values
    assert second.get("unknown", "default") == "default"
    assert list(file.parent.iterdir()) == [file]


def test_a_value_of_another_type_is_not_used(file: Path) -> None:
    file.parent.mkdir()
    values = {"a": "text", "b": True, "c": 3, "d": None}
    file.write_text(json.dumps({"schema": SCHEMA, "values": values}))
    settings = Settings(file)
    assert settings.get("a", 5) == 5
    assert settings.get("b", 5) == 5
    assert settings.get("c", 2.5) == 3.0
    assert settings.get("c", False) is False
    assert settings.get("d", "x") == "x"
    assert settings.get("a", None) == "text"


def test_a_dock_opened_before_they_are_written_has_them_too(file: Path) -> None:
    one, other = Settings(file), Settings(file)
    one.set("a", 1)
    assert Settings(file).get("a", 0) == 1
    other.set("a", 2)
    one.save()  # what is said later counts
    assert Settings(file).get("a", 0) == 2
    other.save()
    file.write_text(json.dumps({"schema": SCHEMA, "values": {"a": 3}}))  # another napari
    assert Settings(file).get("a", 0) == 3


def test_two_windows_do_not_undo_each_other(file: Path) -> None:
    one, two = Settings(file), Settings(file)
    one.set("a", 1)
    one.save()
    two.set("b", 2)
    two.save()
    found = Settings(file)
    assert (found.get("a", 0), found.get("b", 0)) == (1, 2)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"schema": "x"}', b"null"])
def test_a_damaged_file_is_set_aside(file: Path, content: bytes) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.warns(UserWarning, match=r"is damaged and was set aside as 'napari-damaged-"):
        settings = Settings(file)
    assert settings.get("a", 1) == 1
    (kept,) = file.parent.iterdir()
    assert kept.read_bytes() == content
    settings.set("a", 2)
    settings.save()
    assert Settings(file).get("a", 1) == 2


def test_a_later_version_is_left_alone(file: Path) -> None:
    file.parent.mkdir()
    text = json.dumps({"schema": SCHEMA + 1, "values": {"a": 5}})
    file.write_text(text)
    with pytest.warns(UserWarning, match="later version"):
        settings = Settings(file)
    settings.set("a", 1)
    assert settings.get("a", 0) == 1
    settings.save()
    assert file.read_text() == text


def test_a_failing_disk_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = Settings(tmp_path / "file" / "napari.json")
    settings.set("a", 1)
    with pytest.warns(UserWarning, match="not remembered"):
        settings.save()
    assert settings.get("a", 0) == 1


def test_what_json_cannot_hold_is_refused(file: Path) -> None:
    with pytest.raises(TypeError):
        Settings(file).set("a", {1, 2})


def test_saving_soon_needs_no_waiting(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller goes on while the disk is slow."""
    monkeypatch.setattr(module, "_DELAY", 0.01)
    writes, release, writing = module.atomic_write, threading.Event(), threading.Event()

    def slow(*args, **kwargs):
        writing.set()
        release.wait(10)
        return writes(*args, **kwargs)

    monkeypatch.setattr(module, "atomic_write", slow)
    settings = Settings(file)
    for value in range(5):
        settings.set("a", value)
        settings.save_soon()
    assert writing.wait(10)
    start = time.monotonic()
    settings.set("b", 1)
    assert settings.get("b", 0) == 1
    assert time.monotonic() - start < 1
    release.set()
    settings.save()
    found = Settings(file)
    assert (found.get("a", 0), found.get("b", 0)) == (4, 1)


def test_the_last_change_is_saved_when_python_ends(file: Path) -> None:
    program = (
        "from napari_tttunet.settings import Settings\ns = Settings(); s.set('a', 7); s.save_soon()"
    )
    environment = {**os.environ, FILE_VARIABLE: str(file)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    assert Settings(file).get("a", 0) == 7


def test_windows_has_one_folder_for_settings_and_models(monkeypatch: pytest.MonkeyPatch) -> None:
    import platformdirs
    from platformdirs import windows

    from tttunet.models.library import FOLDER_VARIABLE as MODELS
    from tttunet.models.library import user_folder

    for name in (FILE_VARIABLE, MODELS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(windows, "get_win_folder", lambda _: "/C/Local")
    monkeypatch.setattr(platformdirs, "PlatformDirs", windows.Windows)
    assert settings_file().parent == user_folder().parent
    assert settings_file().parent.name == "tttunet"
    assert settings_file().parent.parent.name == "Local"


def test_place_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FILE_VARIABLE, raising=False)
    assert settings_file().name == "napari.json"
    monkeypatch.setenv(FILE_VARIABLE, "elsewhere.json")
    assert settings_file() == Path("elsewhere.json")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Settings(Path("missing.json"))
