"""Where to correct next."""

from __future__ import annotations

import numpy as np

from tttunet.inference.review import GAP_FOREGROUND, entropy, rank_places
from tttunet.measuring.places import Place, rank_groups


def disc(shape: tuple[int, ...], centre: tuple[float, ...], radius: float) -> np.ndarray:
    grid = np.indices(shape) - np.reshape(centre, (-1, *[1] * len(shape)))
    return (grid**2).sum(0) <= radius**2


def instance_maps(foreground: np.ndarray) -> np.ndarray:
    """Background, interior, boundary, distance."""
    nothing = np.zeros_like(foreground)
    return np.stack([1 - foreground, foreground, nothing, foreground]).astype(np.float32)


def a_scene() -> tuple[np.ndarray, np.ndarray]:
    """A sure disc, an unsure one, two discs that stick together, and a disc without label."""
    shape = (64, 64)
    discs = [disc(shape, c, 6) for c in ((12, 12), (12, 40), (40, 12), (40, 25), (40, 50))]
    labels = np.zeros(shape, np.uint32)
    labels[discs[0]], labels[discs[1]] = 7, 8
    labels[discs[2] | discs[3]] = 9
    foreground = np.full(shape, 0.01)
    for one, value in zip(discs, (0.99, 0.6, 0.99, 0.99, 0.7), strict=True):
        foreground[one] = value
    return instance_maps(foreground), labels


def test_entropy_goes_from_certain_to_undecided():
    certain, undecided = np.array([1.0, 0, 0]), np.full(3, 1 / 3)
    np.testing.assert_allclose(entropy(np.stack([certain, undecided], 1)), [0, 1], atol=1e-4)


def test_doubtful_objects_and_gaps_come_first():
    places = rank_places(*a_scene(), "instance")
    assert [place.doubt for place in places] == sorted((p.doubt for p in places), reverse=True)
    assert [place.kind for place in places].count("gap") == 1
    by_label = {place.label: place for place in places}
    assert set(by_label) == {0, 7, 8, 9}
    assert places[-1].label == 7, "a sure round object is the last to look at"
    assert by_label[9].doubt > by_label[7].doubt + 0.1, "dents count"
    gap = by_label[0]
    np.testing.assert_allclose(gap.centre, (40, 50), atol=0.5)
    assert gap.bounds == ((34, 47), (44, 57))
    np.testing.assert_allclose(gap.doubt, 0.7, atol=1e-3)
    np.testing.assert_allclose(by_label[8].centre, (12, 40), atol=0.5)
    assert by_label[8].bounds == ((6, 19), (34, 47))


def test_faint_or_tiny_patches_are_no_gaps():
    maps, labels = a_scene()
    maps = instance_maps(np.where(maps[1] == np.float32(0.7), GAP_FOREGROUND - 0.01, maps[1]))
    maps[:3, 60, 60] = 0, 1, 0
    assert all(place.kind == "object" for place in rank_places(maps, labels, "instance"))


def test_an_image_without_objects_and_one_without_anything():
    maps, labels = a_scene()
    only_gaps = rank_places(maps, np.zeros_like(labels), "instance")
    assert {place.kind for place in only_gaps} == {"gap"}
    assert len(only_gaps) == 4
    nothing = instance_maps(np.full((32, 32), 0.01))
    assert rank_places(nothing, np.zeros((32, 32), np.uint32), "instance") == []


def test_parts_of_classes_are_places_in_3d():
    shape = (16, 32, 32)
    first, second = disc(shape, (8, 8, 8), 5), disc(shape, (8, 8, 23), 5)
    other = disc(shape, (8, 23, 16), 5)
    labels = np.zeros(shape, np.uint8)
    labels[first | second], labels[other] = 1, 4
    maps = np.zeros((3, *shape), np.float32)
    maps[1][first], maps[1][second], maps[2][other] = 1, 0.6, 0.9
    maps[0] = 1 - maps[1:].sum(0)
    places = rank_places(maps, labels, "semantic")
    assert [place.kind for place in places] == ["object"] * 3
    assert [place.label for place in places] == [1, 4, 1], "the classes, not numbers of parts"
    np.testing.assert_allclose(places[0].centre, (8, 8, 23), atol=0.1)
    np.testing.assert_allclose(places[1].centre, (8, 23, 16), atol=0.1)


def test_groups_by_their_most_doubtful_places():
    def place(doubt: float) -> Place:
        return Place("object", 1, (0.0, 0.0), ((0, 1), (0, 1)), doubt)

    found = [("a", place(0.4)), ("b", place(0.5)), ("a", place(0.3)), ("b", place(0.0))]
    assert [name for name, _ in rank_groups(found, count=2)] == ["a", "b"]
    assert [name for name, _ in rank_groups(found, count=1)] == ["b", "a"]
    assert rank_groups([]) == []
