"""Where to correct next, asked of the worker."""

from __future__ import annotations

import numpy as np
import tifffile

from tttunet.engine import messages
from tttunet.engine.client import Engine
from tttunet.inference.review import rank_places, review_image
from tttunet.models.model import load_model
from tttunet.projects import Project

from .conftest import finish, noise


def test_places_of_an_image_are_those_of_the_core(engine: Engine, models):
    image = noise((60, 48))
    folder = models[2, "semantic"]
    done = finish(engine.segment(image, axes="YX", model=folder, maps=True))
    labels, maps = done.result["labels"], done.result["maps"]
    expected = rank_places(maps, labels, "semantic")
    found = finish(engine.review(labels, done.result["maps_id"])).result
    assert found["total"] == len(expected) > 0
    assert [one["label"] for one in found["places"]] == [one.label for one in expected[:500]]
    np.testing.assert_allclose(
        [one["centre"] for one in found["places"]], [one.centre for one in expected[:500]]
    )


def test_slices_of_a_transposed_stack_are_found_with_its_axes(engine: Engine, models):
    image = noise((48, 3, 60))
    done = finish(engine.segment(image, axes="YZX", model=models[2, "semantic"]))
    labels = done.result["labels"]
    found = finish(engine.review(labels, done.result["maps_id"])).result
    assert found["total"] > 3
    doubts = [one["doubt"] for one in found["places"]]
    assert doubts == sorted(doubts, reverse=True)
    assert {one["centre"][1] for one in found["places"]} == {0, 1, 2}
    for one in found["places"]:
        box = tuple(slice(*along) for along in one["bounds"])
        assert labels[box].shape[1] == 1
        assert one["kind"] == "gap" or (labels[box] > 0).any()


def test_lost_maps_and_foreign_labels_are_told(engine: Engine, models):
    done = finish(engine.segment(noise((40, 40)), axes="YX", model=models[2, "semantic"]))
    failed = finish(engine.review(np.zeros((3, 3), np.uint8), done.result["maps_id"]))
    assert (failed.problem, "(3, 3)" in failed.message) == ("input", True)
    failed = finish(engine.review(done.result["labels"], "another"))
    assert "not in memory any more" in failed.message


def test_places_of_a_projects_image_have_its_label_axes(engine: Engine, models, tmp_path):
    folder = models[2, "semantic"]
    with Project.create(tmp_path / "cells", task="semantic", classes={1: "one"}) as project:
        stack = project.add_image(noise((3, 60, 48)), axes="ZYX", name="stack")
        found = finish(engine.review_image(project.folder, stack.id, folder)).result
        expected = review_image(project.load(stack), load_model(folder), device="cpu")
        missing = finish(engine.review_image(project.folder, "another", folder))
    assert found["total"] == len(expected) > 3
    first = found["places"][0]
    index, place = expected[0]
    np.testing.assert_allclose(first["centre"], (*index, *place.centre))
    assert first["bounds"] == [[index[0], index[0] + 1], *map(list, place.bounds)]
    assert abs(first["doubt"] - place.doubt) < 1e-5
    assert "no image 'another'" in missing.message


def test_nothing_waits_in_silence_behind_a_batch(engine: Engine, models, tmp_path):
    done = finish(engine.segment(noise((40, 40)), axes="YX", model=models[2, "semantic"]))
    tifffile.imwrite(tmp_path / "one.tif", noise((40, 40)))
    batch = {"inputs": [str(tmp_path / "one.tif")], "model": str(models[2, "semantic"])}
    job = engine.request(messages.Batch({**batch, "output": str(tmp_path / "out")}))
    refused = engine.review(done.result["labels"], done.result["maps_id"])
    assert refused.finished
    assert "a batch" in refused.outcome.message
    other = engine.review_image(tmp_path, "one", models[2, "semantic"])
    assert (other.finished, other.outcome.problem) == (True, "busy")
    assert isinstance(finish(job), messages.Done)
    assert isinstance(
        finish(engine.review(done.result["labels"], done.result["maps_id"])), messages.Done
    )
