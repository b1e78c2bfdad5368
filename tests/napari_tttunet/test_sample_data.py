"""The sample images open in napari: checked through npe2, without a viewer."""

from __future__ import annotations

import json
from importlib.resources import files

import numpy as np
import pytest
from npe2 import PluginManager, PluginManifest

from napari_tttunet.sample_data import image_layer
from tttunet.imaging.image import Image


def test_menu_opens_every_sample_image():
    manager = PluginManager()
    manager.register(PluginManifest.from_distribution("napari-tttunet"))
    manager.activate("napari-tttunet")
    ((_, entries),) = manager.iter_sample_data()

    index = files("tttunet.resources") / "samples" / "samples.json"
    images = json.loads(index.read_text(encoding="utf-8"))["images"]
    titles = {image["name"]: image["title"] for image in images}
    assert {entry.key: entry.display_name for entry in entries} == titles

    for entry in entries:
        ((data, arguments, kind),) = entry.open(_registry=manager.commands)
        assert (arguments["name"], kind) == (entry.key, "image")
        assert data.ndim == (3 if arguments.get("rgb") else 2)


@pytest.mark.parametrize(
    ("shape", "axes", "shown", "expected"),
    [
        ((4, 6), "YX", (4, 6), {"scale": (0.5, 0.25)}),
        ((4, 6, 3), "YXS", (4, 6, 3), {"scale": (0.5, 0.25), "rgb": True}),
        ((3, 4, 6), "CYX", (3, 4, 6), {"scale": (0.5, 0.25), "channel_axis": 0}),
        ((2, 4, 6), "TYX", (2, 4, 6), {"scale": (1.0, 0.5, 0.25)}),
        ((2, 3, 4, 6), "TCYX", (2, 3, 4, 6), {"scale": (1.0, 0.5, 0.25), "channel_axis": 1}),
    ],
)
def test_channels_and_scale(
    shape: tuple[int, ...], axes: str, shown: tuple[int, ...], expected: dict
):
    image = Image.from_array(np.zeros(shape, np.uint8), axes, spacing=(0.5, 0.25))
    data, arguments, kind = image_layer(image)
    assert data.shape == shown
    assert arguments == {"name": "image", **expected}
    assert kind == "image"
