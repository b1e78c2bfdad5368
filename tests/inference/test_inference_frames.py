"""Frames are segmented one by one: the same labels as all at once, in constant memory."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from films import frame, write_video
from tiny import make_config
from tttunet.errors import Cancelled, ModelError
from tttunet.imaging import Image, load_image, load_labels
from tttunet.inference.frames import segment_frames, segment_frames_file
from tttunet.inference.segment import decode_maps, segment
from tttunet.models.model import Model


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return {task: Model.create(make_config(2, task)) for task in ("instance", "semantic")}


def grey(count: int) -> list[Image]:
    return [Image.from_array(frame(number)[..., 0], "YX") for number in range(count)]


@pytest.mark.parametrize("task", ["instance", "semantic"])
def test_the_same_labels_as_all_at_once(models: dict, task: str) -> None:
    film = np.stack([image.array for image in grey(4)])
    expected = segment(Image.from_array(film, "TYX"), models[task], device="cpu").labels
    assert expected.any()
    found = [labels for _, labels in segment_frames(grey(4), models[task], device="cpu")]
    np.testing.assert_array_equal(np.stack(found), expected)
    assert found[0].dtype == expected.dtype


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("smoothing", [3, 5])
def test_probabilities_are_averaged_over_frames(models: dict, count: int, smoothing: int) -> None:
    model, film = models["semantic"], grey(count)
    film[count // 2] = Image.from_array(np.full((48, 64), 7, np.uint8), "YX")  # constant
    maps: list[np.ndarray] = []
    for image in film:
        background = np.zeros((2, 48, 64), np.float32)
        background[0] = 1
        segment(
            image, model, device="cpu",
            maps_done=lambda _, found, b=background: maps.append(b if found is None else found),
        )  # fmt: skip
    found = list(segment_frames(film, model, smoothing=smoothing, device="cpu"))
    assert [image for image, _ in found] == film
    half = smoothing // 2
    for number, (_, labels) in enumerate(found):
        mean = np.mean(maps[max(0, number - half) : number + half + 1], axis=0)
        sure = np.abs(mean[0] - mean[1]) > 1e-5
        assert sure.mean() > 0.9
        np.testing.assert_array_equal(labels[sure], decode_maps(mean, model.config)[sure])


def test_a_frame_that_flickers_is_outvoted(models: dict) -> None:
    model = models["semantic"]
    film = [Image.from_array(frame(0)[..., 0], "YX") for _ in range(7)]
    steady = segment(film[0], model, device="cpu").labels
    assert (steady > 0).mean() > 0
    film[3] = Image.from_array(255 - frame(0)[..., 0], "YX")
    alone = [labels for _, labels in segment_frames(film, model, device="cpu")]
    smooth = [labels for _, labels in segment_frames(film, model, smoothing=5, device="cpu")]
    wrong = (alone[3] != steady).mean()
    assert wrong > 0
    assert (smooth[3] != steady).mean() < wrong / 2


def test_what_cannot_be_smoothed_is_told(models: dict) -> None:
    with pytest.raises(ModelError, match="numbered anew in every frame"):
        next(segment_frames(grey(2), models["instance"], smoothing=3))
    for number in (0, 2, 99):
        with pytest.raises(ModelError, match=f"over {number} frames is not possible"):
            next(segment_frames(grey(2), models["semantic"], smoothing=number))


def test_frames_are_read_one_ahead_and_a_cancel_ends_the_reading(models: dict) -> None:
    read: list[int] = []
    closed: list[bool] = []

    def film() -> Iterator[Image]:
        try:
            for number, image in enumerate(grey(20)):
                read.append(number)
                yield image
        finally:
            closed.append(True)

    done: list[float] = []
    steps = segment_frames(
        film(), models["semantic"], device="cpu", progress=done.append,
        cancel=lambda: len(done) >= 3,
    )  # fmt: skip
    with pytest.raises(Cancelled):
        list(steps)
    assert 3 <= len(done) < 20
    assert done == sorted(done)
    assert closed
    assert len(read) <= 18


@pytest.mark.parametrize("task", ["instance", "semantic"])
@pytest.mark.parametrize("shape", [(48, 64), (130, 100)])
def test_small_frames_go_together_and_give_the_same(
    models: dict, task: str, shape: tuple[int, int]
) -> None:
    model = models[task]
    film = [Image.from_array(frame(number, shape)[..., 0], "YX") for number in range(11)]
    film[4] = Image.from_array(np.zeros(shape, np.uint8), "YX")
    sizes: list[int] = []
    hook = model.network.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    together = [labels for _, labels in segment_frames(film, model, device="cpu", mirror=True)]
    hook.remove()

    def one_by_one(*arguments: Any, **options: Any) -> Any:
        return segment(*arguments, **options)

    alone = segment_frames(film, model, device="cpu", mirror=True, compute=one_by_one)
    for labels, (_, expected) in zip(together, alone, strict=True):
        assert ((labels > 0) == (expected > 0)).mean() > 0.999
    assert not together[4].any()
    small = shape[0] <= 64  # the tile of this model
    assert (max(sizes) == 7) is small, "of the first eight frames, one is constant"


def test_a_stack_file_becomes_a_file_of_labels(models: dict, tmp_path: Path) -> None:
    film = np.stack([frame(number) for number in range(5)])
    metadata = {"axes": "TYXS", "PhysicalSizeX": 0.3, "PhysicalSizeY": 0.3, "TimeIncrement": 0.1}
    tifffile.imwrite(tmp_path / "a.ome.tif", film, photometric="rgb", metadata=metadata)
    told: list[tuple[float, float]] = []
    result = segment_frames_file(
        tmp_path / "a.ome.tif", tmp_path / "labels.tif", models["instance"], channel="1",
        progress=lambda done, total: told.append((done, total)), device="cpu",
    )  # fmt: skip
    labels = load_labels(tmp_path / "labels.tif")
    assert (labels.axes, labels.spacing, labels.unit) == ("TYX", (0.3, 0.3), "micrometer")
    one = load_image(tmp_path / "a.ome.tif").select_channel(1)
    expected = segment(one, models["instance"], device="cpu")
    np.testing.assert_array_equal(labels.array, expected.labels)
    assert (result.frames, result.count) == (5, expected.count)
    assert told[-1] == (5, 5)
    assert all(a <= b for a, b in itertools.pairwise(done for done, _ in told))


def test_a_video_becomes_a_file_of_labels(models: dict, tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", map(frame, range(12)))
    result = segment_frames_file(
        video, tmp_path / "labels.ome.tif", models["semantic"], channel="0", smoothing=3,
        device="cpu",
    )  # fmt: skip
    assert result.frames == 12
    assert load_labels(tmp_path / "labels.ome.tif").array.shape == (12, 48, 64)


@pytest.mark.parametrize("smoothing", [1, 3])
def test_memory_does_not_grow_with_the_number_of_frames(
    models: dict, tmp_path: Path, smoothing: int
) -> None:
    """48 frames more of 16 kB each, with their labels, would be 1.5 MB."""
    shape, peaks = (128, 128), []
    for count in (16, 64):
        path = tmp_path / f"{count}.tif"
        with tifffile.TiffWriter(path) as tif:
            for number in range(count):
                tif.write(frame(number, shape)[..., 0], contiguous=True, photometric="minisblack")
        tracemalloc.start()
        result = segment_frames_file(
            path, tmp_path / f"{count}-labels.tif", models["semantic"], axes="TYX",
            smoothing=smoothing, device="cpu",
        )  # fmt: skip
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert result.frames == count
    assert peaks[1] < peaks[0] + 8 * math.prod(shape), peaks
    assert load_labels(tmp_path / "64-labels.tif").array.shape == (64, *shape)
