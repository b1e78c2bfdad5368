"""Runs and models of a project, as the Fine-tune dock keeps them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("napari")

from napari_tttunet.finetune_models import (
    RUN,
    discard,
    remember_run,
    remembered_run,
    run_folder,
)
from tttunet.projects import Project, ProjectError


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with Project.create(tmp_path / "cells") as project:
        yield project


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
