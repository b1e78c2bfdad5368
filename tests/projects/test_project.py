"""Making, opening, moving and changing a project."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tttunet.errors import ImageError, OutputError
from tttunet.imaging import Image, load_image
from tttunet.projects import Autosaver, Project, ProjectError, describe
from tttunet.projects.schema import read_json, write_json

RESOURCES = Path(__file__).resolve().parents[2] / "resources"


def test_the_next_day_everything_is_there(project: Project, cells, reopen):
    path, labels = cells
    image = project.add_image(path)
    vouched = labels > 0
    project.corrections(image.id).write(image.bounds, labels, vouched)
    project.update(model="nuclei", settings={"rim": 2}, classes={1: "nucleus"}, name="My cells")
    words = describe(project)

    again = reopen(project)
    assert again.problems == []
    assert again.images == (image,)
    assert (again.name, again.task, again.dim) == ("My cells", "instance", 2)
    assert (again.classes, again.model, again.settings) == ({1: "nucleus"}, "nuclei", {"rim": 2})
    found = again.corrections(image.id).read(image.bounds)
    assert np.array_equal(found[0], labels)
    assert np.array_equal(found[1] > 0, vouched)
    assert describe(again) == words == f"{labels.max()} objects on 1 image"
    assert np.array_equal(again.load(image).array, load_image(path).array)
    events = [event["event"] for event in again.history()]
    assert events == ["project created", "image added", "corrections saved", "project changed"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"task": "panoptic"}, "task is 'panoptic'"),
        ({"dim": 4}, "dim is 4"),
        ({"task": "semantic"}, "no classes"),
        ({"classes": {0: "background"}}, "0 is background"),
        ({"classes": {1: " "}}, "no name"),
    ],
)
def test_senseless_projects_are_refused(tmp_path: Path, arguments, words: str):
    with pytest.raises(ProjectError, match=words):
        Project.create(tmp_path / "p", **arguments)
    assert not (tmp_path / "p").exists()


def test_a_folder_that_holds_something_is_refused(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(ProjectError, match="is not empty"):
        Project.create(tmp_path)
    with pytest.raises(ProjectError, match=r"is no project.*Choose the folder"):
        Project.open(tmp_path)
    with pytest.raises(ProjectError, match="does not exist"):
        Project.open(tmp_path / "nowhere")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_settings_that_json_does_not_know_are_refused(project: Project, reopen):
    with pytest.raises(ProjectError, match="settings cannot be saved"):
        project.update(settings={"image": np.zeros(3)})
    assert reopen(project).settings == {}


# Images


def test_the_same_image_twice_is_one(project: Project, cells, tmp_path: Path):
    path, _ = cells
    image = project.add_image(path)
    assert project.add_image(path) == image
    other = project.add_image(path, channel=0)
    assert (other.id, len(project.images)) == (f"{image.id}-2", 2)
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    copy = project.add_image(pixels)
    assert project.add_image(pixels.copy()) == copy
    assert project.add_image(pixels.astype(np.uint16)) != copy


def test_copy_keeps_pixels_and_geometry(project: Project, reopen):
    stack = load_image(RESOURCES / "samples" / "ovule_nuclei.ome.tif")
    image = project.add_image(stack, copy=True)
    assert (image.copied, image.path, image.unit) == (True, "", "micrometer")
    found = reopen(project).load(image)
    assert np.array_equal(found.array, stack.array)
    assert found.array.dtype == stack.array.dtype
    assert (found.axes, found.spacing, found.origin) == (stack.axes, stack.spacing, stack.origin)


def test_an_image_of_a_file_is_referred_to(project: Project, cells):
    image = project.add_image(load_image(cells[0]))
    assert not image.copied
    assert project.path_of(image) == cells[0].resolve()


def test_a_caller_who_read_the_file_is_believed(project: Project, tmp_path: Path):
    """3D Slicer reads formats that its Python, without our readers, cannot."""
    (tmp_path / "scan.xyz").write_bytes(b"voxels")
    image = project.add_image(
        tmp_path / "scan.xyz", axes="ZYX", shape=(5, 6, 7), spacing=(2, 1, 1), unit="millimeter"
    )
    assert (image.label_shape, image.spacing) == ((5, 6, 7), (2.0, 1.0, 1.0))
    with pytest.raises(ImageError, match="type that cannot be read"):
        project.load(image)


@pytest.mark.parametrize("name", ["../../etc/passwd", "CON", "a/b", "..", "ä ö", "", "x" * 300])
def test_ids_are_file_names(project: Project, name: str, reopen):
    image = project.add_image(np.zeros((2, 2), np.uint8), name=name)
    files = {path.resolve() for path in (project.folder / "images").rglob("*.npy")}
    assert files == {(project.folder / "images" / f"{image.id}.npy").resolve()}
    assert image.id.upper() != "CON"
    assert reopen(project).images == (image,)


def test_3d_project_needs_volumes(tmp_path: Path):
    with Project.create(tmp_path / "p", dim=3) as project:
        with pytest.raises(ProjectError, match="have no Z"):
            project.add_image(np.zeros((4, 5), np.uint8))
        with pytest.raises(ProjectError, match=r"gone\.tif' does not exist"):
            project.add_image(tmp_path / "gone.tif")
        assert project.add_image(np.zeros((3, 4, 5), np.uint8), axes="ZYX").chunk == (16, 256, 256)
        assert len(project.images) == 1


def test_channel_is_selected(project: Project):
    pixels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    image = project.add_image(pixels, axes="CYX", channel=1, channel_names=("dna", "actin"))
    found = project.load(image)
    assert (found.axes, found.channel_names) == ("YX", ("actin",))
    assert np.array_equal(found.array, pixels[1])
    with pytest.raises(ProjectError, match="no channel 2"):
        project.add_image(pixels, axes="CYX", channel=2)


def test_removed_image_is_gone_but_its_file_is_not(project: Project, cells, reopen):
    image = project.add_image(cells[0])
    project.corrections(image).write(((0, 2), (0, 2)), np.ones((2, 2), int), np.ones((2, 2)))
    project.remove_image(image.id)
    again = reopen(project)
    assert (again.images, again.problems) == ((), [])
    assert cells[0].exists()
    assert not any((again.folder / "corrections").iterdir())
    with pytest.raises(ProjectError, match="no image"):
        again.corrections(image.id)


# Moving


@pytest.fixture
def study(tmp_path: Path, cells) -> Path:
    """A folder with images and, beside them, a project that refers to one."""
    study = tmp_path / "study"
    (study / "raw").mkdir(parents=True)
    shutil.copy(cells[0], study / "raw" / "cells.png")
    with Project.create(study / "project") as project:
        image = project.add_image(study / "raw" / "cells.png")
        assert image.path == "../raw/cells.png"
    return study


@pytest.mark.parametrize("what", ["both", "project", "image into project", "nothing"])
def test_image_is_found_after_a_move(study: Path, tmp_path: Path, what: str):
    folder, expected = study / "project", study / "raw" / "cells.png"
    if what == "both":
        shutil.move(study, tmp_path / "elsewhere")
        folder = tmp_path / "elsewhere" / "project"
        expected = tmp_path / "elsewhere" / "raw" / "cells.png"
    elif what == "project":
        folder = tmp_path / "far" / "away" / "project"
        shutil.copytree(study / "project", folder)
        shutil.rmtree(study / "project")
    elif what == "image into project":
        shutil.move(expected, folder / "cells.png")
        expected = folder / "cells.png"
    with Project.open(folder) as project:
        assert project.path_of("cells") == expected
        assert project.load("cells").array.size
        assert project.problems == []


def test_missing_image_is_told_and_what_the_hint_says_helps(study: Path, tmp_path: Path):
    shutil.move(study / "raw", tmp_path / "archive")
    with Project.open(study / "project") as project:
        with pytest.raises(
            ProjectError, match=r"'cells' is not at '.*raw/cells.png' any more"
        ) as e:
            project.load("cells")
        assert "copy it into the folder of the project" in e.value.hint
        shutil.copy(tmp_path / "archive" / "cells.png", project.folder)
        assert project.load("cells").array.size


def test_settings_are_changed_one_by_one_in_several_threads(project: Project, reopen):
    names = [f"setting {number}" for number in range(12)]
    threads = [threading.Thread(target=project.set_setting, args=(name, name)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    project.set_setting(names[0], None)
    project.set_setting("never set", None)
    with pytest.raises(ProjectError, match="cannot be saved"):
        project.set_setting("image", np.zeros(3))
    again = reopen(project)
    assert again.settings == {name: name for name in names[1:]}


def test_changed_image_is_told(study: Path):
    from PIL import Image as Pillow

    path = study / "raw" / "cells.png"
    with Pillow.open(path) as opened:
        opened.rotate(180).save(path)
    with Project.open(study / "project") as project:
        assert project.path_of("cells") == path
        assert project.problems == [
            "'cells.png' has changed since it was added to the project; check that its "
            "corrections still fit."
        ]
        with Pillow.open(path) as opened:
            opened.crop((0, 0, 20, 30)).save(path)
        with pytest.raises(ProjectError, match="its corrections were made for"):
            project.load("cells")


def test_change_that_keeps_the_size_is_told(study: Path):
    path = study / "raw" / "cells.png"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with Project.open(study / "project") as project:
        project.path_of("cells")
        assert "'cells.png' has changed" in project.problems[0]


def test_touched_image_is_the_same(study: Path):
    (study / "raw" / "cells.png").touch()
    with Project.open(study / "project") as project:
        project.path_of("cells")
        assert project.problems == []


# Two at a time

HOLD = """
import sys
from tttunet.projects import Project
project = Project.open(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""


def test_two_programs_cannot_write(project: Project, tmp_path: Path):
    project.close()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(project.folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        words = rf"'my-cells' is open in another program \(process {holder.pid} on this computer"
        with pytest.raises(ProjectError, match=words):
            Project.open(project.folder)
        with Project.open(project.folder, read_only=True) as reader:
            assert reader.task == "instance"
    finally:
        holder.kill()  # no chance to clean up
        holder.communicate()
    Project.open(project.folder).close()


def test_opened_twice_in_one_program(project: Project):
    with pytest.raises(ProjectError, match="open already in this program"):
        Project.open(project.folder)
    project.close()
    with pytest.raises(ProjectError, match="reading only"):
        project.add_image(np.zeros((2, 2), np.uint8))
    Project.open(project.folder).close()


# Models


def test_versions_of_models(project: Project, reopen):
    shipped = RESOURCES / "models" / "nuclei"
    assert project.versions == []
    assert project.model_path() is None
    second = project.keep_model(shipped, "nuclei")
    third = project.keep_model(second.folder, second.name, use=False)
    assert [v.name for v in project.versions] == ["nuclei-v2", "nuclei-v3"]
    assert (third.number, project.model) == (3, "models/nuclei-v2")
    assert project.model_path() == second.folder
    assert {p.name for p in second.folder.iterdir()} == {p.name for p in shipped.iterdir()}
    with pytest.raises(ProjectError, match="is no model"):
        project.keep_model(project.folder, "x")

    (third.folder / "model.json").write_text("{")
    again = reopen(project)
    assert [v.name for v in again.versions] == ["nuclei-v2"]
    assert again.problems == [
        "The model 'nuclei-v3' cannot be used: model.json: it is not valid JSON."
    ]
    assert again.keep_model(shipped, "nuclei").name == "nuclei-v4"  # never over a damaged one


def test_runs_have_folders_of_their_own(project: Project):
    assert len({project.new_run() for _ in range(5)}) == 5


def test_crop_of_a_stack(project: Project):
    pixels = np.arange(4 * 2 * 6 * 8).reshape(4, 2, 6, 8).astype(np.uint16)
    stack = Image.from_array(
        np.moveaxis(pixels, 0, 1), "CZYX", spacing=(3, 2, 1), origin=(10, 20, 30), name="stack"
    )
    image = project.add_image(stack)
    part = project.crop(image, ((2, 3), (1, 4), (5, 8)))
    assert (part.axes, part.spacing, part.origin) == ("CYX", (2, 1), (22, 35))
    assert np.array_equal(part.array, pixels[2, :, 1:4, 5:8])
    assert json.loads((project.folder / "images" / "stack.json").read_text())["shape"] == [
        2,
        4,
        6,
        8,
    ]


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(alphabet='a[]{},"\\\n '),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
            max_leaves=8,
        ),
    )
)
def test_files_are_written_for_people_and_read_back(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("json") / "a.json"
    write_json(path, data)
    assert read_json(path) == data
    write_json(path, {"shape": [2, 3]})
    assert path.read_text() == '{\n  "shape": [2, 3]\n}\n'


def test_an_error_while_opening_gives_the_lock_back(
    project: Project, monkeypatch: pytest.MonkeyPatch
):
    project.close()
    (project.folder / "project.json").write_text("{")

    def fail(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)  # the damaged file cannot be set aside
        for _ in range(2):
            with pytest.raises(OutputError, match=r"project\.json' cannot be written"):
                Project.open(project.folder)
    Project.open(project.folder).close()


def test_an_autosaver_does_not_bring_a_removed_image_back(project: Project, blank):
    saver = Autosaver(
        project.corrections(blank), lambda _: (np.ones((2, 2), int), np.ones((2, 2))), delay=60
    )
    saver.changed(((0, 2), (0, 2)))
    project.remove_image(blank.id)
    with pytest.raises(ProjectError, match="reading only"):
        saver.close()
    assert not any((project.folder / "corrections").iterdir())
