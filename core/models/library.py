"""The library of models: shipped with the package, in the user's folder, or named by a path."""

from __future__ import annotations

import difflib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

import platformdirs

from tttunet.errors import ModelError, OutputError
from tttunet.models.card import card_text, model_folder, no_card, read_config, weights_path
from tttunet.models.config import CARD_NAME, ModelConfig
from tttunet.models.folder import REPLAY_NAME, atomic_folder, write_file

Origin = Literal["shipped", "user", "path"]

#: Overrides the folder of the user's models.
FOLDER_VARIABLE = "TTTUNET_MODELS"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class ModelEntry:
    """A line of the library.

    Attributes:
        name: what `load_model` takes.
        origin: `shipped`, `user` or `path`.
        path: the model folder.
        task, dim, title, licence: from model.json; None if it cannot be read.
        error: why the model cannot be used, in one sentence; None if it can. The checksum is
            verified only when a model is loaded or added.
    """

    name: str
    origin: Origin
    path: Path
    task: str | None = None
    dim: int | None = None
    title: str | None = None
    licence: str | None = None
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the model can be used."""
        return self.error is None


def shipped_folder() -> Path | None:
    """The folder of the models that ship with the package."""
    try:
        folder = resources.files("tttunet.resources") / "models"
    except ModuleNotFoundError:
        return None
    return folder if isinstance(folder, Path) and folder.is_dir() else None


def user_folder() -> Path:
    """The folder of the user's models; it need not exist."""
    override = os.environ.get(FOLDER_VARIABLE)
    if override:
        return Path(override).expanduser()
    return Path(platformdirs.user_data_dir("tttunet", appauthor=False)) / "models"


def list_models() -> list[ModelEntry]:
    """All models of the library, shipped ones first, damaged ones with their error."""
    return [*_entries("shipped", shipped_folder()), *_entries("user", user_folder())]


def describe(name_or_path: str | Path) -> tuple[ModelEntry, ModelConfig]:
    """The entry and the complete model.json of one model.

    Raises:
        ModelError: no such model, or its model.json is damaged.
    """
    folder = resolve(name_or_path)
    config = read_config(folder)
    origin: Origin = "path"
    if folder.parent == shipped_folder():
        origin = "shipped"
    elif folder.parent == user_folder():
        origin = "user"
    return _entry(folder.name, origin, folder), config


def resolve(name_or_path: str | Path) -> Path:
    """The folder of a model.

    A bare word is first a name in the library, shipped models before the user's, then a folder;
    anything with a separator, and every `Path`, is a path.

    Raises:
        ModelError: no such model; the hint names similar or available ones.
    """
    if not isinstance(name_or_path, str) or _looks_like_path(name_or_path):
        folder = model_folder(name_or_path)
        if not folder.is_dir():
            raise ModelError(
                f"There is no model at '{name_or_path}'.",
                "`tttunet models list` shows the models there are.",
            )
        return folder
    entries = list_models()
    for entry in entries:
        if entry.name == name_or_path:
            return entry.path
    folder = model_folder(name_or_path)
    if name_or_path and (folder / CARD_NAME).is_file():
        return folder
    if name_or_path and folder.is_dir():
        raise no_card(folder)
    raise ModelError(f"No model is called '{name_or_path}'.", _suggest(name_or_path, entries))


def add_model(path: str | Path, name: str | None = None, *, overwrite: bool = False) -> ModelEntry:
    """Check a model completely and copy it into the user's folder.

    Args:
        path: its folder or model.json.
        name: its name in the library; by default the one in its model.json.
        overwrite: replace the user's model of that name.

    Raises:
        ModelError: the model is damaged, or the name cannot be used.
        OutputError: a model of that name exists, or the folder cannot be written.
    """
    from tttunet.models.model import load_model

    source = resolve(Path(path))
    config = load_model(source).config
    name = name or config.name
    check_new_name(name, overwrite=True)  # `atomic_folder` knows what may be replaced
    target = user_folder() / name
    weights = weights_path(config, source)
    with atomic_folder(target, overwrite=overwrite) as temporary:
        shutil.copyfile(weights, temporary / weights.name)
        if (source / REPLAY_NAME).is_dir():
            shutil.copytree(source / REPLAY_NAME, temporary / REPLAY_NAME)
        card = card_text(config.model_copy(update={"name": name}))
        write_file(temporary / CARD_NAME, card.encode())
    return _entry(name, "user", target)


def check_new_name(name: str, *, overwrite: bool = False) -> None:
    """Whether a model may be added under a name, before the work that makes it; "" is undecided.

    Raises:
        ModelError: the name cannot be used, or is that of a shipped model.
        OutputError: the user has a model of that name.
    """
    if not name:
        return
    _check_name(name)
    if name.casefold() in {entry.name.casefold() for entry in _shipped()}:
        raise ModelError(
            f"'{name}' is the name of a shipped model.", "Choose another name (--name)."
        )
    if not overwrite and (user_folder() / name).exists():
        raise OutputError(
            f"'{user_folder() / name}' exists already.", "Pass --overwrite to replace it."
        )


def remove_model(name: str) -> Path:
    """Delete a model of the user, damaged or not.

    Returns:
        The folder that was deleted.

    Raises:
        ModelError: the user has no such model; a shipped one cannot be removed.
        OutputError: the folder cannot be deleted.
    """
    entries = list_models()
    entry = next((e for e in entries if e.name == name and e.origin == "user"), None)
    if entry is None:
        if name in {e.name for e in entries}:
            raise ModelError(f"'{name}' ships with the package and cannot be removed.")
        raise ModelError(f"No model is called '{name}'.", _suggest(name, entries))
    try:
        if entry.path.is_symlink():
            entry.path.unlink()
        else:
            shutil.rmtree(entry.path)
    except OSError as error:
        raise OutputError(f"'{entry.path}' cannot be deleted: {error.strerror}.") from error
    return entry.path


def _entries(origin: Origin, folder: Path | None) -> Iterator[ModelEntry]:
    if folder is None or not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and _NAME.fullmatch(path.name):
            yield _entry(path.name, origin, path)


def _shipped() -> list[ModelEntry]:
    return list(_entries("shipped", shipped_folder()))


def _entry(name: str, origin: Origin, path: Path) -> ModelEntry:
    try:
        config = read_config(path)
    except ModelError as error:
        return ModelEntry(name, origin, path, error=str(error))
    problem = None
    try:
        weights_path(config, path)
    except ModelError as error:
        problem = str(error)
    shipped = shipped_folder()
    if origin == "user" and shipped is not None and (shipped / name).is_dir():
        problem = f"A shipped model is called '{name}' too and is used instead: rename the folder."
    card = config.card
    return ModelEntry(
        name, origin, path, config.task, config.network.dim, card.title, card.licence, problem
    )


def _looks_like_path(text: str) -> bool:
    separators = ("/", "\\", os.sep)
    return any(s in text for s in separators) or text.startswith((".", "~")) or text == CARD_NAME


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ModelError(
            f"'{name}' cannot be the name of a model.",
            "Use letters, digits, '-', '_' and '.', beginning with a letter or digit.",
        )


def _suggest(name: str, entries: list[ModelEntry]) -> str:
    names = [entry.name for entry in entries]
    similar = difflib.get_close_matches(name, names, n=1)
    if similar:
        return f"Did you mean '{similar[0]}'?"
    if names:
        return f"The library has {', '.join(sorted(set(names)))}."
    return "The library is empty; give the path of a model folder."
