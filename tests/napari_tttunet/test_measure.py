"""Objects in numbers: against rectangles and boxes by hand, and against scikit-image."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from napari.layers import Image, Labels
from skimage.draw import disk, ellipse
from skimage.measure import perimeter_crofton, regionprops

from napari_tttunet.measure import channels_under, plan_measurement
from napari_tttunet.sample_data import fluorescence, ovule_nuclei
from tttunet.errors import ImageError, OutputError
from tttunet.measuring import ObjectTable, measure
from tttunet.measuring.hull import hull_areas
from tttunet.measuring.table import write_csv


def run(steps: Any) -> Any:
    """The return value of a generator."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value


def table_of(layer: Labels, axes: str, **options: Any) -> ObjectTable:
    return run(steps_of(layer, axes, **options))


def steps_of(layer: Labels, axes: str, **options: Any) -> Any:
    plan = plan_measurement(layer, axes, **options)
    channels = [(channel.name, channel) for channel in plan.channels]
    return measure(plan.labels, plan.grid, channels)


def row(table: ObjectTable, label: int, **frame: int) -> dict[str, float]:
    chosen = table.values["label"] == label
    for key, index in frame.items():
        chosen &= table.values[key] == index
    (position,) = np.flatnonzero(chosen)
    return {key: values[position].item() for key, values in table.values.items()}


def ellipsoid(region: Any, spacing: Any) -> np.ndarray:
    """In proportion to its axes. regionprops leaves out that a pixel has an extent of its own."""
    covariance = np.cov(region.coords_scaled.T, bias=True) + np.diag(np.square(spacing)) / 12
    return np.sqrt(np.linalg.eigvalsh(covariance))


def test_a_rectangle_of_pixels_that_are_not_square() -> None:
    data = np.zeros((40, 30), np.uint16)
    data[10:20, 5:9] = 700
    layer = Labels(
        data, scale=(0.5, 2.0), translate=(100, 1000), units=("micrometer", "micrometer")
    )
    table = table_of(layer, "YX")
    found = row(table, 700)
    assert found["pixels"] == 40
    assert found["area"] == 40 * 1.0
    assert found["diameter"] == pytest.approx(np.sqrt(4 * 40 / np.pi))
    assert found["solidity"] == 1
    # 5 by 8 micrometers: the moments of a rectangle are side² / 12.
    assert found["eccentricity"] == pytest.approx(np.sqrt(1 - (5 / 8) ** 2))
    assert (found["centre_y"], found["centre_x"]) == (100 + 14.5 * 0.5, 1000 + 6.5 * 2)
    headers = [column.header for column in table.columns]
    assert headers[:4] == ["Label", "Area (µm²)", "Equivalent diameter (µm)", "Perimeter (µm)"]
    assert table.centres.tolist() == [[14.5, 6.5]]


def test_a_box_in_nanometers() -> None:
    data = np.zeros((12, 20, 20), np.int32)
    data[2:5, 4:14, 0:8] = 3
    layer = Labels(data, scale=(2000, 500, 250), units=("nm", "nm", "nm"))
    table = table_of(layer, "ZYX")
    found = row(table, 3)
    assert found["pixels"] == 3 * 10 * 8
    assert found["volume"] == pytest.approx(240 * 2 * 0.5 * 0.25)
    assert found["diameter"] == pytest.approx(np.cbrt(6 * 60 / np.pi))
    sides = 6.0, 5.0, 2.0
    assert found["elongation"] == pytest.approx(max(sides) / min(sides))
    assert found["centre_z"] == pytest.approx(3 * 2)
    assert table.column("volume").header == "Volume (µm³)"
    assert table.column("surface").header == "Surface (µm²)"


def test_slices_by_themselves_and_frames() -> None:
    data = np.zeros((2, 3, 8, 8), np.uint8)
    data[0, :, 2:4, 2:4] = 1
    data[1, 1, 0:8, 0:2] = 1
    data[1, 2, 5, 5] = 9
    layer = Labels(data, scale=(1, 5, 1, 1))
    volumes = table_of(layer, "TZYX")
    assert volumes.values["frame"].tolist() == [0, 1, 1]
    assert row(volumes, 1, frame=0)["volume"] == pytest.approx(12 * 5)
    assert row(volumes, 1, frame=1)["volume"] == pytest.approx(16 * 5)
    assert volumes.centres[0].tolist() == [0, 1, 2.5, 2.5]
    planes = table_of(layer, "TZYX", volumes=False)
    where = zip(*(planes.values[key].tolist() for key in ("frame", "slice", "label")), strict=True)
    assert list(where) == [(0, 0, 1), (0, 1, 1), (0, 2, 1), (1, 1, 1), (1, 2, 9)]
    assert row(planes, 1, frame=1, slice=1)["area"] == 16
    assert row(planes, 1, frame=1, slice=1)["eccentricity"] == pytest.approx(
        np.sqrt(1 - (2 / 8) ** 2)
    )
    assert planes.column("area").header == "Area (px²)"


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.25, 0.7)])
def test_real_objects_as_scikit_image_measures_them(spacing: tuple[float, float]) -> None:
    (image, _, _), (labels, _, _) = fluorescence()
    layer, picture = Labels(labels, scale=spacing), Image(image, scale=spacing, name="cells")
    table = table_of(layer, "YX", image=picture)
    theirs = regionprops(labels, intensity_image=image, spacing=spacing)
    assert table.values["label"].tolist() == [one.label for one in theirs]
    pairs = {
        "area": "area",
        "diameter": "equivalent_diameter_area",
        "mean_0": "intensity_mean",
        "min_0": "intensity_min",
        "max_0": "intensity_max",
    }
    for ours, name in pairs.items():
        assert np.allclose(table.values[ours], [getattr(one, name) for one in theirs]), ours
    lengths = np.array([ellipsoid(one, spacing) for one in theirs])
    assert np.allclose(
        table.values["eccentricity"], np.sqrt(1 - (lengths[:, 0] / lengths[:, 1]) ** 2)
    )
    assert table.boxes.reshape(-1, 4).tolist() == [list(one.bbox) for one in theirs]
    centres = np.array([one.centroid for one in theirs])
    assert np.allclose(table.values["centre_y"], centres[:, 0])
    assert np.allclose(table.values["centre_x"], centres[:, 1])
    if spacing == (1.0, 1.0):
        expected = [perimeter_crofton(one.image, 4) for one in theirs]
        assert np.allclose(table.values["perimeter"], expected)
    # Theirs is the hull of other points, in pixels: close, not equal.
    assert np.allclose(table.values["solidity"], [one.solidity for one in theirs], atol=0.05)


def test_a_real_volume_as_scikit_image_measures_it() -> None:
    (image, more, _), (labels, arguments, _) = ovule_nuclei()
    table = table_of(Labels(labels, **arguments), "ZYX", image=Image(image, **more))
    theirs = regionprops(labels, intensity_image=image, spacing=arguments["scale"])
    assert np.allclose(table.values["volume"], [one.area for one in theirs])
    lengths = np.array([ellipsoid(one, arguments["scale"]) for one in theirs])
    assert np.allclose(table.values["elongation"], lengths[:, 2] / lengths[:, 0])
    assert np.allclose(table.values["mean_0"], [one.intensity_mean for one in theirs])
    world = [np.array(one.centroid) for one in theirs]
    assert np.allclose(table.values["centre_x"], [point[2] for point in world])


@pytest.mark.parametrize("step", [1.0, 0.5, 3.0])
def test_the_outline_of_discs_on_stretched_pixels(step: float) -> None:
    data = np.zeros((260, int(130 / step) * 2), np.uint8)
    data[ellipse(130, 130 / step, 100, 100 / step)] = 4
    found = row(table_of(Labels(data, scale=(1, step)), "YX"), 4)
    assert found["perimeter"] == pytest.approx(2 * np.pi * 100, rel=0.03)
    assert found["eccentricity"] < 0.15
    assert found["solidity"] > 0.97


def test_the_surface_of_a_ball_on_stretched_and_turned_voxels() -> None:
    z, y, x = np.mgrid[-15:16, -45:46, -45:46]
    ball = (3 * z) ** 2 + y**2 + x**2 <= 40**2
    scale, turn = (3, 1, 1), (30, 20, 10)
    for rotate in (None, turn):
        found = row(table_of(Labels(ball.astype(np.uint8), scale=scale, rotate=rotate), "ZYX"), 1)
        assert found["surface"] == pytest.approx(4 * np.pi * 40**2, rel=0.03)
        assert found["sphericity"] == pytest.approx(1, abs=0.03)
        assert found["volume"] == pytest.approx(4 / 3 * np.pi * 40**3, rel=0.01)
        assert found["elongation"] == pytest.approx(1, abs=0.02)


def test_hulls_of_shapes_with_dents_and_of_pieces() -> None:
    data = np.zeros((60, 60), np.uint8)
    data[2:12, 2:12] = 1
    data[4:12, 4:10] = 0  # a dent below: the hull is the square
    data[20:30, 2] = 2
    data[29, 2:12] = 2  # an L: half of its square, and the steps of the diagonal
    data[40, 40] = data[50, 50] = 3  # two pixels: a band of one diagonal pixel
    table = table_of(Labels(data), "YX")
    assert row(table, 1)["solidity"] == pytest.approx((100 - 48) / 100)
    assert row(table, 2)["solidity"] == pytest.approx(19 / (100 - 81 / 2))
    assert row(table, 3)["solidity"] == pytest.approx(2 / (121 - 100))
    rng = np.random.default_rng(0)
    rows = [[7, y, *sorted(rng.choice(100, 2, replace=False))] for y in range(80)]
    from scipy.spatial import ConvexHull

    corners = [(y + dy, x) for _, y, *ends in rows for x in ends for dy in (0, 1)]
    expected = ConvexHull(corners).volume
    assert hull_areas(np.array(rows), np.array([7])) == pytest.approx([expected])


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large image is measured in blocks: the numbers are those of the whole."""
    (image, more, _), (labels, arguments, _) = ovule_nuclei()
    layer, picture = Labels(labels, **arguments), Image(image, **more)
    for volumes in (True, False):
        whole = table_of(layer, "ZYX", volumes=volumes, image=picture)
        with monkeypatch.context() as patch:
            patch.setattr("tttunet.measuring.objects.BLOCK_PIXELS", 1000)
            steps = steps_of(layer, "ZYX", volumes=volumes, image=picture)
            fractions = []
            while True:
                try:
                    fractions.append(next(steps))
                except StopIteration as stop:
                    parts = stop.value
                    break
        assert len(fractions) > 100
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1
        for key, values in whole.values.items():
            assert np.allclose(values, parts.values[key]), key
        assert np.array_equal(whole.boxes, parts.boxes)


def test_lazy_labels_and_channels() -> None:
    rng = np.random.default_rng(1)
    image = rng.random((2, 3, 20, 20)).astype(np.float32)  # TCYX
    labels = np.zeros((2, 20, 20), np.uint8)
    labels[:, 3:9, 3:9] = 5
    layer = Labels(da.from_array(labels, chunks=(1, 10, 10)), axis_labels=("t", "y", "x"))
    picture = Image(
        da.from_array(image, chunks=(1, 1, 20, 20)), rgb=False, axis_labels=("t", "c", "y", "x"),
        name="marker",
    )  # fmt: skip
    table = table_of(layer, "TYX", image=picture)
    assert table.column("mean_2").title == "Mean of marker, channel 2"
    assert row(table, 5, frame=1)["mean_2"] == pytest.approx(image[1, 2, 3:9, 3:9].mean())
    thick = Labels(labels[:, None], axis_labels=("t", "c", "y", "x"))
    table = table_of(thick, "TCYX", image=picture)
    assert row(table, 5, frame=1)["max_1"] == pytest.approx(image[1, 1, 3:9, 3:9].max())
    assert "channel" not in table.values


def test_colours_and_labels_of_a_part() -> None:
    colours = np.random.default_rng(2).integers(0, 255, (30, 40, 3), np.uint8)
    picture = Image(colours, rgb=True, scale=(2, 2), name="tissue")
    labels = np.zeros((10, 12), np.uint8)
    labels[2:5, 2:6] = 1
    layer = Labels(labels, scale=(2, 2), translate=(2 * 7, 2 * 9))
    found = row(table_of(layer, "YX", image=picture), 1)
    assert found["mean_1"] == pytest.approx(colours[9:12, 11:15, 1].mean())
    beside = Labels(labels, scale=(2, 2), translate=(2 * 25, 0))
    assert channels_under(beside, "YX", picture) == ()
    between = Labels(labels, scale=(2, 2), translate=(1, 0))
    with pytest.raises(ImageError, match="other pixels"):
        plan_measurement(between, "YX", image=picture)


def test_a_level_of_a_pyramid() -> None:
    image = np.arange(64.0).reshape(8, 8)
    picture = Image([image, image[::2, ::2]], multiscale=True, name="pyramid")
    layer = Labels(np.ones((4, 4), np.uint8), scale=(2, 2), translate=(0.5, 0.5))
    assert row(table_of(layer, "YX", image=picture), 1)["mean_0"] == image[::2, ::2].mean()


def test_nothing_and_units_that_are_not_known() -> None:
    table = table_of(Labels(np.zeros((5, 5), np.uint8), scale=(0.3, 0.3)), "YX")
    assert len(table) == 0
    assert table.column("area").unit == "units²"
    assert all(len(values) == 0 for values in table.values.values())


def test_one_pixel_and_one_row() -> None:
    data = np.zeros((1, 9), np.uint8)
    data[0, 2] = 1
    data[0, 4:9] = 2
    table = table_of(Labels(data), "YX")
    assert row(table, 1)["solidity"] == row(table, 2)["solidity"] == 1
    assert row(table, 1)["eccentricity"] == 0
    assert row(table, 2)["area"] == 5


def test_a_csv_file_read_back(tmp_path: Path) -> None:
    data = np.zeros((50, 50), np.uint8)
    data[disk((20, 20), 9)] = 2
    data[40:44, 40:45] = 1
    table = table_of(Labels(data, scale=(0.5, 0.5), units=("um", "um")), "YX")
    path = run(write_csv(table, tmp_path / "objects.csv", np.array([1, 0])))
    with path.open(encoding="ascii") as file:
        rows = list(csv.DictReader(file))
    assert [int(one["Label"]) for one in rows] == [2, 1]
    assert float(rows[1]["Area (um^2)"]) == 20 * 0.25
    assert float(rows[0]["Perimeter (um)"]) == pytest.approx(table.values["perimeter"][1])
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OutputError):
        run(write_csv(table, blocked / "objects.csv", np.array([0])))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "objects.csv"]
