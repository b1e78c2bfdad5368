"""From vouched pixels to what training reads, and what is said about them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tttunet.imaging import load_image, load_labels
from tttunet.projects import (
    Project,
    Region,
    check,
    contradictions,
    describe,
    samples,
    training_labels,
    vouch_object,
)
from tttunet.projects.findings import far_apart

SAMPLES = Path(__file__).resolve().parents[2] / "resources" / "samples"


def test_samples_of_a_real_image(project: Project, cells):
    """Five checked nuclei: their pixels are those of the image, nothing else is labelled."""
    path, labels = cells
    image = project.add_image(path)
    vouched = np.zeros(labels.shape, np.uint8)
    for number in range(1, 6):
        vouched = vouch_object(labels, vouched, number)
    project.corrections(image).write(image.bounds, labels, vouched)
    expected = training_labels(labels, vouched)
    pixels = load_image(path)

    found = list(samples(project))
    assert len({sample.name for sample in found}) == len(found)
    seen = np.full(labels.shape, -1)
    for name, reference, bounds, part in found:
        assert name.startswith(image.id)
        assert reference == image
        assert part.dtype == np.int32
        place = tuple(slice(a, b) for a, b in bounds)
        known = part >= 0
        assert (seen[place][known] == -1).all()  # every pixel once
        seen[place][known] = part[known]
        crop = project.crop(reference, bounds)
        assert crop.spatial_shape == part.shape
        axis = pixels.axes.find("C")
        whole_place = (*place[:axis], slice(None), *place[axis:]) if axis >= 0 else place
        assert np.array_equal(crop.array, pixels.array[whole_place])
    assert np.array_equal(seen, expected)
    assert describe(project) == "5 objects on 1 image"


@st.composite
def spots(draw: st.DrawFn):
    dim = draw(st.sampled_from([2, 3]))
    shape = (3, 600, 800) if dim == 2 else (40, 300, 520)
    count = draw(st.integers(1, 7))
    boxes = []
    for _ in range(count):
        size = [1 if axis == 0 and dim == 2 else draw(st.integers(1, 40)) for axis in range(3)]
        size = [min(s, n) for s, n in zip(size, shape, strict=True)]
        start = [draw(st.integers(0, n - s)) for s, n in zip(size, shape, strict=True)]
        boxes.append(tuple((a, a + s) for a, s in zip(start, size, strict=True)))
    return dim, shape, boxes


@given(spots(), st.sampled_from([None, 0, 5]))
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_vouched_pixel_is_in_one_sample(tmp_path_factory, spotted, margin):
    dim, shape, boxes = spotted
    folder = tmp_path_factory.mktemp("spots") / "p"
    labels, vouched = np.zeros(shape, np.int32), np.zeros(shape, np.uint8)
    with Project.create(folder, dim=dim) as project:
        (folder.parent / "x").write_bytes(b"x")
        image = project.add_image(folder.parent / "x", axes="ZYX", shape=shape)
        for number, box in enumerate(boxes, start=1):
            place = tuple(slice(a, b) for a, b in box)
            labels[place], vouched[place] = number % 4, 1
            project.corrections(image).write(box, labels[place], vouched[place])
        expected = training_labels(labels, vouched)
        seen = np.full(shape, -1, np.int32)
        for sample in samples(project, margin=margin):
            assert sample.labels.ndim == dim
            place = tuple(slice(a, b) for a, b in sample.bounds)
            if dim == 2:
                assert sample.bounds[0][1] - sample.bounds[0][0] == 1
            part = sample.labels.reshape(seen[place].shape)
            assert (part >= 0).any()
            assert (seen[place][part >= 0] == -1).all()
            seen[place][part >= 0] = part[part >= 0]
        assert np.array_equal(seen, expected)


def test_slices_of_a_real_stack(tmp_path: Path):
    """A 2D project takes a volume slice by slice; one that was looked at costs one slice."""
    path = SAMPLES / "ovule_nuclei.ome.tif"
    labels = load_labels(SAMPLES / "ovule_nuclei_labels.ome.tif").array.astype(np.int32)
    with Project.create(tmp_path / "p") as project:
        image = project.add_image(path)
        assert image.label_axes == "ZYX"
        depth = labels.shape[0] // 2
        counts = []
        for z in (depth, depth + 1):
            vouched = np.zeros(labels[z].shape, np.uint8)
            numbers = [n for n in np.unique(labels[z]) if n][:3]
            for number in numbers:
                vouched = vouch_object(labels[z], vouched, int(number))
            bounds = ((z, z + 1), *image.bounds[1:])
            project.corrections(image).write(bounds, labels[z][None], vouched[None])
            counts.append(len(numbers))
        found = list(samples(project))
        assert {sample.bounds[0] for sample in found} == {
            (depth, depth + 1),
            (depth + 1, depth + 2),
        }
        pixels = load_image(path).array
        for sample in found:
            assert sample.labels.ndim == 2
            crop = project.crop(sample.image, sample.bounds)
            assert crop.axes == "YX"
            (z, _), (top, bottom), (left, right) = sample.bounds
            assert np.array_equal(crop.array, pixels[z, top:bottom, left:right])
        # The same nucleus in two slices is two objects to learn from.
        assert describe(project) == f"{sum(counts)} objects on 1 image"


def test_film_of_volumes(tmp_path: Path):
    with Project.create(tmp_path / "p", dim=3) as project:
        film = project.add_image(np.zeros((3, 8, 20, 20), np.uint8), axes="TZYX")
        box = ((2, 3), (1, 5), (4, 9), (4, 9))
        project.corrections(film).write(box, np.ones((1, 4, 5, 5), int), np.ones((1, 4, 5, 5)))
        (sample,) = samples(project)
        assert (sample.labels.shape, sample.bounds[0]) == ((8, 20, 20), (2, 3))
        assert project.crop(film, sample.bounds).axes == "ZYX"
        assert (sample.labels == 1).sum() == 100


def test_far_corners_of_a_volume_do_not_cost_the_volume(tmp_path: Path):
    (tmp_path / "x").write_bytes(b"x")
    with Project.create(tmp_path / "p", dim=3) as project:
        image = project.add_image(tmp_path / "x", axes="ZYX", shape=(500, 5000, 5000))
        for start in (0, 250, 490):
            box = tuple((start, start + 5) for _ in range(3))
            project.corrections(image).write(box, np.ones((5, 5, 5), int), np.ones((5, 5, 5)))
        sizes = [sample.labels.size for sample in samples(project)]
        assert len(sizes) == 3
        assert max(sizes) < 150_000


def test_a_chain_of_objects_does_not_cost_the_whole_image(tmp_path: Path):
    """Each lies near the next one, from corner to corner."""
    (tmp_path / "x").write_bytes(b"x")
    with Project.create(tmp_path / "p") as project:
        image = project.add_image(tmp_path / "x", axes="YX", shape=(3000, 3000))
        labels = np.zeros(image.label_shape, np.int32)
        for number, start in enumerate(range(0, 3000, 50), start=1):
            labels[start : start + 10, start : start + 10] = number
        project.corrections(image).write(image.bounds, labels, labels > 0)
        found = list(samples(project))
        assert max(sample.labels.size for sample in found) <= (512 + 2 * 32) ** 2
        assert sum((sample.labels > 0).sum() for sample in found) == (labels > 0).sum()


def test_large_region_is_one_sample(project: Project, blank):
    """So that an object on the border of two chunks is not cut."""
    region = Region(((50, 550), (100, 650)))
    project.corrections(blank).complete(region, np.ones((500, 550), int))
    (sample,) = samples(project, margin=0)
    assert sample.bounds == region.bounds
    assert (sample.labels == 1).all()


# In words


def put(project: Project, labels: np.ndarray, vouched: np.ndarray | None = None) -> None:
    """Vouch for everything in an image of its own, or for a part."""
    image = project.add_image(np.full(labels.shape, len(project.images), np.uint8), name="i")
    mask = np.ones(labels.shape) if vouched is None else vouched
    project.corrections(image).write(image.bounds, labels, mask)


def texts(project: Project, **arguments) -> list[str]:
    return [finding.text for finding in check(project, **arguments)]


def test_nothing_checked(project: Project, blank):
    assert describe(project) == "nothing is checked yet"
    (finding,) = check(project)
    assert finding.stops
    assert finding.text.startswith("Nothing is checked yet, so there is nothing to learn from.")


def test_what_there_is_nothing_of_is_not_named(project: Project, blank):
    corrections = project.corrections(blank)
    corrections.write(((0, 2), (0, 3)), np.zeros((2, 3), int), np.ones((2, 3)))
    assert describe(project) == "6 pixels of background on 1 image"
    corrections.complete(Region(((5, 9), (5, 9))), np.zeros((4, 4), int))
    assert describe(project) == "1 complete region on 1 image"


def test_only_background(project: Project):
    put(project, np.zeros((20, 20), int))
    (finding,) = check(project)
    assert finding == ("Only background is checked: no object. Mark some, or a region that holds "
                       "some.", True)  # fmt: skip


def test_only_objects(project: Project):
    labels = np.zeros((20, 20), int)
    labels[5:9, 5:9] = 1
    put(project, labels, labels > 0)
    (finding,) = check(project)
    assert not finding.stops
    assert finding.text.startswith("No background is checked")


def test_sound_annotations_are_not_criticised(project: Project, cells):
    path, labels = cells
    image = project.add_image(path)
    project.corrections(image).write(image.bounds, labels, np.ones(labels.shape))
    assert check(project) == []
    assert contradictions(labels) == []


def test_object_in_pieces_far_apart(project: Project):
    labels = np.zeros((300, 300), int)
    labels[10:20, 10:20] = labels[280:290, 280:290] = 7  # in two chunks
    labels[10:20, 40:50] = labels[10:20, 53:60] = 8  # near each other: may be one
    put(project, labels)
    assert texts(project) == [
        "Object 7 in 'i' is in 2 pieces far apart; objects need different numbers."
    ]
    # Where the user has not looked between the pieces, nobody knows.
    assert contradictions(labels) == [
        "Object 7 is in 2 pieces far apart; objects need different numbers."
    ]
    labels[12, 20] = -1
    assert contradictions(labels) == []


def test_the_same_number_in_two_slices_is_no_contradiction(tmp_path: Path):
    with Project.create(tmp_path / "p") as project:
        labels = np.zeros((2, 100, 100), int)
        labels[0, 2:9, 2:9] = labels[1, 80:90, 80:90] = 1
        image = project.add_image(np.zeros(labels.shape, np.uint8), axes="ZYX")
        project.corrections(image).write(image.bounds, labels, np.ones(labels.shape))
        assert check(project) == []
        labels[1, 50, 50] = 3
        project.corrections(image).write(image.bounds, labels, np.ones(labels.shape))
        assert texts(project) == ["Object 3 in 'image', Z = 1 has only 1 pixel."]


def test_many_slips_give_few_sentences(project: Project):
    labels = np.zeros((60, 60), int)
    labels[::6, ::6] = np.arange(1, 101).reshape(10, 10)
    put(project, labels)
    assert texts(project)[0] == "Object 1 in 'i' has only 1 pixel."
    assert texts(project)[5:] == ["The same goes for 95 more objects."]


def test_classes_that_nobody_knows(tmp_path: Path):
    with Project.create(
        tmp_path / "p", task="semantic", classes={1: "nucleus", 2: "cytoplasm", 3: "membrane"}
    ) as project:
        put(project, np.array([[0, 1, 1], [2, 3, 4]]))
        assert describe(project) == "6 pixels of 4 classes on 1 image"
        found = check(project, {1: "Nucleus", 2: "background stain"})
        assert [finding.stops for finding in found] == [True, False, False]
        assert [finding.text for finding in found] == [
            "Class 4 is painted, but the project has no such class. Add it to the classes of the "
            "project, or paint it over.",
            "Class 2 is 'cytoplasm' in the project but 'background stain' in the model.",
            "The model does not know class 3 ('membrane'); its last layer will be trained anew.",
        ]


def test_several_classes_need_no_background(tmp_path: Path):
    with Project.create(tmp_path / "p", task="semantic", classes={1: "a", 2: "b"}) as project:
        put(project, np.array([[1, 2]]))
        assert check(project) == []


def test_one_array():
    assert contradictions(np.full((3, 3), -1)) == [
        "Nothing is checked yet, so there is nothing to learn from."
    ]
    assert contradictions(np.zeros((3, 3), int)) == ["Only background is checked."]
    (sentence,) = contradictions(np.array([[0, 5]]), task="semantic", classes={1: "a"})
    assert sentence.startswith("Class 5 is painted")


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([((0, 5), (0, 5))], False),
        ([((0, 5), (0, 5)), ((0, 5), (15, 20))], False),
        ([((0, 5), (0, 5)), ((0, 5), (16, 20))], True),
        ([((0, 5), (0, 30)), ((0, 5), (60, 62))], False),  # less than it is long
        ([((0, 5), (0, 30)), ((0, 5), (61, 62))], True),
        ([((0, 5), (0, 5)), ((0, 5), (14, 15)), ((0, 5), (24, 26))], False),  # a chain
    ],
)
def test_far_is_more_than_the_length_of_the_largest_piece(boxes, expected: bool):
    assert far_apart(boxes) is expected
