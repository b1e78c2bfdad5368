"""How the model adapts is chosen in the Segment dock, and where it did is shown as an image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from segmenting import Dock, add_sample, same_place

pytestmark = pytest.mark.usefixtures("one_engine", "own_settings")


def adaptation_layers(viewer: Any) -> list[Any]:
    return [
        layer
        for layer in viewer.layers
        if (layer.metadata.get("tttunet") or {}).get("shows") == "adaptation"
    ]


def losses(array: np.ndarray, **options: Any) -> np.ndarray:
    """Before and after, as the engine tells them."""
    from napari_tttunet.session import session

    job = session().engine.segment(array, axes="YX", model="nuclei", adaptation_map=True, **options)
    return job.wait(60).result["adaptation_map"]


def test_the_layer_shows_what_was_chosen(viewer: Any, dock: Dock) -> None:
    image = add_sample(viewer, scale=(0.5, 0.5), translate=(3, 7), rotate=20)
    dock.ready()
    dock.click("more_options_button")
    assert not dock.find("adapted").isVisible()
    dock.find("adaptation_map").click()
    assert dock.find("adapted").isVisible()
    dock.find("tile").setValue(64)
    dock.choose("adaptation", "image")
    labels = dock.segment()
    assert labels.metadata["tttunet"]["adaptation"] == "image"
    expected = losses(image.data, tile=(64, 64), adaptation="image")
    (layer,) = adaptation_layers(viewer)
    assert layer.name == f"{image.name}: adaptation (nuclei)"
    same_place(layer, image)
    np.testing.assert_allclose(layer.data, expected[0], rtol=1e-3)
    low, high = layer.contrast_limits
    assert low < np.median(layer.data) < high
    assert viewer.layers.index(image) < viewer.layers.index(layer) < viewer.layers.index(labels)
    assert dock.find("image").count() == 1, "it is not offered as an image"

    # The next run replaces it.
    dock.choose("adapted", "difference")
    dock.segment()
    (layer,) = adaptation_layers(viewer)
    np.testing.assert_allclose(layer.data, expected[0] - expected[1], rtol=1e-2, atol=1e-3)
    dock.find("adaptation_map").click()
    assert not dock.find("adapted").isVisible()


def test_one_slice_of_a_stack(viewer: Any, dock: Dock) -> None:
    plane = add_sample(viewer, size=96).data
    viewer.layers.clear()
    image = viewer.add_image(np.stack([plane, plane[::-1]]), scale=(3, 1, 1), name="stack")
    dock.ready()
    viewer.dims.set_point(0, 3)
    dock.choose("planes", "current")
    dock.find("adaptation_map").setChecked(True)
    dock.segment()
    assert dock.message() == ""
    (layer,) = adaptation_layers(viewer)
    assert layer.data.shape == (1, 96, 96)
    np.testing.assert_allclose(layer.data_to_world((0, 5, 6)), image.data_to_world((1, 5, 6)))


def test_a_model_that_does_not_adapt_offers_nothing(viewer: Any, dock: Dock) -> None:
    add_sample(viewer)
    dock.ready()
    options = dock.widget.view.options
    options.adaptation_map.setChecked(True)
    dock.choose("adaptation", "both")
    options.set_model({"adapts": False})
    assert not options.adaptation_map.isEnabled()
    assert "no TTT layers" in options.adaptation.toolTip()
    choices = dock.widget.choices()
    assert (choices.adaptation, choices.adapted) == ("tile", "")
    options.set_model({"adapts": True})
    choices = dock.widget.choices()
    assert (choices.adaptation, choices.adapted) == ("both", "before")


def test_it_is_remembered(viewer: Any, qtbot: Any, dock: Dock) -> None:
    dock.choose("adaptation", "off")
    dock.choose("adapted", "after")
    dock.find("adaptation_map").setChecked(True)
    dock.widget.settings.save()
    again = Dock(viewer, qtbot)
    assert again.find("adaptation").currentData() == "off"
    assert again.find("adapted").currentData() == "after"
    assert again.find("adaptation_map").isChecked()
