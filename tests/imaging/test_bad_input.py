"""Whatever is wrong with a file, the user reads one sentence."""

from __future__ import annotations

import gzip
import logging
import os
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image as Pillow

from tttunet.errors import ImageError
from tttunet.imaging import load_image, load_labels

RNG = np.random.default_rng(0)
STACK = RNG.integers(0, 4000, (4, 40, 40)).astype(np.uint16)
COLOURS = RNG.integers(0, 255, (40, 40, 3)).astype(np.uint8)


def write_tiff(path: Path, **options) -> None:
    tifffile.imwrite(path, STACK, photometric="minisblack", **options)


def write_pages(path: Path) -> None:
    first, *others = [Pillow.fromarray(page) for page in STACK]
    first.save(path, save_all=True, append_images=others)


WRITERS = {
    "plain.tif": lambda path: write_tiff(path, metadata={"axes": "ZYX"}),
    "bare.tif": lambda path: write_tiff(path, metadata=None),
    "pages.tif": write_pages,
    "zlib.tif": lambda path: write_tiff(path, metadata={"axes": "ZYX"}, compression="zlib"),
    "lzw.tif": lambda path: write_tiff(path, metadata={"axes": "ZYX"}, compression="lzw"),
    "tiled.tif": lambda path: write_tiff(path, metadata={"axes": "ZYX"}, tile=(16, 16)),
    "imagej.tif": lambda path: write_tiff(path, imagej=True, metadata={"axes": "ZYX"}),
    "a.ome.tif": lambda path: write_tiff(path, ome=True, metadata={"axes": "ZYX"}),
    "a.png": lambda path: Pillow.fromarray(COLOURS).save(path),
    "deep.png": lambda path: path.write_bytes(imagecodecs.png_encode(COLOURS.astype("u2") * 256)),
    "a.jpg": lambda path: Pillow.fromarray(COLOURS).save(path, quality=95),
    "a.bmp": lambda path: Pillow.fromarray(COLOURS).save(path),
    "a.nii": lambda path: sitk.WriteImage(sitk.GetImageFromArray(STACK), str(path)),
    "a.nii.gz": lambda path: sitk.WriteImage(sitk.GetImageFromArray(STACK), str(path)),
    "a.nrrd": lambda path: sitk.WriteImage(sitk.GetImageFromArray(STACK), str(path), True),
    "a.mha": lambda path: sitk.WriteImage(sitk.GetImageFromArray(STACK), str(path), True),
}


@pytest.mark.parametrize("fraction", [0.002, 0.1, 0.3, 0.55, 0.8, 0.97])
@pytest.mark.parametrize("name", WRITERS)
def test_truncated(tmp_path: Path, name: str, fraction: float) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    axes = "ZYX" if name in ("bare.tif", "pages.tif") else None
    load_image(path, axes)
    content = path.read_bytes()
    path.write_bytes(content[: max(1, int(len(content) * fraction))])
    for read in (load_image, load_labels):
        with pytest.raises(ImageError) as caught:
            read(path, axes)
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)


@pytest.mark.parametrize("name", WRITERS)
def test_not_an_image(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for content in (b"just text, no image\n" * 50, bytes(2000), b"\x1f\x8b"):
        path.write_bytes(content)
        with pytest.raises(ImageError, match=r"damaged|not a"):
            load_image(path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.tif", "does not exist"),
        ("file.txt/a.tif", "does not exist"),
        ("nul\0.tif", "does not exist"),
        ("", "is a folder"),
        ("folder.tif", "is a folder"),
        ("file.txt", "cannot be read.*Known are TIFF"),
        ("empty.tif", r"is empty \(0 bytes\)"),
        ("empty.nii.gz", r"is empty \(0 bytes\)"),
    ],
)
def test_files_that_are_none(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "folder.tif").mkdir()
    (tmp_path / "file.txt").write_text("text")
    (tmp_path / "empty.tif").touch()
    (tmp_path / "empty.nii.gz").touch()
    with pytest.raises(ImageError, match=words):
        load_image(tmp_path / name)


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tif"
    write_tiff(path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ImageError, match="permission denied"):
        load_image(path)


def test_complex_and_empty_arrays(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((4, 5), np.complex64))
    with pytest.raises(ImageError, match="complex numbers"):
        load_image(path)
    with pytest.warns(UserWarning, match="zero-size"):
        tifffile.imwrite(path, np.zeros((0, 5), np.uint8))
    with pytest.raises(ImageError, match="is empty"):
        load_image(path)


def test_not_enough_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tif"
    write_tiff(path)

    def asarray(self, *args, **options):
        raise MemoryError

    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", asarray)
    with pytest.raises(ImageError, match="memory"):
        load_image(path)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([[0.5, 1.0]], "fractions"),
        ([[np.nan, 1.0]], "non-finite"),
        ([[np.inf, 1.0]], "non-finite"),
        ([[-1.0, 1.0]], "negative"),
        ([[1e12, 1.0]], "above"),
    ],
)
def test_arrays_that_are_no_labels(tmp_path: Path, values: list, words: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.array(values))
    with pytest.raises(ImageError, match=words):
        load_labels(path)


def test_whole_floats_are_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.array([[0, 70000, 3]], np.float32))
    labels = load_labels(path).array
    assert (labels.dtype, labels.tolist()) == (np.uint32, [[0, 70000, 3]])


def test_channels_are_no_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_tiff(path, metadata={"axes": "CYX"})
    with pytest.raises(ImageError, match="4 channels"):
        load_labels(path)


def test_gzip_of_several_members_is_complete(tmp_path: Path) -> None:
    plain, path = tmp_path / "b.nii", tmp_path / "a.nii.gz"
    WRITERS["a.nii"](plain)
    content = plain.read_bytes()
    path.write_bytes(gzip.compress(content[:5000]) + gzip.compress(content[5000:]))
    np.testing.assert_array_equal(load_image(path).array, STACK)
    path.write_bytes(gzip.compress(content[:5000]) + gzip.compress(content[5000:])[:-100])
    with pytest.raises(ImageError, match="incomplete"):
        load_image(path)


def _off_for_all() -> None:
    logging.disable()


def _off_for_tifffile() -> None:
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)


@pytest.mark.parametrize("turn_off", [_off_for_all, _off_for_tifffile])
def test_a_stack_that_ends_early_is_noticed_without_logging(
    tmp_path: Path, turn_off: Callable[[], None]
) -> None:
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, np.ones((3, 64, 64), np.uint16), imagej=True, metadata={"axes": "ZYX"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    logger = logging.getLogger("tifffile")
    try:
        turn_off()
        before = (logging.root.manager.disable, logger.level, logger.propagate)
        with pytest.raises(ImageError, match="incomplete"):
            load_image(path)
        assert (logging.root.manager.disable, logger.level, logger.propagate) == before
    finally:
        logging.disable(logging.NOTSET)
        logger.setLevel(logging.NOTSET)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_image_without_any_number(tmp_path: Path, value: float) -> None:
    array = np.full((8, 8), value, np.float32)
    tifffile.imwrite(tmp_path / "a.tif", array)
    with pytest.raises(ImageError, match="every pixel is NaN or infinite"):
        load_image(tmp_path / "a.tif")
    array[0, 0] = 1
    tifffile.imwrite(tmp_path / "a.tif", array)
    assert load_image(tmp_path / "a.tif").array[0, 0] == 1


@pytest.mark.parametrize(
    ("written", "named", "message"),
    [("a.png", "a.tif", "is a PNG file"), ("a.tif", "a.png", "is a TIFF file")],
)
def test_a_file_with_another_format_s_name_is_recognised(tmp_path, written, named, message):
    if written.endswith("png"):
        Pillow.fromarray(COLOURS).save(tmp_path / written)
    else:
        write_tiff(tmp_path / written)
    (tmp_path / written).rename(tmp_path / named)
    with pytest.raises(ImageError, match=message):
        load_image(tmp_path / named)
