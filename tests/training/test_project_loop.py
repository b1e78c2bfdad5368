"""From what a user vouches for in a project to the model that the project keeps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tttunet
from discs import FAST, same_state, sample
from tttunet.errors import Cancelled, DatasetError
from tttunet.models.model import load_model
from tttunet.projects import Project, Region, describe, samples, vouch_object
from tttunet.training.holdout import hold_out
from tttunet.training.prepare import IGNORE
from tttunet.training.samples import read_material, to_cases

#: The complete region, right of the objects that are checked one by one.
REGION = ((0, 64), (40, 80))
SLICE = 2


def picture(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """8-bit intensities and labels of dark discs."""
    one = sample(seed)
    return (one.image[0] * 100 + 50).clip(0, 255).astype(np.uint8), one.labels


def correct(project: Project, name: str, labels: np.ndarray, leading: tuple = ()) -> list[int]:
    """Check two objects on the left, and call the right half complete; returns the two."""
    corrections = project.corrections(name)
    bounds = (*leading, (0, 64), (0, 80))
    lead = (1,) * len(leading)
    vouched = np.zeros(labels.shape, np.uint8)
    left = np.setdiff1d(np.unique(labels[:, :36]), np.unique(labels[:, 36:]))
    chosen = [int(number) for number in left if number > 0][:2]
    for number in chosen:
        vouched = vouch_object(labels, vouched, number)
    corrections.write(bounds, labels.reshape(*lead, 64, 80), vouched.reshape(*lead, 64, 80))
    right = labels[:, 40:].reshape(*lead, 64, 40)
    corrections.complete(Region((*leading, *REGION)), right)
    return chosen


@pytest.fixture
def project(tmp_path: Path):
    """A picture, and a stack of which one slice is corrected."""
    with Project.create(tmp_path / "my-discs", classes={1: "disc"}, model="tiny") as project:
        image, labels = picture(0)
        correct(project, project.add_image(image, axes="YX", name="flat").id, labels)
        image, labels = picture(1)
        stack = np.zeros((4, 64, 80), np.uint8)
        stack[SLICE] = image
        reference = project.add_image(stack, axes="ZYX", name="stack")
        correct(project, reference.id, labels, ((SLICE, SLICE + 1),))
        yield project


def test_only_vouched_pixels_of_the_right_slice_are_trained_on(bright, project):
    assert describe(project).endswith("2 complete regions on 2 images")
    found = list(samples(project))
    material = read_material(project.folder)
    assert [one.name for one in material.samples] == [one.name for one in found]
    assert (material.task, material.classes) == ("instance", {1: "disc"})
    for seed, one in enumerate(material.samples):
        _, labels = picture(seed)
        place = tuple(slice(*along) for along in one.bounds[-2:])
        known = one.labels != IGNORE
        assert np.array_equal(one.labels[known], labels[place][known])
        whole = np.zeros(labels.shape, bool)
        whole[place] = known
        assert whole[:, 40:].all()
        assert 0 < whole[:, :36].sum() < 36 * 64 / 2
    assert material.samples[1].bounds[0] == (SLICE, SLICE + 1)
    train, val = hold_out(material.samples, "instance", 0)
    config = load_model(bright).config
    for case in to_cases([*train, *val], config):
        image, case_labels, _ = case.open()
        # A slice without discs is constant; this one is not.
        assert np.asarray(image, np.float32).std() > 0.1
        assert image.shape[1:] == case_labels.shape


def test_from_vouching_to_a_model_that_the_project_keeps(bright, project):
    run = project.new_run()
    result = tttunet.finetune(
        str(bright),
        project,
        run,
        steps=30,
        learning_rate=1e-2,
        device="cpu",
        options=FAST,
    )
    assert result.improved
    assert result.after["score"] > result.before["score"]
    assert result.forgetting is not None
    card = result.model.config.card
    assert card.training["samples"] == [one.name for one in samples(project)]
    kept = project.keep_model(result.folder, "tiny")
    assert (kept.name, project.model) == ("tiny-v2", "models/tiny-v2")
    assert load_model(kept.folder).config.card.parent == "tiny 1.0.0"
    assert "model kept" in [entry["event"] for entry in project.history()]
    folder = project.folder
    project.close()

    # The next day: go on from the model that was kept, which has the earlier data beside it.
    with Project.open(folder) as project:
        assert not project.problems
        assert project.model_path() == kept.folder
        listed = json.loads((kept.folder / "replay" / "replay.json").read_text())
        assert len(listed["crops"]) == 9
        again = tttunet.finetune(
            project.model_path(), folder, project.new_run(), steps=4, device="cpu", options=FAST
        )
        assert again.before["score"] == pytest.approx(result.after["score"], abs=1e-3)
        assert again.model.config.card.parent == "tiny-tuned 1.1.0"
        assert project.keep_model(again.folder, project.model_path().name).name == "tiny-v3"
        assert [version.number for version in project.versions] == [2, 3]


def test_one_object_of_a_slice_is_enough_to_train(bright, tmp_path):
    image, labels = picture(3)
    with Project.create(tmp_path / "one", classes={1: "disc"}) as project:
        reference = project.add_image(np.stack([image * 0, image]), axes="ZYX", name="stack")
        number = int(labels[labels > 0][0])
        vouched = vouch_object(labels, np.zeros(labels.shape), number)
        corrections = project.corrections(reference.id)
        corrections.write(((1, 2), (0, 64), (0, 80)), labels[None], vouched[None])
        result = tttunet.finetune(
            bright, project, project.new_run(), steps=2, device="cpu", options=FAST
        )
        assert any("too few" in note for note in result.notes)
        assert project.keep_model(result.folder, "tiny").number == 2


def test_corrections_made_meanwhile_wait_for_the_next_fine_tuning(bright, project):
    options = {"steps": 6, "device": "cpu", "options": {**FAST, "validate_every": 2}}
    whole = project.new_run()
    tttunet.finetune(bright, project, whole, **options)
    asked = iter([False] * 9 + [True] * 100)
    parts = project.new_run()
    with pytest.raises(Cancelled):
        tttunet.finetune(bright, project, parts, cancel=lambda: next(asked), **options)
    image, labels = picture(7)
    correct(project, project.add_image(image, axes="YX", name="later").id, labels)
    first = project.images[0].id
    corrections = project.corrections(first)
    corrections.write(((0, 8), (0, 8)), np.full((8, 8), 90), np.ones((8, 8), np.uint8))
    tttunet.finetune(bright, project, parts, resume=True, **options)
    assert same_state(whole, parts)

    asked = iter([False] * 9 + [True] * 100)
    with pytest.raises(Cancelled):
        tttunet.finetune(
            bright,
            project,
            project.folder / "runs" / "third",
            cancel=lambda: next(asked),
            **options,
        )
    project.remove_image(first)
    with pytest.raises(DatasetError, match=r"corrections of flat.*, of which there are none now"):
        tttunet.finetune(bright, project, project.folder / "runs" / "third", resume=True, **options)
