"""A small model, and a library of its own for every test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tttunet.models import Card, Label, ModelConfig, Plan, library
from tttunet.models.model import Model
from tttunet.networks import TTTConfig, uniform_config


@pytest.fixture
def small_config() -> ModelConfig:
    network = uniform_config(2, 1, 3, (4, 8), 1, ttt=TTTConfig(heads=2, mini_batch=16))
    return ModelConfig(
        name="small",
        task="semantic",
        network=network,
        plan=Plan(patch_size=(32, 32)),
        labels=(Label(value=1, name="liver"), Label(value=2, name="spleen", color=(1, 2, 3))),
        card=Card(title="A small model", licence="CC0-1.0", scores={"dice": 0.5}),
    )


@pytest.fixture
def small_model(small_config: ModelConfig) -> Model:
    return Model.create(small_config)


@pytest.fixture
def saved(small_model: Model, tmp_path: Path) -> Path:
    """The folder of a saved model."""
    return small_model.save(tmp_path / "saved" / "small")


@pytest.fixture
def user_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of the user's models, which does not exist yet."""
    folder = tmp_path / "user-models"
    monkeypatch.setenv(library.FOLDER_VARIABLE, str(folder))
    return folder


@pytest.fixture
def shipped_models(tmp_path: Path, small_model: Model, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shipped models with one model, `nuclei`."""
    folder = tmp_path / "shipped-models"
    small_model.save(folder / "nuclei")
    monkeypatch.setattr(library, "shipped_folder", lambda: folder)
    return folder
