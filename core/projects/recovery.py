"""Reading a project folder whatever happened to it: what is damaged is told, the rest is kept."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tttunet.projects.images import checked_chunk
from tttunet.projects.journal import Journal
from tttunet.projects.schema import (
    Damaged,
    ImageReference,
    ProjectError,
    ProjectInfo,
    read_json,
    unreadable,
)

INFO_NAME = "project.json"
_LEFTOVER = re.compile(r"\.[0-9a-f]{8}-.+")


@dataclass
class Content:
    """What a project folder holds.

    Attributes:
        info: of `project.json`.
        images: by id, in the order in which they were added.
        rebuilt: files that were damaged or missing and are known from the history.
        problems: sentences.
    """

    info: ProjectInfo
    images: dict[str, ImageReference] = field(default_factory=dict)
    rebuilt: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_folder(folder: Path, journal: Journal) -> Content:
    """Read everything but the corrections.

    Raises:
        ProjectError: it is no project, of a newer version, or `project.json` is damaged and the
            history does not tell what it held.
    """
    events = journal.events()
    content = _read_info(folder, events)
    lost = journal.damaged_lines()
    if lost:
        lines = "1 line" if lost == 1 else f"{lost} lines"
        content.problems.append(f"{lines} of the history cannot be read.")
    _read_images(folder, events, content)
    return content


def _read_info(folder: Path, events: list[dict[str, Any]]) -> Content:
    path = folder / INFO_NAME
    try:
        return Content(ProjectInfo.from_json(read_json(path)))
    except FileNotFoundError:
        reason = "it is missing"
    except Damaged as error:
        reason = str(error)
    except OSError as error:
        raise ProjectError(f"'{path}' cannot be read: {error.strerror or error}.") from error
    for event in reversed(events):
        with contextlib.suppress(Damaged):
            if isinstance(event.get("project"), dict):
                problem = f"'{INFO_NAME}' was damaged ({reason}) and is rebuilt from the history."
                info = ProjectInfo.from_json(event["project"])
                return Content(info, rebuilt=[path], problems=[problem])
    if not path.exists():
        raise ProjectError(
            f"'{folder}' is no project: it has no {INFO_NAME}.",
            "Choose the folder that the project was created in.",
        )
    raise ProjectError(
        f"The project '{folder.name}' cannot be opened: {INFO_NAME} is damaged ({reason}).",
        "Restore that file from a backup; images and corrections are not affected.",
    )


def _read_images(folder: Path, events: list[dict[str, Any]], content: Content) -> None:
    remembered = _images_of_history(events)
    found: dict[str, ImageReference] = {}
    faults: dict[str, str] = {}
    unread: dict[str, str] = {}
    for path in sorted((folder / "images").glob("*.json")):
        try:
            reason = _read_image(path, content.info.dim, found)
        except OSError as error:
            unread[path.stem] = str(unreadable(path, error))
            continue
        if reason:
            faults[path.stem] = reason
    content.problems += unread.values()
    for image_id, data in remembered.items():
        if image_id in found:
            continue
        with contextlib.suppress(Damaged):
            found[image_id] = checked_chunk(ImageReference.from_json(data), content.info.dim)
            if image_id in unread:
                continue  # it may be in order: nothing takes its place
            content.rebuilt.append(folder / "images" / f"{image_id}.json")
            content.problems.append(
                f"'images/{image_id}.json' was damaged or missing and is rebuilt from the history."
            )
    content.problems += [
        f"The image 'images/{name}.json' is left out: the file is damaged ({reason}). Its "
        "corrections are kept."
        for name, reason in faults.items()
        if name not in found
    ]
    content.images = dict(sorted(found.items(), key=lambda item: (item[1].added, item[0])))


def _read_image(path: Path, dim: int, found: dict[str, ImageReference]) -> str:
    """Adds an image; otherwise says why not. Raises `OSError` if the file cannot be read."""
    try:
        image = checked_chunk(ImageReference.from_json(read_json(path)), dim)
        if image.id != path.stem:
            raise Damaged(f"it is about '{image.id}'")
    except Damaged as error:
        return str(error)
    found[image.id] = image
    return ""


def _images_of_history(events: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    images: dict[str, dict[str, Any]] = {}
    for event in events:
        data = event.get("image")
        if isinstance(data, dict) and isinstance(data.get("id"), str):
            images[data["id"]] = data
        elif event["event"] == "image removed":
            images.pop(str(data), None)
    return images


def remove_leftovers_below(folder: Path, tell: Callable[[str], None]) -> None:
    """Remove the temporary files of writings that were interrupted; only the writer may."""
    names = ("", "images", "models", "volumes")  # the last is Slicer's
    parts = (*(folder / name for name in names), *(folder / "corrections").glob("*"))
    for part in parts:
        try:
            leftovers = [path for path in part.iterdir() if _LEFTOVER.fullmatch(path.name)]
        except OSError:
            continue
        for path in leftovers:
            try:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            except OSError as error:
                tell(f"'{path.name}', left by an interrupted writing, cannot be removed: {error}.")
