"""Labels, overlays and tables on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from tttunet.errors import ImageError, OutputError
from tttunet.imaging import Image, load_image, load_labels, save_labels, save_overlay, save_table

SIZES = {"T": 2, "C": 3, "Z": 4, "Y": 5, "X": 6}


def image_with(axes: str, **options) -> Image:
    return Image.from_array(np.zeros([SIZES[a] for a in axes], np.uint16), axes, **options)


def labels_for(image: Image, dtype="uint32") -> np.ndarray:
    shape = [SIZES[letter] for letter in image.axes if letter != "C"]
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


@pytest.mark.parametrize("axes", ["YX", "CYX", "ZYX", "TYX", "TCZYX"])
@pytest.mark.parametrize("unit", ["micrometer", "millimeter", None])
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spacing=st.tuples(*[st.floats(0.001, 1000)] * 3))
def test_ome_tiff_round_trip(tmp_path: Path, axes: str, unit: str | None, spacing: tuple) -> None:
    n = 3 if "Z" in axes else 2
    image = image_with(axes, spacing=spacing[-n:], unit=unit)
    path = save_labels(tmp_path / "a.ome.tif", labels_for(image), image, overwrite=True)
    back = load_labels(path)
    assert (back.axes, back.spacing, back.unit) == (axes.replace("C", ""), image.spacing, unit)
    assert back.array.dtype == np.uint32
    np.testing.assert_array_equal(back.array, labels_for(image))


def test_ome_tiff_is_what_other_programs_expect(tmp_path: Path) -> None:
    image = image_with("ZYX", spacing=(2.0, 0.5, 0.25), unit="micrometer")
    path = save_labels(tmp_path / "a.ome.tif", labels_for(image, "uint16"), image)
    with tifffile.TiffFile(path) as tif:
        assert (tif.is_ome, tif.series[0].axes, tif.pages[0].compression.name) == (
            True,
            "ZYX",
            "ADOBE_DEFLATE",
        )
        for text in ('PhysicalSizeZ="2.0"', 'PhysicalSizeX="0.25"', 'PhysicalSizeXUnit="µm"'):
            assert text in (tif.ome_metadata or "")
        assert tif.pages[0].get_resolution("MICROMETER") == (4.0, 2.0)
        assert tif.pages[0].dtype == np.uint16


def test_three_planes_are_not_taken_for_colours(tmp_path: Path) -> None:
    image = Image.from_array(np.zeros((3, 5, 6), np.uint8), "ZYX")
    path = save_labels(tmp_path / "a.tif", np.ones((3, 5, 6), np.uint8), image)
    assert load_labels(path).axes == "ZYX"


def test_equal_labels_give_equal_files(tmp_path: Path) -> None:
    image = image_with("ZYX", unit="micrometer")
    for suffix in (".ome.tif", ".nii.gz", ".nrrd", ".mha"):
        first, second = (
            save_labels(tmp_path / f"{name}{suffix}", labels_for(image), image).read_bytes()
            for name in "ab"
        )
        assert first == second


@pytest.mark.parametrize("suffix", [".ome.tif", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize(
    ("given", "written"),
    [("?", "u1"), ("u1", "u1"), ("u2", "u2"), ("i4", "i4"), ("i8", "u4"), ("u8", "u4")],
)
def test_dtypes(tmp_path: Path, suffix: str, given: str, written: str) -> None:
    image = image_with("YX")
    labels = (labels_for(image) % 2).astype(given)
    path = save_labels(tmp_path / f"a{suffix}", labels, image)
    assert load_labels(path).array.dtype == np.dtype(written)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros((5, 7), int), r"\(5, 7\) do not fit 'cells', which needs \(5, 6\)"),
        (np.zeros((5, 6)), "whole numbers, not float64"),
        (np.full((5, 6), -1), "negative"),
        (np.full((5, 6), 2**40), "2\\*\\*32"),
    ],
)
def test_labels_that_do_not_fit(tmp_path: Path, labels: np.ndarray, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        save_labels(tmp_path / "a.ome.tif", labels, image_with("CYX", name="cells"))
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_cannot_be(tmp_path: Path) -> None:
    image = image_with("YX")
    for name in ("a.txt", "a", "a.mhd", "a.png"):
        with pytest.raises(OutputError, match=r"Choose \.ome\.tif"):
            save_labels(tmp_path / name, labels_for(image), image)
    save_labels(tmp_path / "a.tif", labels_for(image), image)
    with pytest.raises(OutputError, match="--overwrite"):
        save_labels(tmp_path / "a.tif", labels_for(image), image)


@pytest.mark.parametrize("suffix", [".ome.tif", ".nii", ".nii.gz", ".nrrd", ".mha", ".png", ".csv"])
def test_full_disk_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    resource = pytest.importorskip("resource", reason="Windows has no limit on file sizes")
    rng = np.random.default_rng(0)
    image = Image.from_array(rng.integers(0, 255, (40, 60, 60)).astype(np.uint8), "ZYX")
    labels = rng.integers(0, 2**31, image.array.shape).astype(np.uint32)
    path = tmp_path / f"a{suffix}"

    def write() -> None:
        if suffix == ".png":
            save_overlay(path, image, labels)
        elif suffix == ".csv":
            save_table(path, [{"value": 1.0}] * 10_000)
        else:
            save_labels(path, labels, image)

    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OutputError, match=rf"/a{suffix}' cannot be written: .*(full|large)"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert list(tmp_path.iterdir()) == []


def test_overlay_file(tmp_path: Path) -> None:
    image = Image.from_array(np.zeros((60, 80), np.uint8))
    labels = np.zeros((60, 80), int)
    labels[10:30, 10:30] = 1
    path = save_overlay(tmp_path / "a.png", image, labels)
    with Pillow.open(path) as picture:
        assert (picture.mode, picture.size) == ("RGB", (640, 480))
    with pytest.raises(OutputError, match=r"must be a \.png"):
        save_overlay(tmp_path / "a.jpg", image, labels)
    with pytest.raises(ImageError, match="do not fit"):
        save_overlay(tmp_path / "b.png", image, labels[1:])


def test_table(tmp_path: Path) -> None:
    rows = [{"label": 1, "area": 2.5}, {"label": 2, "area": 3.5, "name": "köln, a"}]
    path = save_table(tmp_path / "a.csv", rows)
    assert path.read_bytes().decode() == 'label,area,name\n1,2.5,\n2,3.5,"köln, a"\n'
    save_table(path, [], columns=["label", "area"], overwrite=True)
    assert path.read_text() == "label,area\n"


def test_labels_of_a_real_file_have_its_pixel_size(tmp_path: Path) -> None:
    source = tmp_path / "in.ome.tif"
    metadata = {"axes": "YX", "PhysicalSizeX": 0.3, "PhysicalSizeY": 0.4}
    tifffile.imwrite(source, np.zeros((5, 6), np.uint16), ome=True, metadata=metadata)
    image = load_image(source)
    path = save_labels(tmp_path / "out.ome.tif", labels_for(image), image)
    assert (load_labels(path).spacing, load_labels(path).unit) == (image.spacing, image.unit)
