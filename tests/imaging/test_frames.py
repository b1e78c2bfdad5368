"""Frames of videos, stacks and folders one by one; labels written page by page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from films import frame, write_video
from tttunet.errors import ImageError, OutputError
from tttunet.imaging import load_image, load_labels
from tttunet.imaging.frames import is_video, natural_order, open_frames
from tttunet.imaging.image import Image
from tttunet.imaging.label_stack import label_stack
from tttunet.imaging.video_array import VideoArray


def stack(*shape: int, dtype: str = "uint16") -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def arrays(path: Path, axes: str | None = None) -> np.ndarray:
    return np.stack([image.array for image in open_frames(path, axes)])


@pytest.mark.parametrize(
    ("axes", "shape", "frame_axes"),
    [
        ("TYX", (5, 12, 16), "YX"),
        ("TCYX", (3, 2, 12, 16), "CYX"),
        ("TZYX", (3, 4, 12, 16), "ZYX"),
        ("ZTYX", (4, 3, 12, 16), "ZYX"),
        ("TYXS", (3, 12, 16, 3), "CYX"),
    ],
)
def test_a_stack_frame_by_frame(tmp_path: Path, axes: str, shape: tuple, frame_axes: str) -> None:
    data = stack(*shape, dtype="uint8")
    metadata = {"axes": axes, "TimeIncrement": 250, "TimeIncrementUnit": "ms"}
    metadata |= {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm"}
    metadata |= {"PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"}
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, data, ome=True, metadata=metadata, compression="zlib",
                     photometric="rgb" if "S" in axes else "minisblack")  # fmt: skip
    frames = open_frames(path)
    assert (frames.name, frames.count, frames.interval) == ("a", shape[axes.index("T")], 0.25)
    whole = load_image(path)
    assert whole.axes == "T" + frame_axes
    for image, expected in zip(frames, whole.array, strict=True):
        assert image.axes == frame_axes
        assert image.rgb == whole.rgb
        assert (image.spacing, image.unit) == (whole.spacing, whole.unit)
        np.testing.assert_array_equal(image.array, expected)
    np.testing.assert_array_equal(frames.first.array, whole.array[0])


@pytest.mark.parametrize("options", [{}, {"imagej": True, "metadata": {"axes": "TYX"}}])
def test_a_plain_stack_and_one_of_imagej(tmp_path: Path, options: dict) -> None:
    data = stack(6, 10, 14)
    if options:
        options = {**options, "metadata": {"axes": "TYX", "finterval": 2.0}}
    tifffile.imwrite(tmp_path / "a.tif", data, **options)
    np.testing.assert_array_equal(arrays(tmp_path / "a.tif"), data)
    assert open_frames(tmp_path / "a.tif").interval == (2.0 if options else None)


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_one_page_for_a_whole_stack(tmp_path: Path, byteorder: str) -> None:
    data = stack(6, 10, 14)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, data, imagej=True, metadata={"axes": "TYX"}, truncate=True,
                     byteorder=byteorder)  # fmt: skip
    with tifffile.TiffFile(path) as tif:
        assert len(tif.pages) == 1
    np.testing.assert_array_equal(arrays(path), data)


def test_planes_are_frames_only_if_they_are_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, stack(4, 10, 14), ome=True, metadata={"axes": "ZYX"})
    with pytest.raises(ImageError, match="the axes ZYX and no time") as found:
        open_frames(path)
    assert "--axes TYX" in found.value.hint
    np.testing.assert_array_equal(arrays(path, "tyx"), stack(4, 10, 14))
    with pytest.raises(ImageError, match="needs 3 axes"):
        open_frames(path, "TCYX")


def test_a_damaged_stack_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stack(6, 40, 40))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(ImageError, match=r"damaged|incomplete"):
        list(open_frames(path))


def test_pictures_of_a_folder_in_their_natural_order(tmp_path: Path) -> None:
    for number in range(12):
        Pillow.fromarray(frame(number)).save(tmp_path / f"frame{number}.png")
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("recorded on Monday")
    frames = open_frames(tmp_path)
    assert (frames.count, frames.name, frames.interval) == (12, tmp_path.name, None)
    for number, image in enumerate(frames):
        assert image.rgb
        np.testing.assert_array_equal(np.moveaxis(image.array, 0, -1), frame(number))
    assert natural_order("a10") > natural_order("a2") > natural_order("A1")
    Pillow.fromarray(frame(0, (20, 20))).save(tmp_path / "frame99.png")
    with pytest.raises(ImageError, match=r"Frame 12 of .* the shape \(3, 20, 20\)"):
        list(open_frames(tmp_path))


def test_what_has_no_frames(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="has no frames"):
        open_frames(tmp_path)
    with pytest.raises(ImageError, match="does not exist"):
        open_frames(tmp_path / "a.mp4")
    Pillow.fromarray(frame(0)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="has no frames"):
        open_frames(tmp_path / "a.png")
    assert is_video("A.MP4")
    assert not is_video("a.tif")


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [("a.mp4", "mpeg4", "yuv420p"), ("a.mkv", "ffv1", "bgr0"), ("a.avi", "rawvideo", "gray")],
)
def test_a_video_frame_by_frame(tmp_path: Path, name: str, codec: str, pixels: str) -> None:
    path = write_video(tmp_path / name, map(frame, range(25)), codec=codec, pixels=pixels)
    frames = open_frames(path)
    assert frames.name == "a"
    assert abs(frames.count - 25) <= 1
    assert frames.interval == pytest.approx(0.1)
    found = list(frames)
    assert len(found) == 25
    for number, image in enumerate(found):
        truth = frame(number)
        if pixels == "gray":
            assert image.axes == "YX"
            assert np.abs(image.array - truth @ (0.299, 0.587, 0.114)).mean() < 3
            continue
        assert image.rgb
        error = np.abs(np.moveaxis(image.array, 0, -1).astype(int) - truth)
        assert error.max() == 0 if codec == "ffv1" else error.mean() < 20
    assert len(list(frames)) == 25, "a second time, from the beginning"


def test_a_video_is_turned_as_it_shall_be_shown(tmp_path: Path) -> None:
    write_video(tmp_path / "plain.mp4", map(frame, range(3)))
    for degrees in (90, 180, -90):
        path = write_video(tmp_path / "a.mp4", map(frame, range(3)), turned=degrees)
        plain, turned = open_frames(tmp_path / "plain.mp4").first, open_frames(path).first
        expected = np.rot90(plain.array, degrees // 90, (1, 2))
        np.testing.assert_array_equal(turned.array, expected)


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [("a.mp4", "mpeg4", "yuv420p"), ("a.mkv", "ffv1", "bgr0"), ("a.avi", "rawvideo", "gray")],
)
def test_a_video_as_an_array(tmp_path: Path, name: str, codec: str, pixels: str) -> None:
    path = write_video(tmp_path / name, map(frame, range(90)), codec=codec, pixels=pixels)
    frames = [image.array for image in open_frames(path)]
    expected = np.stack([one if one.ndim == 2 else np.moveaxis(one, 0, -1) for one in frames])
    video = VideoArray(path)
    assert (video.shape, video.dtype, video.ndim) == (expected.shape, np.uint8, expected.ndim)
    for number in (0, 1, 2, 80, 3, 89, -1, 40, 41, 5, 88):
        np.testing.assert_array_equal(video[number], expected[number])
    np.testing.assert_array_equal(video[10:60:7, 4:9], expected[10:60:7, 4:9])
    np.testing.assert_array_equal(video[np.int64(7), ..., :5], expected[7, ..., :5])
    np.testing.assert_array_equal(np.asarray(video), expected)
    assert len(video._kept) <= 32
    with pytest.raises(IndexError):
        video[90]


def test_a_damaged_video_is_told(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", map(frame, range(25)))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ImageError, match="damaged, incomplete or no video"):
        open_frames(path)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").write_bytes(b"0")
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ImageError, match="PyAV") as found:
        open_frames(tmp_path / "a.mp4")
    assert "napari-tttunet[video]" in found.value.hint


# Labels


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
@pytest.mark.parametrize(("axes", "shape"), [("YX", (20, 30)), ("CYX", (3, 20, 30)),
                                            ("ZYX", (4, 20, 30))])  # fmt: skip
def test_labels_are_written_one_by_one(tmp_path: Path, axes: str, shape: tuple, dtype: str) -> None:
    spacing = [2.0, 0.5, 0.25] if "Z" in axes else [0.5, 0.25]
    like = Image.from_array(np.zeros(shape), axes, spacing=spacing, unit="micrometer")
    size = tuple(n for n, letter in zip(shape, axes, strict=True) if letter != "C")
    labels = stack(7, *size, dtype=dtype) % 5
    for name in ("a.ome.tif", "b.tif"):
        with label_stack(tmp_path / name, interval=0.04) as writing:
            assert not (tmp_path / name).exists(), "it appears when all is written"
            for one in labels:
                writing.add(one, like)
        found = load_labels(tmp_path / name)
        assert found.axes == "T" + axes.replace("C", "")
        assert found.array.dtype == dtype
        assert (found.spacing, found.unit) == (tuple(spacing), "micrometer")
        np.testing.assert_array_equal(found.array, labels)
        assert open_frames(tmp_path / name).interval == pytest.approx(0.04)
        with tifffile.TiffFile(tmp_path / name) as tif:
            assert tif.is_bigtiff
            assert tif.is_ome
    assert (tmp_path / "a.ome.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


def test_a_stack_of_labels_is_whole_or_not_there(tmp_path: Path) -> None:
    like = Image.from_array(np.zeros((8, 8)), "YX")
    path = tmp_path / "a.ome.tif"

    def write(*labels: np.ndarray, name: Path = path) -> None:
        with label_stack(name) as writing:
            for one in labels:
                writing.add(one, like)

    with pytest.raises(ImageError, match=r"labels|shape"):
        write(np.zeros((8, 8), np.uint8), np.zeros((8, 9), np.uint8))
    with pytest.raises(ImageError, match="frame 1 are uint16"):
        write(np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint16))
    with pytest.raises(ImageError, match="no frames"):
        write()
    with pytest.raises(OutputError, match="of a type that labels of frames"):
        write(name=tmp_path / "a.nii.gz")
    assert list(tmp_path.iterdir()) == []
    write(np.ones((8, 8), np.uint8))
    assert load_labels(path).array.shape == (8, 8)
    with pytest.raises(OutputError, match="exists"):
        write(np.ones((8, 8), np.uint8))
