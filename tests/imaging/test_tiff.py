"""TIFF files of several programs: axes, pixel size, colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from tttunet.errors import ImageError
from tttunet.imaging import load_image, load_labels


def ramp(*shape: int, dtype: str = "uint16") -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


@pytest.mark.parametrize("axes", ["YX", "ZYX", "CYX", "TYX", "CZYX", "TCYX", "TCZYX"])
def test_ome_axes_pixel_size_and_channels(tmp_path: Path, axes: str) -> None:
    sizes = {"T": 2, "C": 3, "Z": 4, "Y": 5, "X": 6}
    array = ramp(*(sizes[letter] for letter in axes))
    metadata: dict = {"axes": axes, "PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm"}
    metadata |= {"PhysicalSizeY": 500, "PhysicalSizeYUnit": "nm"}
    if "Z" in axes:
        metadata |= {"PhysicalSizeZ": 0.002, "PhysicalSizeZUnit": "mm"}
    if "C" in axes:
        metadata["Channel"] = {"Name": ["DAPI", "GFP", "RFP"]}
    path = tmp_path / "cells.v2.ome.tif"
    tifffile.imwrite(path, array, ome=True, photometric="minisblack", metadata=metadata)
    image = load_image(path)
    assert (image.axes, image.name, image.path) == (axes, "cells.v2", path)
    assert image.spacing == pytest.approx((2.0, 0.5, 0.25)[-image.ndim_spatial :])
    assert (image.unit, image.rgb) == ("micrometer", False)
    assert image.channel_names == (("DAPI", "GFP", "RFP") if "C" in axes else ())
    np.testing.assert_array_equal(image.array, array)


@pytest.mark.parametrize(
    ("unit", "size", "expected", "known"),
    [
        (None, 0.5, 0.5, "micrometer"),
        ("Å", 50, 0.005, "micrometer"),
        ("mm", 0.5, 0.5, "millimeter"),
        ("pixel", 2, 2.0, None),
        ("µm", -3, 1.0, None),
    ],
)
def test_ome_units(
    tmp_path: Path, unit: str | None, size: float, expected: float, known: str | None
) -> None:
    metadata = {"axes": "YX", "PhysicalSizeX": size, "PhysicalSizeY": size}
    if unit:
        metadata |= {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, ramp(4, 5), ome=True, metadata=metadata)
    image = load_image(path)
    assert (image.spacing, image.unit) == (pytest.approx((expected, expected)), known)


@pytest.mark.parametrize("axes", ["ZYX", "TYX", "CYX", "TZCYX"])
def test_imagej_axes_and_pixel_size(tmp_path: Path, axes: str) -> None:
    sizes = {"T": 2, "C": 3, "Z": 4, "Y": 5, "X": 6}
    path = tmp_path / "a.tif"
    metadata = {"axes": axes, "unit": "um"} | ({"spacing": 1.5} if "Z" in axes else {})
    array = ramp(*(sizes[letter] for letter in axes))
    tifffile.imwrite(path, array, imagej=True, resolution=(4.0, 2.0), metadata=metadata)
    image = load_image(path)
    assert image.axes == "".join(letter for letter in "TCZYX" if letter in axes)
    assert image.spacing == pytest.approx((1.5, 0.5, 0.25)[-image.ndim_spatial :])
    assert image.unit == "micrometer"


def test_imagej_without_calibration_is_in_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, ramp(3, 4, 5), imagej=True, metadata={"axes": "ZYX", "spacing": 3.0})
    image = load_image(path)
    assert (image.spacing, image.unit) == ((3.0, 1.0, 1.0), None)


@pytest.mark.parametrize(
    ("resolution", "unit", "spacing"),
    [
        ((2e4, 1e4), "CENTIMETER", (1.0, 0.5)),
        ((25400.0, 25400.0), "INCH", (1.0, 1.0)),
        ((72.0, 72.0), "INCH", None),
        ((300.0, 300.0), "INCH", None),
        ((28.35, 28.35), "CENTIMETER", None),
        ((1e4, 1e4), "NONE", None),
    ],
)
def test_resolution_tags(
    tmp_path: Path, resolution: tuple, unit: str, spacing: tuple | None
) -> None:
    path = tmp_path / "a.tif"
    for ome in (False, True):
        tifffile.imwrite(path, ramp(4, 5), ome=ome, resolution=resolution, resolutionunit=unit)
        image = load_image(path)
        assert image.unit == ("micrometer" if spacing else None)
        assert image.spacing == pytest.approx(spacing or (1.0, 1.0))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float32", "float16", "?"])
def test_dtypes_are_kept(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "a.tif"
    array = (ramp(4, 5) % 2 if dtype == "?" else ramp(4, 5)).astype(dtype)
    tifffile.imwrite(path, array, byteorder=">", compression="zlib" if dtype != "?" else None)
    image = load_image(path)
    assert image.array.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(image.array, array)


def test_twelve_bits(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    array = (ramp(8, 10) * 50 % 4096).astype(np.uint16)
    packed = np.zeros((8, 15), np.uint8)
    packed[:, 0::3] = array[:, 0::2] >> 4
    packed[:, 1::3] = (array[:, 0::2] & 15) << 4 | array[:, 1::2] >> 8
    packed[:, 2::3] = array[:, 1::2] & 255
    Pillow.fromarray(packed).save(path, compression=None)
    raw = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tif:
        tags = {name: tif.pages[0].tags[name] for name in ("ImageWidth", "BitsPerSample")}
    for name, value in (("ImageWidth", 10), ("BitsPerSample", 12)):
        offset = tags[name].valueoffset
        raw[offset : offset + 2] = value.to_bytes(2, "little")
    path.write_bytes(raw)
    np.testing.assert_array_equal(load_image(path).array, array)


@pytest.mark.parametrize(
    ("shape", "options", "axes", "rgb"),
    [
        ((5, 6, 3), {"photometric": "rgb"}, "CYX", True),
        ((5, 6, 4), {"photometric": "rgb"}, "CYX", True),
        ((3, 5, 6), {"photometric": "rgb", "planarconfig": "separate"}, "CYX", True),
        ((5, 6, 2), {"photometric": "minisblack", "extrasamples": ["unassalpha"]}, "YX", False),
        ((5, 6, 2), {"photometric": "minisblack", "planarconfig": "contig"}, "CYX", False),
        ((5, 6, 7), {"photometric": "minisblack", "planarconfig": "contig"}, "CYX", False),
        ((7, 5, 6), {"photometric": "minisblack", "planarconfig": "separate"}, "CYX", False),
    ],
)
def test_samples(
    tmp_path: Path, shape: tuple[int, ...], options: dict, axes: str, rgb: bool
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, ramp(*shape, dtype="uint8"), **options)
    image = load_image(path)
    assert (image.axes, image.rgb, image.spatial_shape) == (axes, rgb, (5, 6))


def test_stack_without_axes_is_ambiguous(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    array = ramp(7, 5, 6)
    tifffile.imwrite(path, array, photometric="minisblack")
    with pytest.raises(ImageError, match=r"\(7, 5, 6\).*--axes.*ZYX, TYX or CYX"):
        load_image(path)
    for axes in ("ZYX", "TYX", "CYX"):
        assert load_image(path, axes).axes == axes
    np.testing.assert_array_equal(load_image(path, "xyz").array, array.transpose())
    assert load_labels(path, "ZYX").axes == "ZYX"
    with pytest.raises(ImageError, match="'ZCYX' has 4"):
        load_image(path, "ZCYX")


def test_pages_without_axes_are_ambiguous(tmp_path: Path) -> None:
    path = tmp_path / "pages.tif"
    first, *others = [Pillow.fromarray(page) for page in ramp(4, 5, 6, dtype="uint8")]
    first.save(path, save_all=True, append_images=others)
    with pytest.raises(ImageError, match="nothing says"):
        load_image(path)
    assert load_image(path, "TYX").array.shape == (4, 5, 6)


def test_axes_of_size_one_are_not_ambiguous(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, ramp(1, 5, 6))
    assert load_image(path).axes == "YX"
    assert load_image(path, "ZYX").axes == "YX"
    assert load_image(path, "YX").axes == "YX"


def test_pixels_of_one_pixel_images(tmp_path: Path) -> None:
    for name, options in (("a", {}), ("b", {"ome": True}), ("c", {"imagej": True})):
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, np.full((1, 1), 7, np.uint8), **options)
        image = load_image(path)
        assert (image.axes, image.array.tolist()) == ("YX", [[7]])


def test_first_of_several_images_is_used_and_said(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tif:
        tif.write(ramp(5, 6))
        tif.write(ramp(3, 4))
    image = load_image(path)
    assert image.spatial_shape == (5, 6)
    assert "holds 2 images" in image.notes[0]


def test_palette_keeps_its_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    array = ramp(5, 6, dtype="uint8")
    colours = np.stack([np.zeros(256), np.arange(256) * 257, np.zeros(256)]).astype(np.uint16)
    tifffile.imwrite(path, array, photometric="palette", colormap=colours)
    np.testing.assert_array_equal(load_image(path).array, array)


def test_unsupported_colours(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Pillow.fromarray(ramp(5, 6, 4, dtype="uint8"), "CMYK").save(path)
    with pytest.raises(ImageError, match=r"SEPARATED.*Convert it to RGB"):
        load_image(path)


def test_colour_and_channels_together(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    metadata = {"axes": "CYXS"}
    tifffile.imwrite(path, ramp(2, 5, 6, 3), ome=True, photometric="rgb", metadata=metadata)
    with pytest.raises(ImageError, match="both channels and colour"):
        load_image(path)
