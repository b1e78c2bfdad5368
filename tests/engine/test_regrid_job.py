"""Models with a grid of their own through the worker: what the client asked on is what it gets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tiny import make_config
from tttunet.engine.client import Engine, Preview
from tttunet.engine.messages import Estimate
from tttunet.imaging import Image
from tttunet.inference.segment import segment
from tttunet.models.config import Plan
from tttunet.models.model import Model

from .conftest import Heard, finish, noise

GEOMETRY = {
    "spacing": (3.0, 1.0, 0.8),
    "direction": ((0.0, 1.0, 0.0), (-1.0, 0.0, 0.0), (0.0, 0.0, 1.0)),
    "unit": "millimeter",
}


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A 3D model that works on cubes of 1.5 mm in LPS."""
    config = make_config(3, "semantic")
    plan = config.plan.model_dump() | {
        "spacing": (1.5, 1.5, 1.5),
        "unit": "millimeter",
        "orientation": "LPS",
    }
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = Model.create(config.model_copy(update={"plan": Plan.model_validate(plan)}))
    return str(made.save(tmp_path / "model"))


def test_labels_maps_and_previews_are_on_the_grid_of_the_client(engine: Engine, model: str):
    from tttunet.models.model import load_model

    array = noise((12, 30, 36))
    heard = Heard()
    job = engine.segment(
        array.transpose(1, 0, 2),
        axes="YZX",
        model=model,
        image=GEOMETRY,
        maps=True,
        preview=True,
        device="cpu",
        on_event=heard,
    )
    result = finish(job).result
    image = Image.from_array(array, "ZYX", **GEOMETRY)
    expected = segment(image, load_model(model), device="cpu").labels
    assert 0 < expected.mean() < 1
    differing = (result["labels"].transpose(1, 0, 2) != expected).mean()
    assert differing < 1e-3  # where both classes are equally likely
    np.testing.assert_array_equal(result["labels"], result["maps"].argmax(0))
    (shown,) = (event for event in heard if isinstance(event, Preview))
    assert shown.bounds == ((0, 30), (0, 12), (0, 36))
    again = finish(engine.decode({}, result["maps_id"])).result
    np.testing.assert_array_equal(again["labels"], result["labels"])


def test_a_missing_voxel_size_is_explained(engine: Engine, model: str):
    outcome = finish(engine.segment(noise((9, 20, 24)), axes="ZYX", model=model))
    assert outcome.kind == "failed"
    assert "does not say how large" in outcome.message


def test_the_estimate_knows_the_grid_of_the_network(engine: Engine, model: str):
    shape, axes = (60, 200, 200), "ZYX"
    own = finish(engine.request(Estimate(shape, axes, model, tile=(32, 32, 32)))).result
    fine = finish(
        engine.request(
            Estimate(shape, axes, model, tile=(32, 32, 32), **GEOMETRY | {"spacing": (3, 3, 3)})
        )
    ).result
    # Eight times as many voxels there as in the image.
    assert 4 < fine["tiles"] / own["tiles"] < 12
    assert fine["bytes"] > 2 * own["bytes"]
