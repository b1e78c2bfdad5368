from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile

from tttunet.errors import DatasetError, ImageError
from tttunet.networks.cost import count_cost
from tttunet.training.dataset import open_dataset
from tttunet.training.plan.choose import plan_from_fingerprint
from tttunet.training.plan.fingerprint import Fingerprint, take_fingerprint
from tttunet.training.plan.presets import PRESETS, find_preset
from tttunet.training.plan.rules import GPU
from tttunet.training.planning import plan_training

from .volumes import describe, write_case, write_volume

#: x towards the left, y towards the back, z up; and the first array axis towards the back.
SAGITTAL = (0, 1, 0, 0, 0, 1, 1, 0, 0)


@pytest.fixture
def abdomen(tmp_path):
    """Volumes with a border of zeros; foreground intensities -100..100, background 1000."""
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c", "d", "e"):
        image = np.zeros((10, 20, 30), np.int16)
        image[1:9, 2:18, 3:27] = 1000
        label = np.zeros(image.shape, np.uint8)
        label[3:6, 5:12, 5:15], label[7, 5:8, 5:8] = 1, 2
        image[label == 1] = rng.integers(-100, 101, (label == 1).sum())
        image[label == 2] = 3000
        write_case(tmp_path, name, image, label, spacing=(5, 0.8, 0.8))
    labels = {"background": 0, "liver": 1, "ignore": 2}
    return describe(tmp_path, ("CT",), labels)


def test_fingerprint(abdomen):
    found = take_fingerprint(open_dataset(abdomen))
    assert found.shapes == ((8, 16, 24),) * 4
    np.testing.assert_allclose(found.spacings, [(5, 0.8, 0.8)] * 4, atol=1e-6)
    assert (found.dim, found.unit, found.orientation) == (3, "millimeter", "LPS")
    assert found.channels == ("CT",)
    assert found.relative_size == pytest.approx(8 * 16 * 24 / 6000)
    (statistics,) = found.statistics
    # The part to ignore (3000) does not count, nor does the background (1000).
    assert statistics.maximum <= 100
    assert abs(statistics.mean) < 10
    assert statistics.deviation == pytest.approx(200 / 12**0.5, rel=0.1)
    assert -100 <= statistics.low < -95


def test_fingerprint_is_kept_until_a_file_changes(abdomen, tmp_path):
    cache, calls = tmp_path / "cache", []

    def take() -> Fingerprint:
        calls.clear()
        return take_fingerprint(open_dataset(abdomen), cache, lambda *done: calls.append(done))

    first = take()
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert take() == first
    assert calls == []
    image = np.ones((10, 20, 30), np.int16)
    name = open_dataset(abdomen).cases["train"][0].name
    write_case(abdomen, name, image, np.ones_like(image, np.uint8), spacing=(5, 0.8, 0.8))
    assert take().shapes[0] == (10, 20, 30)
    assert calls


def test_volumes_of_other_orientation_are_turned(tmp_path):
    array = np.ones((6, 8, 10), np.float32)
    for name in ("a", "b", "c"):
        write_case(tmp_path, name, array, array.astype(np.uint8), spacing=(3, 2, 1))
    turned = array.transpose(1, 2, 0)
    write_case(
        tmp_path, "d", turned, turned.astype(np.uint8), spacing=(2, 1, 3), direction=SAGITTAL
    )
    data = open_dataset(describe(tmp_path))
    data.cases["train"] += data.cases.pop("val")
    found = take_fingerprint(data)
    assert found.orientation == "LPS"
    assert set(found.shapes) == {(6, 8, 10)}
    np.testing.assert_allclose(found.spacings, [(3, 2, 1)] * 4)


def test_channels_must_agree(abdomen):
    image = np.ones((2, 10, 20, 30), np.float32)
    name = open_dataset(abdomen).cases["train"][-1].name
    write_case(abdomen, name, image, np.ones((10, 20, 30), np.uint8))
    describe(abdomen, ("CT", "PET"), {"background": 0, "liver": 1, "ignore": 2})
    with pytest.raises(DatasetError, match="channels"):
        take_fingerprint(open_dataset(abdomen))


def test_labels_elsewhere_are_refused(abdomen):
    write_volume(
        abdomen / "labelsTr" / "b.nii.gz",
        np.ones((10, 20, 30), np.uint8),
        spacing=(5, 0.8, 0.8),
        origin=(300, 0, 0),
    )
    with pytest.raises(DatasetError, match="differ in origin"):
        take_fingerprint(open_dataset(abdomen))


def test_channels_elsewhere_are_refused(tmp_path):
    image, label = np.ones((2, 6, 8, 8), np.int16), np.ones((6, 8, 8), np.uint8)
    for name in ("a", "b", "c", "d", "e"):
        write_case(tmp_path, name, image, label)
    write_volume(tmp_path / "imagesTr" / "b_0001.nii.gz", image[0], origin=(0, 0, 50))
    describe(tmp_path, ("T1", "T2"))
    with pytest.raises(ImageError, match="lie in different places"):
        take_fingerprint(open_dataset(tmp_path))


@pytest.mark.parametrize("units", [("mm", "um"), ("mm", None)])
def test_flat_images_in_several_units(tmp_path, units):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for number in range(8):
        unit = units[number % 2]
        size = {"mm": 0.002, "um": 2.0, None: 1.0}[unit]
        where = {f"PhysicalSize{axis}": size for axis in "XY"} if unit else {}
        where |= {f"PhysicalSize{axis}Unit": unit for axis in "XY"} if unit else {}
        for part, value in (("images", number), ("labels", number % 2)):
            array = np.full((32, 32), value, np.uint8)
            path = tmp_path / part / f"{number}.ome.tif"
            tifffile.imwrite(path, array, metadata={"axes": "YX", **where})
    content = {"task": "semantic", "dim": 2, "classes": {"1": "cell"}}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    found = take_fingerprint(open_dataset(tmp_path))
    same = found.spacings[0]
    np.testing.assert_allclose(found.spacings, [same] * len(found.spacings))
    assert (found.unit is None) == (None in units)


def test_plan_of_ct(abdomen):
    config, train = plan_training(open_dataset(abdomen), budget=GPU)
    plan = config.plan
    assert train.batch_size == 2
    assert (plan.orientation, plan.crop, plan.unit) == ("LPS", "nonzero", "millimeter")
    assert plan.spacing == pytest.approx((5, 0.8, 0.8), abs=1e-6)
    assert plan.transpose is None
    (rule,) = plan.intensities
    assert (rule.scheme, rule.low < -95, rule.high > 95) == ("ct", True, True)
    assert config.network.output_channels == 2
    assert [label.name for label in config.labels] == ["liver"]
    assert all(
        n % s == 0 for n, s in zip(plan.patch_size, config.network.total_stride, strict=True)
    )


def test_recipe_changes_the_plan(abdomen):
    recipe = {"plan": {"mirror_axes": []}, "train": {"batch_size": 7}}
    config, train = plan_training(open_dataset(abdomen), recipe)
    assert config.plan.mirror_axes == ()
    assert config.plan.intensities[0].scheme == "ct"
    assert train.batch_size == 7


def test_patch_fits_the_network_of_a_recipe(abdomen):
    network = {
        "features": [4, 8, 8, 8],
        "kernel_sizes": [[3, 3, 3]] * 4,
        "strides": [[1, 1, 1], [2, 4, 4], [2, 4, 4], [1, 2, 2]],
        "encoder_blocks": [1] * 4,
        "decoder_blocks": [1] * 3,
    }
    config, _ = plan_training(open_dataset(abdomen), {"network": network})
    assert config.network.total_stride == (4, 32, 32)
    assert config.plan.patch_size == (8, 32, 32)


def volumes(**changes) -> Fingerprint:
    fields = {
        "dim": 3,
        "unit": "millimeter",
        "names": ("a", "b"),
        "shapes": ((64, 64, 64),) * 2,
        "spacings": ((1.0, 1.0, 1.0),) * 2,
        "relative_size": 1.0,
        "orientation": "LPS",
        "channels": ("T1", "noNorm", "rescale_to_0_1"),
        "rgb": False,
        "statistics": None,
    }
    return Fingerprint(**(fields | changes))


def schemes(fingerprint: Fingerprint) -> list[str]:
    config, _ = plan_from_fingerprint(fingerprint, {1: "organ"}, "x")
    return [rule.scheme for rule in config.plan.intensities]


def test_intensity_schemes():
    assert schemes(volumes()) == ["zscore", "none", "rescale"]
    assert schemes(volumes(relative_size=0.7)) == ["zscore_nonzero", "none", "rescale"]
    flat = {"dim": 2, "unit": None, "orientation": None}
    flat |= {"shapes": ((64, 64),) * 2, "spacings": ((1.0, 1.0),) * 2}
    colours = volumes(**flat, rgb=True, channels=("0", "1", "2"))
    assert schemes(colours) == ["rgb"] * 3
    assert plan_from_fingerprint(colours, {1: "polyp"}, "x")[0].plan.spacing is None
    with pytest.raises(DatasetError, match="Nothing is labelled"):
        schemes(volumes(channels=("CT",)))


def test_transposed_volumes():
    found = volumes(shapes=((64, 64, 20),) * 2, spacings=((0.8, 0.9, 4.0),) * 2)
    config, _ = plan_from_fingerprint(found, {1: "organ"}, "x")
    assert config.plan.transpose == (2, 0, 1)
    assert config.plan.spacing == (4.0, 0.8, 0.9)
    assert config.plan.patch_size[0] <= 20


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("3d_cascade_fullres", "cascade is not trained"),
        ("3d_lowres", "sees enough"),
        ("2d", "trained in 3D"),
        ("4d", "no configuration"),
    ],
)
def test_refused_configurations(name, message):
    with pytest.raises(DatasetError, match=message):
        plan_from_fingerprint(volumes(), {1: "organ"}, "x", configuration=name)


def test_low_resolution_is_offered():
    found = volumes(shapes=((300, 300, 300),) * 2)
    low, _ = plan_from_fingerprint(found, {1: "organ"}, "x", configuration="3d_lowres")
    assert min(low.plan.spacing) > 1.5
    full, _ = plan_from_fingerprint(found, {1: "organ"}, "x")
    assert full.plan.spacing == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("name", "channels", "classes", "parameters", "macs"),
    [
        ("abdomen-ct-3d", 1, 14, 41.69, 788.2),
        ("abdomen-mr-3d", 1, 14, 41.69, 788.2),
        ("abdomen-mr-2d", 1, 14, 46.91, 41.00),
        ("endoscopy", 3, 8, 46.91, 98.50),
        ("microscopy", 3, 3, 64.18, 101.02),
    ],
)
def test_presets_cost_what_the_papers_networks_cost(name, channels, classes, parameters, macs):
    preset = PRESETS[name]
    network = preset.network(channels, classes)
    cost = count_cost(network.model_copy(update={"deep_supervision": False}), preset.patch)
    # The authors' network keeps the heads that it does not use.
    assert cost.parameters / 1e6 == pytest.approx(parameters, abs=0.02)
    assert cost.macs / 1e9 == pytest.approx(macs, rel=1e-3)


def test_presets_are_planned():
    config, train = plan_from_fingerprint(volumes(), {1: "organ"}, "x", preset="abdomen-mr-3d")
    assert config.network.flavour == "released"
    assert config.network.input_channels == 3
    assert (config.plan.patch_size, train["batch_size"]) == ((48, 160, 224), 2)
    with pytest.raises(DatasetError, match="is 2D and the data set 3D"):
        find_preset("endoscopy", 3)
    with pytest.raises(DatasetError, match="no preset 'x'"):
        find_preset("x", 3)
