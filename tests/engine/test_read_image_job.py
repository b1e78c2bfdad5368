"""Images of projects, read for a face that must not wait for files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from tttunet.engine.client import Engine
from tttunet.imaging import load_image
from tttunet.projects import Project, Region

from .conftest import finish, noise

SHAPE = (5, 24, 20)


def write_volume(path: Path, origin: tuple[float, ...] = (1.0, 2.0, 3.0)) -> Path:
    picture = SimpleITK.GetImageFromArray(noise(SHAPE))
    picture.SetSpacing((0.5, 0.6, 3.0))
    picture.SetOrigin(origin)
    SimpleITK.WriteImage(picture, str(path))
    return path


@pytest.mark.parametrize("copy", [False, True])
def test_voxels_and_labels_arrive_and_torch_is_not_loaded(
    engine: Engine, tmp_path: Path, copy: bool
):
    path = write_volume(tmp_path / "volume.nrrd")
    labels = np.random.default_rng(1).integers(0, 2, SHAPE)
    project = Project.create(tmp_path / "organs", task="semantic", dim=3, classes={1: "liver"})
    with project:
        image = project.add_image(load_image(path), copy=copy)
        project.corrections(image).complete(Region(image.bounds), labels)
        found = finish(engine.read_image(project.folder, image)).result
    np.testing.assert_array_equal(found["image"], noise(SHAPE))
    np.testing.assert_array_equal(found["labels"], labels)
    assert found["problems"] == []
    assert found["path"] == ("" if copy else str(path))
    loaded = Path(f"/proc/{engine.short_worker_pid}/maps")
    if loaded.exists():
        assert "libtorch" not in loaded.read_text()


def test_file_that_has_gone_or_moved_is_told_and_one_that_has_changed_in_place_too(
    engine: Engine, tmp_path: Path
):
    path = write_volume(tmp_path / "volume.nrrd")
    project = Project.create(tmp_path / "organs", task="semantic", dim=3, classes={1: "liver"})
    with project:
        image = project.add_image(load_image(path))
        picture = SimpleITK.ReadImage(str(path))
        SimpleITK.WriteImage(picture + 1, str(path))
        changed = finish(engine.read_image(project.folder, image)).result
        write_volume(path, (9.0, 2.0, 3.0))
        moved = finish(engine.read_image(project.folder, image))
        path.unlink()
        gone = finish(engine.read_image(project.folder, image))
    np.testing.assert_array_equal(changed["image"], noise(SHAPE) + 1)
    assert "has changed since" in changed["problems"][0]
    assert (moved.problem, "lies elsewhere" in moved.message) == ("input", True)
    assert (gone.problem, "is not at" in gone.message) == ("input", True)
