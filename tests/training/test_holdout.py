import numpy as np
import pytest

from tiny import blobs
from tttunet.training.holdout import hold_out
from tttunet.training.prepare import FOREGROUND, IGNORE
from tttunet.training.samples import Sample


def sample(seed: int, shape=(64, 96), count=12, **options) -> Sample:
    image, labels = blobs(seed, shape, count)
    return Sample(f"image{seed}", image, labels, **options)


def sides(samples, train, val):
    """Per sample, the labels on both sides, IGNORE where it is on none."""
    for one in samples:
        found = []
        for side in (train, val):
            same = [other.labels for other in side if other.name == one.name]
            found.append(same[0] if same else np.full_like(one.labels, IGNORE))
        yield one.labels, *found


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("task", ["instance", "semantic"])
@pytest.mark.parametrize("seed", range(3))
def test_few_images_are_cut_and_no_pixel_is_on_both_sides(count, task, seed):
    samples = [sample(i) for i in range(count)]
    if task == "semantic":
        samples = [Sample(s.name, s.image, (s.labels > 0).astype(np.int32)) for s in samples]
    train, val = hold_out(samples, task, seed)
    assert len(train) == len(val) == count
    for labels, ours, theirs in sides(samples, train, val):
        assert not ((ours != IGNORE) & (theirs != IGNORE)).any()
        assert np.array_equal(np.where(ours == IGNORE, theirs, ours), labels)
        if task == "instance":
            objects = set(np.unique(labels)) - {0}
            first, second = (set(np.unique(x)) - {0, IGNORE} for x in (ours, theirs))
            assert first | second == objects
            assert not first & second
            assert 1 <= len(second) <= len(objects) / 2
        else:
            assert 0.15 < (theirs != IGNORE).mean() < 0.35


def test_four_images_are_held_out_whole():
    samples = [sample(i, group=f"group{i // 2}") for i in range(8)]
    train, val = hold_out(samples, "instance", seed=1)
    assert {s.group for s in train} | {s.group for s in val} == {f"group{i}" for i in range(4)}
    assert len({s.group for s in val}) == 1
    assert not {s.group for s in train} & {s.group for s in val}
    assert all(s in samples for s in (*train, *val))


def test_the_seed_decides():
    samples = [sample(i) for i in range(6)]
    held = [{s.name for s in hold_out(samples, "instance", seed)[1]} for seed in range(8)]
    assert held[3] == {s.name for s in hold_out(samples, "instance", 3)[1]}
    assert len({frozenset(names) for names in held}) > 1


def test_only_what_somebody_looked_at_is_divided():
    labels = np.full((100, 60), IGNORE, np.int32)
    labels[10:50, 20:40] = 0
    for value, row in enumerate((12, 22, 32, 42), start=1):
        labels[row : row + 5, 25:35] = value
    (train,), (val,) = hold_out([Sample("a", np.zeros((1, 100, 60)), labels)], "instance")
    assert ((train.labels != IGNORE) | (val.labels != IGNORE)).sum() == 40 * 20
    assert len(np.unique(val.labels)) == 3  # IGNORE, background, one of four objects


def test_clumps_count_as_objects():
    labels = np.zeros((20, 60), np.int32)
    labels[5:15, 5:15], labels[5:15, 40:50] = FOREGROUND, 1
    (train,), (val,) = hold_out([Sample("a", np.zeros((1, 20, 60)), labels)], "instance")
    found = [{FOREGROUND, 1} & set(np.unique(side.labels)) for side in (train, val)]
    assert sorted(map(len, found)) == [1, 1]


def test_too_little_to_hold_out():
    one = np.zeros((20, 60), np.int32)
    one[5:15, 5:15] = 1
    lonely = Sample("a", np.zeros((1, 20, 60)), one)
    assert hold_out([lonely], "instance") == ([lonely], [])
    few = Sample("b", np.zeros((1, 10, 10)), np.ones((10, 10), np.int32))
    assert hold_out([few], "semantic") == ([few], [])


def test_objects_far_apart():
    samples = []
    for number in range(1, 9):
        labels = np.full((20, 20), IGNORE, np.int32)
        labels[4:16, 4:16], labels[6:14, 6:14] = 0, number
        samples.append(Sample(f"z{number}", np.zeros((1, 20, 20)), labels, group="one image"))
    train, val = hold_out(samples, "instance")
    assert (len(train), len(val)) == (6, 2)
    assert {s.name for s in train} | {s.name for s in val} == {s.name for s in samples}


def test_the_training_keeps_every_class():
    labels = np.zeros((40, 80), np.int32)
    labels[10:30, 2:10], labels[10:30, 30:75] = 1, 2  # class 1 at one end only
    for seed in range(6):
        (train,), (val,) = hold_out([Sample("a", np.zeros((1, 40, 80)), labels)], "semantic", seed)
        assert {1, 2} <= set(np.unique(train.labels))
        assert (val.labels > 0).any()


def test_a_class_per_image_is_cut_within_the_images():
    """No choice of whole images leaves the training every class."""
    samples = []
    for value in range(1, 5):
        one = sample(value)
        samples.append(Sample(one.name, one.image, (one.labels > 0) * np.int32(value)))
    train, val = hold_out(samples, "semantic")
    assert len(train) == len(val) == 4
    for value, ours, theirs in zip(range(1, 5), train, val, strict=True):
        assert value in ours.labels
        assert value in theirs.labels
        assert not ((ours.labels != IGNORE) & (theirs.labels != IGNORE)).any()
