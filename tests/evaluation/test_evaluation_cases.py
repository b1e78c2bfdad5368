"""Which files belong together, and what is said when they do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from tttunet.errors import DatasetError
from tttunet.evaluation.cases import load_cases, match_files


def folder(path: Path, *names: str) -> Path:
    path.mkdir(parents=True)
    for name in names:
        (path / name).touch()
    return path


def names(pairs) -> list[tuple[str, str]]:
    return [(pair.pred.name, pair.truth.name) for pair in pairs]


def test_files_are_matched_by_stem_whatever_their_extension(tmp_path):
    pred = folder(tmp_path / "pred", "b.ome.tif", "a.b.TIFF", "v.nii.gz", "w.seg.nrrd")
    truth = folder(tmp_path / "truth", "a.b.png", "b.tif", "v.mha", "w.nii")
    pairs = match_files(pred, truth)
    assert [pair.name for pair in pairs] == ["a.b", "b", "v", "w"]
    assert names(pairs)[1] == ("b.ome.tif", "b.tif")


@pytest.mark.parametrize(
    "ending", ["_labels", "_label", "_mask", "_masks", "_cp_masks", "-seg", ".Labels", "_gt"]
)
def test_endings_for_labels_are_left_out(tmp_path, ending):
    pred = folder(tmp_path / "pred", "cell_1.ome.tif", f"cell_2{ending}.png")
    truth = folder(tmp_path / "truth", f"cell_1{ending}.tif", "cell_2_truth.tif")
    assert len(match_files(pred, truth)) == 2


def test_equal_names_come_before_endings(tmp_path):
    pred = folder(tmp_path / "pred", "a.tif", "a_mask.tif")
    truth = folder(tmp_path / "truth", "a.png", "a_mask.png")
    assert names(match_files(pred, truth)) == [("a.tif", "a.png"), ("a_mask.tif", "a_mask.png")]


def test_a_name_that_is_only_an_ending_stays(tmp_path):
    pred = folder(tmp_path / "pred", "labels.tif", "_labels.tif")
    truth = folder(tmp_path / "truth", "labels.tif", "_labels.tif")
    assert len(match_files(pred, truth)) == 2


def test_overlays_tables_and_hidden_files_are_passed_over(tmp_path):
    pred = folder(tmp_path / "pred", "a.tif", "a_overlay.png", "a.csv", "._a.tif", "a.jpg")
    (pred / "old.tif").mkdir()
    truth = folder(tmp_path / "truth", "a.tif")
    assert names(match_files(pred, truth)) == [("a.tif", "a.tif")]


def test_two_files_are_a_pair_whatever_their_names(tmp_path):
    pred = folder(tmp_path / "pred", "result_7.tif")
    truth = folder(tmp_path / "truth", "cell_labels.tif")
    (pair,) = match_files(pred / "result_7.tif", truth / "cell_labels.tif")
    assert (pair.name, pair.pred.name) == ("cell_labels", "result_7.tif")


def test_files_without_a_partner_are_named_in_both_directions(tmp_path):
    pred = folder(tmp_path / "pred", "a.tif", "only_here.tif")
    truth = folder(tmp_path / "truth", "a.tif", "missing_1.tif", "missing_2_labels.tif")
    with pytest.raises(DatasetError) as error:
        match_files(pred, truth)
    message = str(error.value)
    assert f"only_here.tif in {pred} without a true label file" in message
    assert f"missing_1.tif, missing_2_labels.tif in {truth} without a prediction" in message


def test_a_long_list_is_cut_short(tmp_path):
    pred = folder(tmp_path / "pred", "a.tif")
    truth = folder(tmp_path / "truth", "a.tif", *(f"m{i:02}.tif" for i in range(14)))
    with pytest.raises(DatasetError, match=r"m09\.tif and 4 more in"):
        match_files(pred, truth)


@pytest.mark.parametrize("twins", [("a.tif", "a.png"), ("a_mask.tif", "a_labels.tif")])
def test_two_files_for_one_name_are_refused(tmp_path, twins):
    pred = folder(tmp_path / "pred", *twins)
    truth = folder(tmp_path / "truth", "a.tif")
    with pytest.raises(DatasetError, match="are both called a"):
        match_files(pred, truth)


def test_missing_empty_and_mixed_paths_are_refused(tmp_path):
    full = folder(tmp_path / "full", "a.tif")
    empty = folder(tmp_path / "empty", "notes.txt")
    with pytest.raises(DatasetError, match=r"nowhere' does not exist"):
        match_files(tmp_path / "nowhere", full)
    with pytest.raises(DatasetError, match=r"no label files in .*empty"):
        match_files(full, empty)
    with pytest.raises(DatasetError, match=r"full is a folder, .*a\.tif is a file"):
        match_files(full / "a.tif", full)


def write(path: Path, labels: np.ndarray, axes: str = "YX", **metadata) -> Path:
    tifffile.imwrite(
        path, labels, ome=True, photometric="minisblack", metadata={"axes": axes, **metadata}
    )
    return path


def pair_of(pred: Path, truth: Path):
    return match_files(pred, truth)[0]


def test_spacing_comes_from_the_true_file_in_millimetres(tmp_path):
    labels = np.ones((2, 4, 4), dtype=np.uint8)
    size = {"PhysicalSizeZ": 2.0, "PhysicalSizeY": 0.5, "PhysicalSizeX": 0.25}
    plain = write(tmp_path / "plain.ome.tif", labels, "ZYX")
    scaled = write(tmp_path / "scaled.ome.tif", labels, "ZYX", **size)
    (case,) = load_cases(pair_of(plain, scaled))
    assert case.spacing == pytest.approx((2e-3, 5e-4, 2.5e-4))
    assert case.unit == "mm"
    (case,) = load_cases(pair_of(scaled, plain))
    assert (case.spacing, case.unit) == ((1.0, 1.0, 1.0), "px")
    (case,) = load_cases(pair_of(scaled, plain), spacing=(3, 1, 1))
    assert (case.spacing, case.unit) == ((3.0, 1.0, 1.0), "mm")


def test_every_frame_is_a_case(tmp_path):
    labels = np.arange(3 * 4 * 4, dtype=np.uint16).reshape(3, 4, 4)
    movie = write(tmp_path / "movie.ome.tif", labels, "TYX")
    cases = list(load_cases(pair_of(movie, movie)))
    assert [case.name for case in cases] == ["movie t=0", "movie t=1", "movie t=2"]
    np.testing.assert_array_equal(cases[2].truth, labels[2])
    assert cases[0].spacing == (1.0, 1.0)


def test_other_shapes_and_axes_are_refused_with_names(tmp_path):
    small = write(tmp_path / "small.tif", np.ones((3, 4), np.uint8))
    large = write(tmp_path / "large.tif", np.ones((5, 4), np.uint8))
    with pytest.raises(DatasetError, match=r"small\.tif is YX \(3, 4\).*large\.tif is YX \(5, 4\)"):
        list(load_cases(pair_of(small, large)))
    stack = write(tmp_path / "stack.ome.tif", np.ones((3, 4, 4), np.uint8), "ZYX")
    movie = write(tmp_path / "movie.ome.tif", np.ones((3, 4, 4), np.uint8), "TYX")
    with pytest.raises(DatasetError, match=r"stack.* is ZYX .*movie.* is TYX"):
        list(load_cases(pair_of(stack, movie)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spacing": (1.0, 1.0, 2.0)}, "spacing"),
        ({"origin": (5.0, 0.0, 0.0)}, "origin"),
        ({"direction": (-1.0, 0, 0, 0, 1, 0, 0, 0, 1)}, "direction"),
        ({"origin": (0.001, 0.0, 0.0)}, None),
    ],
)
def test_volumes_on_different_grids_are_refused(tmp_path, change, message):
    volume = sitk.GetImageFromArray(np.ones((3, 4, 5), np.uint8))
    sitk.WriteImage(volume, tmp_path / "truth.nii.gz")
    volume.SetSpacing(change.get("spacing", volume.GetSpacing()))
    volume.SetOrigin(change.get("origin", volume.GetOrigin()))
    volume.SetDirection(change.get("direction", volume.GetDirection()))
    sitk.WriteImage(volume, tmp_path / "pred.nrrd")
    pair = pair_of(tmp_path / "pred.nrrd", tmp_path / "truth.nii.gz")
    if message is None:
        assert next(load_cases(pair)).spacing == (1.0, 1.0, 1.0)
        return
    with pytest.raises(DatasetError, match=f"different grids: their {message}"):
        list(load_cases(pair))
