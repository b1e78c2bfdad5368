"""The run that a project is not done with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tttunet.projects import Project, ProjectError
from tttunet.projects.runs import (
    RUN,
    begin_run,
    can_resume,
    discard,
    model_folder,
    model_reference,
    remember_run,
    remembered_run,
    result_folder,
    run_folder,
)


def test_a_run_is_remembered_and_discarded(project: Project) -> None:
    run = {"folder": project.new_run().name, "model": "nuclei", "options": {"steps": 3}}
    project.set_setting("image", "cells")
    remember_run(project, run)
    run["options"] = {}
    assert remembered_run(project) == {**run, "options": {"steps": 3}}
    discard(project, run, "fine-tuning reverted")
    assert not list((project.folder / "runs").iterdir())
    assert remembered_run(project) is None
    assert project.settings == {"image": "cells"}


@pytest.mark.parametrize("folder", ["", ".", "..", "/", "runs/..", None])
def test_settings_of_a_stranger_delete_nothing(project: Project, folder: str | None) -> None:
    run = {"folder": folder, "model": "nuclei", "options": {}}
    project.new_run()
    project.set_setting(RUN, run)
    assert remembered_run(project) is None
    if folder is not None:
        with pytest.raises(ProjectError, match="names no folder of a run"):
            discard(project, run, "fine-tuning reverted")
    assert (project.folder / "project.json").is_file()
    assert len(list((project.folder / "runs").iterdir())) == 1


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_what_lies_behind_a_link_is_forgotten_but_not_deleted(
    project: Project, tmp_path: Path
) -> None:
    (tmp_path / "home" / "thesis").mkdir(parents=True)
    (project.folder / "runs").rmdir()
    (project.folder / "runs").symlink_to(tmp_path / "home")
    run = {"folder": "thesis", "model": "nuclei", "options": {}}
    remember_run(project, run)
    assert run_folder(project, run).is_dir()
    discard(project, run, "fine-tuning reverted")
    assert (tmp_path / "home" / "thesis").is_dir()
    assert remembered_run(project) is None


def test_run_that_is_put_away_late_does_not_take_the_next_one_with_it(project: Project) -> None:
    first = begin_run(project, "nuclei", {"steps": 3})
    second = begin_run(project, "nuclei", {"steps": 4})
    discard(project, first, "fine-tuning cancelled")
    assert remembered_run(project) == second
    assert [path.name for path in (project.folder / "runs").iterdir()] == [second["folder"]]


def test_only_what_has_a_checkpoint_and_no_result_can_be_resumed(project: Project) -> None:
    run = begin_run(project, "nuclei", {})
    assert not can_resume(project, run)
    training = run_folder(project, run) / "training"
    training.mkdir()
    (training / "checkpoint.pt").write_bytes(b"much")
    assert can_resume(project, run)
    assert not can_resume(project, {**run, "result": {}})
    assert not can_resume(project, None)


def test_models_and_results_are_found_where_the_project_was_moved_to(project: Project) -> None:
    own = str(project.folder / "models" / "nuclei-v2")
    assert model_reference(project, own) == "models/nuclei-v2"
    assert model_folder(project, "models/nuclei-v2") == own
    for elsewhere in ("nuclei", "/somewhere/models/nuclei"):
        assert model_folder(project, model_reference(project, elsewhere)) == elsewhere
    run = begin_run(project, "nuclei", {})
    told = {**run, "result": {"folder": f"/gone/runs/{run['folder']}/training/model"}}
    assert result_folder(project, told) == run_folder(project, run) / "training" / "model"
