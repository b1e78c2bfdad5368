import numpy as np

from tttunet.inference.instances import clean_instances, decode_instances
from tttunet.models.config import InstanceDecoding


def disc_maps(centres, radius, shape=(64, 64)):
    """Ideal maps of discs, overlapping ones split half way."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    distance = np.stack([radius - np.linalg.norm(grid - c, axis=-1) for c in centres]).max(0)
    inside = distance > 0
    boundary = inside & (distance <= 1.5)
    maps = np.stack([~inside, inside & ~boundary, boundary, np.clip(distance / radius, 0, 1)])
    return maps.astype(np.float32)


def test_touching_discs_separate():
    labels = decode_instances(disc_maps([(30, 20), (30, 38)], 10), InstanceDecoding())
    assert labels.max() == 2
    assert labels[30, 20] != labels[30, 38]


def test_an_object_without_a_peak_is_kept():
    maps = disc_maps([(30, 30)], 8)
    maps[3] *= 0.1
    assert decode_instances(maps, InstanceDecoding()).max() == 1


def test_small_dents_do_not_split_an_object():
    maps = disc_maps([(30, 30)], 12)
    rng = np.random.default_rng(0)
    maps[3] += 0.05 * rng.standard_normal(maps[3].shape).astype(np.float32) * (maps[3] > 0)
    assert decode_instances(maps, InstanceDecoding()).max() == 1
    assert decode_instances(maps, InstanceDecoding(prominence=0.001, smoothing=0)).max() > 1


def test_thresholds_and_sizes_are_used():
    maps = disc_maps([(20, 20), (45, 45)], 6)
    second = (slice(None), slice(38, 53), slice(38, 53))
    inside = maps[0][second[1:]] == 0
    maps[0][second[1:]][inside] = 0.45
    assert decode_instances(maps, InstanceDecoding(foreground=0.5, confidence=0.5)).max() == 2
    assert decode_instances(maps, InstanceDecoding(foreground=0.6, confidence=0.5)).max() == 1
    assert decode_instances(maps, InstanceDecoding(foreground=0.5, confidence=0.7)).max() == 1
    assert decode_instances(maps, InstanceDecoding(min_size=1000)).max() == 0


def test_empty_maps_give_no_objects():
    maps = np.zeros((4, 16, 16), np.float32)
    maps[0] = 1
    labels = decode_instances(maps, InstanceDecoding())
    assert labels.dtype == np.uint32
    assert not labels.any()


def test_cleaning_fills_holes_without_touching_neighbours():
    labels = np.zeros((20, 20), np.int64)
    labels[2:12, 2:12] = 5
    labels[4:6, 4:6] = 0
    labels[8:10, 8:10] = 9
    labels[15, 15] = 2
    cleaned = clean_instances(labels, min_size=3, fill_holes=True)
    assert sorted(np.unique(cleaned)) == [0, 1, 2]
    assert (cleaned[4:6, 4:6] == cleaned[2, 2]).all()
    assert (cleaned[8:10, 8:10] != cleaned[2, 2]).all()
    assert clean_instances(labels, 3, fill_holes=False)[4, 4] == 0
