"""DICOM series become volumes on their own grid; incomplete ones are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from dicom_files import write_series
from tttunet.errors import ImageError
from tttunet.imaging import load_image, save_labels
from tttunet.imaging.itk import is_dicom
from tttunet.imaging.readers import load_dicom


def volume(slices: int = 6) -> sitk.Image:
    """Sagittal slices, tilted by 20 degrees, with negative values as CT has."""
    shape = (slices, 5, 4)
    picture = sitk.GetImageFromArray((np.arange(np.prod(shape)).reshape(shape) - 50).astype("i2"))
    turn = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]], float)
    c, s = np.cos(0.35), np.sin(0.35)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ turn
    picture.SetDirection(turn.ravel().tolist())
    picture.SetSpacing((0.5, 0.75, 2.5))
    picture.SetOrigin((10, -20, 30.5))
    return picture


def test_series_is_read_on_its_grid(tmp_path: Path) -> None:
    picture = volume()
    write_series(tmp_path / "scan", picture)
    (tmp_path / "scan" / "README.txt").write_text("exported on Monday")
    image = load_image(tmp_path / "scan")
    assert (image.axes, image.name, image.unit) == ("ZYX", "scan", "millimeter")
    np.testing.assert_array_equal(image.array, sitk.GetArrayFromImage(picture))
    assert image.spacing == pytest.approx((2.5, 0.75, 0.5))
    for index in ((0, 0, 0), (5, 4, 3), (2, 0, 3)):
        there = np.array(image.origin) + image.direction @ (np.array(index) * image.spacing)
        expected = picture.TransformIndexToPhysicalPoint(index[::-1])
        np.testing.assert_allclose(there[::-1], expected, atol=1e-6)
    written = save_labels(tmp_path / "a.nrrd", (image.array > 0).astype(np.uint8), image)
    result = sitk.ReadImage(str(written))
    np.testing.assert_allclose(result.GetDirection(), picture.GetDirection(), atol=1e-6)
    np.testing.assert_allclose(result.GetOrigin(), picture.GetOrigin(), atol=1e-6)


def test_several_series_and_single_files(tmp_path: Path) -> None:
    write_series(tmp_path, volume(6), number=1)
    first, *_ = write_series(tmp_path, volume(3), number=2)
    assert [x.array.shape[0] for x in load_dicom(tmp_path)] == [6, 3]
    assert [x.name for x in load_dicom(tmp_path)] == [f"{tmp_path.name}-1", f"{tmp_path.name}-2"]
    with pytest.raises(ImageError, match=r"holds 2 DICOM series: 6 files, CT; 3 files, CT\."):
        load_image(tmp_path)
    (single,) = load_dicom(first)
    assert (single.axes, single.array.shape) == ("ZYX", (1, 5, 4))


def test_a_scout_beside_the_series_is_left_out_and_told(tmp_path: Path) -> None:
    write_series(tmp_path, volume(2), number=1)
    write_series(tmp_path, volume(8), number=2)
    image = load_image(tmp_path)
    assert image.array.shape[0] == 8
    (note,) = image.notes
    assert "the largest was read (8 files, CT), not: 2 files, CT." in note


def test_values_are_rescaled(tmp_path: Path) -> None:
    tags = {"0028|1052": "-1024", "0028|1053": "1", "0028|1054": "HU"}
    first, *_ = write_series(tmp_path, volume(), tags=tags)
    # The writer stores v + 1024, so only a reader that rescales finds v again.
    stored = np.frombuffer(first.read_bytes()[-40:], "<i2")
    np.testing.assert_array_equal(stored - 1024, sitk.GetArrayFromImage(volume())[0].ravel())
    image = load_image(tmp_path)
    np.testing.assert_array_equal(image.array, sitk.GetArrayFromImage(volume()))
    assert not image.notes


def test_several_frames_in_one_file(tmp_path: Path) -> None:
    picture = sitk.Cast(volume() + 60, sitk.sitkUInt16)
    picture.SetMetaData("0008|0016", "1.2.840.10008.5.1.4.1.1.7.3")
    (tmp_path / "frames").mkdir()
    sitk.WriteImage(picture, str(tmp_path / "frames" / "all.dcm"))
    image = load_image(tmp_path / "frames")
    assert image.axes == "ZYX"
    np.testing.assert_array_equal(image.array, sitk.GetArrayFromImage(picture))


NORMAL = np.array(volume().GetDirection()).reshape(3, 3)[:, 2]


@pytest.mark.parametrize(
    ("move", "words"),
    [
        (lambda i, p: p + (i > 3) * 9 * NORMAL, "lacks too many slices: .* 2.5 to 11.5 mm"),
        (lambda i, p: np.array([10.0, -20, 30.5]), "same place"),
        (lambda i, p: p + (i % 2) * np.array([0, 0, 0.5]), "shifted irregularly"),
    ],
)
def test_irregular_series_are_refused(tmp_path: Path, move, words: str) -> None:
    write_series(tmp_path, volume(), move=move)
    with pytest.raises(ImageError, match=words):
        load_image(tmp_path)


def ramp(points: np.ndarray) -> np.ndarray:
    """A brightness that linear interpolation gives back: points [..., 3] of the patient."""
    return 500 + points @ (7.0, -4.0, 5.0)


def ramp_series(folder: Path, slices: int, move, size: tuple[int, int] = (9, 8)) -> sitk.Image:
    """Slices with the brightness that `ramp` has where they are moved to."""
    grid = volume(slices)
    picture = sitk.Image(*size, slices, sitk.sitkInt16)
    for name in ("Spacing", "Origin", "Direction"):
        getattr(picture, f"Set{name}")(getattr(grid, f"Get{name}")())
    array = np.zeros((slices, *size[::-1]), np.int16)
    for k, j, i in np.ndindex(array.shape):
        first = np.array(picture.TransformIndexToPhysicalPoint((0, 0, k)))
        here = np.array(picture.TransformIndexToPhysicalPoint((i, j, k)))
        array[k, j, i] = np.rint(ramp(here + move(k, first) - first))
    filled = sitk.GetImageFromArray(array)
    filled.CopyInformation(picture)
    write_series(folder, filled, move=move)
    return filled


def patient(image, index) -> np.ndarray:
    """x, y, z of a voxel."""
    return (np.array(image.origin) + image.direction @ (np.array(index) * image.spacing))[::-1]


@pytest.mark.parametrize("degrees", [8, -20])
def test_a_tilted_gantry_is_straightened_and_told(tmp_path: Path, degrees: float) -> None:
    direction = np.array(volume().GetDirection()).reshape(3, 3)
    aside = np.tan(np.deg2rad(degrees)) * 2.5 * direction[:, 1]
    series = ramp_series(tmp_path, 10, lambda k, place: place + k * aside)
    image = load_image(tmp_path)
    (note,) = image.notes
    assert f"a gantry tilted by {abs(degrees)} degrees" in note
    assert image.spacing == pytest.approx((2.5, 0.75, 0.5))
    np.testing.assert_allclose(image.direction @ image.direction.T, np.eye(3), atol=1e-9)
    lowest = sitk.GetArrayFromImage(series).min()
    errors = np.array(
        [
            abs(image.array[index] - ramp(patient(image, index)))
            for index in np.ndindex(image.array.shape)
            if image.array[index] != lowest
        ]
    )
    assert len(errors) > 0.8 * series.GetNumberOfPixels()
    # Half a voxel beyond the outermost one, ITK gives the value of that.
    assert np.median(errors) < 0.6
    assert (errors < 1.1).mean() > 0.85
    assert errors.max() < 4
    # What the slices show is all in the grid.
    for k in range(10):
        for corner in ((0, 0, k), (8, 7, k)):
            point = np.array(series.TransformIndexToPhysicalPoint(corner)) + k * aside
            place = np.linalg.solve(image.direction * image.spacing, point[::-1] - image.origin)
            assert (place > -0.51).all()
            assert (place < np.array(image.array.shape) - 0.49).all()


def test_missing_slices_are_interpolated_and_told(tmp_path: Path) -> None:
    direction = np.array(volume().GetDirection()).reshape(3, 3)

    def gap(k: int, place: np.ndarray) -> np.ndarray:
        return place + (k > 5) * 2.5 * direction[:, 2]

    series = ramp_series(tmp_path, 11, gap)
    image = load_image(tmp_path)
    (note,) = image.notes
    assert "lacks slices: the distances between them are 2.5 to 5 mm; they were interp" in note
    assert image.array.shape == (12, 8, 9)
    stored = sitk.GetArrayFromImage(series)
    np.testing.assert_array_equal(image.array[:6], stored[:6])
    np.testing.assert_array_equal(image.array[7:], stored[6:])
    for index in ((6, 0, 0), (6, 7, 8), (11, 3, 2)):
        assert image.array[index] == pytest.approx(ramp(patient(image, index)), abs=1.1)


def test_a_tilted_gantry_with_a_missing_slice(tmp_path: Path) -> None:
    direction = np.array(volume().GetDirection()).reshape(3, 3)

    def move(k: int, place: np.ndarray) -> np.ndarray:
        number = k + (k > 5)
        return place + (number - k) * 2.5 * direction[:, 2] + 0.4 * number * direction[:, 0]

    ramp_series(tmp_path, 11, move)
    image = load_image(tmp_path)
    assert len(image.notes) == 2
    assert image.array.shape[0] == 12
    middle = (6, 4, 7)
    assert image.array[middle] == pytest.approx(ramp(patient(image, middle)), abs=1.6)


def test_missing_slice_and_damage(tmp_path: Path) -> None:
    paths = write_series(tmp_path, volume())
    content = paths[2].read_bytes()
    paths[2].unlink()
    (note,) = load_image(tmp_path).notes
    assert "lacks slices: the distances between them are 2.5 to 5 mm" in note
    paths[2].write_bytes(content[: len(content) - 30])
    (note,) = load_image(tmp_path).notes  # GDCM leaves a damaged slice out
    assert "lacks slices" in note


def test_folders_without_dicom(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "deep").mkdir()
    write_series(tmp_path / "deep", volume(2))
    assert not is_dicom(tmp_path)
    with pytest.raises(ImageError, match="is a folder"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match="no DICOM file"):
        load_dicom(tmp_path)
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(200))
    with pytest.raises(ImageError, match="no DICOM images"):
        load_image(tmp_path)
    assert not is_dicom(tmp_path / "missing")
