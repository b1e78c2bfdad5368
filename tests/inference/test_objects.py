"""The object table: every number computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tttunet.errors import ImageError
from tttunet.imaging import Image
from tttunet.inference.objects import object_columns, object_table

#: Crofton's formula in four directions, as scikit-image's `perimeter_crofton` has it: lines along
#: the rows and the columns meet the square 6 times each, diagonal ones 10 times each.
PERIMETER_OF_3_BY_3 = np.pi / 4 * (6 + 6 + 10 / np.sqrt(2) + 10 / np.sqrt(2)) / 2


def square_labels() -> np.ndarray:
    labels = np.zeros((8, 10), np.uint32)
    labels[1:4, 2:5] = 1
    labels[5:7, 6:10] = 7
    return labels


def test_two_objects_in_pixels():
    labels = square_labels()
    image = Image.from_array(np.where(labels == 7, 20, 5).astype(np.uint8))
    first, second = object_table(labels, image)
    assert first == {
        "label": 1,
        "area_px": 9,
        "centroid_y": 2.0,
        "centroid_x": 3.0,
        "bbox_min_y": 1,
        "bbox_min_x": 2,
        "bbox_max_y": 4,
        "bbox_max_x": 5,
        "equivalent_diameter_px": pytest.approx(2 * (9 / np.pi) ** 0.5),
        "perimeter_px": pytest.approx(PERIMETER_OF_3_BY_3),
        "eccentricity": pytest.approx(0, abs=1e-6),
        "solidity": 1.0,
        "mean_intensity": 5.0,
    }
    assert (second["label"], second["area_px"], second["mean_intensity"]) == (7, 8, 20.0)


def test_physical_size_and_colour():
    labels = square_labels()
    array = np.stack([np.full(labels.shape, value, np.uint8) for value in (1, 2, 3)], axis=-1)
    image = Image.from_array(array, "YXS", spacing=(0.5, 0.25), unit="micrometer")
    row = object_table(labels, image)[0]
    assert row["area_um2"] == pytest.approx(9 * 0.125)
    assert row["perimeter_um"] > 2 * (1.5 + 0.75) * 0.8
    assert row["eccentricity"] == pytest.approx((1 - (0.75 / 1.5) ** 2) ** 0.5)
    assert row["equivalent_diameter_um"] == pytest.approx(2 * (9 * 0.125 / np.pi) ** 0.5)
    assert [row[f"mean_{name}"] for name in ("red", "green", "blue")] == [1, 2, 3]


def test_volume_with_named_channels():
    labels = np.zeros((3, 4, 5), np.uint8)
    labels[1:, :2, :2] = 2
    array = np.stack([labels * 10, labels * 20])
    image = Image.from_array(
        array,
        "CZYX",
        spacing=(2.0, 1.0, 1.0),
        unit="millimeter",
        channel_names=("T1", "T2"),
    )
    (row,) = object_table(labels, image, {2: "spleen"})
    assert (row["class"], row["volume_voxels"], row["volume_mm3"]) == ("spleen", 8, 16.0)
    assert row["equivalent_diameter_mm"] == pytest.approx((6 * 16 / np.pi) ** (1 / 3))
    assert (row["mean_T1"], row["mean_T2"]) == (20.0, 40.0)
    assert [row[f"centroid_{axis}"] for axis in "zyx"] == [1.5, 0.5, 0.5]
    assert [row[f"bbox_{end}_{axis}"] for end in ("min", "max") for axis in "zyx"] == [
        *(1, 0, 0),
        *(3, 2, 2),
    ]
    assert row["elongation"] == pytest.approx(4 / 2)
    assert row["surface_mm2"] > 0


def test_time_series_has_a_row_per_frame():
    labels = np.stack([square_labels(), square_labels() * 0, square_labels()])
    rows = object_table(labels, Image.from_array(labels, "TYX"))
    assert [(row["t"], row["label"]) for row in rows] == [(0, 1), (0, 7), (2, 1), (2, 7)]


def test_channels_of_the_same_name_stay_apart():
    image = Image.from_array(np.zeros((2, 4, 4)), "CYX", channel_names=("DAPI", "DAPI"))
    assert object_columns(image)[-2:] == ["mean_channel_0", "mean_channel_1"]


@pytest.mark.parametrize("axes", ["YX", "ZYX", "TYX", "CYX"])
def test_no_objects_give_no_rows_but_columns(axes: str):
    image = Image.from_array(np.ones((2, 4, 5)[-len(axes) :]), axes)
    labels = np.zeros(tuple(n for n, a in zip(image.array.shape, axes, strict=True) if a != "C"))
    assert object_table(labels.astype(np.uint32), image) == []
    assert "label" in object_columns(image)


def test_other_shape_is_refused():
    with pytest.raises(ImageError, match="do not fit"):
        object_table(np.zeros((3, 3), int), Image.from_array(np.zeros((3, 4))))
