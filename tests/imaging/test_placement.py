"""NIfTI files that contradict themselves, and files that belong together."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from tttunet.errors import ImageError
from tttunet.imaging import load_image, save_labels
from tttunet.imaging.nifti import placement, read_header
from tttunet.imaging.readers import load_channels

#: Voxels (x, y, z) of 1 x 2 x 3 mm to RAS.
AFFINE = np.array([[-1.0, 0, 0, 5], [0, -2, 0, 6], [0, 0, 3, 7]])
SHAPE = (8, 9, 10)


def nifti(path: Path, sform=None, qcode: int = 1, scode: int = 1) -> Path:
    picture = sitk.GetImageFromArray(np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE))
    picture.SetSpacing((1, 2, 3))
    picture.SetOrigin((-5, -6, 7))
    sitk.WriteImage(picture, str(path))
    raw = bytearray(path.read_bytes())
    struct.pack_into("<2h", raw, 252, qcode, scode)
    if sform is not None:
        struct.pack_into("<12f", raw, 280, *np.asarray(sform, float).ravel())
    path.write_bytes(raw)
    return path


def moved(by: float) -> np.ndarray:
    """The same grid, so many mm away along every axis."""
    affine = AFFINE.copy()
    affine[:, 3] += by
    return affine


def sheared(by: float) -> np.ndarray:
    """Slices that are shifted by so many mm each."""
    affine = AFFINE.copy()
    affine[0, 2] = by
    return affine


def test_both_descriptions_are_read_as_itk_reads_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(5):
        turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        picture = sitk.GetImageFromArray(np.zeros((3, 4, 5), np.uint8))
        picture.SetDirection(turn.ravel().tolist())
        picture.SetSpacing(rng.uniform(0.5, 4, 3).tolist())
        picture.SetOrigin(rng.uniform(-99, 99, 3).tolist())
        path = tmp_path / f"{number}.nii"
        sitk.WriteImage(picture, str(path))
        found = placement(read_header(path))
        assert found.qform is not None
        assert found.sform is not None
        np.testing.assert_allclose(found.qform, found.sform, atol=1e-4)
        lps = np.diag([-1, -1, 1]) @ found.qform @ [1, 2, 3, 1]
        np.testing.assert_allclose(lps, picture.TransformIndexToPhysicalPoint((1, 2, 3)), atol=1e-3)
        assert not load_image(path).notes


def test_two_descriptions_that_disagree(tmp_path: Path) -> None:
    image = load_image(nifti(tmp_path / "a.nii", moved(4)))
    assert image.origin == (11, -10, -9)  # the sform, in LPS
    (note,) = image.notes
    assert "sform and qform" in note
    assert "6.93 mm apart; what counts is the sform" in note
    for name, options, reason in (
        ("b", {"sform": moved(4), "scode": 4}, "the sform is not the scanner's"),
        ("c", {"sform": moved(4), "scode": 2, "qcode": 2}, "the sform is not the scanner's"),
        ("d", {"sform": sheared(1.0)}, "the axes of the sform are not at right angles"),
    ):
        image = load_image(nifti(tmp_path / f"{name}.nii", **options))
        assert image.origin == (7, -6, -5)  # the qform
        (note,) = image.notes
        assert f"what counts is the qform, because {reason}" in note
    assert not load_image(nifti(tmp_path / "e.nii")).notes


def test_no_description_at_all(tmp_path: Path) -> None:
    (note,) = load_image(nifti(tmp_path / "a.nii", qcode=0, scode=0)).notes
    assert "does not say how it is oriented" in note


def test_mirrored_grids_keep_their_direction(tmp_path: Path) -> None:
    mirrored = AFFINE * [[-1], [1], [1]]
    image = load_image(nifti(tmp_path / "a.nii", mirrored, qcode=0))
    assert np.linalg.det(image.direction) == pytest.approx(-1)
    assert not image.notes
    written = save_labels(tmp_path / "l.nii", np.ones(SHAPE, np.uint8), image)
    assert sitk.ReadImage(str(written)).GetDirection() == (-1, 0, 0, 0, 1, 0, 0, 0, 1)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_slightly_bent_grids_are_straightened_and_labels_get_their_place(
    tmp_path: Path, suffix: str
) -> None:
    path = nifti(tmp_path / "a.nii", sheared(0.05), qcode=0)
    with pytest.raises(RuntimeError, match="orthonormal"):
        sitk.ReadImage(str(path))
    if suffix == ".nii.gz":
        import gzip

        packed = tmp_path / "a.nii.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        path = packed
    image = load_image(path)
    np.testing.assert_array_equal(image.array.ravel(), np.arange(np.prod(SHAPE)))
    np.testing.assert_allclose(image.direction @ image.direction.T, np.eye(3), atol=1e-6)
    (note,) = image.notes
    assert "not quite at right angles" in note
    written = save_labels(tmp_path / "l.nii", np.ones(SHAPE, np.uint8), image)
    mine = placement(read_header(written)).sform
    np.testing.assert_array_equal(mine, placement(read_header(path)).sform)


def test_clearly_bent_grids_are_refused(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii", sheared(1.0), qcode=0)
    with pytest.raises(ImageError, match="not at right angles"):
        load_image(path)


def test_files_become_channels(tmp_path: Path) -> None:
    paths = [tmp_path / f"case_000{i}.nii" for i in range(2)]
    for path in paths:
        nifti(path)
    image = load_channels(paths)
    assert (image.axes, image.array.shape) == ("CZYX", (2, *SHAPE))
    assert image.origin == load_image(paths[0]).origin
    nifti(paths[1], moved(1), qcode=0)
    with pytest.raises(ImageError, match="lie in different places"):
        load_channels(paths)
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4), np.int16)), str(paths[1]))
    with pytest.raises(ImageError, match="no channels of one image"):
        load_channels(paths)
