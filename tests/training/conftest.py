from __future__ import annotations

from pathlib import Path

import pytest
import torch

from discs import sample
from tiny import make_case, make_config
from tttunet.models.config import DataSource
from tttunet.models.model import Model, load_model
from tttunet.training.config import TrainConfig
from tttunet.training.replay import make_replay
from tttunet.training.trainer import Trainer


@pytest.fixture(scope="session")
def bright(tmp_path_factory) -> Path:
    """A model that finds bright discs, with a sample of them beside it."""
    folder = tmp_path_factory.mktemp("bright")
    torch.manual_seed(0)
    recipe = {"batch_size": 2, "workers": 0, "precision": "32-true", "warmup_steps": 10}
    config = TrainConfig(steps=150, learning_rate=4e-3, ema_decay=0.95, seed=1, **recipe)
    cases = [make_case(seed, (64, 80)) for seed in range(8)]
    Trainer(Model.create(make_config()), cases, [], config, folder, device="cpu").run()
    model = folder / "model"
    source = DataSource(title="discs", source="made up", licence="CC0-1.0")
    data = [sample(seed, dark=False) for seed in range(20, 29)]
    make_replay(model, load_model(model).config, data, source, count=9, size=48)
    return model
