from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tiny import make_config
from tttunet.errors import ModelError
from tttunet.imaging.image import Image
from tttunet.inference.ensemble import ensemble, load_ensemble
from tttunet.inference.segment import predict_maps, segment
from tttunet.models.model import Model


def models(count: int, task: str, **plan) -> list[Model]:
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        config = make_config(task=task)
        config = config.model_copy(update={"plan": config.plan.model_copy(update=plan)})
        made.append(Model.create(config))
    return made


@pytest.mark.parametrize("task", ["semantic", "instance"])
def test_maps_are_averaged(task):
    folds = models(3, task)
    array = np.random.default_rng(0).random((1, 40, 48)).astype(np.float32)
    expected = np.mean([predict_maps(model, array, tile=(64, 64)) for model in folds], axis=0)
    found = predict_maps(ensemble(folds), array, tile=(64, 64))
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_certain_networks_stay_finite():
    folds = models(2, "semantic")
    for fold, sign in zip(folds, (1, -1), strict=True):
        for name, parameter in fold.network.named_parameters():
            if "heads" in name:
                parameter.data.fill_(0)
                if name.endswith("bias"):
                    parameter.data.copy_(sign * torch.tensor([500.0, -500.0]))
    maps = predict_maps(ensemble(folds), np.random.default_rng(0).random((1, 32, 32), np.float32))
    np.testing.assert_allclose(maps, 0.5)


def test_one_model_of_several_segments():
    folds = models(2, "semantic", keep_largest=((1,),))
    other = folds[1].config.plan.model_copy(update={"keep_largest": ()})
    folds[1].config = folds[1].config.model_copy(update={"plan": other})
    made = ensemble(folds)
    assert made.config.plan.keep_largest == ()
    image = Image.from_array(np.random.default_rng(0).random((40, 48)).astype(np.float32), "YX")
    result = segment(image, made, device="cpu")
    assert result.labels.shape == (40, 48)
    alone = segment(image, ensemble(folds[:1]), device="cpu").labels
    np.testing.assert_array_equal(alone, segment(image, folds[0], device="cpu").labels)


def test_models_must_ask_the_same():
    first, second = models(2, "semantic")
    (instances,) = models(1, "instance")
    with pytest.raises(ModelError, match="task"):
        ensemble([first, instances])
    plan = second.config.plan.model_copy(update={"spacing": (2.0, 2.0)})
    second.config = second.config.model_copy(update={"plan": plan})
    with pytest.raises(ModelError, match="preprocessing"):
        ensemble([first, second])
    with pytest.raises(ModelError, match="at least one"):
        ensemble([])


def test_a_folder_of_folds_is_one_model(tmp_path: Path):
    folds = models(3, "semantic")
    folds[0].save(tmp_path / "runs" / "fold-0" / "model")  # as `tttunet train` leaves it
    folds[1].save(tmp_path / "runs" / "fold-1")
    (tmp_path / "runs" / "notes").mkdir()
    folds[2].save(tmp_path / "other")
    array = np.random.default_rng(0).random((1, 40, 48)).astype(np.float32)

    def maps(model: Model) -> np.ndarray:
        return predict_maps(model, array, tile=(64, 64))

    two = maps(load_ensemble([tmp_path / "runs"]))
    np.testing.assert_allclose(two, maps(ensemble(folds[:2])), atol=1e-6)
    three = maps(load_ensemble([str(tmp_path / "runs"), str(tmp_path / "other")]))
    np.testing.assert_allclose(three, maps(ensemble(folds)), atol=1e-6)
    assert np.abs(two - three).max() > 1e-3
    np.testing.assert_array_equal(maps(load_ensemble([tmp_path / "other"])), maps(folds[2]))
    with pytest.raises(ModelError, match="model"):
        load_ensemble([tmp_path / "runs" / "notes"])
    with pytest.raises(ModelError, match="No model is called"):
        load_ensemble(["nothing-of-that-name"])
