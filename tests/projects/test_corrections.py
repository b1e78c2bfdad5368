"""What is written is read again, whatever the box, and an edit costs its chunks only."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tttunet.projects import Corrections, ImageReference, Project, ProjectError, Region
from tttunet.projects.regions import covered


def corrections_of(folder: Path, shape, chunk, dim: int, task: str = "instance") -> Corrections:
    n, axes = len(shape), "TZYX"[-len(shape) :]
    spatial = min(n, 3)
    image = ImageReference(
        id="a", name="a", axes=axes, shape=shape, spacing=(1.0,) * spatial,
        origin=(0.0,) * spatial, direction=tuple(map(tuple, np.eye(spatial).tolist())),
        chunk=chunk, copied=True,
    )  # fmt: skip
    assert image.fault() == ""
    problems: list[str] = []
    corrections = Corrections(
        folder, image, task=task, dim=dim, tell=problems.append, note=lambda *_, **__: None
    )
    return corrections


@st.composite
def boxes(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    starts = [draw(st.integers(0, size - 1)) for size in shape]
    return tuple(
        (start, draw(st.integers(start + 1, size)))
        for start, size in zip(starts, shape, strict=True)
    )


@st.composite
def writings(draw: st.DrawFn):
    """A grid of chunks and boxes to write one after the other."""
    dim = draw(st.sampled_from([2, 3]))
    n = draw(st.integers(dim, dim + 1))
    shape = tuple(draw(st.integers(1, 13)) for _ in range(n))
    leading = n - dim
    chunk = (1,) * leading + tuple(draw(st.integers(1, 6)) for _ in range(dim))
    return dim, shape, chunk, draw(st.lists(boxes(shape), min_size=1, max_size=5))


@given(writings(), st.integers(0, 2**32 - 1))
@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, writing, seed: int):
    dim, shape, chunk, bounds_list = writing
    rng = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("round-trip")
    corrections = corrections_of(folder, shape, chunk, dim)
    labels, vouched = np.zeros(shape, np.int32), np.zeros(shape, np.uint8)
    for bounds in bounds_list:
        place = tuple(slice(a, b) for a, b in bounds)
        new = rng.integers(-1, 4, labels[place].shape).astype(rng.choice([np.int16, np.int64]))
        mask = rng.random(new.shape) < 0.5
        corrections.write(bounds, new, mask)
        labels[place] = np.maximum(new, 0)
        vouched[place] = mask & (new >= 0)
        assert corrections.write(bounds, new, mask) == 0  # nothing changed

    # Of the one who wrote, and of another process that opens the folder.
    for reader in (corrections, corrections_of(folder, shape, chunk, dim)):
        for bounds in (reader.image.bounds, *bounds_list):
            place = tuple(slice(a, b) for a, b in bounds)
            found = reader.read(bounds)
            assert np.array_equal(found[0], labels[place])
            assert np.array_equal(found[1], vouched[place])
            assert (found[0].dtype, found[1].dtype) == (np.int32, np.uint8)
        summary = reader.summary()
        assert summary.vouched_pixels == vouched.sum()
        assert summary.foreground_pixels == (vouched[labels > 0]).sum()
        slices = labels.reshape(-1, *shape[len(shape) - dim :])
        masks = vouched.reshape(slices.shape) > 0
        objects = sum(len(set(s[m].tolist()) - {0}) for s, m in zip(slices, masks, strict=True))
        assert summary.objects == objects


def test_only_chunks_that_changed_are_written(project: Project, blank: ImageReference):
    corrections = project.corrections(blank.id)
    labels = np.zeros((600, 700), np.int32)
    labels[250:260, 10:20] = 1  # in two chunks
    assert corrections.write(corrections.image.bounds, labels, labels > 0) == 2
    folder = project.folder / "corrections" / blank.id
    assert sorted(path.name for path in folder.iterdir()) == ["0_0.npz", "1_0.npz"]
    before = (folder / "0_0.npz").stat().st_mtime_ns
    labels[259, 10] = 2  # in the second
    assert corrections.write(corrections.image.bounds, labels, labels > 0) == 1
    assert (folder / "0_0.npz").stat().st_mtime_ns == before


def test_what_is_emptied_takes_no_file(project: Project, blank: ImageReference):
    corrections = project.corrections(blank.id)
    box = ((0, 4), (0, 4))
    corrections.write(box, np.ones((4, 4), int), np.ones((4, 4)))
    assert corrections.write(box, np.zeros((4, 4), int), np.zeros((4, 4))) == 1
    assert list((project.folder / "corrections" / blank.id).iterdir()) == []
    assert corrections.summary().vouched_pixels == 0


def test_an_edit_of_a_large_volume_costs_its_chunk(tmp_path: Path):
    """A volume that would take 64 GB: nothing may touch the whole of it."""
    shape, chunk = (1000, 4096, 4096), (16, 256, 256)
    corrections = corrections_of(tmp_path, shape, chunk, 3)
    box = ((500, 503), (2000, 2010), (2000, 2010))
    start = time.perf_counter()
    assert corrections.write(box, np.full((3, 10, 10), 7), np.ones((3, 10, 10))) == 1
    assert corrections.summary().objects == 1
    assert corrections.read(box)[0].min() == 7
    assert time.perf_counter() - start < 5
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 100_000


def test_a_reader_sees_what_the_writer_writes(project: Project, blank: ImageReference):
    with Project.open(project.folder, read_only=True) as reader:
        theirs, ours = reader.corrections(blank.id), project.corrections(blank.id)
        for count in (1, 2, 3):
            box = ((0, 1), (0, count))
            ours.write(box, np.arange(1, count + 1)[None], np.ones((1, count)))
            assert theirs.summary().objects == ours.summary().objects == count
            assert theirs.read(box)[0].tolist() == [list(range(1, count + 1))]
        with pytest.raises(ProjectError, match="reading only"):
            theirs.write(box, np.ones((1, 3), int), np.ones((1, 3)))
        with pytest.raises(ProjectError, match="reading only"):
            reader.note("nothing")


@pytest.mark.parametrize(
    ("bounds", "labels", "words"),
    [
        (((0, 2), (0, 701)), np.zeros((2, 701), int), "does not lie in 'blank'"),
        (((0, 2),), np.zeros(2, int), "does not lie in"),
        (((2, 2), (0, 2)), np.zeros((0, 2), int), "does not lie in"),
        (((0, 2), (-1, 2)), np.zeros((2, 3), int), "does not lie in"),
        (((0, 2), (0, 2)), np.zeros((2, 3), int), r"do not fit a box of shape \(2, 2\)"),
        (((0, 2), (0, 2)), np.zeros((2, 2)), "whole numbers, not float64"),
        (((0, 2), (0, 2)), np.full((2, 2), 2**24), "16777216 is too large"),
    ],
)
def test_what_does_not_fit_is_refused(project: Project, blank, bounds, labels, words: str):
    with pytest.raises(ProjectError, match=words):
        project.corrections(blank.id).write(bounds, labels, np.zeros(labels.shape))


# Regions


def test_polygon_is_filled_as_skimage_fills_it():
    from skimage.draw import polygon2mask

    rng = np.random.default_rng(1)
    for corners in (3, 4, 7, 20):  # twenty cross each other
        points = rng.uniform(-5, 45, (corners, 2)).round(3) + 0.0001
        mine = Region(((0, 40), (0, 30)), tuple(map(tuple, points.tolist()))).mask()
        assert np.array_equal(mine, polygon2mask((40, 30), points))


def test_complete_region_vouches_for_everything_inside(project: Project, blank, reopen):
    corrections = project.corrections(blank.id)
    region = Region.around([(100, 200), (100, 300), (300, 250)], (), blank.label_shape)
    assert region.bounds == ((100, 301), (200, 301))
    labels = np.zeros((201, 101), np.int32)
    labels[10:20, 40:60] = 5
    corrections.complete(region, labels)

    found = reopen(project).corrections(blank.id)
    assert found.regions == [region]
    assert np.array_equal(found.read(region.bounds)[1] > 0, region.mask())
    assert found.summary().vouched_pixels == region.mask().sum()
    assert (found.summary().objects, found.summary().regions) == (1, 1)


def test_removed_region_keeps_what_another_one_covers(project: Project, blank):
    corrections = project.corrections(blank.id)
    first, second = Region(((0, 20), (0, 20))), Region(((10, 30), (15, 35)))
    for region in (first, second):
        corrections.complete(region, np.zeros((20, 20), np.int32))
    corrections.remove_region(0)
    assert corrections.regions == [second]
    expected = np.zeros((40, 40))
    expected[10:30, 15:35] = 1
    assert np.array_equal(corrections.read(((0, 40), (0, 40)))[1], expected)
    with pytest.raises(ProjectError, match="no complete region 2"):
        corrections.remove_region(1)


def test_a_region_that_is_completed_again_is_one_region(project: Project, blank, reopen):
    corrections = project.corrections(blank.id)
    first, second = Region(((0, 20), (0, 20))), Region(((10, 30), (15, 35)))
    for region in (first, second, first):
        corrections.complete(region, np.zeros((20, 20), np.int32))
    corrections = reopen(project).corrections(blank.id)
    assert corrections.regions == [second, first]
    for _ in range(2):
        corrections.remove_region(0)
    assert corrections.summary().vouched_pixels == 0


def test_a_removed_region_leaves_what_was_vouched_for_on_its_own(project: Project, blank, reopen):
    corrections = project.corrections(blank.id)
    before, within, region = ((5, 9), (5, 9)), ((14, 16), (14, 16)), Region(((0, 20), (0, 260)))
    corrections.write(before, np.full((4, 4), 3), np.ones((4, 4)))
    labels = np.zeros((20, 260), np.int32)
    labels[5:9, 5:9] = 3
    corrections.complete(region, labels)
    corrections.write(within, np.full((2, 2), 4), np.ones((2, 2)), own=np.ones((2, 2)))
    # What is read and written again knows as much as before.
    corrections.write(region.bounds, *corrections.read(region.bounds))
    assert corrections.own(region.bounds).sum() == 20
    corrections = reopen(project).corrections(blank.id)
    assert corrections.read(region.bounds)[1].tolist() == np.ones((20, 260)).tolist()
    corrections.remove_region(0)
    expected = np.zeros((20, 260))
    expected[5:9, 5:9] = expected[14:16, 14:16] = 1
    assert np.array_equal(corrections.read(region.bounds)[1], expected)
    assert corrections.summary().objects == 2


def test_a_region_of_an_older_program_goes_with_all_it_holds(tmp_path: Path):
    """Its files do not tell what was checked apart from it."""
    shutil.copytree(Path(__file__).parent / "version-1", tmp_path / "old")
    with Project.open(tmp_path / "old") as project:
        corrections = project.corrections(project.images[0])
        (region,) = corrections.regions
        vouched = corrections.read(corrections.image.bounds)[1] > 0
        inside = region.inside(corrections.image.bounds)
        assert 0 < inside.sum() < vouched.sum()
        assert np.array_equal(corrections.own(corrections.image.bounds), vouched & ~inside)
        corrections.remove_region(0)
        left = corrections.read(corrections.image.bounds)[1] > 0
        assert np.array_equal(left, vouched & ~inside)


def test_a_region_is_the_same_in_every_box():
    rng = np.random.default_rng(2)
    for corners in (0, 3, 9):
        polygon = tuple(map(tuple, rng.uniform(-5, 45, (corners, 2)).round(1).tolist()))
        region = Region(((3, 7), (2, 38), (4, 30)), polygon)
        whole = np.zeros((9, 40, 40), bool)
        whole[3:7, 2:38, 4:30] = region.mask()
        for _ in range(20):
            low, high = np.sort(rng.integers(0, (9, 40, 40), (2, 3)), axis=0).tolist()
            box = tuple((a, b + 1) for a, b in zip(low, high, strict=True))
            place = tuple(slice(a, b) for a, b in box)
            assert np.array_equal(region.inside(box), whole[place])
        assert np.array_equal(covered(((0, 9), (0, 40), (0, 40)), [region] * 2), whole)


def test_empty_region_is_refused(project: Project, blank):
    sliver = Region(((0, 9), (0, 9)), ((1.2, 1.2), (1.4, 1.2), (1.4, 1.4)))
    with pytest.raises(ProjectError, match="holds no pixel"):
        project.corrections(blank.id).complete(sliver, np.zeros((9, 9), int))


def test_history_tells_the_counts(project: Project, blank: ImageReference):
    corrections = project.corrections(blank.id)
    for number in (1, 2, 3):
        corrections.write(((0, 1), (number, number + 1)), np.full((1, 1), number), np.ones((1, 1)))
    project.close()
    saved = [e for e in project.history() if e["event"] == "corrections saved"]
    assert [event["objects"] for event in saved] == [1, 3]  # at once, and at the end
    assert saved[-1]["image"] == blank.id
    assert saved[-1]["chunks"] == 2


def test_files_are_for_people_too(project: Project, blank: ImageReference):
    described = json.loads((project.folder / "project.json").read_text())
    assert described["format"] == "napari-tttunet project"
    assert (described["version"], described["classes"]) == (1, {"1": "nucleus"})
    assert json.loads((project.folder / "images" / "blank.json").read_text())["axes"] == "YX"
    assert (project.folder / "images" / "blank.npy").is_file()
    assert {"corrections", "models", "runs", "history.jsonl"} <= set(os.listdir(project.folder))
