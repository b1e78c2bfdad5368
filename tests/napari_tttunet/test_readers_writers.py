"""Medical files in napari: opened in their place, labels saved back bit for bit, through npe2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import npe2
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from napari.layers import Image, Labels, Layer
from napari.utils.notifications import notification_manager
from npe2 import PluginManager, PluginManifest

from dicom_files import write_series
from napari_tttunet.layers import label_grid
from napari_tttunet.readers import get_reader
from tttunet.errors import ImageError
from tttunet.imaging import load_image, load_labels

pytestmark = pytest.mark.filterwarnings("ignore:Non-orthogonal slicing")
PLUGIN = "napari-tttunet"
MEDICAL = [".nii.gz", ".nii", ".nrrd", ".mha"]
#: Columns: the patient axes x, y, z along the voxel axes i, j, k.
ORIENTATIONS = {
    "axial": np.eye(3),
    "axial, RAS": np.diag([-1.0, -1, 1]),
    "sagittal": np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]]),
    "coronal": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
}


@pytest.fixture(autouse=True)
def manager() -> Iterator[PluginManager]:
    """npe2's manager with this plugin alone, in place of that of the session."""
    manager = PluginManager()
    manager.register(PluginManifest.from_distribution(PLUGIN))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PluginManager, "instance", classmethod(lambda cls: manager))
        yield manager


def opened(*paths: Path, stack: bool = False) -> list[Layer]:
    found = npe2.read([str(path) for path in paths], stack=stack, plugin_name=PLUGIN)
    return [Layer.create(*layer) for layer in found]


def saved(path: Path, layer: Layer) -> Path:
    (written,) = npe2.write(str(path), [layer.as_layer_data_tuple()], plugin_name=PLUGIN)
    return Path(written)


def oblique(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, c, s], [0, -s, c]]
    )


def volume(direction: np.ndarray, shape: tuple[int, ...] = (4, 5, 6)) -> sitk.Image:
    picture = sitk.GetImageFromArray(np.arange(np.prod(shape), dtype=np.int16).reshape(shape))
    picture.SetDirection(direction.ravel().tolist())
    picture.SetSpacing((0.5, 0.75, 3.3))
    picture.SetOrigin((-101.25, 33.1, 12.7))
    return picture


def geometry(picture: sitk.Image) -> tuple:
    return picture.GetSize(), picture.GetSpacing(), picture.GetOrigin(), picture.GetDirection()


@pytest.mark.parametrize("suffix", MEDICAL)
@pytest.mark.parametrize("turn", [0.0, 0.3])
@pytest.mark.parametrize("name", ORIENTATIONS)
def test_labels_go_back_to_where_the_image_was(
    tmp_path: Path, suffix: str, turn: float, name: str
) -> None:
    source = tmp_path / f"scan{suffix}"
    sitk.WriteImage(volume(oblique(turn) @ ORIENTATIONS[name]), str(source))
    (image,) = opened(source)
    assert isinstance(image, Image)
    np.testing.assert_array_equal(image.data, load_image(source).array)
    np.testing.assert_allclose(np.abs(image.scale), (3.3, 0.75, 0.5), rtol=1e-6)
    assert {str(unit) for unit in image.units} == {"millimeter"}

    grid = label_grid(image, "ZYX")
    values = (image.data % 5).astype(np.uint16)
    labels = Labels(grid.arrange(values), name="result", **grid.arguments())
    written = saved(tmp_path / f"labels{suffix}", labels)
    before, after = sitk.ReadImage(str(source)), sitk.ReadImage(str(written))
    assert geometry(after) == geometry(before)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(after), values)
    (again,) = opened(written)
    assert isinstance(again, Labels)
    np.testing.assert_array_equal(again.data, values)
    assert again.data.dtype == np.uint16
    np.testing.assert_allclose(again.data_to_world((3, 2, 1)), image.data_to_world((3, 2, 1)))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_world_is_lps_with_its_axes_in_array_order(
    tmp_path: Path, suffix: str, data: st.DataObject
) -> None:
    """A voxel's world coordinates in napari are those of ITK, in the order of the metadata."""
    direction = oblique(data.draw(st.floats(-3, 3))) @ data.draw(
        st.sampled_from(list(ORIENTATIONS.values()))
    )
    source = tmp_path / f"scan{suffix}"
    sitk.WriteImage(volume(direction), str(source))
    picture = sitk.ReadImage(str(source))
    (image,) = opened(source)
    world = image.metadata["tttunet"]["geometry"]["world"]
    index = [data.draw(st.integers(0, size - 1)) for size in image.data.shape]
    there = dict(zip(world, image.data_to_world(index), strict=True))
    if "-z" in there:
        there["z"] = -there["-z"]
    expected = picture.TransformIndexToPhysicalPoint(index[::-1])
    np.testing.assert_allclose([there[axis] for axis in "xyz"], expected, atol=1e-4)


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_napari_can_step_through_every_orientation(tmp_path: Path, name: str) -> None:
    """Each array axis moves its own world axis most, or napari would slice along another."""
    sitk.WriteImage(volume(oblique(0.2) @ ORIENTATIONS[name]), str(tmp_path / "a.nrrd"))
    (image,) = opened(tmp_path / "a.nrrd")
    origin = np.array(image.data_to_world((0, 0, 0)))
    for axis in range(3):
        step = np.abs(np.array(image.data_to_world(np.eye(3)[axis])) - origin)
        assert step.argmax() == axis
    world = image.metadata["tttunet"]["geometry"]["world"]
    assert world == {"sagittal": ("x", "-z", "y"), "coronal": ("y", "-z", "x")}.get(
        name, ("z", "y", "x")
    )


def test_a_part_and_a_moved_layer_keep_their_place(tmp_path: Path) -> None:
    picture = volume(oblique(0.3) @ ORIENTATIONS["sagittal"])
    sitk.WriteImage(picture, str(tmp_path / "a.nrrd"))
    picture = sitk.ReadImage(str(tmp_path / "a.nrrd"))
    (image,) = opened(tmp_path / "a.nrrd")
    part = label_grid(image, "ZYX", bounds=((1, 3), (2, 5), (0, 6)))
    layer = Labels(np.ones(part.shape, np.int32), **part.arguments())
    result = sitk.ReadImage(str(saved(tmp_path / "part.nrrd", layer)))
    np.testing.assert_allclose(
        result.GetOrigin(), picture.TransformIndexToPhysicalPoint((0, 2, 1)), atol=1e-9
    )
    np.testing.assert_allclose(result.GetDirection(), picture.GetDirection(), atol=1e-9)
    whole = label_grid(image, "ZYX")
    layer = Labels(np.ones(whole.shape, np.int32), **whole.arguments())
    layer.scale = layer.scale * 2
    result = sitk.ReadImage(str(saved(tmp_path / "wide.nrrd", layer)))
    np.testing.assert_allclose(result.GetSpacing(), np.array(picture.GetSpacing()) * 2)


def test_dicom_folder_and_files(tmp_path: Path) -> None:
    picture = volume(oblique(0.2) @ ORIENTATIONS["coronal"])
    paths = write_series(tmp_path / "scan", picture)
    (image,) = opened(tmp_path / "scan")
    assert image.name == "scan"
    np.testing.assert_array_equal(image.data, sitk.GetArrayFromImage(picture))
    grid = label_grid(image, "ZYX")
    layer = Labels(np.ones(grid.shape, np.uint8), **grid.arguments())
    result = sitk.ReadImage(str(saved(tmp_path / "labels.nii.gz", layer)))
    for index in ((0, 0, 0), (5, 4, 3)):
        np.testing.assert_allclose(
            result.TransformIndexToPhysicalPoint(index),
            picture.TransformIndexToPhysicalPoint(index),
            atol=1e-4,
        )
    (stacked,) = opened(*paths[::-1], stack=True)
    np.testing.assert_array_equal(stacked.data, image.data)
    (slice_,) = opened(paths[0])
    assert slice_.data.shape == (1, 5, 6)
    assert get_reader(str(tmp_path)) is None
    assert get_reader([str(paths[0]), str(tmp_path)]) is None
    assert get_reader("a.tif") is None
    assert get_reader([]) is None


def test_channels_colours_and_time(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5, 3), "u1"), isVector=True), str(path))
    (colour,) = opened(path)
    assert colour.rgb
    assert colour.data.shape == (4, 5, 3)
    components = sitk.GetImageFromArray(np.arange(40.0).reshape(4, 5, 2), isVector=True)
    components.SetSpacing((2, 3))
    sitk.WriteImage(components, str(path))
    layers = opened(path)
    assert [layer.name for layer in layers] == ["a: channel 0", "a: channel 1"]
    for index, layer in enumerate(layers):
        np.testing.assert_array_equal(layer.data, np.arange(40.0).reshape(4, 5, 2)[..., index])
        assert tuple(layer.scale) == (3.0, 2.0)
    film = sitk.GetImageFromArray(np.zeros((2, 3, 4, 5), np.uint8), isVector=False)
    film.SetSpacing((1, 2, 3, 9))
    film.SetOrigin((7, 8, 9, 0))
    sitk.WriteImage(film, str(tmp_path / "film.nii.gz"))
    (frames,) = opened(tmp_path / "film.nii.gz")
    assert frames.axis_labels == ("t", "z", "y", "x")
    assert tuple(frames.scale) == (1.0, 3.0, 2.0, 1.0)
    np.testing.assert_allclose(frames.data_to_world((1, 0, 0, 0)), (1, 9, 8, 7))
    grid = label_grid(frames, "TZYX")
    layer = Labels(np.ones(grid.shape, np.uint8), **grid.arguments())
    assert load_labels(saved(tmp_path / "film_seg.nii.gz", layer)).axes == "TZYX"


@pytest.mark.parametrize(
    ("name", "dtype", "kind"),
    [
        ("case1_seg", np.uint8, Labels),
        ("labels-3", np.int16, Labels),
        ("mask", np.uint8, Labels),
        ("case1_seg", np.float32, Image),
        ("segmented_liver", np.uint8, Image),
        ("scan", np.uint8, Image),
    ],
)
def test_labels_are_told_by_name(tmp_path: Path, name: str, dtype: type, kind: type) -> None:
    path = tmp_path / f"{name}.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((3, 4, 5), dtype)), str(path))
    (layer,) = opened(path)
    assert type(layer) is kind


def test_labels_in_a_folder_of_labels(tmp_path: Path) -> None:
    (tmp_path / "labelsTr").mkdir()
    path = tmp_path / "labelsTr" / "case1.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((3, 4, 5), np.uint8)), str(path))
    assert isinstance(opened(path)[0], Labels)


def test_ome_tiff_round_trip(tmp_path: Path) -> None:
    values = np.arange(2 * 3 * 4 * 5, dtype=np.int64).reshape(2, 3, 4, 5) % 9
    units = ("pixel", "um", "um", "um")
    layer = Labels(values, scale=(1, 2.5, 0.3, 0.2), units=units, name="cells")
    path = saved(tmp_path / "cells.ome.tif", layer)
    image = load_labels(path)
    np.testing.assert_array_equal(image.array, values)
    assert (image.axes, image.unit) == ("TZYX", "micrometer")
    assert image.spacing == pytest.approx((2.5, 0.3, 0.2))
    with tifffile.TiffFile(path) as tif:
        assert tif.is_ome
    assert saved(tmp_path / "cells", layer).name == "cells.ome.tif"


def test_what_a_file_cannot_hold_is_told(tmp_path: Path) -> None:
    values = np.ones((4, 5), np.int32)
    with pytest.warns(UserWarning, match=r"'a' is moved .* OME-TIFF cannot hold"):
        saved(tmp_path / "a.ome.tif", Labels(values, translate=(3, 0), name="a"))
    with pytest.warns(UserWarning, match="'a' is turned"):
        saved(tmp_path / "a.ome.tif", Labels(values, rotate=30, name="a"))
    with pytest.raises(ImageError, match="sheared"):
        saved(tmp_path / "a.nrrd", Labels(values, shear=[0.5], name="a"))
    with pytest.raises(ImageError, match="negative"):
        saved(tmp_path / "b.nrrd", Labels(-values, name="a"))
    assert not (tmp_path / "b.nrrd").exists()


@pytest.mark.parametrize(
    ("axes", "shape"), [("TCYX", (2, 3, 4, 5)), ("XYZ", (6, 5, 4)), ("YXT", (4, 5, 3))]
)
def test_any_order_of_axes(tmp_path: Path, axes: str, shape: tuple[int, ...]) -> None:
    """What is saved lies where the layer's voxels lie, in the order of the core."""
    image = Image(
        np.zeros(shape, np.uint8),
        rgb=False,
        scale=range(2, 2 + len(shape)),
        translate=range(10, 10 + len(shape)),
    )
    grid = label_grid(image, axes)
    values = np.random.default_rng(0).integers(0, 9, grid.shape, np.uint8)
    layer = Labels(values, **grid.arguments())
    kept = [letter for letter in "TZYX" if letter in axes]
    # The file does not say that its first axis is time.
    found = load_labels(saved(tmp_path / "a.mha", layer), "".join(kept))
    squeezed = values.squeeze(axes.index("C")) if "C" in axes else values
    letters = axes.replace("C", "")
    np.testing.assert_array_equal(
        found.array, squeezed.transpose([letters.index(letter) for letter in kept])
    )
    places = [axes.index(letter) for letter in kept if letter != "T"]
    assert found.spacing == tuple(2.0 + place for place in places)
    assert found.origin == tuple(10.0 + place for place in places)


def test_finest_level_and_lazy_labels_are_saved(tmp_path: Path) -> None:
    import dask.array as da

    values = np.arange(64).reshape(8, 8) % 3
    pyramid = Labels([values, values[::2, ::2]], multiscale=True)
    lazy = Labels(da.from_array(values, chunks=4))
    for layer in (pyramid, lazy):
        path = saved(tmp_path / "a.nrrd", layer)
        np.testing.assert_array_equal(load_labels(path).array, values)


def test_damaged_files_are_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(b"nothing of the kind")
    with pytest.raises(ImageError, match="not a NIfTI file"):
        opened(tmp_path / "a.nii.gz")


def test_napari_opens_and_saves_a_real_volume(
    viewer: Any, data_dir: Path, tmp_path: Path, manager: PluginManager
) -> None:
    """Through the viewer, with napari choosing the reader and the writer."""
    folder = data_dir / "mr_hippocampus_msd"
    source = sorted((folder / "images").iterdir())[0]
    (image,) = viewer.open(str(source), plugin=PLUGIN)
    (truth,) = viewer.open(str(folder / "labels" / source.name), plugin=PLUGIN)
    assert isinstance(truth, Labels)
    np.testing.assert_allclose(truth.extent.world, image.extent.world)
    viewer.dims.set_current_step(0, 5)
    path = tmp_path / f"saved_{source.name}"
    (written,) = truth.save(str(path), plugin=PLUGIN) or [str(path)]
    assert Path(written) == path
    assert geometry(sitk.ReadImage(str(path))) == geometry(sitk.ReadImage(str(source)))
    np.testing.assert_array_equal(load_labels(path).array, truth.data)


def test_what_is_odd_about_a_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.nii"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 5), np.uint8)), str(path))
    raw = bytearray(path.read_bytes())
    raw[252:256] = bytes(4)  # neither qform nor sform
    path.write_bytes(raw)
    before = len(notification_manager.records)
    opened(path)
    told = [record.message for record in notification_manager.records[before:]]
    assert told == [f"'{path}' does not say how it is oriented; its axes are taken for LPS."]
