"""Writing a model folder so that a reader never meets half of one."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from tttunet.errors import OutputError
from tttunet.files import output_error
from tttunet.models.config import CARD_NAME, WEIGHTS_NAME

#: A sample of earlier data that may lie beside a model (see `training.replay`).
REPLAY_NAME = "replay"


@contextlib.contextmanager
def atomic_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Gives a temporary folder beside `path`; it becomes `path` only if the block succeeds.

    Args:
        path: the model folder to write; missing parent folders are created.
        overwrite: replace an existing model. A folder that holds anything else is never replaced.

    Raises:
        OutputError: the folder exists already, is no model folder, or cannot be written.
    """
    path = path.resolve()
    _check_replaceable(path, overwrite)
    token = secrets.token_hex(4)
    temporary = path.with_name(f".{token}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        _check_replaceable(path, overwrite)
        _move_into_place(temporary, path, path.with_name(f".{token}-old-{path.name}"))
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_file(path: Path, content: bytes) -> None:
    """Write a file and flush it to the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _check_replaceable(path: Path, overwrite: bool) -> None:
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise OutputError(f"'{path}' is a file, not a folder.", "Choose another folder.")
    content = {entry.name for entry in path.iterdir()}
    others = sorted(content - {CARD_NAME, WEIGHTS_NAME, REPLAY_NAME})
    if others:
        raise OutputError(
            f"'{path}' holds something else than a model ('{others[0]}') and is not replaced.",
            "Choose another folder.",
        )
    if content and not overwrite:
        raise OutputError(f"'{path}' exists already.", "Pass --overwrite to replace it.")


def _move_into_place(temporary: Path, path: Path, old: Path) -> None:
    if not path.exists():
        temporary.rename(path)
        return
    path.rename(old)
    try:
        temporary.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)
