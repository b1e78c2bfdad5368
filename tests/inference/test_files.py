"""Which files are read and written: decided before any work, without a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from dicom_files import write_series
from tiny import make_config
from tttunet.errors import ImageError, OutputError
from tttunet.inference.files import (
    expand_inputs,
    load_input,
    plan_jobs,
    without_further_channels,
)


def touch(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in names]
    for path in paths:
        path.write_bytes(b"x")
    return paths


def test_folder_gives_its_images_only(tmp_path: Path):
    touch(tmp_path, "b.tif", "a.nii.gz", ".c.tif", "x.txt", "b_labels.ome.tif", "b_overlay.png")
    touch(tmp_path / "sub", "d.tif")
    assert [p.name for p in expand_inputs([str(tmp_path)])] == ["a.nii.gz", "b.tif"]
    deep = expand_inputs([str(tmp_path / "**" / "*.tif")])
    assert [p.name for p in deep] == ["b.tif", "d.tif"]


def test_a_dicom_series_is_one_image(tmp_path: Path):
    volume = sitk.GetImageFromArray(np.zeros((3, 4, 5), np.int16))
    series = tmp_path / "study" / "1.2.840.7"
    write_series(series, volume)
    (png,) = touch(tmp_path / "study", "a.png")
    (tmp_path / "study" / "notes").mkdir()
    assert expand_inputs([str(series)]) == [series]
    assert expand_inputs([str(tmp_path / "study")]) == [series, png]
    assert expand_inputs([str(tmp_path / "study" / "*")]) == [series, png]
    job, _ = plan_jobs([series, png], f"{tmp_path / 'labels'}/", overlay=True)
    assert job.labels == tmp_path / "labels" / "1.2.840.7_labels.nrrd"
    assert job.overlay == tmp_path / "labels" / "1.2.840.7_overlay.png"
    (job,) = plan_jobs([series], f"{tmp_path / 'labels'}/", suffix=".nii.gz")
    assert job.labels.name == "1.2.840.7_labels.nii.gz"
    # Slices beside other images: both count.
    (beside,) = touch(series, "overview.png")
    assert expand_inputs([str(series)]) == [beside, series]


def test_name_with_brackets_is_no_glob(tmp_path: Path):
    (path,) = touch(tmp_path, "cells[1].png")
    assert expand_inputs([str(path)]) == [path]


def test_explicit_name_may_look_like_a_result(tmp_path: Path):
    (path,) = touch(tmp_path, "a_labels.tif")
    assert expand_inputs([str(path), str(path)]) == [path]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.tif", "does not exist"),
        ("*.tif", "No image matches"),
        ("notes.txt", "cannot be read"),
        ("empty", "no image in the folder"),
    ],
)
def test_inputs_that_are_none(tmp_path: Path, name: str, message: str):
    touch(tmp_path, "notes.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match=message):
        expand_inputs([str(tmp_path / name)])


@pytest.mark.parametrize(
    ("source", "labels"),
    [
        ("a.png", "a_labels.ome.tif"),
        ("a.ome.tif", "a_labels.ome.tif"),
        ("a.b.tiff", "a.b_labels.ome.tif"),
        ("a.nii", "a_labels.nii"),
        ("a.nii.gz", "a_labels.nii.gz"),
        ("a.nrrd", "a_labels.nrrd"),
        ("a.mhd", "a_labels.mha"),
    ],
)
def test_names_of_results(tmp_path: Path, source: str, labels: str):
    (job,) = plan_jobs(touch(tmp_path, source), str(tmp_path / "out"), overlay=True, table=True)
    stem = labels.split("_labels")[0]
    assert [path.name for path in job.outputs] == [
        labels,
        f"{stem}_overlay.png",
        f"{stem}_objects.csv",
    ]


@pytest.mark.parametrize("output", ["out", "out/", "out.d/", "existing.d"])
def test_output_that_is_a_folder(tmp_path: Path, output: str):
    (tmp_path / "existing.d").mkdir()
    (job,) = plan_jobs(touch(tmp_path, "a.png"), f"{tmp_path}/{output}")
    assert job.labels == tmp_path / output / "a_labels.ome.tif"


def test_same_stem_is_refused(tmp_path: Path):
    sources = touch(tmp_path / "x", "a.png") + touch(tmp_path / "y", "a.tif")
    with pytest.raises(OutputError, match="would both write") as caught:
        plan_jobs(sources, str(tmp_path / "out"))
    assert all(str(source) in str(caught.value) for source in sources)


def test_same_stem_in_other_formats_still_collides_in_the_table(tmp_path: Path):
    sources = touch(tmp_path, "a.nii.gz", "a.mha")
    assert len(plan_jobs(sources, str(tmp_path / "out"))) == 2
    with pytest.raises(OutputError, match="would both write"):
        plan_jobs(sources, str(tmp_path / "out"), table=True)


def test_several_inputs_need_a_folder(tmp_path: Path):
    with pytest.raises(OutputError, match="2 images"):
        plan_jobs(touch(tmp_path, "a.png", "b.png"), str(tmp_path / "out.ome.tif"))


@pytest.mark.parametrize("output", ["out.png", "out.csv", "out.jpg"])
def test_label_file_of_an_unknown_type(tmp_path: Path, output: str):
    with pytest.raises(OutputError, match="cannot be written to"):
        plan_jobs(touch(tmp_path, "a.png"), str(tmp_path / output))


def test_input_is_never_overwritten(tmp_path: Path):
    sources = touch(tmp_path, "a_labels.ome.tif")
    with pytest.raises(OutputError, match="is an input"):
        plan_jobs(sources, str(sources[0]), existing="overwrite")


def test_all_outputs_are_checked_first(tmp_path: Path):
    sources = touch(tmp_path, "a.png", "b.png")
    touch(tmp_path / "out", "b_overlay.png")
    with pytest.raises(OutputError, match=r"b_overlay.png' exists already"):
        plan_jobs(sources, str(tmp_path / "out"), overlay=True)


def test_ending_and_format_are_chosen(tmp_path: Path):
    sources = touch(tmp_path, "a.png", "b.nii.gz", "old_cells.tif")
    assert [p.name for p in expand_inputs([str(tmp_path)], "_cells")] == ["a.png", "b.nii.gz"]
    jobs = plan_jobs(sources[:2], str(tmp_path / "out"), ending="_cells", suffix=".nrrd")
    assert [job.labels.name for job in jobs] == ["a_cells.nrrd", "b_cells.nrrd"]


def test_complete_needs_every_file(tmp_path: Path):
    sources = touch(tmp_path, "a.png")
    touch(tmp_path / "out", "a_labels.ome.tif")
    (labels,) = plan_jobs(sources, str(tmp_path / "out"), existing="skip")
    (both,) = plan_jobs(sources, str(tmp_path / "out"), existing="skip", table=True)
    assert (labels.complete, both.complete) == (True, False)


def test_files_of_one_case_are_channels_and_notes_are_told(tmp_path: Path) -> None:

    for number in range(2):
        picture = sitk.GetImageFromArray(np.full((3, 4, 5), number, np.int16))
        sitk.WriteImage(picture, str(tmp_path / f"case_000{number}.nii.gz"))
    config = make_config(3, "semantic")
    network = config.network.model_copy(update={"input_channels": 2})
    heard: list[str] = []
    path = tmp_path / "case_0000.nii.gz"
    both = load_input(path, config.model_copy(update={"network": network}), note=heard.append)
    assert (both.axes, both.array[:, 0, 0, 0].tolist()) == ("CZYX", [0, 1])
    jobs = plan_jobs(expand_inputs([str(tmp_path)]), f"{tmp_path}/out/")
    of_both = without_further_channels(jobs, config.model_copy(update={"network": network}))
    assert [job.source.name for job in of_both] == ["case_0000.nii.gz"]
    assert without_further_channels(jobs, config) == jobs
    assert load_input(path, config).axes == "ZYX"
    assert heard == []
    with tifffile.TiffWriter(tmp_path / "two.tif") as tif:
        tif.write(np.zeros((5, 6), np.uint8))
        tif.write(np.zeros((3, 4), np.uint8))
    load_input(tmp_path / "two.tif", config, note=heard.append)
    assert len(heard) == 1
    assert "holds 2 images" in heard[0]


def test_films_have_labels_only(tmp_path: Path):
    sources = touch(tmp_path, "a.png", "b.mp4")
    picture, film = plan_jobs(sources, f"{tmp_path / 'out'}/", overlay=True, suffix=".nrrd")
    assert picture.overlay is not None
    assert not picture.frames
    assert (film.frames, film.outputs) == (True, [tmp_path / "out" / "b_labels.ome.tif"])
    with pytest.raises(OutputError, match="frame by frame"):
        plan_jobs(sources[1:], f"{tmp_path / 'out'}/", table=True)
    assert [path.name for path in expand_inputs([str(tmp_path)])] == ["a.png", "b.mp4"]
    assert expand_inputs([str(tmp_path)], frames=True) == [tmp_path]
    (folder,) = plan_jobs([tmp_path], f"{tmp_path / 'out'}/", frames=True)
    assert folder.labels == tmp_path / "out" / f"{tmp_path.name}_labels.ome.tif"
