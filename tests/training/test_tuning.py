import numpy as np
import pytest
import torch
from torch import nn

from tiny import make_case, make_config
from tttunet.inference.instances import decode_instances
from tttunet.models.config import Label
from tttunet.models.model import Model
from tttunet.training import tuning
from tttunet.training.prepare import PreparedCase
from tttunet.training.targets import instance_targets


@pytest.fixture
def cases():
    return [make_case(seed, (40, 48)) for seed in range(3)]


def touching_squares() -> tuple[PreparedCase, np.ndarray]:
    """Two squares side by side, and exact maps with peaks too flat for the default prominence."""
    label = np.zeros((40, 48), np.int32)
    label[10:30, 4:24] = 1
    label[10:30, 24:44] = 2
    classes, distance = instance_targets(label)
    maps = np.stack([classes == c for c in (0, 1, 2)] + [0.15 * distance]).astype(np.float32)
    image = np.zeros((1, 40, 48), np.float16)
    return PreparedCase("squares", image, label, np.zeros((0, 3), np.int32)), maps


def test_the_best_thresholds_are_found(monkeypatch):
    case, maps = touching_squares()
    monkeypatch.setattr(tuning, "predict_maps", lambda *args, **options: maps)
    seen: list[tuple[int, int]] = []
    model = Model.create(make_config())
    assert decode_instances(maps, model.config.plan.decoding).max() == 1
    best = tuning.tune_decoding(model, [case], progress=lambda *a: seen.append(a))
    assert decode_instances(maps, best).max() == 2
    assert best.prominence < model.config.plan.decoding.prominence
    assert seen == [(1, 1)]


def test_uncertain_objects_raise_the_confidence(monkeypatch):
    case, maps = touching_squares()
    maps[3] /= 0.15
    maps[:3, 0:8, 0:20] = np.array([0.22, 0, 0.78])[:, None, None]
    monkeypatch.setattr(tuning, "predict_maps", lambda *args, **options: maps)
    model = Model.create(make_config())
    assert decode_instances(maps, model.config.plan.decoding).max() == 3
    best = tuning.tune_decoding(model, [case])
    assert best.confidence > model.config.plan.decoding.confidence
    assert decode_instances(maps, best).max() == 2


def test_specks_raise_the_smallest_size(monkeypatch):
    case, maps = touching_squares()
    maps[3] /= 0.15
    maps[0, 0:4, 0:5], maps[2, 0:4, 0:5] = 0, 1
    monkeypatch.setattr(tuning, "predict_maps", lambda *args, **options: maps)
    model = Model.create(make_config())
    best = tuning.tune_decoding(model, [case])
    assert best.min_size > 20 > model.config.plan.decoding.min_size


def test_equal_thresholds_leave_the_models_own(cases, monkeypatch):
    empty = np.zeros((4, 40, 48), np.float32)
    empty[0] = 1
    monkeypatch.setattr(tuning, "predict_maps", lambda *args, **options: empty)
    model = Model.create(make_config())
    assert tuning.tune_decoding(model, cases) == model.config.plan.decoding


def test_scores_of_instances_per_modality(cases, monkeypatch):
    truth = iter([case.open()[1].astype(np.uint32) for case in cases])
    monkeypatch.setattr(tuning, "predict_labels", lambda *args, **options: next(truth))
    scores = tuning.score_model(Model.create(make_config()), cases)
    assert scores["all"]["f1_pooled_iou50"] == 1
    assert scores["all"]["images"] == 3


def test_scores_of_classes(monkeypatch):
    case = make_case(0, (40, 48), "semantic")
    truth = case.open()[1]
    half = np.where(np.arange(48) < 24, truth, 0).astype(np.uint8)
    monkeypatch.setattr(tuning, "predict_labels", lambda *args, **options: half)
    scores = tuning.score_model(Model.create(make_config(task="semantic")), [case])
    overlap = (half > 0).sum()
    expected = 2 * overlap / (overlap + (truth > 0).sum())
    assert scores["all"]["dice"]["1"] == pytest.approx(expected, abs=1e-4)


class Brightness(nn.Module):
    """Class 1 from 0.5 on, class 2 from 1.5 on."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 20 * torch.cat([0.5 - x, 1 - 2 * (x - 1).abs(), x - 1.5], 1)


def pieces(speck: int, truth: int) -> PreparedCase:
    """A square of class 1 with a smaller one of class 2 beside it, and a speck elsewhere.

    Args:
        speck: class that the speck looks like.
        truth: class that it is.
    """
    label = np.zeros((40, 48), np.int32)
    label[4:24, 4:24], label[4:16, 24:34] = 1, 2
    image = label.copy()
    image[34:37, 40:44], label[34:37, 40:44] = speck, truth
    return PreparedCase("x", image[None].astype(np.float16), label, np.zeros((0, 3), np.int32))


def semantic_model() -> Model:
    config = make_config(task="semantic")
    labels = (Label(value=1, name="one"), Label(value=2, name="two"))
    network = config.network.model_copy(update={"output_channels": 3})
    return Model(Brightness(), config.model_copy(update={"labels": labels, "network": network}))


def test_components_that_are_wrong_are_removed():
    model = semantic_model()
    wrong = [pieces(1, 0)] * 5
    assert tuning.tune_components(model, wrong) == ((1, 2),)
    assert tuning.tune_components(model, wrong[:4]) == ()
    right = [pieces(1, 1)] * 5
    assert tuning.tune_components(model, right) == ()
    # The whole foreground cannot be one piece where class 2 is rightly in two.
    mixed = [pieces(1, 0)] * 4 + [pieces(2, 2)] * 3
    assert tuning.tune_components(model, mixed) == ((1,),)


def test_scores_count_what_is_left():
    model, wrong = semantic_model(), [pieces(1, 0)]
    before = tuning.score_model(model, wrong)["all"]["dice"]
    plan = model.config.plan.model_copy(update={"keep_largest": ((1,),)})
    model.config = model.config.model_copy(update={"plan": plan})
    after = tuning.score_model(model, wrong)["all"]["dice"]
    assert before["1"] < after["1"] == 1.0
