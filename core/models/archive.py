"""A model as one file or folder to hand on: a zip with model.json and model.safetensors.

Earlier data that lies beside a model (`replay/`, see `training.replay`) goes with it, but for the
user's own pictures (`replay/own/`). An archive comes from strangers: nothing in it is trusted
before it was checked, and only the files of a model are ever taken out.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO

from tttunet.errors import Cancelled, ModelError
from tttunet.files import atomic_write
from tttunet.models.card import card_text, read_config, weights_path
from tttunet.models.config import CARD_NAME, WEIGHTS_NAME
from tttunet.models.folder import REPLAY_NAME, atomic_folder, write_file
from tttunet.models.library import resolve

#: Largest sizes of what is taken out of an archive, in bytes.
LARGEST_CARD = 16 * 2**20
LARGEST_WEIGHTS = 8 * 2**30
LARGEST_REPLAY = 2**30
#: Names of files of earlier data.
_REPLAY_FILE = re.compile(r"[A-Za-z0-9_-]{1,80}\.(png|tif|json)")
_MOST_ENTRIES = 1000
_CHUNK = 2**20
#: The same model gives the same archive, and with it the same checksum.
_DATE = (1980, 1, 1, 0, 0, 0)
_ANOTHER_ARCHIVE = "Take an archive that was exported from a library of models."

Progress = Callable[[int, int], None]


def _nobody(done: int, total: int) -> None:
    """Hears nothing."""


def export_model(
    name_or_path: str | Path,
    output: str | Path,
    *,
    overwrite: bool = False,
    progress: Progress = _nobody,
    cancel: Callable[[], bool] = lambda: False,
) -> Path:
    """Write a model to an archive or a folder, after its weights were checked.

    Earlier data beside it goes with it: then the model can be fine-tuned elsewhere just as well.

    Args:
        name_or_path: as for `load_model`.
        output: the archive to write if it ends in .zip, else the model folder to make.
        overwrite: replace an archive, or a folder that holds a model.
        progress: told bytes of the weights done and in total.
        cancel: asked between chunks.

    Returns:
        The archive or folder.

    Raises:
        ModelError: there is no such model, or it is damaged.
        OutputError: the output exists or cannot be written.
        Cancelled: `cancel` said so; nothing was written.
    """
    folder, output = resolve(name_or_path), Path(output).expanduser().absolute()
    config = read_config(folder)
    weights = weights_path(config, folder)
    assert config.weights is not None
    card = card_text(config).encode()
    expected, size = config.weights.sha256, config.weights.bytes
    replay = _replay_files(folder)

    def copy_weights(target: IO[bytes]) -> None:
        with weights.open("rb") as file:
            found = _copy(file, target, size, progress, cancel)
        if found != expected:
            raise ModelError(
                f"The weights file '{weights}' has another checksum (sha256) than {CARD_NAME} "
                "says.",
                "It is damaged: remove the model and add it again.",
            )

    if output.suffix.lower() == ".zip":
        with (
            atomic_write(output, overwrite=overwrite) as temporary,
            zipfile.ZipFile(temporary, "w") as archive,
        ):
            entry = zipfile.ZipInfo(f"{config.name}/{CARD_NAME}", _DATE)
            archive.writestr(entry, card, zipfile.ZIP_DEFLATED)
            # Weights do not become smaller by compressing them.
            entry = zipfile.ZipInfo(f"{config.name}/{WEIGHTS_NAME}", _DATE)
            with archive.open(entry, "w", force_zip64=True) as target:
                copy_weights(target)
            for path in replay:
                entry = zipfile.ZipInfo(f"{config.name}/{REPLAY_NAME}/{path.name}", _DATE)
                archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
        return output
    with atomic_folder(output, overwrite=overwrite) as temporary:
        with (temporary / WEIGHTS_NAME).open("wb") as target:
            copy_weights(target)
        if replay:
            (temporary / REPLAY_NAME).mkdir()
        for path in replay:
            write_file(temporary / REPLAY_NAME / path.name, path.read_bytes())
        write_file(temporary / CARD_NAME, card)
    return output


def _replay_files(folder: Path) -> list[Path]:
    """The files of earlier data beside a model; links are left alone."""
    replay = folder / REPLAY_NAME
    paths = sorted(replay.iterdir()) if replay.is_dir() and not replay.is_symlink() else []
    return [
        path
        for path in paths
        if _REPLAY_FILE.fullmatch(path.name) and path.is_file() and not path.is_symlink()
    ]


def unpack_model(
    archive: str | Path,
    folder: str | Path,
    *,
    progress: Progress = _nobody,
    cancel: Callable[[], bool] = lambda: False,
) -> Path:
    """Take the model out of an archive.

    Model.json and model.safetensors lie at its top or in one folder, and earlier data in `replay`
    beside them; other files stay inside.

    Args:
        archive: the zip.
        folder: an existing folder that receives the files.
        progress, cancel: as for `export_model`.

    Returns:
        `folder`.

    Raises:
        ModelError: it is no zip, is damaged, holds no model or several, or an entry's path leads
            out of it, is a link, encrypted or too large.
        Cancelled: `cancel` said so.
    """
    archive, folder = Path(archive), Path(folder)
    try:
        with zipfile.ZipFile(archive) as opened:
            chosen = _entries_of_model(opened, archive)
            if sum(entry.file_size for entry in chosen.values()) > free_bytes(folder):
                raise ModelError(f"There is no space to unpack '{archive.name}'.", "Free some.")
            for name, entry in chosen.items():
                (folder / name).parent.mkdir(exist_ok=True)
                told = progress if name == WEIGHTS_NAME else _nobody
                with opened.open(entry) as source, (folder / name).open("wb") as target:
                    _copy(source, target, entry.file_size, told, cancel)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ModelError(
            f"'{archive.name}' is no zip archive, or is damaged.", _ANOTHER_ARCHIVE
        ) from error
    except FileNotFoundError as error:
        raise ModelError(f"There is no '{archive}'.") from error
    return folder


def _entries_of_model(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """The entries to take out by where they go to, after every entry was checked."""
    entries = archive.infolist()
    if len(entries) > _MOST_ENTRIES:
        raise ModelError(f"'{path.name}' has {len(entries)} entries.", _ANOTHER_ARCHIVE)
    names: set[str] = set()
    for entry in entries:
        problem = _problem(entry) or ("occurs twice" if entry.filename in names else "")
        if problem:
            raise ModelError(
                f"'{path.name}' is not safe to unpack: its entry '{entry.filename}' {problem}.",
                "Do not use this archive.",
            )
        names.add(entry.filename)
    cards = [e for e in entries if _is(e, CARD_NAME)]
    if len(cards) != 1:
        count = "several models" if cards else f"no {CARD_NAME}"
        raise ModelError(f"'{path.name}' holds {count}.", _ANOTHER_ARCHIVE)
    place = PurePosixPath(cards[0].filename).with_name(WEIGHTS_NAME)
    weights = [e for e in entries if PurePosixPath(e.filename) == place]
    if not weights:
        raise ModelError(f"'{path.name}' holds no {WEIGHTS_NAME}.", _ANOTHER_ARCHIVE)
    folder = place.with_name(REPLAY_NAME)
    replay = [
        e
        for e in entries
        if PurePosixPath(e.filename).parent == folder
        and not e.is_dir()
        and _REPLAY_FILE.fullmatch(PurePosixPath(e.filename).name)
    ]
    for parts, limit in (
        (cards, LARGEST_CARD),
        (weights, LARGEST_WEIGHTS),
        (replay, LARGEST_REPLAY),
    ):
        if sum(entry.file_size for entry in parts) > limit:
            name = parts[0].filename
            raise ModelError(f"'{name}' in '{path.name}' is too large.", _ANOTHER_ARCHIVE)
    beside = {f"{REPLAY_NAME}/{PurePosixPath(e.filename).name}": e for e in replay}
    return {CARD_NAME: cards[0], WEIGHTS_NAME: weights[0], **beside}


def _is(entry: zipfile.ZipInfo, name: str) -> bool:
    parts = PurePosixPath(entry.filename).parts
    return len(parts) <= 2 and parts[-1:] == (name,)


def _problem(entry: zipfile.ZipInfo) -> str:
    """Why an entry must not be unpacked; empty if it may."""
    # zipfile itself mends some names; the original one is judged.
    name = entry.orig_filename
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ":" in parts[0]:
        return "has an absolute path"
    if ".." in parts:
        return "leads out of the archive"
    if "\\" in name or "\0" in name:
        return "has a name that cannot be used"
    mode = entry.external_attr >> 16
    if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    return "is encrypted" if entry.flag_bits & 1 else ""


def _copy(
    source: IO[bytes],
    target: IO[bytes],
    total: int,
    progress: Progress,
    cancel: Callable[[], bool],
) -> str:
    """Copy `total` bytes chunk by chunk; returns their sha256."""
    digest, done = hashlib.sha256(), 0
    while chunk := source.read(min(_CHUNK, total - done)):
        if cancel():
            raise Cancelled("The model was not copied.")
        target.write(chunk)
        digest.update(chunk)
        done += len(chunk)
        progress(done, total)
    return digest.hexdigest()


def free_bytes(folder: Path) -> int:
    """Free space of the disk that a folder, which need not exist, is on."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
