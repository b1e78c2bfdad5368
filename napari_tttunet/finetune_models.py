"""Models of the Fine-tune dock: what one can start from, and where a new one is kept."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from napari_tttunet.segment_choices import fits_scale
from tttunet.projects import Project, ProjectError, Version
from tttunet.projects.versions import next_name, split_name

#: Where the project's settings remember the run that is not decided yet, and what the last one
#: was told beside the labels.
RUN, OPTIONS = "run", "finetune_options"
#: Names in the folder of a run.
TRAINING, CHECKPOINT = "training", "checkpoint.pt"


def startable(entries: Sequence[dict[str, Any]], project: Project) -> list[tuple[str, str]]:
    """Texts and references of models that a fine-tuning can start from.

    Args:
        entries: of the library.
        project: its own models come first, the newest at the top. Models for another scale than
            that of its images are left out.
    """
    own = [
        (f"{version.name} (of this project)", f"models/{version.name}")
        for version in reversed(project.versions)
    ]
    names = {version.name for version in project.versions}
    units = {image.unit for image in project.images}
    kept = [
        (f"{entry['name']} \N{MIDDLE DOT} {entry['title'] or entry['task']}", entry["name"])
        for entry in entries
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


def model_folder(project: Project, reference: str) -> str:
    """What the engine calls a model: its name in the library, or its folder in the project."""
    return str(project.folder / reference) if reference.startswith("models/") else reference


def version_name(project: Project, reference: str) -> str:
    """The name that the next model from this one gets."""
    base = reference.removeprefix("models/") or project.name
    return next_name(base, project.folder / "models")


def keep(project: Project, run: dict[str, Any], use: bool) -> Version:
    """Keep the model of a run as the next version; not for the window's thread.

    Raises:
        ProjectError, OutputError: see `Project.keep_model`.
    """
    base = split_name(version_name(project, str(run["model"])))[0]
    version = project.keep_model(run["result"]["folder"], base, use=use)
    with contextlib.suppress(OSError):  # large, and of no use any more
        (run_folder(project, run) / TRAINING / CHECKPOINT).unlink(missing_ok=True)
    forget_run(project)
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


def run_folder(project: Project, run: dict[str, Any]) -> Path:
    """The folder of a run, which lies in the project.

    Raises:
        ProjectError: the settings, which may come from anybody, name no such folder.
    """
    name = Path(str(run["folder"])).name
    if name in ("", ".", ".."):
        raise ProjectError(f"The project '{project.name}' names no folder of a run: '{name}'.")
    return project.folder / "runs" / name


def new_run(project: Project, reference: str, options: dict[str, Any]) -> dict[str, Any]:
    """A run to begin, remembered by the project with its options; not for the window's thread.

    Args:
        reference: of the model to start from, as in `startable`.
        options: arguments of `tttunet.finetune`.
    """
    name = version_name(project, reference)
    run = {
        "folder": project.new_run().name,
        "model": reference,
        "options": {**options, "name": name},
    }
    project.update(settings={**project.settings, OPTIONS: options})
    remember_run(project, run)
    return run


def last_options(project: Project) -> dict[str, Any]:
    """The options of the last run in this project; empty if there was none."""
    options = project.settings.get(OPTIONS)
    return options if isinstance(options, dict) else {}


def remember_run(project: Project, run: dict[str, Any]) -> None:
    """Keep what is needed to resume a run or to decide about its model."""
    project.set_setting(RUN, run)


def forget_run(project: Project) -> None:
    """The run is decided."""
    project.set_setting(RUN, None)


def remembered_run(project: Project) -> dict[str, Any] | None:
    """A run that is not decided yet: with a `result`, or one that was interrupted."""
    run = project.settings.get(RUN)
    if not isinstance(run, dict) or not {"folder", "model", "options"} <= set(run):
        return None
    try:
        return run if run_folder(project, run).is_dir() else None
    except ProjectError:
        return None


def can_resume(project: Project, run: dict[str, Any] | None) -> bool:
    """Whether a run was interrupted after its first checkpoint."""
    if run is None or "result" in run:
        return False
    return (run_folder(project, run) / TRAINING / CHECKPOINT).is_file()


def undecided(project: Project, run: dict[str, Any]) -> str:
    """What would be lost with a run that is not decided yet, and how to keep it; empty: nothing."""
    if "result" in run:
        return "The last model is neither kept nor reverted: keep it first"
    if can_resume(project, run):
        return "A fine-tuning was interrupted: Resume goes on with it"
    return ""


def discard(project: Project, run: dict[str, Any], event: str) -> None:
    """Delete the folder of a run; not for the window's thread.

    One that lies elsewhere, behind a link, is forgotten, but not deleted.

    Raises:
        ProjectError: see `run_folder`.
    """
    folder = run_folder(project, run)
    forget_run(project)
    project.note(event, run=folder.name)
    if folder.resolve() == project.folder.resolve() / "runs" / folder.name:
        shutil.rmtree(folder, ignore_errors=True)
