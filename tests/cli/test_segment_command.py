"""`tttunet segment`: files, names, tables and geometry, with a model of random weights."""

from __future__ import annotations

import csv
import signal
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image as Pillow

from films import frame, write_video
from tttunet.errors import OutputError
from tttunet.imaging import Image, load_image, load_labels, save_labels
from tttunet.inference import files
from tttunet.models.model import Model

from .conftest import Run, tiny_model


def write_png(path: Path, seed: int = 0, size: tuple[int, int] = (40, 48)) -> Path:
    noise = np.random.default_rng(seed).integers(0, 255, (size[0] // 4, size[1] // 4), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(noise.repeat(4, 0).repeat(4, 1)).save(path)
    return path


def test_one_file_to_one_file_with_overlay_and_table(run: Run, tmp_path: Path, instance_model):
    source = write_png(tmp_path / "cells.png")
    output = tmp_path / "new" / "result_labels.ome.tif"
    ran = run(
        "segment", source, "-m", instance_model, "-o", output, "--overlay", "--table",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert str(output) in ran.out
    labels = load_labels(output)
    assert labels.array.shape == (40, 48)
    assert labels.array.dtype == np.uint32
    assert Pillow.open(tmp_path / "new" / "result_overlay.png").mode == "RGB"
    with (tmp_path / "new" / "result_objects.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["label"]) for row in rows] == list(range(1, int(labels.array.max()) + 1))
    areas = np.bincount(labels.array.ravel())[1:]
    assert [int(row["area_px"]) for row in rows] == areas.tolist()
    assert len(list((tmp_path / "new").iterdir())) == 3


def test_ctrl_c_tells_what_is_done(run: Run, tmp_path: Path, instance_model, monkeypatch):
    images = [write_png(tmp_path / f"{name}.png") for name in "ab"]
    original = files.load_input

    def press_in_the_second_image(path: Path, *arguments, **options):
        if path == images[1]:
            signal.raise_signal(signal.SIGINT)
        return original(path, *arguments, **options)

    monkeypatch.setattr(files, "load_input", press_in_the_second_image)
    ran = run("segment", *images, "-m", instance_model, "-o", tmp_path / "out")
    assert ran.code == 130
    assert "Stopped: 1 of 2 images are segmented." in ran.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a_labels.ome.tif"]


def test_the_adaptation_map_is_a_file_of_its_own(run: Run, tmp_path: Path):
    source = write_png(tmp_path / "cells.png")
    command = ("segment", source, "-o", tmp_path / "out", "--tile", "32", "--adaptation")
    ran = run(*command, "image", "--adaptation-map")
    assert ran.code == 0, ran.err
    with tifffile.TiffFile(tmp_path / "out" / "cells_adaptation.ome.tif") as tif:
        assert (tif.series[0].axes, tif.series[0].dtype) == ("CYX", np.float32)
        before, after = tif.asarray()
    assert before.shape == (40, 48)
    assert before.min() > 0
    assert np.abs(before - after).max() > 0
    wrong = run(*command, "never", "--overwrite")
    assert wrong.code == 1
    assert "There is no adaptation 'never'" in wrong.err


def test_folder_and_glob_to_folder(run: Run, tmp_path: Path, instance_model):
    for name in ("a.png", "b.PNG", ".hidden.png", "old_overlay.png"):
        write_png(tmp_path / "plate" / name)
    (tmp_path / "plate" / "notes.txt").write_text("not an image")
    write_png(tmp_path / "more" / "c.png")
    output = tmp_path / "out"
    ran = run(
        "segment", tmp_path / "plate", tmp_path / "more" / "*.png", tmp_path / "plate" / "a.png",
        "--model", instance_model, "--output", output,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert sorted(p.name for p in output.iterdir()) == [
        "a_labels.ome.tif",
        "b_labels.ome.tif",
        "c_labels.ome.tif",
    ]
    assert len(ran.out.splitlines()) == 3


def test_pixel_size_goes_from_input_to_labels_and_table(run: Run, tmp_path: Path, instance_model):
    source = tmp_path / "cells.ome.tif"
    metadata = {"axes": "YX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25}
    noise = np.random.default_rng(0).integers(0, 4000, (40, 36), np.uint16)
    tifffile.imwrite(source, noise, metadata=metadata)
    ran = run("segment", source, "-m", instance_model, "-o", tmp_path / "out", "--table")
    assert ran.code == 0, ran.err
    labels = load_labels(tmp_path / "out" / "cells_labels.ome.tif")
    assert (labels.spacing, labels.unit) == ((0.25, 0.5), "micrometer")
    assert "area_um2" in (tmp_path / "out" / "cells_objects.csv").read_text().splitlines()[0]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_volume_keeps_format_and_geometry(run: Run, tmp_path: Path, volume_model, suffix: str):
    source = tmp_path / f"case{suffix}"
    array = np.random.default_rng(0).integers(0, 200, (10, 20, 18)).astype(np.uint8)
    like = Image.from_array(
        array, "ZYX", spacing=(3.0, 0.5, 0.75), origin=(-7.0, 5.0, 2.0), unit="millimeter"
    )
    save_labels(source, array, like)
    ran = run("segment", source, "-m", volume_model, "-o", tmp_path / "out", "--table", "--overlay")
    assert ran.code == 0, ran.err
    image, labels = load_image(source), load_labels(tmp_path / "out" / f"case_labels{suffix}")
    assert labels.array.shape == image.array.shape
    assert (labels.spacing, labels.origin) == (image.spacing, image.origin)
    np.testing.assert_array_equal(labels.direction, image.direction)
    assert set(np.unique(labels.array)) <= {0, 1, 4}
    header = (tmp_path / "out" / "case_objects.csv").read_text().splitlines()[0]
    assert header.startswith("label,class,volume_voxels,volume_mm3,")


def test_a_failing_file_does_not_stop_the_others(run: Run, tmp_path: Path, instance_model):
    write_png(tmp_path / "in" / "a.png")
    whole = write_png(tmp_path / "in" / "b.png").read_bytes()
    (tmp_path / "in" / "b.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in" / "c.png").write_bytes(b"")
    write_png(tmp_path / "in" / "d.png")
    ran = run("segment", tmp_path / "in", "-m", instance_model, "-o", tmp_path / "out", "--table")
    assert ran.code == 1
    assert "2 of 4 images" in ran.err
    assert "b.png" in ran.err
    assert "c.png" in ran.err
    assert "Traceback" not in ran.err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "a_labels.ome.tif",
        "a_objects.csv",
        "d_labels.ome.tif",
        "d_objects.csv",
    ]


def test_an_image_has_all_its_results_or_none(
    run: Run, tmp_path: Path, instance_model, monkeypatch
):
    def full_disk(path: Path, *_args: object, **_options: object) -> Path:
        raise OutputError(f"'{path}' cannot be written: the disk is full.")

    monkeypatch.setattr("tttunet.imaging.save_overlay", full_disk)
    source = write_png(tmp_path / "a.png")
    ran = run("segment", source, "-m", instance_model, "-o", tmp_path / "out", "--overlay")
    assert ran.code == 1
    assert "the disk is full" in ran.err
    assert not list((tmp_path / "out").iterdir())


def test_defects_are_reported_per_file(run: Run, tmp_path: Path, instance_model, monkeypatch):
    def broken(*_args, **_kwargs):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("tttunet.inference.segment.segment", broken)
    source = write_png(tmp_path / "a.png")
    words = ("segment", source, "-m", instance_model, "-o", tmp_path / "out")
    ran = run(*words)
    assert ran.code == 1
    assert "Unexpected ZeroDivisionError: a defect. Run again with --debug" in ran.err
    with pytest.raises(ZeroDivisionError):
        run(*words, "--debug")


def test_options_reach_the_inference(run: Run, tmp_path: Path, instance_model, monkeypatch):
    from tttunet.inference import segment as module

    seen = {}
    original = module.segment

    def spy(*args, **kwargs):
        seen.update(kwargs)
        return original(*args, **kwargs)

    monkeypatch.setattr(module, "segment", spy)
    source = write_png(tmp_path / "a.png")
    ran = run(
        "segment", source, "-m", instance_model, "-o", tmp_path / "out", "--tta",
        "--tile", "24", "--overlap", "0.5", "--min-size", "7", "--device", "cpu",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert (seen["mirror"], seen["tile"], seen["overlap"]) == (True, (24, 24), 0.5)
    assert (seen["decoding"].min_size, seen["device"]) == (7, "cpu")


def test_axes_override(run: Run, tmp_path: Path, instance_model):
    source = tmp_path / "stack.tif"
    stack = np.random.default_rng(0).integers(0, 255, (3, 24, 20), np.uint8)
    tifffile.imwrite(source, stack, metadata=None, photometric="minisblack")
    words = ("segment", source, "-m", instance_model, "-o")
    ran = run(*words, tmp_path / "t", "--axes", "TYX")
    assert ran.code == 0, ran.err
    assert load_labels(tmp_path / "t" / "stack_labels.ome.tif").axes == "TYX"
    ran = run(*words, tmp_path / "bad", "--axes", "YX")
    assert ran.code == 1
    assert "--axes" in ran.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tile", "1,2,3"], "2D model"),
        (["--device", "abacus"], "Unknown device"),
        (["--model", "no-such-model"], "No model is called"),
    ],
)
def test_wrong_options_are_errors_before_any_output(
    run: Run, tmp_path: Path, instance_model, options: list[str], message: str
):
    source = write_png(tmp_path / "a.png")
    ran = run("segment", source, "-m", instance_model, "-o", tmp_path / "out", *options)
    assert ran.code == 1
    assert message in ran.err
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "options", [["--tile", "many"], ["--tile", "0"], ["--overlap", "1"], ["--min-size", "-1"]]
)
def test_malformed_options_are_usage_errors(run: Run, tmp_path: Path, options: list[str]):
    source = write_png(tmp_path / "a.png")
    assert run("segment", source, "-o", tmp_path / "out", *options).code == 2


def test_min_size_of_a_class_model_is_refused(run: Run, tmp_path: Path, volume_model):
    source = write_png(tmp_path / "a.png")
    ran = run("segment", source, "-m", volume_model, "-o", tmp_path / "out", "--min-size", "3")
    assert ran.code == 1
    assert "classes, not objects" in ran.err


def test_existing_output_needs_overwrite(run: Run, tmp_path: Path, instance_model):
    source = write_png(tmp_path / "a.png")
    words = ("segment", source, "-m", instance_model, "-o", tmp_path / "out")
    assert run(*words).code == 0
    before = (tmp_path / "out" / "a_labels.ome.tif").read_bytes()
    ran = run(*words)
    assert ran.code == 1
    assert "--overwrite" in ran.err
    assert (tmp_path / "out" / "a_labels.ome.tif").read_bytes() == before
    assert run(*words, "--overwrite").code == 0


def stained(tmp_path: Path, channels: int) -> Path:
    """An OME-TIFF of separate stains; the last channel alone has a bright square."""
    array = np.zeros((channels, 40, 40), np.uint8)
    array[-1, 10:30, 10:30] = 200
    path = tmp_path / "stained.ome.tif"
    names = ["DAPI", "GFP", "RFP"][:channels]
    tifffile.imwrite(path, array, metadata={"axes": "CYX", "Channel": {"Name": names}})
    return path


@pytest.mark.parametrize("channel", ["GFP", "1"])
def test_one_channel_of_two_is_segmented(run: Run, tmp_path: Path, instance_model, channel):
    source = stained(tmp_path, 2)
    refused = run("segment", source, "--model", instance_model, "--output", tmp_path / "out")
    assert refused.code == 1
    assert "--channel" in refused.err
    ran = run(
        *("segment", source, "--model", instance_model, "--output", tmp_path / "out"),
        *("--channel", channel),
    )
    assert ran.code == 0, ran.err
    assert tifffile.imread(tmp_path / "out" / "stained_labels.ome.tif").shape == (40, 40)


def test_stains_taken_as_colours_are_mentioned(run: Run, tmp_path: Path, instance_model):
    ran = run(
        *("segment", stained(tmp_path, 3), "--model", instance_model, "--output", tmp_path / "out")
    )
    assert ran.code == 0, ran.err
    assert "red, green and blue" in ran.err


def test_an_unknown_channel_is_named(run: Run, tmp_path: Path, instance_model):
    ran = run(
        *("segment", stained(tmp_path, 2), "--model", instance_model, "--output", tmp_path / "out"),
        *("--channel", "YFP"),
    )
    assert ran.code == 1
    assert "no channel 'YFP'" in ran.err


def test_several_models_are_averaged(run: Run, tmp_path: Path):
    source = write_png(tmp_path / "cells.png")
    folders = []
    for seed in range(2):
        torch.manual_seed(seed)
        config = tiny_model("semantic").config
        folders.append(Model.create(config).save(tmp_path / "folds" / str(seed)))
    found = {}
    for name, models in {
        "a": folders[:1], "b": folders[1:], "both": folders, "folder": [tmp_path / "folds"],
    }.items():  # fmt: skip
        words = [word for model in models for word in ("--model", model)]
        ran = run("segment", source, "-o", tmp_path / f"{name}.ome.tif", *words)
        assert ran.code == 0, ran.err
        found[name] = load_labels(tmp_path / f"{name}.ome.tif").array
    np.testing.assert_array_equal(found["both"], found["folder"])
    assert (found["both"] != found["a"]).any()
    assert (found["both"] != found["b"]).any()
    for name, models in {"both": folders, "folder": [tmp_path / "folds"]}.items():
        words = [word for model in models for word in ("--model", model)]
        ran = run("segment", source, "-o", tmp_path / "engine.ome.tif", "--engine", *words)
        assert ran.code == 0, ran.err
        by_engine = load_labels(tmp_path / "engine.ome.tif").array
        np.testing.assert_array_equal(by_engine, found[name])
        (tmp_path / "engine.ome.tif").unlink()
    other = tiny_model("instance").save(tmp_path / "other")
    words = ("--engine", "-m", folders[0], "-m", other)
    ran = run("segment", source, "-o", tmp_path / "engine.ome.tif", *words)
    assert ran.code == 1
    assert "differ in their task" in ran.err


def test_a_film_frame_by_frame(run: Run, tmp_path: Path, instance_model):
    for number in range(11):
        write_png(tmp_path / "film" / f"frame{number}.png", number)
    ran = run(
        "segment", tmp_path / "film", "-o", tmp_path / "out", "-m", instance_model, "--frames"
    )
    assert ran.code == 0, ran.err
    assert "11 frames, " in ran.out
    labels = load_labels(tmp_path / "out" / "film_labels.ome.tif")
    assert labels.axes == "TYX"
    tenth = tmp_path / "film" / "frame10.png"
    run("segment", tenth, "-o", tmp_path / "one.ome.tif", "-m", instance_model)
    alone = load_labels(tmp_path / "one.ome.tif").array
    np.testing.assert_array_equal(labels.array[10] > 0, alone > 0)
    by_engine = tmp_path / "engine.ome.tif"
    ran = run(
        "segment", tmp_path / "film", "-o", by_engine, "-m", instance_model, "--frames", "--engine"
    )
    assert ran.code == 0, ran.err
    np.testing.assert_array_equal(load_labels(by_engine).array, labels.array)


def test_a_video_needs_no_option(run: Run, tmp_path: Path):
    model = tiny_model("semantic").save(tmp_path / "model")
    video = write_video(tmp_path / "a.mp4", (frame(number) for number in range(4)))
    command = ("segment", video, "-m", model, "--channel", "0", "--smooth", "3", "-o")
    ran = run(*command, tmp_path / "labels.tif")
    assert ran.code == 0, ran.err
    assert "4 frames, " in ran.out
    assert load_labels(tmp_path / "labels.tif").array.shape == (4, 48, 64)
    ran = run(*command, tmp_path / "labels.nii.gz")
    assert ran.code == 1
    assert "cannot be written to" in ran.err
    ran = run(*command, tmp_path / "other.tif", "--table")
    assert ran.code == 1
    assert "only labels" in ran.err
    assert not (tmp_path / "other.tif").exists()


def test_objects_are_not_smoothed(run: Run, tmp_path: Path, instance_model):
    write_png(tmp_path / "film" / "1.png")
    words = ("-m", instance_model, "--frames", "--smooth", "3")
    ran = run("segment", tmp_path / "film", "-o", tmp_path / "out", *words)
    assert ran.code == 1
    assert "numbered anew" in ran.err
    assert not list((tmp_path / "out").iterdir())
