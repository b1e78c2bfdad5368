from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tttunet.errors import ModelError, OutputError
from tttunet.models import folder as folder_module
from tttunet.models import load_model
from tttunet.models.config import ModelConfig
from tttunet.models.model import Model


def edit_card(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "model.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def replace_weights(folder: Path, content: bytes) -> None:
    """Other weights with a checksum that is right."""
    (folder / "model.safetensors").write_bytes(content)
    weights = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    edit_card(folder, lambda card: card["weights"].update(weights))


def test_saved_model_computes_the_same(small_model: Model, saved: Path):
    loaded = load_model(saved)
    x = torch.randn(1, 1, 16, 16)
    assert not loaded.network.training
    assert torch.equal(loaded.network(x), small_model.network(x))
    assert {p.dtype for p in loaded.network.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in loaded.network.parameters())
    assert loaded.config.model_copy(update={"weights": None}) == small_model.config


def test_card_names_checksum_and_size(saved: Path):
    weights = json.loads((saved / "model.json").read_text())["weights"]
    content = (saved / "model.safetensors").read_bytes()
    assert weights == {
        "file": "model.safetensors",
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
    }


def test_model_is_found_by_its_card_or_a_string(saved: Path):
    for path in (str(saved), saved / "model.json", str(saved / "model.json")):
        assert load_model(path).config.name == "small"


def test_loaded_model_can_be_trained_further(saved: Path):
    network = load_model(saved).network.train()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    before = [p.detach().clone() for p in network.parameters()]
    network(torch.randn(1, 1, 16, 16)).square().mean().backward()
    optimiser.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    load_model(saved)


def test_fp16_halves_the_file_and_computes_in_fp32(small_model: Model, saved: Path, tmp_path: Path):
    half = small_model.save(tmp_path / "half", dtype="fp16")
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (half, saved)]
    assert sizes[0] < 0.7 * sizes[1]
    loaded = load_model(half)
    for name, value in loaded.network.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, small_model.network.state_dict()[name].half().float())


def test_weights_too_large_for_fp16_are_refused(small_model: Model, tmp_path: Path):
    with torch.no_grad():
        next(small_model.network.parameters()).fill_(1e6)
    with pytest.raises(ModelError, match="written as fp16"):
        small_model.save(tmp_path / "model", dtype="fp16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_not_saved(small_model: Model, tmp_path: Path, value: float):
    with torch.no_grad():
        next(small_model.network.parameters()).view(-1)[0] = value
    with pytest.raises(ModelError, match="NaN or infinite"):
        small_model.save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_existing_model_is_replaced_only_when_asked(small_model: Model, saved: Path):
    before = (saved / "model.safetensors").read_bytes()
    with torch.no_grad():
        next(small_model.network.parameters()).add_(1)
    with pytest.raises(OutputError, match="exists already"):
        small_model.save(saved)
    assert (saved / "model.safetensors").read_bytes() == before
    small_model.save(saved, overwrite=True)
    load_model(saved)
    assert (saved / "model.safetensors").read_bytes() != before
    assert [path.name for path in saved.parent.iterdir()] == ["small"]


def test_empty_folder_is_used(small_model: Model, tmp_path: Path):
    (tmp_path / "model").mkdir()
    load_model(small_model.save(tmp_path / "model"))


def test_folder_with_other_files_is_never_replaced(small_model: Model, tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"something else than a model \('thesis.tex'\)"):
        small_model.save(tmp_path, overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file"):
        small_model.save(tmp_path / "file", overwrite=True)
    with pytest.raises(OutputError, match="cannot be written"):
        small_model.save(tmp_path / "file" / "model")


@pytest.mark.parametrize("fails", ["write", "rename"])
def test_failed_save_leaves_the_old_model(small_model: Model, saved: Path, monkeypatch, fails: str):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full_disk(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    rename = Path.rename

    def rename_back_only(source: Path, target: Path) -> Path:
        if target == saved and "-old-" not in source.name:
            full_disk()
        return rename(source, target)

    if fails == "write":
        monkeypatch.setattr(folder_module.os, "fsync", full_disk)
    else:
        monkeypatch.setattr(Path, "rename", rename_back_only)
    with pytest.raises(OutputError, match="the disk is full"):
        small_model.save(saved, overwrite=True)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["small"]


def drop(card: dict[str, Any], name: str) -> None:
    del card[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format=99), "format 99.*Update napari-tttunet"),
        (lambda c: c.update(format="x"), "format: Input should be a valid integer"),
        (lambda c: drop(c, "plan"), "plan: Field required"),
        (lambda c: c.update(colour="red"), "colour: Extra inputs"),
        (lambda c: c["network"].update(dim=7), "network.dim: Input should be 2 or 3"),
        (lambda c: c["network"].update(features=[4]), "network: a U-Net needs at least two stages"),
        (lambda c: c.update(labels=[]), "0 labels need 1 outputs"),
        (lambda c: c.update(weights=None), "names no weights"),
        (lambda c: c["weights"].update(file="../x"), "weights.file"),
        (lambda c: c["weights"].update(bytes=10), "too long"),
        (lambda c: c["weights"].update(sha256="0" * 64), "another checksum"),
    ],
)
def test_wrong_card_is_explained(saved: Path, change, message: str):
    edit_card(saved, change)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", "\x00"])
def test_card_that_is_no_json_object_is_explained(saved: Path, text: str):
    (saved / "model.json").write_text(text)
    with pytest.raises(ModelError, match=r"no valid JSON|no JSON object"):
        load_model(saved)


def test_card_in_another_encoding_is_explained(saved: Path):
    (saved / "model.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ModelError, match="no valid JSON"):
        load_model(saved)


def test_missing_files_are_named(saved: Path):
    (saved / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"weights file .*model.safetensors' is missing"):
        load_model(saved)
    (saved / "model.json").unlink()
    with pytest.raises(ModelError, match=r"holds no model\.json"):
        load_model(saved)
    with pytest.raises(ModelError, match="no model at"):
        load_model(saved / "nowhere")


def test_weights_cut_short_are_explained(saved: Path):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="is cut short"):
        load_model(saved)


def test_one_changed_bit_is_noticed(saved: Path):
    path = saved / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="sha256"):
        load_model(saved)


@pytest.mark.parametrize(
    "content", [b"", b"1234567", b"\xff" * 64, b"\x08" + b"\0" * 7 + b"notjson!"]
)
def test_file_that_is_no_safetensors_is_explained(saved: Path, content: bytes):
    replace_weights(saved, content)
    with pytest.raises(ModelError, match="no valid safetensors"):
        load_model(saved)


def test_pickled_weights_are_not_loaded(saved: Path, tmp_path: Path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pt")
    replace_weights(saved, (tmp_path / "weights.pt").read_bytes())
    with pytest.raises(ModelError, match="no valid safetensors"):
        load_model(saved)


def test_tensors_that_do_not_fit_are_named(small_model: Model, saved: Path):
    tensors = small_model.network.state_dict()
    del tensors["decoder.heads.0.bias"]
    tensors["surprise"] = torch.zeros(1)
    tensors["decoder.heads.0.weight"] = torch.zeros(2, 4, 1, 1)
    replace_weights(saved, safetensors.torch.save(tensors))
    with pytest.raises(ModelError) as caught:
        load_model(saved)
    message = str(caught.value)
    assert "1 missing (decoder.heads.0.bias)" in message
    assert "1 unexpected (surprise)" in message
    assert "decoder.heads.0.weight is [2, 4, 1, 1] instead of [3, 4, 1, 1]" in message


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor([float("nan"), 0, 0]), "NaN or infinite"),
        (torch.tensor([0, float("-inf"), 0]), "NaN or infinite"),
        (torch.tensor([1, 2, 3]), "no floating point number"),
    ],
)
def test_values_that_are_no_numbers_are_refused(small_model, saved, value, message):
    tensors = {**small_model.network.state_dict(), "decoder.heads.0.bias": value}
    replace_weights(saved, safetensors.torch.save(tensors))
    with pytest.raises(ModelError, match=rf"{message}.*decoder.heads.0.bias"):
        load_model(saved)


def test_unreadable_files_are_explained(saved: Path, monkeypatch):
    def refuse(*_arguments: object, **_options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ModelError, match="cannot be read: Permission denied"):
        load_model(saved)
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(ModelError, match="cannot be read: Permission denied"):
        load_model(saved)


def test_loading_a_model_does_not_disturb_the_random_state(saved: Path):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load_model(saved)
    assert torch.equal(torch.rand(1), expected)


def test_every_architecture_is_loaded(small_config: ModelConfig, tmp_path: Path):
    network = small_config.network
    for changes in ({"architecture": "plain_unet"}, {"ttt": None}, {"placement": "encoder"}):
        config = small_config.model_copy(update={"network": network.model_copy(update=changes)})
        name = "-".join(changes)
        load_model(Model.create(config).save(tmp_path / name))


def test_model_behind_a_link_is_replaced_in_its_place(small_model: Model, saved: Path):
    link = saved.with_name("link")
    link.symlink_to(saved)
    small_model.save(link, overwrite=True)
    load_model(link)
    assert {path.name for path in saved.parent.iterdir()} == {"small", "link"}
    assert link.is_symlink()
