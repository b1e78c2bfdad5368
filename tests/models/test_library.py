from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tttunet.errors import ModelError, OutputError
from tttunet.models import (
    add_model,
    describe,
    library,
    list_models,
    load_model,
    remove_model,
    resolve,
)
from tttunet.models.model import Model

pytestmark = pytest.mark.usefixtures("user_models", "shipped_models")


def test_list_names_origin_and_card():
    (entry,) = list_models()
    assert (entry.name, entry.origin, entry.ok) == ("nuclei", "shipped", True)
    assert (entry.task, entry.dim, entry.title) == ("semantic", 2, "A small model")
    assert entry.licence == "CC0-1.0"


def test_added_model_is_listed_loaded_described_and_removed(saved: Path, user_models: Path):
    entry = add_model(saved)
    assert (entry.name, entry.origin, entry.path) == ("small", "user", user_models / "small")
    assert [e.name for e in list_models()] == ["nuclei", "small"]
    assert load_model("small").config.name == "small"
    described, config = describe("small")
    assert described == entry
    assert config.card.title == "A small model"
    assert describe("nuclei")[0].origin == "shipped"
    assert describe(saved)[0].origin == "path"
    assert remove_model("small") == user_models / "small"
    assert [e.name for e in list_models()] == ["nuclei"]
    assert saved.is_dir()


def test_model_can_be_added_under_another_name(saved: Path):
    entry = add_model(saved / "model.json", "mine")
    assert entry.name == "mine"
    assert load_model("mine").config.name == "mine"


def test_model_of_the_user_is_replaced_only_when_asked(saved: Path):
    add_model(saved)
    with pytest.raises(OutputError, match="exists already"):
        add_model(saved)
    add_model(saved, overwrite=True)
    assert load_model("small").config.name == "small"


@pytest.mark.parametrize("name", ["nuclei", "Nuclei"])
def test_shipped_name_cannot_be_taken(saved: Path, name: str):
    with pytest.raises(ModelError, match="name of a shipped model"):
        add_model(saved, name)
    assert len(list_models()) == 1


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "-x", "a b", "ä"])
def test_impossible_name_is_refused(saved: Path, name: str, user_models: Path):
    with pytest.raises(ModelError, match="cannot be the name"):
        add_model(saved, name)
    assert not user_models.exists()


def test_damaged_model_is_not_added(saved: Path, user_models: Path):
    content = bytearray((saved / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (saved / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="checksum"):
        add_model(saved)
    assert not user_models.exists()


def test_copied_model_does_not_shadow_a_shipped_one(
    small_model: Model, user_models: Path, shipped_models: Path
):
    small_model.save(user_models / "nuclei")
    shipped, user = list_models()
    assert shipped.ok
    assert "shipped model is called 'nuclei' too" in str(user.error)
    assert resolve("nuclei") == shipped_models / "nuclei"
    remove_model("nuclei")
    assert (shipped_models / "nuclei").is_dir()


def test_shipped_model_cannot_be_removed(shipped_models: Path):
    with pytest.raises(ModelError, match="ships with the package"):
        remove_model("nuclei")
    assert (shipped_models / "nuclei" / "model.json").is_file()


def test_unknown_model_cannot_be_removed(saved: Path, user_models: Path):
    for name in ("nothing", "..", str(saved)):
        with pytest.raises(ModelError, match="No model is called"):
            remove_model(name)
    assert saved.is_dir()


def test_removing_a_link_keeps_what_it_points_to(saved: Path, user_models: Path):
    user_models.mkdir()
    (user_models / "linked").symlink_to(saved)
    assert load_model("linked").config.name == "small"
    remove_model("linked")
    assert (saved / "model.json").is_file()
    assert not (user_models / "linked").exists()


def test_damaged_models_are_listed_with_their_error_and_can_be_removed(
    saved: Path, user_models: Path
):
    for name in ("cut", "empty"):
        shutil.copytree(saved, user_models / name)
    (user_models / "cut" / "model.safetensors").write_bytes(b"123")
    (user_models / "empty" / "model.json").unlink()
    (user_models / "notes.txt").write_text("not a model")
    errors = {e.name: e.error for e in list_models() if e.origin == "user"}
    assert "cut short" in str(errors["cut"])
    assert "no model.json" in str(errors["empty"])
    assert len(errors) == 2
    remove_model("empty")
    assert [e.name for e in list_models()] == ["nuclei", "cut"]


def test_unknown_name_gets_a_suggestion(saved: Path):
    add_model(saved)
    with pytest.raises(ModelError, match=r"called 'nuclie'\. Did you mean 'nuclei'\?"):
        load_model("nuclie")
    with pytest.raises(ModelError, match=r"The library has nuclei, small\."):
        load_model("zebra")
    with pytest.raises(ModelError, match="No model is called ''"):
        load_model("")


def test_paths_are_told_from_names(
    saved: Path, shipped_models: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(saved.parent)
    shutil.copytree(saved, "nuclei")
    assert resolve("nuclei") == shipped_models / "nuclei"
    assert resolve("./nuclei").resolve() == saved.parent / "nuclei"
    assert resolve(Path("nuclei")) == Path("nuclei")
    assert resolve("small").resolve() == saved
    monkeypatch.chdir(saved)
    assert resolve("model.json").resolve() == saved


def test_user_folder_is_platformdirs_own_unless_overridden(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(library.FOLDER_VARIABLE, "~/elsewhere")
    assert library.user_folder() == Path.home() / "elsewhere"
    monkeypatch.delenv(library.FOLDER_VARIABLE)
    assert library.user_folder().parts[-2:] == ("tttunet", "models")


def test_without_any_model_the_hint_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(library, "shipped_folder", lambda: None)
    assert list_models() == []
    with pytest.raises(ModelError, match="The library is empty"):
        resolve("nuclei")


def test_library_is_read_without_torch():
    program = (
        "import sys; from tttunet.models import list_models; list_models(); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_a_folder_that_is_no_model_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "results").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"'results' holds no model\.json"):
        resolve("results")


def test_a_library_below_a_file_is_explained(saved: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(library.FOLDER_VARIABLE, str(tmp_path / "file" / "models"))
    with pytest.raises(OutputError, match=r"is a file, not a folder\. Choose another folder"):
        add_model(saved)
