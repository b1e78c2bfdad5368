"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tttunet.errors import OutputError
from tttunet.files import atomic_write, check_output, remove_leftovers


def fail_halfway(path: Path, error: BaseException) -> None:
    with atomic_write(path, overwrite=True) as temporary:
        temporary.write_text("half")
        raise error


def test_writes_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.ome.tif"
    with atomic_write(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.name.endswith(".ome.tif")
        temporary.write_text("content")
        assert not path.exists()
    assert path.read_text() == "content"
    assert list(path.parent.iterdir()) == [path]


def test_existing_file_is_kept_unless_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OutputError, match=r"exists already.*--overwrite"), atomic_write(path):
        pytest.fail("the work must not begin")
    with atomic_write(path, overwrite=True) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


def test_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    writing = atomic_write(path)
    writing.__enter__().write_text("mine")
    path.write_text("theirs")
    with pytest.raises(OutputError, match="exists already"):
        writing.__exit__(None, None, None)
    assert path.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError("of the caller"), KeyboardInterrupt()])
def test_failure_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)):
        fail_halfway(path, error)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk is full"),
        (OSError("4096 requested and 0 written"), "disk is full"),
        (OSError(errno.EFBIG, "File too large"), "too large"),
        (OSError(errno.EROFS, "Read-only file system"), "read-only"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
    ],
)
def test_system_errors_become_one_sentence(tmp_path: Path, error: OSError, words: str) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(OutputError, match=words):
        fail_halfway(path, error)
    assert list(tmp_path.iterdir()) == []


def test_other_oserrors_of_the_caller_pass(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot write mode"), atomic_write(tmp_path / "a.txt"):
        raise OSError("cannot write mode F as PNG")


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    target = tmp_path / "a[1].tif"
    process = os.fork() if hasattr(os, "fork") else pytest.skip("needs fork")
    if not process:
        with atomic_write(target) as temporary:
            temporary.write_text("half")
            os._exit(0)
    os.waitpid(process, 0)
    others = [tmp_path / "a[1].tif", tmp_path / "01234567-a[1].tif", tmp_path / ".1-a[1].tif"]
    for other in others:
        other.write_text("")
    assert len(list(tmp_path.iterdir())) == 4
    remove_leftovers(target)
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_bad_targets(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OutputError, match="is a folder"):
        check_output(tmp_path, overwrite=True)
    with pytest.raises(OutputError, match="not a folder"):
        check_output(file / "a.txt")
    with pytest.raises(OutputError, match="not a folder"):
        check_output(file / "deeper" / "a.txt")
    with pytest.raises(OutputError, match="too long"), atomic_write(tmp_path / ("a" * 300)) as path:
        path.write_text("")


def test_unwritable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.name == "posix" and os.geteuid() != 0:
        tmp_path.chmod(0o500)
    else:  # root may write everywhere
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="permission denied"):
        check_output(tmp_path / "a.txt")
    tmp_path.chmod(0o700)
