"""One writer per project: a lock that the system takes back when the process ends."""

from __future__ import annotations

import json
import os
import socket
import weakref
from pathlib import Path

from tttunet.errors import TTTUNetError
from tttunet.files import output_error
from tttunet.projects.schema import ProjectError, now

LOCK_NAME = ".lock"
#: Windows locks bytes, and nobody else may read those: far behind the text.
_FAR = 1 << 30


class FolderLock:
    """Held from the construction until `release`, or until the process ends however it does.

    Attributes:
        supported: False where the disk knows no locks; then nothing is held.

    Raises:
        ProjectError: someone else holds it; the sentence says who.
        OutputError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK_NAME
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise output_error(path, error) from error
        try:
            self.supported = _try_lock(handle)
            if self.supported:
                _sign(handle)
        except BlockingIOError:
            os.close(handle)
            raise _held(folder, path) from None
        except OSError as error:
            os.close(handle)
            raise output_error(path, error) from error
        self.release = weakref.finalize(self, os.close, handle)


def _try_lock(handle: int) -> bool:
    """Raises `BlockingIOError` if someone else holds it; False without support."""
    if os.name == "nt":
        return _try_lock_windows(handle)
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # some network disks
        return False
    return True


def _try_lock_windows(handle: int) -> bool:
    import msvcrt

    os.lseek(handle, _FAR, os.SEEK_SET)
    try:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    except OSError as error:
        raise BlockingIOError from error
    return True


def _sign(handle: int) -> None:
    text = json.dumps({"process": os.getpid(), "computer": socket.gethostname(), "since": now()})
    os.lseek(handle, 0, os.SEEK_SET)
    os.ftruncate(handle, 0)
    os.write(handle, text.encode())


def _held(folder: Path, path: Path) -> TTTUNetError:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        process, computer, since = holder["process"], holder["computer"], holder["since"]
    except (OSError, ValueError, KeyError, TypeError):
        process = computer = since = None
    if process == os.getpid() and computer == socket.gethostname():
        return ProjectError(
            f"The project '{folder.name}' is open already in this program.", "Close it first."
        )
    who = ""
    if process is not None:
        where = "this computer" if computer == socket.gethostname() else f"'{computer}'"
        who = f" (process {process} on {where}, since {since})"
    return ProjectError(
        f"The project '{folder.name}' is open in another program{who}.",
        "Close it there, or open it for reading only.",
    )
