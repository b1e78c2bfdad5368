"""Medical formats: what is written lies exactly where the input lay."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tttunet.errors import ImageError
from tttunet.imaging import Image, load_image, load_labels, save_labels
from tttunet.imaging.itk import from_sitk, to_sitk

SUFFIXES = [".nii.gz", ".nii", ".nrrd", ".mha"]
lengths = st.floats(0.05, 20)
places = st.floats(-500, 500)


def rotation(angles: tuple[float, ...], mirror: bool) -> np.ndarray:
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[[i, i, j, j], [i, j, i, j]] = (
            np.cos(angle),
            -np.sin(angle),
            np.sin(angle),
            np.cos(angle),
        )
        matrix = matrix @ turn
    return matrix * ([-1, 1, 1] if mirror else [1, 1, 1])


@st.composite
def volumes(draw: st.DrawFn) -> sitk.Image:
    shape = draw(st.tuples(*[st.integers(1, 5)] * 3))
    picture = sitk.GetImageFromArray(np.arange(np.prod(shape)).reshape(shape).astype(np.int16))
    picture.SetSpacing(draw(st.tuples(lengths, lengths, lengths)))
    picture.SetOrigin(draw(st.tuples(places, places, places)))
    angles = draw(st.tuples(*[st.floats(-3, 3)] * 3))
    picture.SetDirection(rotation(angles, draw(st.booleans())).ravel().tolist())
    return picture


def geometry(picture: sitk.Image) -> tuple:
    return picture.GetSize(), picture.GetSpacing(), picture.GetOrigin(), picture.GetDirection()


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(picture=volumes())
def test_labels_lie_bit_for_bit_on_the_input(
    tmp_path: Path, suffix: str, picture: sitk.Image
) -> None:
    source, result = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    sitk.WriteImage(picture, str(source))
    image = load_image(source)
    labels = (image.array % 3).astype(np.uint8)
    save_labels(result, labels, image, overwrite=True)
    before, after = sitk.ReadImage(str(source)), sitk.ReadImage(str(result))
    assert geometry(after) == geometry(before)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(after), labels)


@settings(max_examples=30)
@given(picture=volumes(), data=st.data())
def test_voxels_are_at_the_same_place_in_both_worlds(picture: sitk.Image, data: st.DataObject):
    image = from_sitk(picture)
    index = [data.draw(st.integers(0, size - 1)) for size in image.spatial_shape]
    there = np.array(image.origin) + image.direction @ (np.array(index) * image.spacing)
    expected = picture.TransformIndexToPhysicalPoint(index[::-1])
    np.testing.assert_allclose(there[::-1], expected, atol=1e-9)
    assert image.array[tuple(index)] == picture.GetPixel(*index[::-1])


@settings(max_examples=30)
@given(picture=volumes())
def test_conversion_there_and_back_is_exact(picture: sitk.Image) -> None:
    assert geometry(to_sitk(from_sitk(picture))) == geometry(picture)


def test_placement_fields_of_nifti_are_copied_as_they_are(tmp_path: Path) -> None:
    source, result = tmp_path / "in.nii", tmp_path / "out.nii.gz"
    picture = sitk.GetImageFromArray(np.zeros((2, 3, 4), np.int16))
    picture.SetDirection(rotation((0.3, 0.2, 0.1), False).ravel().tolist())
    sitk.WriteImage(picture, str(source))
    raw = bytearray(source.read_bytes())
    struct.pack_into("<2h", raw, 252, 2, 4)  # qform: aligned, sform: MNI
    source.write_bytes(raw)
    image = load_image(source)
    save_labels(result, np.zeros((2, 3, 4), np.uint8), image)
    written = gzip.decompress(result.read_bytes())
    for start, end in ((76, 92), (123, 124), (252, 328)):
        assert written[start:end] == bytes(raw[start:end])


def test_changed_geometry_is_written_not_that_of_the_file(tmp_path: Path) -> None:
    source, result = tmp_path / "in.nii.gz", tmp_path / "out.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4), np.int16)), str(source))
    image = load_image(source)
    moved = Image.from_array(
        image.array, "ZYX", spacing=(4, 3, 2), unit="millimeter", path=image.path
    )
    save_labels(result, np.zeros((2, 3, 4), np.uint8), moved)
    assert load_image(result).spacing == (4, 3, 2)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_dimensions_and_components(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    for shape, axes in (((4, 5), "YX"), ((1, 4, 5), "ZYX"), ((2, 3, 4, 5), "TZYX")):
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros(shape, "u1"), isVector=False), str(path))
        image = load_image(path)
        assert (image.axes, image.array.shape, image.unit) == (axes, shape, "millimeter")
        save_labels(path, np.ones(shape, np.uint8), image, overwrite=True)
        assert load_labels(path).array.shape == shape
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5, 3), "u1"), isVector=True), str(path))
    assert (load_image(path).axes, load_image(path).rgb) == ("CYX", True)
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5, 3), "f4"), isVector=True), str(path))
    assert (load_image(path).axes, load_image(path).rgb) == ("CYX", False)


def test_axes_override(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4, 5)), isVector=False), str(path))
    assert load_image(path, "CZYX").axes == "CZYX"
    with pytest.raises(ImageError, match="change the order"):
        load_image(path, "TXYZ")
    with pytest.raises(ImageError, match="needs 4 axes"):
        load_image(path, "ZYX")
    picture = sitk.GetImageFromArray(np.zeros((3, 4, 5)))
    picture.SetDirection(rotation((0.3, 0.2, 0.1), False).ravel().tolist())
    picture.SetSpacing((0.5, 0.7, 3.0))
    sitk.WriteImage(picture, str(path))
    frames = load_image(path, "TYX")
    assert frames.spacing == pytest.approx((0.7, 0.5))
    np.testing.assert_array_equal(frames.direction, np.eye(2))


def test_micrometers_become_millimeters(tmp_path: Path) -> None:
    image = Image.from_array(np.zeros((4, 5)), spacing=(0.5, 0.25), unit="micrometer")
    path = save_labels(tmp_path / "a.mha", np.zeros((4, 5), np.uint8), image)
    assert load_image(path).spacing == pytest.approx((0.0005, 0.00025))


def test_complex_voxels(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5), np.complex64)), str(path))
    with pytest.raises(ImageError, match="complex"):
        load_image(path)


def test_real_volume_stays_on_its_grid(data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "mr_hippocampus_msd"
    source = sorted((folder / "images").iterdir())[0]
    image, truth = load_image(source), load_labels(folder / "labels" / source.name)
    assert truth.spatial_shape == image.spatial_shape
    path = save_labels(tmp_path / source.name, truth.array, image)
    assert geometry(sitk.ReadImage(str(path))) == geometry(sitk.ReadImage(str(source)))
    np.testing.assert_array_equal(load_labels(path).array, truth.array)
