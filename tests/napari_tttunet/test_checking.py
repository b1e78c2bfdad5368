"""Next and Previous: the most doubtful places first, as long as the worker knows them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from napari_tttunet.checking import doubtful
from segmenting import Dock, add_sample

pytestmark = pytest.mark.usefixtures("_spare_references", "one_engine", "own_settings")


def camera(viewer: Any) -> np.ndarray:
    return np.array(getattr(viewer, "scene", viewer).camera.center)[-2:]


def ranked(dock: Dock, labels: Any) -> list[dict[str, Any]]:
    """What the worker says of the labels of the last run."""
    from napari_tttunet.session import session

    source = dock.widget.run.source_of(labels)
    assert source is not None
    job = session().engine.review(source[2], source[1])
    dock.until(lambda: job.finished)
    return job.outcome.result["places"]


def text(dock: Dock) -> str:
    return dock.find("result").text()


def test_doubtful_places_come_first(viewer: Any, dock: Dock) -> None:
    add_sample(viewer, "fluorescence_crowded", scale=(0.5, 0.5))
    labels = dock.segment()
    places = ranked(dock, labels)
    assert len(places) > 5
    for number, place in enumerate(places[:4], 1):
        dock.click("next_object")
        dock.until(lambda number=number: f" {number} of {len(places)} to check" in text(dock))
        assert "the most doubtful first" in text(dock)
        np.testing.assert_allclose(camera(viewer), 0.5 * np.array(place["centre"]), atol=0.01)
        if place["label"]:
            assert labels.selected_label == place["label"]
            assert f"Object {place['label']}:" in text(dock)
        else:
            assert "perhaps a missed object" in text(dock)
    dock.click("previous_object")
    dock.until(lambda: f" 3 of {len(places)} to check" in text(dock))


def test_places_of_a_rectangle_lie_in_it(viewer: Any, dock: Dock) -> None:
    add_sample(viewer)
    viewer.add_shapes([[[20, 30], [20, 110], [100, 110], [100, 30]]], name="here")
    viewer.layers.selection.active = viewer.layers[0]
    dock.choose("where", "shapes")
    labels = dock.segment()
    places = ranked(dock, labels)
    dock.click("next_object")
    dock.until(lambda: f" 1 of {len(places)} to check" in text(dock))
    corner = np.array([along[0] for along in labels.metadata["tttunet"]["region"]])
    assert corner.any()
    np.testing.assert_allclose(camera(viewer), places[0]["centre"] + corner, atol=0.01)


def test_without_the_maps_unusual_sizes_come_first(viewer: Any, dock: Dock) -> None:
    image = add_sample(viewer)
    labels = dock.segment()
    from napari_tttunet.session import session

    # The worker goes on to something else.
    other = session().engine.segment(np.asarray(image.data[:40, :40]), axes="YX", model="nuclei")
    dock.until(lambda: other.finished)
    dock.click("next_object")
    dock.until(lambda: "to check" in text(dock))
    assert "unusual sizes first" in text(dock)
    sizes = np.bincount(labels.data.ravel())[1:]
    oddness = np.abs(np.log(np.maximum(sizes, 1) / np.median(sizes[sizes > 0])))
    assert oddness[labels.selected_label - 1] == pytest.approx(oddness[sizes > 0].max())


def test_a_channel_axis_gets_a_place() -> None:
    one = {"centre": [1.0, 2.0, 3.0], "label": 4, "doubt": 0.5}
    places = [one, {"centre": [0.0, 5.0, 6.0], "label": 0, "doubt": 0.25}]
    found = doubtful(places, np.array([10, 0, 20, 30]), 1)
    np.testing.assert_allclose(found.centres, [[11, 0, 22, 33], [10, 0, 25, 36]])
    assert found.numbers.tolist() == [4, 0]
    np.testing.assert_array_equal(found.doubts, [0.5, 0.25])
    assert doubtful([], np.array([1, 2]), -1).centres.shape == (0, 2)
