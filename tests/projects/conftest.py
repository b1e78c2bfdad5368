"""Projects on real images and on made-up ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tttunet.imaging import load_labels
from tttunet.projects import ImageReference, Project


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """An empty 2D project of objects."""
    with Project.create(tmp_path / "my-cells", classes={1: "nucleus"}) as project:
        yield project


@pytest.fixture
def blank(project: Project) -> ImageReference:
    """A black image of 600 x 700 pixels in `project`."""
    return project.add_image(np.zeros((600, 700), np.uint8), name="blank")


@pytest.fixture
def cells(data_dir: Path) -> tuple[Path, np.ndarray]:
    """A real image with more than 10 nuclei, and their labels."""
    folder = data_dir / "nuclei_dsb2018"
    for label in sorted((folder / "labels").glob("*.tif")):
        labels = load_labels(label).array.astype(np.int32)
        if labels.max() > 10:
            return next((folder / "images").glob(f"{label.stem}.*")), labels
    raise AssertionError("there is no such image")


Reopen = Callable[[Project], Project]


@pytest.fixture
def reopen() -> Iterator[Reopen]:
    """Close a project and open it again, as on the next day."""
    opened: list[Project] = []

    def again(project: Project) -> Project:
        project.close()
        opened.append(Project.open(project.folder))
        return opened[-1]

    yield again
    for project in opened:
        project.close()
