"""Models listed, added and removed through the worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from tttunet.engine.client import Engine
from tttunet.engine.messages import AddModel, Hello, ListModels, RemoveModel
from tttunet.models.library import FOLDER_VARIABLE

from .conftest import finish


@pytest.fixture
def own_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A worker whose user has no models yet; the test's process sees the same library."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "library"))
    with Engine() as engine:
        assert finish(engine.request(Hello())).kind == "done"
        yield engine


def test_a_model_is_added_listed_and_removed(own_library: Engine, models, tmp_path: Path):
    engine = own_library
    added = finish(engine.request(AddModel(models[2, "instance"], "mine"))).result["model"]
    assert added["path"] == str(tmp_path / "library" / "mine")
    found = {m["name"]: m for m in finish(engine.request(ListModels())).result["models"]}
    assert found["mine"] == added
    assert (found["mine"]["origin"], found["nuclei"]["origin"]) == ("user", "shipped")
    assert found["nuclei"]["card"]["title"]
    assert found["nuclei"]["decoding"]["foreground"]

    again = finish(engine.request(AddModel(models[2, "instance"], "mine")))
    assert (again.kind, again.problem) == ("failed", "input")
    assert finish(engine.request(RemoveModel("mine"))).result["folder"] == added["path"]
    assert not Path(added["path"]).exists()
    refused = finish(engine.request(RemoveModel("nuclei")))
    assert "cannot be removed" in refused.message


def test_a_damaged_model_is_listed_with_its_error(own_library: Engine, tmp_path: Path):
    (tmp_path / "library" / "broken").mkdir(parents=True)
    (tmp_path / "library" / "broken" / "model.json").write_text("{")
    found = {m["name"]: m for m in finish(own_library.request(ListModels())).result["models"]}
    assert found["broken"]["error"]
    assert found["broken"]["card"] == {}


def test_what_cannot_be_converted_is_explained(own_library: Engine, tmp_path: Path):
    (tmp_path / "checkpoint.pth").write_bytes(b"no checkpoint")
    request = AddModel(str(tmp_path / "checkpoint.pth"), "theirs", convert=True)
    failed = finish(own_library.request(request))
    assert (failed.kind, failed.problem) == ("failed", "input")
    option = AddModel(str(tmp_path), convert=True, options={"precision": "fp8"})
    assert "precision" in finish(own_library.request(option)).message
