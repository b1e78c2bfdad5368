"""The one fine-tuning that a project is not done with: it runs, was interrupted, or is undecided.

All faces keep it here, so that each can go on with what another began.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tttunet.projects.project import Project
from tttunet.projects.schema import ProjectError

#: Where the project's settings remember it: `folder`, its name in `runs/`; `model`, as in
#: `model_folder`; `options` of `tttunet.finetune`; and once it has ended `result`.
RUN = "run"
#: Names in the folder of a run: what the engine writes, and the file that steers it.
TRAINING, CHECKPOINT, CONTROL = "training", "checkpoint.pt", "control.txt"

Run = dict[str, Any]


def model_folder(project: Project, reference: str) -> str:
    """What the engine calls a model: its name in the library, or its folder in the project."""
    return str(project.folder / reference) if reference.startswith("models/") else reference


def model_reference(project: Project, model: str) -> str:
    """The opposite of `model_folder`: it holds where the project is moved to, too."""
    own = Path(model).parent == project.folder / "models"
    return f"models/{Path(model).name}" if own else model


def begin_run(project: Project, reference: str, options: Mapping[str, Any]) -> Run:
    """A run to begin, remembered with what is needed to go on with it.

    Args:
        project: open for writing.
        reference: of the model to start from.
        options: arguments of `tttunet.finetune`, JSON.

    Raises:
        ProjectError, OutputError: see `Project.new_run` and `Project.set_setting`.
    """
    run = {"folder": project.new_run().name, "model": reference, "options": dict(options)}
    remember_run(project, run)
    return run


def run_folder(project: Project, run: Run) -> Path:
    """The folder of a run, which lies in the project.

    Raises:
        ProjectError: the settings, which may come from anybody, name no such folder.
    """
    name = Path(str(run["folder"])).name
    if name in ("", ".", ".."):
        raise ProjectError(f"The project '{project.name}' names no folder of a run: '{name}'.")
    return project.folder / "runs" / name


def result_folder(project: Project, run: Run) -> Path:
    """The model of a run that has ended; in the project, too, if that was moved since."""
    told = Path(str(run["result"].get("folder")))
    return told if told.is_dir() else run_folder(project, run) / TRAINING / told.name


def remember_run(project: Project, run: Run) -> None:
    """Keep what is needed to resume a run or to decide about its model."""
    project.set_setting(RUN, run)


def forget_run(project: Project, run: Run) -> None:
    """The run is decided; another one that was begun since stays remembered."""
    known = project.settings.get(RUN)
    if isinstance(known, dict) and known.get("folder") == run["folder"]:
        project.set_setting(RUN, None)


def remembered_run(project: Project) -> Run | None:
    """A run that is not decided yet: with a `result`, or one that was interrupted."""
    run = project.settings.get(RUN)
    if not isinstance(run, dict) or not {"folder", "model", "options"} <= set(run):
        return None
    if not isinstance(run["options"], dict):
        return None
    try:
        return run if run_folder(project, run).is_dir() else None
    except ProjectError:
        return None


def can_resume(project: Project, run: Run | None) -> bool:
    """Whether a run was interrupted after its first checkpoint."""
    if run is None or "result" in run:
        return False
    return (run_folder(project, run) / TRAINING / CHECKPOINT).is_file()


def discard(project: Project, run: Run, event: str) -> None:
    """Forget a run and delete its folder; not for a window's thread.

    A folder that lies elsewhere, behind a link, is not deleted.

    Args:
        project: open for writing.
        run: which.
        event: for the history.

    Raises:
        ProjectError, OutputError: see `run_folder` and `Project.set_setting`.
    """
    folder = run_folder(project, run)
    forget_run(project, run)
    project.note(event, run=folder.name)
    delete_folder(project, run)


def delete_folder(project: Project, run: Run) -> None:
    """Delete what a run wrote; what lies elsewhere, behind a link, stays.

    Raises:
        ProjectError: see `run_folder`.
    """
    folder = run_folder(project, run)
    if folder.resolve() == project.folder.resolve() / "runs" / folder.name:
        shutil.rmtree(folder, ignore_errors=True)


def drop_checkpoint(project: Project, run: Run) -> None:
    """The run's model was kept: its checkpoint is large, and of no use any more."""
    (run_folder(project, run) / TRAINING / CHECKPOINT).unlink(missing_ok=True)
