import numpy as np
import pytest
import torch

from tiny import make_case, make_config
from tttunet.models.config import InstanceDecoding
from tttunet.models.model import Model
from tttunet.training import tuning
from tttunet.training.targets import instance_targets


@pytest.fixture
def cases():
    return [make_case(seed, (40, 48)) for seed in range(3)]


def exact_maps_with_weak_seeds(cases):
    """Maps of the truth whose distances are so small that only a low seed threshold finds them."""
    maps = []
    for case in cases:
        classes, distance = instance_targets(case.open()[1])
        maps.append(np.stack([classes == c for c in (0, 1, 2)] + [0.45 * distance]))
    return iter([m.astype(np.float32) for m in maps])


def test_the_best_thresholds_are_found(cases, monkeypatch):
    maps = exact_maps_with_weak_seeds(cases)
    monkeypatch.setattr(tuning, "predict_maps", lambda *args, **options: next(maps))
    # Touching discs without seeds would be one object: a lower seed threshold tells them apart.
    seen: list[tuple[int, int]] = []
    torch.manual_seed(0)
    model = Model.create(make_config())
    best = tuning.tune_decoding(model, cases, progress=lambda *a: seen.append(a))
    assert best.seed < InstanceDecoding().seed
    assert best.min_size == model.config.plan.decoding.min_size
    assert seen == [(1, 3), (2, 3), (3, 3)]


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
