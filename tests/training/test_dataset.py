from __future__ import annotations

import json
import os

import numpy as np
import pytest
import tifffile
from PIL import Image as PillowImage

from tttunet.errors import DatasetError
from tttunet.models.config import Plan
from tttunet.training.dataset import open_dataset, survey
from tttunet.training.folds import with_fold
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


def test_labels_without_image_are_not_used(cells):
    (cells / "images" / "c4.png").unlink()
    dataset, problems = survey(cells)
    assert [(problem.where, problem.fatal) for problem in problems] == [("c4", False)]
    assert open_dataset(cells) == dataset
    assert sum(map(len, dataset.cases.values())) == 5


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


def test_nnunet_regions(volumes):
    """Nested regions become the classes that nnU-Net would write."""
    edit(
        volumes,
        labels={"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3},
        regions_class_order=[1, 2, 5],
    )
    dataset = open_dataset(volumes)
    assert dataset.classes == {1: "whole", 2: "core", 5: "enhancing"}
    assert dataset.merged == {3: 5}
    assert dataset.ignore is None
    (case,) = prepare(dataset, Plan(patch_size=(8, 8, 8), normalisation="zscore"), channels=2)
    _, label, _ = case.open()
    assert [label[2, 0, 0], label[4, 0, 0], label[7, 0, 0], label[0, 0, 0]] == [1, 2, 5, 0]


def test_nnunet_regions_that_cannot_be_told_apart(volumes):
    edit(
        volumes,
        labels={"background": 0, "both": [1, 2], "ignore": 3},
        regions_class_order=[1],
    )
    dataset = open_dataset(volumes)
    assert (dataset.classes, dataset.merged, dataset.ignore) == ({1: "both"}, {2: 1}, 3)
    (case,) = prepare(dataset, Plan(patch_size=(8, 8, 8), normalisation="zscore"), channels=2)
    assert set(np.unique(case.open()[1])) == {IGNORE, 0, 1}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"background": 0, "a": 1, "b": 1}, "same number"),
        ({"background": 0, "a": "one"}, "names to numbers"),
        ({"background": 0, "a": 1, "ignore": [2, 3]}, "one number"),
        ([0, 1], "names to numbers"),
        ({"background": 0, "ignore": 1}, "no class"),
    ],
)
def test_bad_nnunet_labels(volumes, labels, message):
    edit(volumes, labels=labels)
    with pytest.raises(DatasetError, match=message):
        open_dataset(volumes)


def test_all_missing_files_are_counted(volumes):
    for path in (volumes / "imagesTr").iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match=r"a_0000.*1 more"):
        open_dataset(volumes)


@pytest.fixture
def table(cells):
    """The images of `cells` as a table beside them, without a description."""
    (cells / "dataset.json").unlink()
    rows = [f"images/c{i}.png,labels/c{i}.tif,g{i // 2}" for i in range(6)]
    path = cells / "pairs.csv"
    path.write_text("\n".join(["Image,Label,Group", *rows]))
    return path


def test_table_of_pairs(table):
    for number in range(6):
        label = np.zeros((24, 20), np.uint8)
        label[3:9], label[12:15] = 2, 5
        tifffile.imwrite(table.parent / "labels" / f"c{number}.tif", label)
    dataset = open_dataset(table)
    assert (dataset.name, dataset.task, dataset.dim) == ("pairs", "semantic", 2)
    assert dataset.classes == {2: "class 2", 5: "class 5"}
    assert [len(dataset.cases[split]) for split in ("train", "val")] == [4, 2]
    assert len({case.group for case in dataset.cases["val"]}) == 1
    assert len(prepare(dataset, PLAN)) == 4


def test_table_with_description_and_split(table):
    table.with_suffix(".json").write_text(json.dumps({"task": "instance", "dim": 2}))
    lines = table.read_text().splitlines()
    lines = [
        f"{lines[0]},split",
        *(f"{x},{'val' if i == 1 else ''}" for i, x in enumerate(lines[1:])),
    ]
    table.write_text("\n".join(lines).replace(",", ";"))
    dataset = open_dataset(table)
    assert dataset.task == "instance"
    assert [case.name for case in dataset.cases["val"]] == ["c1"]
    assert len(dataset.cases["train"]) == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("picture,label\na,b\n", "columns `image` and `label`"),
        ("image,label\nnowhere.png,labels/c0.tif\n", "nowhere.png does not exist"),
        ("image,label\nimages/c0.png,\n", "line 2 lacks"),
        ("image,label,split\nimages/c0.png,labels/c0.tif,test\n", "not 'test'"),
        ("image,label\nimages/c0.png,labels/c0.tif\nimages/c0.png,labels/c1.tif\n", "2 rows"),
    ],
)
def test_bad_tables(table, content, message):
    table.with_suffix(".json").write_text(json.dumps({"task": "instance", "dim": 2}))
    table.write_text(content)
    with pytest.raises(DatasetError, match=message):
        open_dataset(table)


def test_labels_with_too_many_numbers_are_no_classes(table):
    many = np.arange(480, dtype=np.uint16).reshape(24, 20)
    tifffile.imwrite(table.parent / "labels" / "c0.tif", many)
    with pytest.raises(DatasetError, match=r"more than 255 .*instance"):
        open_dataset(table)


def test_folds(cells):
    dataset = open_dataset(cells)
    everything = {case.name for cases in dataset.cases.values() for case in cases}
    held_out = []
    for fold in range(3):
        part = with_fold(dataset, 3, fold)
        assert part == with_fold(dataset, 3, fold)
        train, val = ({case.name for case in part.cases[split]} for split in ("train", "val"))
        assert train | val == everything
        groups = [{case.group for case in part.cases[split]} for split in ("train", "val")]
        assert not groups[0] & groups[1]
        held_out += sorted(val)
    assert sorted(held_out) == sorted(everything)
    edit(cells, split={"train": sorted(everything)})
    assert with_fold(open_dataset(cells), 3, 1) == with_fold(dataset, 3, 1)
    with pytest.raises(DatasetError, match="too few"):
        with_fold(dataset, 4, 0)
    with pytest.raises(DatasetError, match="no fold 3"):
        with_fold(dataset, 3, 3)
