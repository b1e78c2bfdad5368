import numpy as np
import pytest

from tiny import make_case, make_config
from tttunet.inference.instances import decode_instances
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
