"""evaluate, models, convert, bench and demo, through the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
import typer
from scipy import ndimage

from tttunet.imaging import Image, load_labels
from tttunet.inference.segment import Result
from tttunet.models.model import Model
from tttunet.networks.cost import Cost, CostRow

from .conftest import Run


def write_labels(path: Path, shift: int = 0) -> Path:
    labels = np.zeros((20, 24), np.uint16)
    labels[2:8, 2 + shift : 10 + shift], labels[10:18, 12:20] = 1, 2
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, labels)
    return path


def test_evaluate_prints_tables_and_writes_files(run: Run, tmp_path: Path):
    for name in ("a", "b"):
        write_labels(tmp_path / "truth" / f"{name}.tif")
        write_labels(tmp_path / "pred" / f"{name}_labels.ome.tif", shift=1)
    words = (
        "evaluate", tmp_path / "pred", tmp_path / "truth", "--task", "instance",
        "--json", tmp_path / "s" / "scores.json", "--csv", tmp_path / "s" / "scores.csv",
    )  # fmt: skip
    ran = run(*words)
    assert ran.code == 0, ran.err
    assert "IoU >= 0.5" in ran.out
    scores = json.loads((tmp_path / "s" / "scores.json").read_text())
    assert scores["summary"]["pooled"]["scores"][0]["f1"] == 1.0
    assert len((tmp_path / "s" / "scores.csv").read_text().splitlines()) == 1 + 2 * 10
    again = run(*words)
    assert again.code == 1
    assert "--overwrite" in again.err


def test_evaluate_classes_with_tolerance(run: Run, tmp_path: Path):
    truth, pred = write_labels(tmp_path / "t.tif"), write_labels(tmp_path / "p.tif", shift=1)
    ran = run("evaluate", pred, truth, "--task", "semantic", "--tolerance", 1)
    assert ran.code == 0, ran.err
    assert "NSD at 1 (px)" in ran.out


def test_evaluate_shapes_that_differ(run: Run, tmp_path: Path):
    truth = write_labels(tmp_path / "t.tif")
    tifffile.imwrite(tmp_path / "p.tif", np.ones((5, 5), np.uint8))
    ran = run("evaluate", tmp_path / "p.tif", truth, "--task", "instance")
    assert ran.code == 1
    assert "(5, 5)" in ran.err


def test_models_are_added_listed_shown_and_removed(
    run: Run, tmp_path: Path, instance_model: Path, monkeypatch
):
    monkeypatch.setenv("TTTUNET_MODELS", str(tmp_path / "library"))
    added = run("models", "add", instance_model, "--name", "my-cells")
    assert added.code == 0, added.err
    listed = run("models", "list")
    assert "my-cells" in listed.out
    assert "instance, 2D" in listed.out
    shown = run("models", "show", "my-cells")
    for expected in ("A tiny model", "CC0-1.0", "scores.val.f1_50", "bottleneck"):
        assert expected in shown.out
    as_json = run("models", "show", "my-cells", "--json")
    assert json.loads(as_json.out)["task"] == "instance"
    assert run("models", "remove", "my-cells", "--yes").code == 0
    gone = run("models", "show", "my-cells")
    assert gone.code == 1
    assert "my-cells" in gone.err


def test_a_damaged_model_is_listed_as_such(
    run: Run, tmp_path: Path, instance_model: Path, monkeypatch
):
    monkeypatch.setenv("TTTUNET_MODELS", str(tmp_path))
    run("models", "add", instance_model, "--name", "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"")
    listed = run("models", "list")
    assert listed.code == 0
    # Where the folder's name is long, the sentence goes on in the next line of its column.
    assert "cut short" in " ".join(re.findall(r"\w+", listed.out))


def test_removing_asks_first(run: Run, tmp_path: Path, instance_model: Path, monkeypatch):
    monkeypatch.setenv("TTTUNET_MODELS", str(tmp_path))
    run("models", "add", instance_model, "--name", "mine")

    def no(*_args: object, **_options: object) -> None:
        raise typer.Abort

    monkeypatch.setattr("typer.confirm", no)
    assert run("models", "remove", "mine").code == 1
    assert (tmp_path / "mine").is_dir()
    unknown = run("models", "remove", "other")
    assert "No model is called 'other'" in unknown.err


def test_convert_names_what_is_missing(run: Run, tmp_path: Path):
    ran = run("convert", tmp_path / "nowhere", tmp_path / "model")
    assert ran.code == 1
    assert "nowhere" in ran.err
    assert not (tmp_path / "model").exists()


def test_bench_cost_prints_ours_beside_the_papers(run: Run, monkeypatch):
    cost = Cost(parameters=8_010_760, conv_macs=1, macs=33_391_636_480, fvcore_total=33_668_628_480)
    row = CostRow("TTT-UNet_Bot", "abdomen MR, 2D", (1, 320, 320), 14, cost, 8.01, 33.69)
    monkeypatch.setattr("tttunet.networks.cost.paper_cost_table", lambda: [row])
    ran = run("bench", "cost")
    assert ran.code == 0, ran.err
    for expected in ("8,010,760", "8.01", "33.39", "33.67", "33.69", "-0.06 %", "1 x 320 x 320"):
        assert expected in ran.out


def threshold(image: Image, model: Model, **_options: object) -> Result:
    """Bright regions as objects: quicker than a network."""
    grey = image.array.mean(axis=0) if image.rgb else image.array
    labels, _ = ndimage.label(grey > grey.mean())
    return Result(labels.astype(np.uint32), image, model.config.name, 0.0)


def test_demo_scores_and_writes_every_sample(
    run: Run, tmp_path: Path, instance_model: Path, monkeypatch
):
    pytest.importorskip("tttunet.resources")
    monkeypatch.setattr("tttunet.inference.segment.segment", threshold)
    output = tmp_path / "demo"
    for _ in range(2):  # a second demo replaces the first
        ran = run("demo", "--model", instance_model, "--output", output)
        assert ran.code == 0, ran.err
    assert "all nuclei pooled" in ran.out
    assert str(output) in ran.out
    names = ("fluorescence", "fluorescence_crowded", "histology_purple", "histology_white")
    for name in names:
        assert (output / f"{name}_overlay.png").is_file()
        assert load_labels(output / f"{name}_labels.ome.tif").array.ndim == 2


def test_a_tilde_is_the_home_folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tifffile.imwrite(tmp_path / "a.tif", np.eye(8, dtype=np.uint8))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    ran = run("evaluate", "~/a.tif", "~/a.tif", "--task", "instance", "--json", "~/scores.json")
    assert ran.code == 0, ran.err
    assert (tmp_path / "scores.json").is_file()
    assert not (tmp_path / "~").exists()
