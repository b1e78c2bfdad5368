"""Models of the Fine-tune dock: what one can start from, and where a new one is kept."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from napari_tttunet.segment_choices import fits_scale
from tttunet.projects import Project, Version
from tttunet.projects.runs import (
    Run,
    begin_run,
    can_resume,
    drop_checkpoint,
    forget_run,
    result_folder,
)
from tttunet.projects.versions import next_name, split_name

#: Where the project's settings remember what the last run was told beside the labels.
OPTIONS = "finetune_options"


def startable(entries: Sequence[dict[str, Any]], project: Project) -> list[tuple[str, str]]:
    """Texts and references of models that a fine-tuning can start from.

    Args:
        entries: of the library.
        project: its own models come first, the newest at the top, then those of its task and, among
            these, those that read colours if its images have them. Models for another scale than
            that of its images are left out.
    """
    own = [
        (f"{version.name} (of this project)", f"models/{version.name}")
        for version in reversed(project.versions)
    ]
    names = {version.name for version in project.versions}
    units = {image.unit for image in project.images}
    colours = any(image.rgb for image in project.images)

    def differs(entry: dict[str, Any]) -> tuple[bool, bool]:
        return entry["task"] != project.task, (entry.get("channels") == "rgb") != colours

    kept = [
        (f"{entry['name']} \N{MIDDLE DOT} {entry['title'] or entry['task']}", entry["name"])
        for entry in sorted(entries, key=differs)
        if entry["error"] is None and entry["dim"] == project.dim and entry["name"] not in names
        if not units or any(fits_scale(entry, unit) for unit in units)
    ]
    return own + kept


def classes_of_start(entries: Sequence[dict[str, Any]], reference: str) -> dict[int, str] | None:
    """Number and name of the classes of a model in the library; None: it finds objects."""
    entry = next((e for e in entries if e["name"] == reference), None)
    if entry is None or entry["task"] != "semantic":
        return None
    return {int(one["value"]): str(one["name"]) for one in entry["labels"]}


def version_name(project: Project, reference: str) -> str:
    """The name that the next model from this one gets."""
    base = Path(reference).name or project.name
    return next_name(base, project.folder / "models")


def keep(project: Project, run: Run, use: bool) -> Version:
    """Keep the model of a run as the next version; not for the window's thread.

    Raises:
        ProjectError, OutputError: see `Project.keep_model`.
    """
    base = split_name(version_name(project, str(run["model"])))[0]
    version = project.keep_model(result_folder(project, run), base, use=use)
    with contextlib.suppress(OSError):
        drop_checkpoint(project, run)
    forget_run(project, run)
    return version


def library_name(version: Version, project: Project, taken: set[str]) -> str:
    """A name for the library that no other model has."""
    if version.name not in taken:
        return version.name
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", project.name).strip("-.") or "project"
    name, number = f"{stem}-{version.name}", 2
    while name in taken:
        name, number = f"{stem}-{version.name}-{number}", number + 1
    return name


def new_run(project: Project, reference: str, options: dict[str, Any]) -> Run:
    """A run to begin, remembered by the project with its options; not for the window's thread.

    Args:
        reference: of the model to start from, as in `startable`.
        options: arguments of `tttunet.finetune`.
    """
    project.set_setting(OPTIONS, options)
    return begin_run(project, reference, {**options, "name": version_name(project, reference)})


def last_options(project: Project) -> dict[str, Any]:
    """The options of the last run in this project; empty if there was none."""
    options = project.settings.get(OPTIONS)
    return options if isinstance(options, dict) else {}


def undecided(project: Project, run: Run) -> str:
    """What would be lost with a run that is not decided yet, and how to keep it; empty: nothing."""
    if "result" in run:
        return "The last model is neither kept nor reverted: keep it first"
    if can_resume(project, run):
        return "A fine-tuning was interrupted: Resume goes on with it"
    return ""
