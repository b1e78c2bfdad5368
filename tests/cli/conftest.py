"""A tiny model with random weights, and a way to run the command line in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tttunet.cli import main
from tttunet.models.config import Card, InstanceDecoding, Label, ModelConfig, Plan
from tttunet.models.model import Model
from tttunet.networks.config import TTTConfig, uniform_config


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `tttunet WORDS`; gives the exit code, stdout and stderr."""

    def run_command(*words: str | Path) -> Ran:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return Ran(code, *capsys.readouterr())

    return run_command


def tiny_model(task: str, dim: int = 2) -> Model:
    instance = task == "instance"
    labels = (Label(value=1, name="cell"),)
    if not instance:
        labels = (Label(value=1, name="liver", color=(200, 0, 0)), Label(value=4, name="spleen"))
    config = ModelConfig(
        name=f"tiny-{task}",
        task=task,
        network=uniform_config(
            dim,
            3 if instance else 1,
            4 if instance else 3,
            (4, 8),
            blocks=1,
            ttt=TTTConfig(heads=2),
        ),
        plan=Plan(
            patch_size=(32,) * dim,
            channels="rgb" if instance else "as_is",
            decoding=InstanceDecoding(min_size=1) if instance else None,
            mirror_axes=tuple(range(dim)),
        ),
        labels=labels,
        card=Card(title="A tiny model", licence="CC0-1.0", scores={"val": {"f1_50": 0.5}}),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model.create(config)


@pytest.fixture(scope="session")
def instance_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a 2D model of objects in RGB."""
    return tiny_model("instance").save(tmp_path_factory.mktemp("models") / "tiny-instance")


@pytest.fixture(scope="session")
def volume_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a 3D model of two classes."""
    return tiny_model("semantic", 3).save(tmp_path_factory.mktemp("models") / "tiny-semantic")
