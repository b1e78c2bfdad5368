"""The models that a project keeps."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import NamedTuple

from tttunet.files import output_error
from tttunet.projects.schema import Damaged, ProjectError, read_json

#: The file that makes a folder a model (`tttunet.models`, which stands above this package).
CARD_NAME = "model.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")


class Version(NamedTuple):
    """A model of the project.

    Attributes:
        name: of its folder, e.g. "nuclei-v2".
        number: 2.
        folder: where.
    """

    name: str
    number: int
    folder: Path


def split_name(name: str) -> tuple[str, int]:
    """("nuclei", 2) of "nuclei-v2"; a model without a number is the first version."""
    found = re.fullmatch(r"(.+)-v(\d{1,9})", name)
    return (found[1], int(found[2])) if found else (name, 1)


def list_versions(models: Path) -> tuple[list[Version], list[str]]:
    """The models in a folder, sorted by name and number, and sentences about damaged ones."""
    found, problems = [], []
    for folder in models.iterdir() if models.is_dir() else ():
        if not (_NAME.fullmatch(folder.name) and folder.is_dir()):
            continue
        try:
            read_json(folder / CARD_NAME)
        except (Damaged, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            problems.append(f"The model '{folder.name}' cannot be used: {CARD_NAME}: {reason}.")
            continue
        found.append(Version(folder.name, split_name(folder.name)[1], folder))
    return sorted(found, key=lambda v: (split_name(v.name)[0], v.number)), sorted(problems)


def next_name(base: str, models: Path) -> str:
    """The name of the version after all that there are of this model."""
    stem = split_name(re.sub(r"[^A-Za-z0-9_.-]+", "-", base).strip("-.") or "model")[0]
    taken = [split_name(path.name) for path in models.iterdir()] if models.is_dir() else []
    numbers = [number for name, number in taken if name.casefold() == stem.casefold()]
    return f"{stem}-v{max([1, *numbers]) + 1}"


def keep(source: Path, models: Path, name: str) -> Path:
    """Copy a model folder; it appears whole or not at all.

    Raises:
        ProjectError: it is no model folder, or the name is taken or unusable.
        OutputError: it cannot be written.
    """
    if not (source / CARD_NAME).is_file():
        raise ProjectError(f"'{source}' is no model: it has no {CARD_NAME}.")
    if not _NAME.fullmatch(name):
        raise ProjectError(f"'{name}' cannot name a model.", "Use letters, digits, '-' and '_'.")
    target = models / name
    if target.exists():
        raise ProjectError(f"The project has a model '{name}' already.", "Choose another name.")
    temporary = models / f".{secrets.token_hex(4)}-{name}"
    try:
        models.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise output_error(target, error) from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary, ignore_errors=True)
    return target
