"""The whole of a fine-tuning, with a tiny network that knows bright discs and learns dark ones."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

import tttunet
from discs import FAST, partly, run, same, same_state, sample, weights
from tiny import make_config
from tttunet.errors import Cancelled, DatasetError, ModelError, OutputError
from tttunet.models.config import ModelConfig
from tttunet.models.model import Model, load_model
from tttunet.training.comparison import COMPARISON_NAME
from tttunet.training.finetune import finetune
from tttunet.training.prepare import IGNORE
from tttunet.training.samples import Material, Sample
from tttunet.training.transfer import initial_model


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_partly_labelled_images_make_it_better(bright, tmp_path, count):
    before = weights(bright)
    data = [partly(sample(i)) for i in range(count)]
    result = run(bright, data, tmp_path / "run", steps=40)
    assert result.improved
    assert result.after["score"] > result.before["score"] + 0.2
    assert result.after["difference"] == pytest.approx(
        result.after["score"] - result.before["score"], abs=1e-3
    )
    assert result.after["objects"] >= count
    # What was known is known still.
    assert result.forgetting["before"]["score"] > 0.5
    assert result.forgetting["difference"] > -0.2
    assert all(torch.equal(value, before[name]) for name, value in weights(bright).items())
    reloaded = load_model(result.folder)
    card = reloaded.config.card
    assert card.parent == "tiny 1.0.0"
    assert (reloaded.config.name, reloaded.config.version) == ("tiny-tuned", "1.1.0")
    assert card.scores["held_out"]["after"] == result.after
    assert card.training["samples"] == [one.name for one in data]
    assert (result.folder / "replay" / "replay.json").exists()
    rows = [json.loads(x) for x in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert rows[0]["step"] == 0
    assert sum("score" in row for row in rows) >= 3
    assert (tmp_path / "run" / "loss.png").exists()


def test_nothing_better_leaves_the_model_as_it_is(bright, tmp_path):
    data = [sample(i, dark=False) for i in range(4)]
    result = run(bright, data, tmp_path, steps=6, learning_rate=1.0)
    assert not result.improved
    assert result.best_step == 0
    assert same(result.folder, bright)
    assert result.after["score"] == result.before["score"]
    assert any("unchanged" in note for note in result.notes)


def test_without_held_out_labels_it_takes_all_its_steps(bright, tmp_path):
    one = sample(0)
    number = one.labels[one.labels > 0].min()
    one = replace(one, labels=np.where(one.labels == number, number, IGNORE))
    options = {"validate_every": 2, "patience": 2}
    result = run(bright, [one], tmp_path, steps=12, options=options)
    assert result.before is None
    assert result.best_step == result.model.config.card.training["steps"] == 12
    assert not (tmp_path / COMPARISON_NAME).exists()


def test_pictures_of_what_was_held_out(bright, tmp_path):
    result = run(bright, [partly(sample(0))], tmp_path, steps=20)
    with np.load(tmp_path / COMPARISON_NAME) as arrays:
        assert sorted(arrays.files) == ["after_0", "before_0", "image_0", "truth_0"]
        truth = arrays["truth_0"]
        assert arrays["image_0"].dtype == np.uint8
        assert arrays["before_0"].shape == arrays["after_0"].shape == truth.shape
        known, found = truth >= 0, arrays["after_0"]
        assert 0 < known.sum() < truth.size
    objects = len(np.unique(truth[truth > 0]))
    assert objects == result.after["objects"]
    shared = 2 * ((truth > 0) & (found > 0)).sum()
    dice = shared / ((truth > 0).sum() + ((found > 0) & known).sum())
    assert dice == pytest.approx(result.after["foreground_dice"], abs=1e-4)


def test_the_training_stops_by_itself(bright, tmp_path):
    data = [sample(i, dark=False) for i in range(4)]
    options = {"validate_every": 2, "patience": 2}
    result = run(bright, data, tmp_path, steps=500, learning_rate=1.0, options=options)
    assert result.model.config.card.training["steps"] == 4


def test_parts_that_do_not_move(bright, tmp_path):
    result = run(bright, [sample(0)], tmp_path, parts="decoder")
    before, after = weights(bright), weights(result.folder)
    assert result.improved
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert not any(name.startswith("encoder") for name in moved)
    result = run(bright, [sample(0)], tmp_path / "head", parts="head")
    after = weights(result.folder)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert all("heads" in name for name in moved)


def test_without_replay(bright, tmp_path):
    result = run(bright, [sample(0)], tmp_path, steps=4, replay=False)
    assert result.forgetting is None
    assert result.settings["replay"] == 0


def test_too_little_to_hold_out_says_so(bright, tmp_path):
    result = run(bright, [sample(0, count=1)], tmp_path, steps=4)
    assert (result.before, result.after) == (None, None)
    assert any("too few" in note for note in result.notes)
    assert not same(result.folder, bright)


def test_new_classes_get_a_new_head_on_the_old_body(bright, tmp_path):
    data = []
    for i in range(2):
        one = sample(i)
        data.append(replace(one, labels=1 + (one.labels > 0).astype(np.int32)))
    result = run(
        bright, data, tmp_path, steps=60, task="semantic", classes={1: "ground", 2: "disc"}
    )
    config = load_model(result.folder).config
    assert [label.name for label in config.labels] == ["ground", "disc"]
    assert (config.task, config.network.output_channels) == ("semantic", 3)
    assert result.before is None
    assert result.after["score"] > 0.7
    assert result.forgetting is None
    body = "encoder.stages.0.blocks.0.conv1.weight"
    change = weights(result.folder)[body] - weights(bright)[body]
    assert 0 < change.abs().max() < 0.5 * weights(bright)[body].abs().max()


def test_from_scratch(tmp_path):
    result = run(None, [sample(0), sample(1)], tmp_path, steps=4, name="mine")
    config = load_model(result.folder).config
    assert (config.name, config.task, config.card.parent) == ("mine", "instance", None)
    assert config.plan.patch_size == (64, 80)


def test_cancel_and_resume_give_the_same_model(bright, tmp_path):
    data = [partly(sample(0)), sample(1)]
    run(bright, data, tmp_path / "whole", steps=12)
    asked = iter([False] * 7 + [True] * 100)
    with pytest.raises(Cancelled):
        run(bright, data, tmp_path / "parts", steps=12, cancel=lambda: next(asked))
    result = run(bright, data, tmp_path / "parts", steps=12, resume=True)
    assert result.model.config.card.training["steps"] == 12
    assert same_state(tmp_path / "whole", tmp_path / "parts")
    assert same(tmp_path / "whole" / "model", tmp_path / "parts" / "model")
    with pytest.raises(DatasetError, match="differ: samples"):
        run(bright, [sample(5)], tmp_path / "parts", steps=12, resume=True)
    with pytest.raises(OutputError, match="holds a training already"):
        run(bright, data, tmp_path / "parts", steps=12)


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from discs import run, sample
run(Path(sys.argv[1]), [sample(0), sample(1)], Path(sys.argv[2]), steps=16,
    options={"validate_every": 4})
"""


def test_killed_in_the_middle_and_resumed(bright, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    tests = str(Path(__file__).parents[1])
    paths = os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, script, bright, tmp_path / "killed", tests],
        env={**os.environ, "PYTHONPATH": paths},
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "checkpoint.pt").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    options = {"validate_every": 4}
    data = [sample(0), sample(1)]
    run(bright, data, tmp_path / "killed", steps=16, options=options, resume=True)
    run(bright, data, tmp_path / "whole", steps=16, options=options)
    assert same_state(tmp_path / "whole", tmp_path / "killed")


def test_stop_now_keeps_the_best(bright, tmp_path):
    steps = []
    result = run(
        bright,
        [sample(0)],
        tmp_path,
        steps=500,
        listener=lambda event: steps.append(event.step),
        stop=lambda: len(steps) > 12,
        options={"validate_every": 4},
    )
    assert result.model.config.card.training["steps"] < 20
    assert result.after["score"] >= result.before["score"]


def test_pause_waits_and_preview_shows_the_model(bright, tmp_path, monkeypatch):
    monkeypatch.setattr("tttunet.training.finetune.PREVIEW_EVERY", 0.0)
    shown, asked, seconds = [], [], []

    def pause() -> bool:
        asked.append(1)
        return 3 <= len(asked) < 8  # five tenths of a second

    result = run(
        bright,
        [sample(0)],
        tmp_path,
        steps=6,
        pause=pause,
        preview=lambda model: shown.append(model.network.training),
        listener=lambda event: seconds.append((time.monotonic(), event.elapsed)),
    )
    assert shown == [False] * 6
    waited = (seconds[-1][0] - seconds[0][0]) - (seconds[-1][1] - seconds[0][1])
    assert 0.4 < waited < 5
    assert result.model.config.card.training["steps"] == 6


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (np.full((64, 80), IGNORE), "no labelled pixels"),
        (np.zeros((64, 80)), "Only background"),
        (np.ones((64, 81)), "shape"),
        (np.ones((4, 64, 80)), "3D"),
    ],
)
def test_labels_that_make_no_sense(bright, tmp_path, labels, problem):
    data = [replace(sample(0), labels=labels.astype(np.int32))]
    with pytest.raises((DatasetError, ModelError), match=problem):
        run(bright, data, tmp_path)
    assert not (tmp_path / "model").exists()


def test_classes_that_nobody_named(bright, tmp_path):
    data = [replace(sample(0), labels=np.full((64, 80), 7, np.int32))]
    with pytest.raises(DatasetError, match="without a class"):
        run(bright, data, tmp_path, task="semantic", classes={1: "disc"})


def test_slices_of_a_stack(bright, tmp_path):
    one = sample(0)
    stack = np.stack([np.zeros_like(one.image[0]), one.image[0]])[None]
    data = [Sample("stack", stack, one.labels, ((1, 2), (0, 64), (0, 80)))]
    result = run(bright, data, tmp_path, steps=4)
    assert result.after["objects"] > 2


@pytest.fixture
def folder(tmp_path) -> Path:
    """A data set of masks."""
    for kind in ("images", "labels"):
        (tmp_path / "discs" / kind).mkdir(parents=True)
    for i in range(3):
        one = sample(i)
        image = (one.image[0] * 100 + 50).clip(0, 255).astype(np.uint8)
        tifffile.imwrite(tmp_path / "discs" / "images" / f"{i}.tif", image)
        mask = (one.labels > 0).astype(np.uint8)
        tifffile.imwrite(tmp_path / "discs" / "labels" / f"{i}.tif", mask)
    description = {"task": "semantic", "dim": 2, "classes": {"1": "disc"}, "licence": "CC0-1.0"}
    (tmp_path / "discs" / "dataset.json").write_text(json.dumps(description))
    return tmp_path / "discs"


def test_an_instance_model_learns_from_masks(bright, tmp_path, folder):
    result = tttunet.finetune(
        str(bright),
        folder,
        tmp_path / "run",
        task="instance",
        steps=30,
        device="cpu",
        learning_rate=1e-2,
        options=FAST,
    )
    assert result.model.config.task == "instance"
    assert result.after["foreground_dice"] > result.before["foreground_dice"] + 0.1
    assert result.model.config.card.data[-1].licence == "CC0-1.0"
    with pytest.raises(DatasetError, match="labelled for the task instance"):
        finetune(bright, _instances(folder), tmp_path / "x", task="semantic", device="cpu")


def _instances(folder: Path) -> Path:
    path = folder / "dataset.json"
    path.write_text(path.read_text().replace("semantic", "instance"))
    return folder


def test_a_new_head_does_not_drop_objects():
    """What the old classes had one of, the new ones may have many of."""
    config = make_config(2, "semantic")
    plan = config.plan.model_copy(update={"keep_largest": ((1,),)})
    parent = Model.create(config.model_copy(update={"plan": plan}))
    samples = [sample(0, dark=False)]
    for task, classes in (("instance", {1: "cell"}), ("semantic", {5: "lesion"})):
        material = Material(samples, task, 2, classes, "made up", [])
        assert initial_model(parent, material, "new", 0).config.plan.keep_largest == ()
    broken = config.model_dump() | {"plan": plan.model_copy(update={"keep_largest": ((9,),)})}
    with pytest.raises(ValueError, match="no labels"):
        ModelConfig(**broken)
