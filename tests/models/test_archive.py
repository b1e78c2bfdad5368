"""Models as archives: out and in again, and what must not come out of one."""

from __future__ import annotations

import hashlib
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tttunet.errors import Cancelled, ModelError, OutputError
from tttunet.models import archive as module
from tttunet.models.archive import export_model, unpack_model
from tttunet.models.model import load_model


def files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.parametrize("output", ["out.zip", "out.ZIP", "out"])
def test_what_is_exported_comes_back_the_same(saved: Path, tmp_path: Path, output: str):
    told: list[tuple[int, int]] = []
    path = export_model(saved, tmp_path / output, progress=lambda *x: told.append(x))
    assert path == tmp_path / output
    assert told[-1][0] == told[-1][1] == (saved / "model.safetensors").stat().st_size
    folder = path
    if output != "out":
        folder = tmp_path / "unpacked"
        folder.mkdir()
        unpack_model(path, folder)
        names = {Path(name).name for name in zipfile.ZipFile(path).namelist()}
        assert names == {"model.json", "model.safetensors"}
    assert files(folder) == files(saved)
    assert load_model(folder).config.name == "small"


@pytest.fixture
def with_replay(saved: Path) -> Path:
    """A model with earlier data beside it, and things that are none."""
    folder = saved / "replay"
    folder.mkdir()
    for name in ("replay.json", "000.png", "000_labels.tif", "notes.txt"):
        (folder / name).write_text(name)
    (folder / "001.png").symlink_to("/etc/hostname")
    (folder / "more").mkdir()
    return saved


REPLAY = {f"replay/{name}": name.encode() for name in ("replay.json", "000.png", "000_labels.tif")}


def test_earlier_data_goes_with_the_model(with_replay: Path, tmp_path: Path):
    path = export_model(with_replay, tmp_path / "out.zip")
    (tmp_path / "unpacked").mkdir()
    told: list[tuple[int, int]] = []
    unpack_model(path, tmp_path / "unpacked", progress=lambda *x: told.append(x))
    size = (with_replay / "model.safetensors").stat().st_size
    assert told[-1] == (size, size)
    weights = {n: (with_replay / n).read_bytes() for n in ("model.json", "model.safetensors")}
    assert files(tmp_path / "unpacked") == {**weights, **REPLAY}
    export_model(with_replay, tmp_path / "folder")
    assert files(tmp_path / "folder") == {**weights, **REPLAY}
    export_model(tmp_path / "unpacked", tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == path.read_bytes()


def test_only_files_of_earlier_data_are_unpacked(saved: Path, tmp_path: Path, monkeypatch):
    strange = ("run.py", ".hidden.png", "more/000.png", "a b.png", "000.png.exe", "x.json/")

    def change(archive: zipfile.ZipFile) -> None:
        for name in strange:
            archive.writestr(f"small/replay/{name}", "")
        archive.writestr("replay/001.png", "of another folder")
        archive.writestr("small/replay/000.png", "000.png")

    path = rebuilt(saved, tmp_path / "a.zip", change)
    (tmp_path / "unpacked").mkdir()
    unpack_model(path, tmp_path / "unpacked")
    assert files(tmp_path / "unpacked") == {**files(saved), "replay/000.png": b"000.png"}
    monkeypatch.setattr(module, "LARGEST_REPLAY", 6)
    with pytest.raises(ModelError, match="too large"):
        unpack_model(path, tmp_path / "unpacked")


def test_the_same_model_gives_the_same_archive(saved: Path, tmp_path: Path):
    paths = [export_model(saved, tmp_path / name) for name in ("a.zip", "b.zip")]
    first, second = (hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    assert first == second


def test_an_export_that_is_stopped_or_refused_leaves_what_was_there(saved: Path, tmp_path: Path):
    target = tmp_path / "out.zip"
    target.write_bytes(b"old")
    with pytest.raises(OutputError, match="exists already"):
        export_model(saved, target)
    with pytest.raises(Cancelled):
        export_model(saved, target, overwrite=True, cancel=lambda: True)
    content = bytearray((saved / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (saved / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="checksum"):
        export_model(saved, target, overwrite=True)
    with pytest.raises(ModelError, match="checksum"):
        export_model(saved, tmp_path / "folder")
    assert target.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.zip", "saved"]


def rebuilt(saved: Path, path: Path, change: Callable[[zipfile.ZipFile], None]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("model.json", "model.safetensors"):
            archive.write(saved / name, f"small/{name}")
        change(archive)
    return path


def link(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.writestr("../evil.txt", "x"), "leads out of the archive"),
        (lambda a: a.writestr("small/../../evil.txt", "x"), "leads out of the archive"),
        (lambda a: a.writestr("/tmp/evil.txt", "x"), "absolute path"),
        (lambda a: a.writestr("C:/evil.txt", "x"), "absolute path"),
        (lambda a: a.writestr("..\\evil.txt", "x"), "leads out of the archive"),
        (lambda a: a.writestr("\\evil.txt", "x"), "absolute path"),
        (lambda a: a.writestr("a\\evil.txt", "x"), "cannot be used"),
        (lambda a: a.writestr(link("small/link"), "/etc/passwd"), "is a link"),
        (lambda a: a.writestr("small/replay/../../../evil.png", "x"), "leads out of the archive"),
        (lambda a: a.writestr(link("small/replay/000.png"), "/etc/passwd"), "is a link"),
        (lambda a: a.writestr("other/model.json", "{}"), "several models"),
        (
            lambda a: [a.writestr(f"small/{i}", "") for i in range(1001)],
            "has 1003 entries",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_strange_archives_are_refused(saved: Path, tmp_path: Path, change, message: str):
    path = rebuilt(saved, tmp_path / "a.zip", change)
    (tmp_path / "inner" / "unpacked").mkdir(parents=True)
    with pytest.raises(ModelError, match=message):
        unpack_model(path, tmp_path / "inner" / "unpacked")
    assert not list((tmp_path / "inner" / "unpacked").iterdir())
    assert not list(tmp_path.rglob("evil.txt"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_that_occurs_twice_is_refused(saved: Path, tmp_path: Path):
    path = rebuilt(saved, tmp_path / "a.zip", lambda a: a.writestr("small/model.json", "{}"))
    with pytest.raises(ModelError, match="occurs twice"):
        unpack_model(path, tmp_path)


def test_files_beside_the_model_stay_inside(saved: Path, tmp_path: Path):
    path = rebuilt(saved, tmp_path / "a.zip", lambda a: a.writestr("small/run.py", "x"))
    (tmp_path / "unpacked").mkdir()
    unpack_model(path, tmp_path / "unpacked")
    assert files(tmp_path / "unpacked") == files(saved)


def test_what_is_no_archive_of_a_model_is_explained(saved: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "text.zip").write_text("no zip at all")
    with pytest.raises(ModelError, match="no zip archive"):
        unpack_model(tmp_path / "text.zip", tmp_path)
    with pytest.raises(ModelError, match="There is no"):
        unpack_model(tmp_path / "missing.zip", tmp_path)
    whole = export_model(saved, tmp_path / "whole.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="no zip archive, or is damaged"):
        unpack_model(tmp_path / "cut.zip", tmp_path)
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    (tmp_path / "damaged.zip").write_bytes(damaged)
    with pytest.raises(ModelError, match="is damaged"):
        unpack_model(tmp_path / "damaged.zip", tmp_path)
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("small/notes.txt", "x")
    with pytest.raises(ModelError, match=r"holds no model\.json"):
        unpack_model(tmp_path / "empty.zip", tmp_path)
    with zipfile.ZipFile(tmp_path / "half.zip", "w") as archive:
        archive.write(saved / "model.json", "model.json")
    with pytest.raises(ModelError, match=r"holds no model\.safetensors"):
        unpack_model(tmp_path / "half.zip", tmp_path)
    monkeypatch.setattr(module, "LARGEST_WEIGHTS", 100)
    with pytest.raises(ModelError, match="too large"):
        unpack_model(tmp_path / "whole.zip", tmp_path)
    monkeypatch.undo()
    with pytest.raises(Cancelled):
        unpack_model(tmp_path / "whole.zip", tmp_path, cancel=lambda: True)
