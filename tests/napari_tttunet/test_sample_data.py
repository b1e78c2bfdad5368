"""The sample images open in napari with their true labels: checked through npe2."""

from __future__ import annotations

import json
from importlib.resources import files

import numpy as np
import pytest
from napari.layers import Layer
from npe2 import PluginManager, PluginManifest

from napari_tttunet.convert import image_layers
from napari_tttunet.layers import layer_spacing
from tttunet.imaging.image import Image


def index() -> list[dict]:
    text = (files("tttunet.resources") / "samples" / "samples.json").read_text(encoding="utf-8")
    description = json.loads(text)
    return [*description["images"], *description["others"]]


def test_menu_opens_every_sample_with_its_labels():
    manager = PluginManager()
    manager.register(PluginManifest.from_distribution("napari-tttunet"))
    manager.activate("napari-tttunet")
    ((_, entries),) = manager.iter_sample_data()
    samples = {sample["name"]: sample for sample in index()}
    titles = {name: sample["title"] for name, sample in samples.items()}
    assert {entry.key: entry.display_name for entry in entries} == titles

    for entry in entries:
        image, labels = (Layer.create(*x) for x in entry.open(_registry=manager.commands))
        assert (image.name, labels.name) == (entry.key, f"{entry.key}: true labels")
        assert image.ndim == (3 if entry.key in ("ovule_nuclei", "hippocampus") else 2)
        assert labels.data.shape == image.data.shape[: image.ndim]
        np.testing.assert_array_equal(labels.extent.world, image.extent.world)
        assert not labels.visible
        sample = samples[entry.key]
        assert labels.data.max() == sample.get("objects", len(sample.get("classes", ())))


def test_the_volume_has_its_size():
    from napari_tttunet.sample_data import ovule_nuclei

    for layer in (Layer.create(*x) for x in ovule_nuclei()):
        spacing = layer_spacing(layer, "ZYX")
        assert (spacing.values, spacing.unit) == ((0.283718, 0.126786, 0.126786), "micrometer")


def test_every_sample_is_credited():
    folder = files("tttunet.resources") / "samples"
    credits = (folder / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for sample in index():
        assert f"`{sample['name']}" in credits
    shipped = {path.name for path in folder.iterdir() if "_labels" not in path.name}
    named = {name for name in shipped if f"`{name}`" in credits}
    assert shipped - named == {"ATTRIBUTION.md", "samples.json"}


@pytest.mark.parametrize(
    ("shape", "axes", "layers", "expected"),
    [
        ((4, 6), "YX", [(4, 6)], {"scale": (0.5, 0.25)}),
        ((4, 6, 3), "YXS", [(4, 6, 3)], {"scale": (0.5, 0.25), "rgb": True}),
        ((3, 4, 6), "CYX", [(4, 6)] * 3, {"scale": (0.5, 0.25), "blending": "additive"}),
        ((2, 4, 6), "TYX", [(2, 4, 6)], {"scale": (1.0, 0.5, 0.25)}),
        ((2, 3, 4, 6), "TCYX", [(2, 4, 6)] * 3, {"scale": (1.0, 0.5, 0.25)}),
    ],
)
def test_channels_and_scale(
    shape: tuple[int, ...], axes: str, layers: list[tuple[int, ...]], expected: dict
):
    image = Image.from_array(np.zeros(shape, np.uint8), axes, spacing=(0.5, 0.25))
    found = image_layers(image)
    assert [data.shape for data, _, _ in found] == layers
    for data, arguments, kind in found:
        assert kind == "image"
        assert {**arguments, **expected} == arguments
        layer = Layer.create(data, arguments, kind)
        assert layer.axis_labels == tuple(axes.lower().replace("c", "").replace("s", ""))


def test_names_of_channels():
    image = Image.from_array(
        np.zeros((2, 4, 6)), "CYX", channel_names=("dna", "actin"), name="cells"
    )
    found = [(x["name"], x["colormap"]) for _, x, _ in image_layers(image)]
    assert found == [("cells: dna", "magenta"), ("cells: actin", "green")]
