from __future__ import annotations

import json
import os

import numpy as np
import pytest
import tifffile
from PIL import Image as PillowImage

from tttunet.errors import DatasetError
from tttunet.models.config import Plan
from tttunet.training.dataset import open_dataset
from tttunet.training.prepare import IGNORE, prepare

PLAN = Plan(patch_size=(16, 16), channels="rgb")


def describe(folder, **content):
    folder.mkdir(exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def cells(tmp_path):
    """Six RGB images of 24 x 20 pixels with two objects each, in three groups."""
    folder = tmp_path / "cells"
    rng = np.random.default_rng(0)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    names = [f"c{i}" for i in range(6)]
    for name in names:
        pixels = rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)
        PillowImage.fromarray(pixels).save(folder / "images" / f"{name}.png")
        label = np.zeros((24, 20), np.uint16)
        label[2:6, 2:6], label[10:15, 8:12] = 1, 300
        tifffile.imwrite(folder / "labels" / f"{name}.tif", label)
    return describe(
        folder,
        title="Cells",
        dim=2,
        task="instance",
        licence="CC0-1.0",
        classes={"0": "background", "1..N": "nucleus instances"},
        group={name: f"g{i // 2}" for i, name in enumerate(names)},
        image_modality={name: "fluorescence" for name in names[:4]},
    )


@pytest.fixture
def volumes(tmp_path):
    """Two nnU-Net volumes of two channels with an ignore label."""
    import SimpleITK

    folder = tmp_path / "Dataset001_Box"
    rng = np.random.default_rng(0)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for name in ("a", "b"):
        for channel in range(2):
            volume = SimpleITK.GetImageFromArray(rng.normal(size=(8, 10, 12)).astype(np.float32))
            SimpleITK.WriteImage(volume, str(folder / "imagesTr" / f"{name}_{channel:04d}.nii.gz"))
        label = np.zeros((8, 10, 12), np.uint8)
        label[2:4], label[4:6], label[7] = 1, 2, 3
        SimpleITK.WriteImage(
            SimpleITK.GetImageFromArray(label), str(folder / "labelsTr" / f"{name}.nii.gz")
        )
    return describe(
        folder,
        channel_names={"0": "T1", "1": "T2"},
        labels={"background": 0, "front": 1, "back": 2, "ignore": 3},
        numTraining=2,
        file_ending=".nii.gz",
    )


def edit(folder, **changes):
    path = folder / "dataset.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def test_own_layout_splits_by_group(cells):
    dataset = open_dataset(cells)
    assert (dataset.task, dataset.dim, dataset.licence) == ("instance", 2, "CC0-1.0")
    assert dataset.classes == {1: "nucleus"}
    groups = {split: {case.group for case in cases} for split, cases in dataset.cases.items()}
    assert len(groups["val"]) == 1
    assert not groups["train"] & groups["val"]
    assert open_dataset(cells) == dataset


def test_given_split_and_modality(cells):
    edit(cells, split={"train": ["c1", "c5"], "val": []}, dim="2 (serial sections)")
    dataset = open_dataset(cells)
    assert [case.name for case in dataset.cases["train"]] == ["c1", "c5"]
    assert [case.modality for case in dataset.cases["train"]] == ["fluorescence", None]
    assert dataset.cases["val"] == []


def test_nnunet_layout(volumes):
    dataset = open_dataset(volumes)
    assert (dataset.task, dataset.dim, dataset.ignore) == ("semantic", 3, 3)
    assert dataset.classes == {1: "front", 2: "back"}
    assert {split: len(cases) for split, cases in dataset.cases.items()} == {"train": 1, "val": 1}
    (case,) = prepare(dataset, Plan(patch_size=(8, 8, 8), normalisation="zscore"), channels=2)
    image, label, locations = case.open()
    assert image.shape == (2, 8, 10, 12)
    assert image.dtype == np.float16
    assert set(np.unique(label)) == {IGNORE, 0, 1, 2}
    assert np.all(label[tuple(locations[:, 1:].T)] == locations[:, 0])
    assert set(locations[:, 0]) == {1, 2}


def test_nnunet_rgb_in_one_file(tmp_path):
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / part).mkdir()
    PillowImage.new("RGB", (8, 8)).save(tmp_path / "imagesTr" / "x_0000.png")
    PillowImage.new("L", (8, 8)).save(tmp_path / "labelsTr" / "x.png")
    describe(
        tmp_path,
        channel_names={"0": "R", "1": "G", "2": "B"},
        labels={"background": 0, "polyp": 1},
        file_ending=".png",
    )
    dataset = open_dataset(tmp_path)
    assert dataset.dim == 2
    assert [p.name for p in dataset.cases["train"][0].images] == ["x_0000.png"]


def test_cache_is_used_and_renewed(cells, tmp_path):
    dataset, cache = open_dataset(cells), tmp_path / "cache"
    calls = []
    first = prepare(dataset, PLAN, cache, lambda done, total: calls.append((done, total)))
    assert calls[-1] == (4, 4)
    image, label, _ = first[0].open()
    assert isinstance(image, np.memmap)
    assert (image.shape, label.dtype) == ((3, 24, 20), np.int32)
    assert set(np.unique(label)) == {0, 1, 300}
    written = first[0].image.stat().st_mtime_ns
    assert prepare(dataset, PLAN, cache) == first
    assert first[0].image.stat().st_mtime_ns == written

    os.utime(dataset.cases["train"][0].label, ns=(1, 1))
    assert prepare(dataset, PLAN, cache)[0].image != first[0].image
    other = prepare(dataset, PLAN.model_copy(update={"percentiles": (1.0, 99.0)}), cache)
    assert not {case.image for case in other} & {case.image for case in first}
    assert not list(cache.rglob("*.tmp*"))


def test_image_without_objects(cells, tmp_path):
    case = open_dataset(cells).cases["train"][0]
    tifffile.imwrite(case.label, np.zeros((24, 20), np.uint16))
    image, label, locations = prepare(open_dataset(cells), PLAN, tmp_path / "cache")[0].open()
    assert image.shape[1:] == label.shape
    assert locations.shape == (0, 3)


def test_in_memory_equals_cached(cells, tmp_path):
    dataset = open_dataset(cells)
    kept, cached = prepare(dataset, PLAN)[1], prepare(dataset, PLAN, tmp_path / "cache")[1]
    for a, b in zip(kept.open(), cached.open(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": {"train": ["nobody"]}}, "nobody"),
        ({"split": {"train": []}}, "no training cases"),
        ({"split": ["c0"]}, "split"),
        ({"task": "guess"}, "task"),
        ({"dim": None}, "dim"),
        ({"group": ["g0"]}, "group"),
        ({"task": "semantic", "classes": {}}, "classes"),
    ],
)
def test_bad_description(cells, changes, message):
    edit(cells, **changes)
    with pytest.raises(DatasetError, match=message):
        open_dataset(cells)


def test_bad_folders(cells, volumes, tmp_path):
    with pytest.raises(DatasetError, match=r"dataset\.json does not exist"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="neither"):
        open_dataset(describe(tmp_path / "odd", dim=2))
    (cells / "labels" / "c3.tif").unlink()
    with pytest.raises(DatasetError, match="label of c3"):
        open_dataset(cells)
    (cells / "dataset.json").write_text("{")
    with pytest.raises(DatasetError, match="cannot be read"):
        open_dataset(cells)
    (volumes / "imagesTr" / "b_0000.nii.gz").unlink()
    with pytest.raises(DatasetError, match="b_0000"):
        open_dataset(volumes)
    edit(volumes, numTraining=7)
    with pytest.raises(DatasetError, match="not 7"):
        open_dataset(volumes)
    edit(volumes, labels={"background": 0, "both": [1, 2]})
    with pytest.raises(DatasetError, match="regions_class_order"):
        open_dataset(volumes)


def test_label_must_fit(cells):
    train = open_dataset(cells).cases["train"]
    tifffile.imwrite(train[0].label, np.zeros((24, 21), np.uint16))
    with pytest.raises(DatasetError, match="shape"):
        prepare(open_dataset(cells), PLAN)
    edit(cells, task="semantic", classes={"0": "background", "1": "cell"})
    tifffile.imwrite(train[0].label, np.full((24, 20), 7, np.uint16))
    with pytest.raises(DatasetError, match="without a class"):
        prepare(open_dataset(cells), PLAN)
