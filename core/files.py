"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from tttunet.errors import OutputError

_REASONS = {
    errno.ENOSPC: ("the disk is full", "Free some space or choose another folder."),
    errno.EDQUOT: ("the disk quota is used up", "Free some space or choose another folder."),
    errno.EFBIG: ("the file is too large for this disk", "Choose another folder."),
    errno.EACCES: ("permission denied", "Choose a folder that you may write to."),
    errno.EPERM: ("permission denied", "Choose a folder that you may write to."),
    errno.EROFS: ("the disk is read-only", "Choose a folder that you may write to."),
    errno.ENAMETOOLONG: ("the name is too long", "Choose a shorter name."),
    errno.ENOTDIR: ("a part of its path is a file, not a folder", "Choose another folder."),
    errno.EEXIST: ("a part of its path is a file, not a folder", "Choose another folder."),
}


def check_output(path: str | Path, *, overwrite: bool = False) -> Path:
    """Makes sure that `path` can be written, before the work that produces it begins.

    Missing parent folders are created.

    Raises:
        OutputError: the file exists and `overwrite` is false, `path` is a folder, or its folder
            cannot be created or written to.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise OutputError(f"'{path}' is a folder.", "Give the name of a file.")
        if os.path.lexists(path) and not overwrite:
            raise OutputError(f"'{path}' exists already.", "Pass --overwrite to replace it.")
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(path, error) from error
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise output_error(path, PermissionError(errno.EACCES, "permission denied"))
    return path


@contextlib.contextmanager
def atomic_write(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Gives a temporary path to write to; it becomes `path` only if the block succeeds.

    The temporary file lies in the same folder and ends like `path`, so writers that choose the
    format by the suffix work. It reaches the disk before it is renamed, and is removed if the
    block fails, so that `path` is either the old file, the whole new one, or absent.

    Args:
        path: the file to write; missing parent folders are created.
        overwrite: replace an existing file.

    Raises:
        OutputError: see `check_output`; or the disk is full, or writing fails otherwise.
    """
    path = check_output(path, overwrite=overwrite)
    temporary = path.with_name(f".{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        _flush_to_disk(temporary)
        check_output(path, overwrite=overwrite)
        os.replace(temporary, path)
        if os.name == "posix":
            # Not every file system can flush a folder; the file itself is safe already.
            with contextlib.suppress(OSError):
                _flush_to_disk(path.parent)
    except OSError as error:
        if error.errno is None and "requested and" not in str(error):
            raise
        raise output_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_leftovers(path: str | Path) -> None:
    """Remove what `atomic_write` of `path` left behind in a process that was killed."""
    path = Path(path)
    for temporary in path.parent.glob(f".{'[0-9a-f]' * 8}-{glob.escape(path.name)}"):
        with contextlib.suppress(OSError):
            temporary.unlink()


def _flush_to_disk(path: Path) -> None:
    # Windows refuses to flush a handle that is open for reading only.
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def output_error(path: Path, error: OSError) -> OutputError:
    """Says in one sentence why `path` could not be written, and what to do about it."""
    # numpy's tofile reports a full disk as "N requested and M written", without a number.
    code = errno.ENOSPC if error.errno is None else error.errno
    reason, hint = _REASONS.get(code, (error.strerror or str(error), ""))
    return OutputError(f"'{path}' cannot be written: {reason}.", hint)
