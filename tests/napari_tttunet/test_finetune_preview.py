"""The model of the moment on the user's view."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("napari")

from napari.layers import Image

from finetuning import Tuning, make_project
from napari_tttunet.finetune_run import View
from napari_tttunet.session import session
from tttunet.projects import Project

pytestmark = pytest.mark.usefixtures("one_engine", "own_settings", "own_library")


def test_the_whole_of_a_view_is_its_time_point() -> None:
    film = View(Image(np.zeros((4, 50, 60))), "TYX", ((2, 3), (10, 20), (5, 30)))
    assert film.whole() == ((2, 3), (0, 50), (0, 60))
    colours = View(Image(np.zeros((5, 50, 60, 3)), rgb=True), "ZYXS", ((2, 3), (10, 20), (5, 30)))
    assert colours.whole() == ((0, 5), (0, 50), (0, 60))


def test_the_preview_lies_where_it_is_seen(tuning: Tuning, tmp_path: Path) -> None:
    """A part of an image, by a model that learns nothing: the engine gets all of the image."""
    folder = make_project(tmp_path)
    with Project.open(folder) as project:
        data = project.load(project.images[0]).array
        bright = np.concatenate([data, np.clip(data.astype(int) * 3, 0, 255)], 1).astype(np.uint8)
        image = project.add_image(bright, axes="YX", name="half bright")
        project.set_setting("image", image.id)
    tuning.open_project(folder)
    camera = getattr(tuning.viewer, "scene", tuning.viewer).camera
    camera.zoom *= 4
    camera.center = (0.0, 64.0, 64.0)
    tuning.qtbot.wait(100)
    tuning.tiny_budget(300)
    tuning.find("learning_rate").setText("0.000000001")
    tuning.click("finetune")
    name = "half bright: preview of fine-tuning"
    tuning.until(lambda: name in tuning.viewer.layers)
    layer = tuning.viewer.layers[name]
    shown, corner = np.asarray(layer.data) > 0, np.round(layer.data_to_world((0, 0))).astype(int)
    tuning.click("stop")
    tuning.finished()
    box = tuple(slice(a, a + n) for a, n in zip(corner, shown.shape, strict=True))
    assert box[1].stop <= 128, "only the dim side is seen"

    # The same part; that its intensities are those of the whole changes little here.
    job = session().engine.segment(
        bright[box], axes="YX", model="nuclei", decoding={"confidence": 0.7}
    )
    found = job.wait(120).result["labels"] > 0
    assert found.mean() > 0.1
    assert (shown != found).mean() < 0.05
