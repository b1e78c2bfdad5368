"""The mean of the tuned weights and those to start from."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from discs import partly, run, same, sample, weights
from tttunet.errors import Cancelled, DatasetError
from tttunet.models.model import Model, load_model
from tttunet.training.checkpoint import CHECKPOINT_NAME
from tttunet.training.defaults import BLEND
from tttunet.training.heldout_scores import tally
from tttunet.training.replay import load_replay


def averages(folder: Path) -> dict[str, torch.Tensor]:
    """The tuned weights before they are blended."""
    state = torch.load(folder / CHECKPOINT_NAME, weights_only=True)["average"]
    return {
        name.removeprefix("module."): value for name, value in state.items() if "module" in name
    }


def blended(start: Path, folder: Path, share: float) -> bool:
    """Whether the model that was kept is the mean of both."""
    first, tuned, kept = weights(start), averages(folder), weights(folder / "model")
    assert not all(torch.equal(first[name], tuned[name]) for name in first)
    return all(
        torch.allclose(kept[name], first[name] + share * (tuned[name] - first[name]), atol=2e-3)
        for name in first
    )


def few(seed: int = 0):
    """Too few labels to hold some out: the last step's model is kept."""
    return [sample(seed, count=1)]


@pytest.mark.parametrize("share", [None, 0.3, 1.0])
def test_the_result_is_a_mean_with_the_start(bright, tmp_path, share):
    result = run(bright, few(), tmp_path, steps=12, blend=share)
    share = BLEND if share is None else share
    assert result.settings["settings"]["blend"] == share
    assert blended(bright, tmp_path, share)
    # The three are told apart.
    assert not any(blended(bright, tmp_path, other) for other in (0.0, 0.3, 1.0) if other != share)


def test_previews_and_scores_are_those_of_the_mean(bright, tmp_path, monkeypatch):
    monkeypatch.setattr("tttunet.training.finetune.PREVIEW_EVERY", 0.0)
    shown = []
    result = run(
        bright,
        [partly(sample(0)), partly(sample(1))],
        tmp_path,
        steps=20,
        blend=0.5,
        preview=lambda model: shown.append(model.network.state_dict()),
    )
    first, tuned = weights(bright), averages(tmp_path)
    for name, value in shown[-1].items():
        torch.testing.assert_close(value, torch.lerp(first[name], tuned[name], 0.5))
    rows = [json.loads(row) for row in (tmp_path / "history.jsonl").read_text().splitlines()]
    scores = [row["score"] for row in rows if "score" in row]
    assert result.improved
    told = [result.after[name] for name in ("f1_iou50", "f1_iou70", "foreground_dice")]
    assert max(scores) == pytest.approx(np.mean(told), abs=0.02)


def test_the_mean_forgets_less(bright, tmp_path):
    result = run(
        bright,
        [sample(0), sample(1)],
        tmp_path,
        replay=False,
        blend=0.5,
        steps=40,
        options={"validate_every": 40},
    )
    assert result.improved
    known = load_replay(bright, result.model.config).val
    tuned = Model.create(result.model.config)
    tuned.network.load_state_dict(averages(tmp_path))
    assert tally(result.model, known).merit > tally(tuned, known).merit + 0.02


def test_a_new_head_is_not_blended(bright, tmp_path):
    data = [replace(sample(i), labels=(sample(i).labels > 0).astype(np.int32)) for i in range(2)]
    result = run(bright, data, tmp_path, task="semantic", classes={1: "disc"}, steps=4, blend=0.5)
    assert result.settings["settings"]["blend"] == 1
    assert any("not blended" in note for note in result.notes)
    scratch = run(None, few(), tmp_path / "scratch", steps=2)
    assert scratch.settings["settings"]["blend"] == 1
    assert not any("not blended" in note for note in scratch.notes)


def test_resumed_exactly_and_from_the_same_start_only(bright, tmp_path):
    start = Path(shutil.copytree(bright, tmp_path / "start"))
    run(start, few(), tmp_path / "whole", steps=12)
    asked = iter([False] * 7 + [True] * 100)
    with pytest.raises(Cancelled):
        run(start, few(), tmp_path / "parts", steps=12, cancel=lambda: next(asked))
    with pytest.raises(DatasetError, match="differ: settings"):
        run(start, few(), tmp_path / "parts", steps=12, resume=True, blend=0.25)
    model = load_model(start)
    name = model.config.name
    with torch.no_grad():
        next(model.network.parameters()).add_(0.01)
    model.save(start, overwrite=True, dtype="fp32")
    assert load_model(start).config.name == name
    with pytest.raises(DatasetError, match="differ: start"):
        run(start, few(), tmp_path / "parts", steps=12, resume=True)
    run(bright, few(), tmp_path / "parts", steps=12, resume=True)
    assert same(tmp_path / "whole" / "model", tmp_path / "parts" / "model")
    assert blended(bright, tmp_path / "parts", BLEND)
