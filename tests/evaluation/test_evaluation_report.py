"""From files to a report: numbers, JSON, rows and tables."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from tttunet.errors import DatasetError
from tttunet.evaluation import Report, evaluate, instance_scores, surface_dice


def write(path: Path, labels: np.ndarray, **options) -> None:
    path.parent.mkdir(exist_ok=True)
    tifffile.imwrite(path, labels, **options)


def squares(*corners: tuple[int, int], size: int = 4, shift: int = 0) -> np.ndarray:
    labels = np.zeros((24, 24), dtype=np.uint16)
    for value, (y, x) in enumerate(corners, start=1):
        labels[y : y + size, x + shift : x + shift + size] = value
    return labels


def printed(report: Report, width: int = 160) -> str:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width)
    console.print(*report.tables())
    return console.file.getvalue()


@pytest.fixture
def instance(tmp_path) -> Path:
    """Image a: 3 of 3 found, 1 too many; image b: none of 1 found; image c: empty, rightly."""
    write(tmp_path / "truth" / "a.tif", squares((0, 0), (0, 8), (8, 0)))
    write(tmp_path / "pred" / "a_labels.ome.tif", squares((8, 0), (0, 0), (0, 8), (16, 16)))
    write(tmp_path / "truth" / "b.tif", squares((2, 2)))
    write(tmp_path / "pred" / "b_labels.ome.tif", squares((2, 2), shift=3))
    write(tmp_path / "truth" / "c.tif", squares())
    write(tmp_path / "pred" / "c_labels.ome.tif", squares())
    return tmp_path


def test_instance_report(instance):
    done = []
    report = evaluate(
        instance / "pred",
        instance / "truth",
        "instance",
        progress=lambda *counts: done.append(counts),
    )
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert [case["case"] for case in report.cases] == ["a", "b", "c"]
    a = report.cases[0]["scores"][0]
    assert (a["threshold"], a["tp"], a["fp"], a["fn"]) == (0.5, 3, 1, 0)
    pooled = report.summary["pooled"]["scores"][0]
    assert (pooled["tp"], pooled["fp"], pooled["fn"]) == (3, 2, 1)
    assert pooled["f1"] == pytest.approx(6 / 9)
    mean = report.summary["mean_over_images"]["scores"][0]
    assert mean["f1"] == pytest.approx((6 / 7 + 0 + 1) / 3)
    assert report.summary["mean_over_images"]["mean_ap"] == pytest.approx((3 / 4 + 0 + 1) / 3)


def test_instance_rows_and_tables(instance):
    report = evaluate(instance / "pred", instance / "truth", "instance", thresholds=(0.5, 0.9))
    rows = report.rows()
    assert len(rows) == 3 * 2
    assert (rows[1]["case"], rows[1]["threshold"]) == ("a", 0.9)
    text = printed(report)
    assert "Objects matched at IoU >= 0.5" in text
    assert "mean AP from 0.5 to 0.9" in text
    for line in ("all objects", "mean of images", "0.857", "0.667"):
        assert line in text


def test_numbers_are_never_cut_in_a_terminal_of_80_characters(tmp_path):
    write(tmp_path / "a_rather_long_name_of_an_image_20240131_well_B03.tif", squares((0, 0)))
    (path,) = tmp_path.iterdir()
    report = evaluate(path, path, "instance")
    assert printed(report, width=80).count("1.000") == 3 * 7 + 10 * 6


def test_an_ignored_label_takes_its_pixels_out_of_the_instances(tmp_path):
    truth = squares((0, 0), (16, 16))
    truth[14:, 14:] = 99
    write(tmp_path / "truth.tif", truth)
    write(tmp_path / "pred.tif", squares((0, 0), (16, 16)))
    paths = tmp_path / "pred.tif", tmp_path / "truth.tif"
    report = evaluate(*paths, "instance", thresholds=[0.5], ignore=99)
    assert report.summary["pooled"]["scores"][0]["f1"] == 1.0
    assert evaluate(*paths, "instance", thresholds=[0.5]).cases[0]["scores"][0]["fn"] == 1


@pytest.fixture
def semantic(tmp_path) -> Path:
    """Class 1 in both cases; class 2 only in `full`; volumes of 1 x 1 x 3 mm."""
    labels = np.zeros((8, 12, 12), dtype=np.uint8)
    labels[2:6, 2:6, 2:6] = 1
    one = labels.copy()
    labels[2:6, 8:11, 2:6] = 2
    for folder, shift in (("pred", 1), ("truth", 0)):
        (tmp_path / folder).mkdir()
        for name, array in (("full", labels), ("one", one)):
            image = sitk.GetImageFromArray(np.roll(array, shift, axis=0))
            image.SetSpacing((1.0, 1.0, 3.0))
            sitk.WriteImage(image, tmp_path / folder / f"{name}.nii.gz")
    return tmp_path


def test_semantic_report(semantic):
    report = evaluate(
        semantic / "pred", semantic / "truth", "semantic", classes={1: "liver", 2: "kidney"}
    )
    assert report.settings["tolerance_unit"] == "mm"
    liver, kidney = report.summary["classes"]
    assert (liver["name"], liver["cases"], kidney["cases"]) == ("liver", 2, 1)
    # Shifted by one of four slices: 3/4 overlap.
    assert liver["dice"] == liver["dice_pooled"] == kidney["dice"] == pytest.approx(0.75)
    assert report.summary["dice"] == pytest.approx(0.75)
    missing = report.cases[1]["classes"][1]
    assert math.isnan(missing["dice"])
    assert missing["truth_size"] == 0
    assert report.cases[1]["dice"] == pytest.approx(0.75)

    cube = np.zeros((8, 12, 12), dtype=bool)
    cube[2:6, 2:6, 2:6] = True
    expected = surface_dice(np.roll(cube, 1, axis=0), cube, tolerance=2, spacing=(3, 1, 1))
    assert liver["nsd"] == pytest.approx(expected)
    wide = evaluate(semantic / "pred", semantic / "truth", "semantic", tolerance=3.0)
    assert wide.summary["nsd"] == 1.0


def test_undefined_scores_are_null_in_json(semantic):
    report = evaluate(semantic / "pred", semantic / "truth", "semantic", tolerance={1: 2, 2: 3})
    plain = json.loads(report.to_json(), parse_constant=pytest.fail)
    assert plain["cases"][1]["classes"][1]["dice"] is None
    assert plain["summary"]["classes"][0]["dice"] == pytest.approx(0.75)
    assert plain["settings"]["tolerance"] == {"1": 2, "2": 3}


def test_semantic_rows_and_tables(semantic):
    report = evaluate(semantic / "pred", semantic / "truth", "semantic", classes={1: "liver"})
    assert [(row["case"], row["name"]) for row in report.rows()] == [
        ("full", "liver"),
        ("one", "liver"),
    ]
    text = printed(report)
    assert "NSD at 2 (mm)" in text
    assert "mean of the classes" in text
    without = evaluate(semantic / "pred", semantic / "truth", "semantic", tolerance=None)
    text = printed(without)
    assert "NSD" not in text
    assert " - " in text


def test_files_without_pixel_size_measure_the_tolerance_in_pixels(tmp_path):
    write(tmp_path / "truth.tif", squares((4, 4)))
    write(tmp_path / "pred.tif", squares((4, 4), shift=1))
    report = evaluate(tmp_path / "pred.tif", tmp_path / "truth.tif", "semantic", tolerance=1.0)
    assert report.settings["tolerance_unit"] == "px"
    assert report.summary["nsd"] == 1.0


def test_files_with_and_without_pixel_size_share_no_tolerance(tmp_path):
    size = {"ome": True, "metadata": {"axes": "YX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}}
    for folder in ("pred", "truth"):
        write(tmp_path / folder / "a.ome.tif", squares((4, 4)), **size)
        write(tmp_path / folder / "b.tif", squares((4, 4)))
    folders = tmp_path / "pred", tmp_path / "truth"
    with pytest.raises(DatasetError, match="a has a physical pixel size and b has none"):
        evaluate(*folders, "semantic")
    assert evaluate(*folders, "semantic", spacing=(1, 1)).summary["dice"] == 1.0
    assert evaluate(*folders, "semantic", tolerance=None).summary["dice"] == 1.0


def test_images_without_any_class_have_no_score(tmp_path):
    write(tmp_path / "empty.tif", squares())
    report = evaluate(tmp_path / "empty.tif", tmp_path / "empty.tif", "semantic")
    assert json.loads(report.to_json())["summary"] == {
        "cases": 1,
        "dice": None,
        "nsd": None,
        "classes": [],
    }
    assert "mean of the classes" in printed(report)


def test_frames_are_scored_one_by_one(tmp_path):
    frame = squares((0, 0), (8, 8))
    swapped = np.array([0, 2, 1], dtype=np.uint16)[frame]
    movie = {"ome": True, "metadata": {"axes": "TYX"}}
    write(tmp_path / "truth.ome.tif", np.stack([frame, frame]), **movie)
    write(tmp_path / "pred.ome.tif", np.stack([frame, swapped]), **movie)
    report = evaluate(tmp_path / "pred.ome.tif", tmp_path / "truth.ome.tif", "instance")
    assert [case["case"] for case in report.cases] == ["truth t=0", "truth t=1"]
    assert report.summary["pooled"]["mean_ap"] == 1.0


def test_instance_case_agrees_with_the_arrays(tmp_path):
    rng = np.random.default_rng(0)
    truth, pred = rng.integers(0, 5, (2, 30, 30)).astype(np.uint16)
    write(tmp_path / "truth.tif", truth)
    write(tmp_path / "pred.tif", pred)
    report = evaluate(
        tmp_path / "pred.tif", tmp_path / "truth.tif", "instance", thresholds=[0.05, 0.1]
    )
    expected = [one.to_dict() for one in instance_scores(pred, truth, [0.05, 0.1])]
    assert report.cases[0]["scores"] == expected
    assert report.summary["pooled"]["scores"] == expected


def test_bad_settings_are_refused(tmp_path):
    write(tmp_path / "a.tif", squares((0, 0)))
    with pytest.raises(DatasetError, match="instance or semantic, not panoptic"):
        evaluate(tmp_path / "a.tif", tmp_path / "a.tif", "panoptic")
    with pytest.raises(DatasetError, match="At least one IoU threshold"):
        evaluate(tmp_path / "a.tif", tmp_path / "a.tif", "instance", thresholds=[])


def test_objects_scored_as_classes_are_noticed(tmp_path, caplog):
    labels = np.arange(100, dtype=np.uint8).reshape(10, 10)
    tifffile.imwrite(tmp_path / "a.tif", labels)
    evaluate(tmp_path / "a.tif", tmp_path / "a.tif", "semantic", tolerance=None)
    assert "99 different labels" in caplog.text
