"""Damage to one file costs that file, and is told."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tttunet.errors import OutputError
from tttunet.projects import Autosaver, Project, ProjectError, Region, describe, samples

OLD = Path(__file__).parent / "version-1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images with two corrected chunks each, and a region."""
    with Project.create(tmp_path / "p", classes={1: "nucleus"}) as project:
        for name in ("a", "b"):
            image = project.add_image(np.full((300, 300), ord(name), np.uint8), name=name)
            corrections = project.corrections(image)
            for place in (10, 280):
                box = ((place, place + 5),) * 2
                corrections.write(box, np.full((5, 5), place), np.ones((5, 5)))
            corrections.complete(Region(((20, 30), (20, 30))), np.zeros((10, 10), int))
    return tmp_path / "p"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


Damage = Callable[[Path], None]


@pytest.mark.parametrize("damage", [truncate, empty])
@pytest.mark.parametrize("chunk", ["0_0", "1_1"])
def test_a_damaged_chunk_costs_that_chunk(folder: Path, damage: Damage, chunk: str):
    path = folder / "corrections" / "a" / f"{chunk}.npz"
    damage(path)
    with Project.open(folder) as project:
        assert len(project.problems) == 1
        assert f"The corrections in 'corrections/a/{chunk}.npz' are lost" in project.problems[0]
        assert describe(project) == "3 objects and 2 complete regions on 2 images"
        box = ((10, 15),) * 2 if chunk == "0_0" else ((280, 285),) * 2
        assert project.corrections("a").read(box)[1].sum() == 0
        assert len(list(samples(project))) >= 2
        # Work goes on, and the damaged file is kept for whoever can mend it.
        project.corrections("a").write(box, np.full((5, 5), 9), np.ones((5, 5)))
        assert path.with_name(f"{chunk}.npz.damaged").exists()
    with Project.open(folder) as project:
        assert project.problems == []
        assert project.corrections("a").read(box)[0].min() == 9


@given(st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_to_a_chunk_is_noticed_or_harmless(folder: Path, data: st.DataObject):
    path = folder / "corrections" / "b" / "0_0.npz"
    good = path.read_bytes()
    place = data.draw(st.integers(0, len(good) - 1))
    value = data.draw(st.integers(0, 255))
    path.write_bytes(good[:place] + bytes([value]) + good[place + 1 :])
    try:
        with Project.open(folder, read_only=True) as project:
            pixels = project.corrections("b").summary().vouched_pixels
            assert pixels == 150 or (pixels == 25 and len(project.problems) >= 1)
    finally:
        path.write_bytes(good)


def test_foreign_content_of_a_chunk_is_refused(folder: Path):
    path = folder / "corrections" / "a" / "0_0.npz"
    harmful = np.empty(1, object)
    harmful[0] = {"pickled": True}
    for labels, vouched, words in [
        (np.zeros((9, 9), np.int32), np.zeros((9, 9), np.uint8), "shape"),
        (np.zeros((256, 256)), np.zeros((256, 256), np.uint8), "another type"),
        (harmful, np.zeros((256, 256), np.uint8), "allow_pickle=False"),
    ]:
        np.savez_compressed(path, labels=labels, vouched=vouched)
        with Project.open(folder) as project:
            assert project.corrections("a").summary().vouched_pixels == 25
            assert words in " ".join(project.problems)


@pytest.mark.parametrize("damage", [truncate, empty, Path.unlink])
def test_damaged_image_file_is_rebuilt_from_the_history(folder: Path, damage: Damage):
    path = folder / "images" / "a.json"
    good = path.read_text()
    damage(path)
    for read_only in (True, False):
        with Project.open(folder, read_only=read_only) as project:
            assert [image.id for image in project.images] == ["a", "b"]
            assert "'images/a.json' was damaged or missing and is rebuilt" in project.problems[0]
            assert describe(project) == "4 objects and 2 complete regions on 2 images"
    assert path.read_text() == good
    with Project.open(folder) as project:
        assert project.problems == []


@pytest.mark.parametrize("damage", [truncate, empty, Path.unlink])
def test_damaged_project_file_is_rebuilt_from_the_history(folder: Path, damage: Damage):
    with Project.open(folder) as project:
        project.update(model="nuclei", settings={"rim": 3})
    damage(folder / "project.json")
    with Project.open(folder) as project:
        assert "'project.json' was damaged" in project.problems[0]
        assert (project.model, project.settings, project.task) == ("nuclei", {"rim": 3}, "instance")
        assert len(project.images) == 2
    with Project.open(folder) as project:
        assert project.problems == []


def test_without_history_the_rest_still_opens(folder: Path):
    (folder / "history.jsonl").unlink()
    empty(folder / "images" / "a.json")
    with Project.open(folder) as project:
        assert [image.id for image in project.images] == ["b"]
        assert "'images/a.json' is left out" in project.problems[0]
        # The corrections of the lost image wait for it, nobody else gets them.
        assert project.add_image(np.ones((9, 9), np.uint8), name="a").id == "a-2"
    empty(folder / "project.json")
    with pytest.raises(ProjectError, match=r"cannot be opened: project.json is damaged.*backup"):
        Project.open(folder)


def test_half_a_line_of_history_costs_that_line(folder: Path):
    path = folder / "history.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    before = len(path.read_bytes().splitlines())
    with Project.open(folder) as project:
        assert project.problems == ["1 line of the history cannot be read."]
        project.note("fine-tuning kept", model="nuclei-v2")
        assert project.history()[-1]["model"] == "nuclei-v2"
        assert len(project.history()) == before  # all but the half one, and the new one


@pytest.mark.parametrize("damage", [truncate, empty])
def test_damaged_regions_cost_the_list_only(folder: Path, damage: Damage):
    path = folder / "corrections" / "a" / "regions.json"
    damage(path)
    with Project.open(folder) as project:
        corrections = project.corrections("a")
        pixels = corrections.summary().vouched_pixels
        assert pixels == 150
        assert "list of complete regions of 'a' is lost" in project.problems[0]
        corrections.complete(Region(((0, 2), (0, 2))), np.zeros((2, 2), int))
        assert len(corrections.regions) == 1
    assert path.with_name("regions.json.damaged").exists()


def test_missing_copy_is_told(folder: Path):
    (folder / "images" / "a.npy").unlink()
    with Project.open(folder) as project:
        with pytest.raises(ProjectError, match="copy of 'a' in the project is missing"):
            project.load("a")
        assert project.load("b").array[0, 0] == ord("b")


def test_temporary_files_of_a_killed_process_are_removed(folder: Path):
    leftovers = [folder / ".01234567-project.json", folder / "images" / ".89abcdef-a.npy"]
    leftovers.append(folder / "corrections" / "a" / ".01234567-0_0.npz")
    (folder / "volumes").mkdir()
    leftovers.append(folder / "volumes" / ".01234567-CT.nrrd")
    for path in leftovers:
        path.write_bytes(b"half")
    leftovers.append(folder / "models" / ".01234567-nuclei-v2")
    leftovers[-1].mkdir()
    (leftovers[-1] / "model.json").write_text("{")
    with Project.open(folder, read_only=True):
        assert all(path.exists() for path in leftovers)  # they may be another one's
    with Project.open(folder) as project:
        assert project.problems == []
    assert not any(path.exists() for path in leftovers)


# Versions and manipulated files


def edit(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_newer_version_is_refused_and_untouched(folder: Path):
    edit(folder / "project.json", version=2)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(ProjectError, match=r"newer version \(format 2.*Update napari-tttunet"):
        Project.open(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"id": "../../a"}, "no name of an image"),
        ({"id": "b"}, "it is about 'b'"),
        ({"shape": [300]}, "does not fit the axes"),
        ({"shape": [300, True]}, "are not numbers"),
        ({"axes": "XY"}, "axes are 'XY'"),
        ({"spacing": [0, 1]}, "spacing"),
        ({"direction": [[1, 0]]}, "origin or direction"),
        ({"origin": [0, float("nan")]}, "not finite"),
        ({"chunk": [0, 256]}, "chunk"),
        ({"channel": 3}, "no channel 3"),
        ({"copied": False}, "names no file"),
        ({"name": 5}, "'name' is 5"),
    ],
)
def test_manipulated_image_files_are_left_out(folder: Path, values, words: str):
    (folder / "history.jsonl").unlink()
    edit(folder / "images" / "a.json", **values)
    with Project.open(folder) as project:
        assert [image.id for image in project.images] == ["b"]
        assert words in project.problems[0]


@pytest.mark.parametrize(
    "values",
    [
        *({"task": "x"}, {"dim": 5}, {"classes": {}}, {"classes": {"one": "x"}}, {"name": None}),
        *({"version": "1"}, {"version": 0}, {"format": "other"}, {"settings": []}),
    ],
)
def test_manipulated_project_file_is_rebuilt(folder: Path, values):
    edit(folder / "project.json", **values)
    with Project.open(folder) as project:
        assert "is rebuilt from the history" in project.problems[0]
        assert project.classes == {1: "nucleus"}


@pytest.mark.parametrize(
    "region",
    [
        *(5, {}, {"bounds": [[0, 1]]}, {"bounds": [[0, 301], [0, 1]]}),
        *({"bounds": [[5, 5], [0, 1]]}, {"bounds": [[0, 1], [0, 1]], "polygon": [[1, "x"]]}),
    ],
)
def test_manipulated_regions_are_told(folder: Path, region):
    edit(folder / "corrections" / "b" / "regions.json", regions=[region])
    with Project.open(folder) as project:
        assert project.corrections("b").regions == []
        assert len(project.problems) == 1


def test_files_with_strange_names_are_no_chunks(folder: Path):
    for name in ("0.npz", "99_99.npz", "0_0_0.npz", "-1_0.npz", "a_b.npz", "0_0.npz.damaged"):
        shutil.copy(folder / "corrections" / "a" / "1_1.npz", folder / "corrections" / "a" / name)
    with Project.open(folder) as project:
        assert project.problems == []
        assert project.corrections("a").summary().objects == 2


def test_a_full_disk_is_told_and_the_old_chunk_stays(folder: Path):
    """A file-size limit stands for the full disk."""
    resource = pytest.importorskip("resource")
    rng = np.random.default_rng(0)
    with Project.open(folder) as project:
        corrections = project.corrections("a")
        old = corrections.read(corrections.image.bounds)
        noise = rng.integers(0, 1000, (300, 300))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        import signal

        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        try:
            with pytest.raises(OutputError, match=r"corrections/a/0_0.npz' cannot be written"):
                corrections.write(corrections.image.bounds, noise, np.ones((300, 300)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        assert all(map(np.array_equal, corrections.read(corrections.image.bounds), old))


def test_project_of_version_1_opens(tmp_path: Path):
    """The folder was written when version 1 was made; it is never written anew."""
    folder = tmp_path / "old"
    shutil.copytree(OLD, folder)
    with Project.open(folder) as project:
        assert project.problems == []
        assert describe(project) == "2 objects and 1 complete region on 1 image"
        (image,) = project.images
        labels, vouched = project.corrections(image).read(((0, 20), (0, 30)))
        assert np.unique(labels).tolist() == [0, 1, 2]
        assert int(vouched.sum()) == 152
        assert project.load(image).array.shape == (40, 60)
        assert re.match(r"\d{4}-\d\d-\d\dT", image.added)


# Files that are in order but cannot be read at the moment


@contextlib.contextmanager
def no_more_files() -> Iterator[None]:
    """The process has as many files open as it may."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 5, limits[1]))
    held = []
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(open(os.devnull))  # noqa: SIM115
        yield
    finally:
        for file in held:
            file.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts the open files by Linux")
def test_a_good_chunk_that_cannot_be_opened_is_left_alone(folder: Path):
    box = ((12, 14), (12, 14))
    with Project.open(folder) as project:
        corrections = project.corrections("a")
        before = contents(corrections.store.folder)
        with no_more_files():
            for call in (
                lambda: corrections.write(box, np.full((2, 2), 9), np.ones((2, 2))),
                lambda: corrections.read(box),
                lambda: corrections.remove_region(0),
                corrections.summary,
            ):
                with pytest.raises(ProjectError, match=r"Too many open files.*left as it is"):
                    call()
        assert contents(corrections.store.folder) == before
        assert project.problems == []
        assert corrections.write(box, np.full((2, 2), 9), np.ones((2, 2))) == 1
        labels, vouched = corrections.read(((10, 15), (10, 15)))
        assert (sorted(np.unique(labels).tolist()), vouched.sum()) == ([9, 10], 25)
        assert corrections.summary().vouched_pixels == 150


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts the open files by Linux")
def test_an_edit_waits_until_its_good_chunk_can_be_opened(folder: Path):
    errors: list[Exception] = []
    with Project.open(folder) as project:
        corrections = project.corrections("a")
        before = contents(corrections.store.folder)
        saver = Autosaver(
            corrections,
            lambda _: (np.full((2, 2), 9), np.ones((2, 2))),
            delay=0.01,
            on_error=errors.append,
        )
        with no_more_files():
            saver.changed(((12, 14), (12, 14)))
            end = time.monotonic() + 20
            while not errors and time.monotonic() < end:
                time.sleep(0.01)
            assert saver.pending
        assert isinstance(errors[0], ProjectError)
        saver.close()
        assert corrections.summary().vouched_pixels == 150
        assert corrections.read(((12, 14), (12, 14)))[0].min() == 9
        assert contents(corrections.store.folder).keys() == before.keys()


MEMORY_IS_SHORT = """
import resource, sys
import numpy as np
from tttunet.projects import Project, ProjectError

with Project.create(sys.argv[1], dim=3) as project:
    image = project.add_image(np.zeros((16, 256, 256), np.uint8), axes="ZYX", name="a")
    corrections = project.corrections(image)
    corrections.write(image.bounds, np.full((16, 256, 256), 7), np.ones((16, 256, 256)))
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * resource.getpagesize() + 3_000_000  # its labels alone are 4 MB
    resource.setrlimit(resource.RLIMIT_AS, (limit, -1))
    try:
        corrections.write(((0, 1), (0, 2), (0, 2)), np.ones((1, 2, 2), int), np.ones((1, 2, 2)))
    except ProjectError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    print(project.problems, corrections.read(image.bounds)[0].min())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux for its memory")
def test_too_little_memory_is_no_damage(tmp_path: Path):
    command = [sys.executable, "-c", MEMORY_IS_SHORT, str(tmp_path / "p")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    first, last = ended.stdout.splitlines()
    assert "cannot be read: there is not enough memory" in first, ended.stderr
    assert last == "[] 7"


def test_an_earlier_damaged_file_is_kept(folder: Path):
    path, box = folder / "corrections" / "a" / "0_0.npz", ((10, 15), (10, 15))
    kept = []
    for number in (1, 2, 3):
        path.write_bytes(b"damaged %d" % number)
        kept.append(path.read_bytes())
        with Project.open(folder) as project:
            project.corrections("a").write(box, np.full((5, 5), number), np.ones((5, 5)))
    found = sorted(path.parent.glob("*.damaged*"))
    assert [file.read_bytes() for file in found] == kept
    with Project.open(folder) as project:
        assert project.problems == []


def test_files_that_cannot_be_read_are_left_alone(folder: Path):
    """A folder in the place of a file cannot be read, even by the administrator."""
    paths = [folder / "images" / "a.json", folder / "corrections" / "b" / "regions.json"]
    for path in paths:
        path.rename(path.with_suffix(".hidden"))
        path.mkdir()
    with Project.open(folder) as project:
        assert [image.id for image in project.images] == ["a", "b"]
        assert len(project.problems) == 2
        assert all("directory" in problem for problem in project.problems), project.problems
        with pytest.raises(ProjectError, match="cannot be read"):
            project.corrections("b").complete(Region(((0, 2),) * 2), np.zeros((2, 2), int))
    for path in paths:
        path.rmdir()  # nothing was put in its place
        path.with_suffix(".hidden").rename(path)
    assert not list(folder.rglob("*.damaged*"))
    with Project.open(folder) as project:
        assert describe(project) == "4 objects and 2 complete regions on 2 images"
