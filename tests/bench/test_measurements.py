"""Inference, training and scaling on tiny models."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from tiny import make_config
from tttunet.bench import scaling, training
from tttunet.bench.inference import PARTS, make_image, measure_inference
from tttunet.bench.paired import GateFailed, Spread
from tttunet.bench.plots import plot_kernels, plot_parts, plot_scaling
from tttunet.bench.report import Report
from tttunet.bench.scaling import Line, Series, measure_scaling
from tttunet.bench.training import measure_training
from tttunet.errors import DatasetError, OutputError, TTTUNetError
from tttunet.inference.accelerate import SETTLED
from tttunet.models.model import Model, load_model

PNG = b"\x89PNG"


@pytest.fixture(autouse=True)
def quick_gate(monkeypatch):
    monkeypatch.setattr("tttunet.bench.kernels.GATE_TOKENS", 20)


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return Model.create(make_config())


def test_parts_of_an_inference_add_up(model):
    report = measure_inference(model, (48, 40), tile=(32, 32), rounds=3, threads=1)
    rows = {row["part"]: row for row in report.rows}
    assert tuple(rows) == (*PARTS, "all")
    parts = sum(rows[name]["seconds"].median for name in PARTS)
    assert parts == pytest.approx(rows["all"]["seconds"].median, rel=0.5)
    assert all(rows[name]["seconds"].lower >= 0 for name in PARTS)
    assert report.settings["size"] == [48, 40]
    assert report.gate["repeated"] == "equal labels"
    assert not model.network._forward_hooks


def test_inference_in_3d():
    report = measure_inference(
        Model.create(make_config(3, "semantic")), (20, 33, 36), rounds=1, threads=1
    )
    assert report.settings["size"] == [20, 33, 36]


def test_an_inference_that_changes_is_not_timed(model, monkeypatch):
    calls = []

    def unstable(image, *_, **options):
        calls.append(1)
        result = type("Result", (), {"labels": np.full((4, 4), len(calls))})()
        options["progress"](1, 1)
        return result

    monkeypatch.setattr("tttunet.bench.inference.segment", unstable)
    with pytest.raises(GateFailed, match="differ"):
        measure_inference(model, (16, 16), rounds=100)
    assert len(calls) <= SETTLED + 2


def test_images_are_of_any_size_and_always_the_same(model):
    image = make_image(model, (700, 30))
    assert image.array.shape == (700, 30)
    np.testing.assert_array_equal(image.array, make_image(model, (700, 30)).array)
    assert image.array.std() > 0
    for size in ((5, 5, 5), (1, 8)):
        with pytest.raises(TTTUNetError, match="Give 2 sizes of at least 2"):
            make_image(model, size)


def test_images_of_volumes_are_an_mri():
    image = make_image(load_model("hippocampus-mr"), (50, 20, 70))
    assert image.array.shape == (50, 20, 70)
    assert image.array.std() > 0
    np.testing.assert_array_equal(image.array[38:], image.array[:12])


RECIPE = {
    "network": {
        "features": [4, 8],
        "kernel_sizes": [[3, 3]] * 2,
        "strides": [[1, 1], [2, 2]],
        "encoder_blocks": [1, 1],
        "decoder_blocks": [1],
        "ttt": {"heads": 2},
    },
    "plan": {"patch_size": [32, 32]},
    "train": {"batch_size": 2, "workers": 3, "max_minutes": 5},
}


@pytest.fixture(autouse=True)
def small_images(monkeypatch):
    monkeypatch.setattr(training, "_SIDE", {2: 64, 3: 24})


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(RECIPE))
    return str(path)


def test_parts_of_a_training_step(recipe):
    seen = []
    report = measure_training(recipe, rounds=3, threads=1, progress=lambda *a: seen.append(a))
    rows = {row["part"]: row for row in report.rows}
    assert tuple(rows) == (*training.PARTS, "all")
    assert all(row["seconds"].median > 0 for row in report.rows)
    assert all(row["seconds"].rounds == 3 for row in report.rows)
    assert (report.settings["batch_size"], report.settings["workers"]) == (2, 0)
    rate = report.settings["steps_per_second"]
    assert rate == pytest.approx(1 / rows["all"]["seconds"].median)
    assert all(map(math.isfinite, report.gate["losses"]))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_training_in_3d(tmp_path):
    network = RECIPE["network"] | {"kernel_sizes": [[3] * 3] * 2, "strides": [[1] * 3, [2] * 3]}
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(RECIPE | {"network": network, "plan": {"patch_size": [16] * 3}}))
    report = measure_training(str(path), batch_size=1, rounds=1, threads=1)
    assert report.settings["patch_size"] == [16, 16, 16]


def test_training_that_diverges_is_not_timed(recipe, monkeypatch):
    monkeypatch.setattr(training.TimedTrainer, "_train_step", lambda *_: None)
    monkeypatch.setattr(
        training.TimedTrainer, "timed_step", lambda self, *_: self.losses.append(None)
    )
    with pytest.raises(GateFailed, match="not finite"):
        measure_training(recipe, rounds=1)


def test_unknown_recipe():
    with pytest.raises(DatasetError, match="no recipe 'x'"):
        measure_training("x")


def test_scaling_measures_operator_and_inference(model, tmp_path):
    seen = []
    options = {"sizes": (16, 32), "rounds": 2, "threads": 1}
    options["progress"] = lambda *a: seen.append(a)
    found = measure_scaling((256, 64, 64), ("dual",), model=model, **options)
    operator, inference = found.series
    assert (operator.amounts, inference.amounts) == ([64, 256], [256, 1024])
    assert len(operator.seconds) == len(inference.seconds) == 2
    assert seen[-1][0] == seen[-1][1]
    report = found.report.as_dict()
    assert len(report["rows"]) == 4
    assert set(report["settings"]["lines"]) == {"TTT-linear, dual", "segment, tiny"}
    assert {"operator", "inference"} == set(report["gate"])
    path = plot_scaling(tmp_path / "s.png", found.series, "a machine", overwrite=False)
    assert path.read_bytes().startswith(PNG)
    with pytest.raises(OutputError, match="exists"):
        plot_scaling(path, found.series, "a machine", overwrite=False)


def test_operator_alone_with_the_fastest_backend():
    found = measure_scaling((64,), rounds=1, threads=1)
    assert [one.unit for one in found.series] == ["tokens"]
    assert "single size" in found.report.notes[0]


def test_line_finds_offset_slope_and_exponent():
    amounts = [1000, 4000, 16000, 64000]
    line = Line.fit(amounts, [5 + 0.002 * n for n in amounts])
    assert line is not None
    assert (line.offset, line.slope) == (pytest.approx(5), pytest.approx(0.002))
    assert line.largest_deviation < 1e-9
    square = Line.fit(amounts, [n**2 for n in amounts])
    assert square is not None
    assert square.exponent == pytest.approx(2)
    assert square.largest_deviation > 0.3
    assert Line.fit([5], [1.0]) is None
    assert Line.fit([1, 2], [0, 5]) is None


def test_memory_that_is_not_known_leaves_the_plot_empty(tmp_path):
    series = Series("x", "tokens", [1, 2], [Spread.of([1.0]), Spread.of([2.0])], [])
    assert series.memory_line is None
    assert all(row["peak_memory_bytes"] is None for row in scaling._rows(series))
    assert plot_scaling(tmp_path / "s.svg", [series], "m", overwrite=False).stat().st_size > 0


def make_report(rows) -> Report:
    return Report(
        "kernels", "Title", ("a", "b"), [("x", "1"), ("y", "2")], rows, {}, {}, ("Note.",)
    )


def test_report_as_json_and_markdown(tmp_path):
    report = make_report([{"part": "x", "seconds": Spread.of([1.0, 2.0, 3.0])}])
    paths = report.write(tmp_path / "r.json", tmp_path / "r.md", overwrite=False)
    assert [path.name for path in paths] == ["r.json", "r.md"]
    content = json.loads(paths[0].read_text())
    assert set(content) == {"benchmark", "date", "machine", "settings", "gate", "rows"}
    assert content["rows"][0]["seconds"] == {
        "median": 2.0, "lower": 1.5, "upper": 2.5, "best": 1.0, "rounds": 3
    }  # fmt: skip
    lines = paths[1].read_text().splitlines()
    assert lines[:6] == ["### Title", "", "| a | b |", "| --- | ---: |", "| x | 1 |", "| y | 2 |"]
    assert content["machine"]["processor"] in lines[-1]
    assert report.write(None, None, overwrite=False) == []
    with pytest.raises(OutputError, match="exists"):
        report.write(tmp_path / "r.json", None, overwrite=False)


def test_bars_are_drawn(tmp_path):
    spread = Spread.of([1.0, 2.0])
    kernels = [
        {"case": case, "pass": "forward", "backend": backend, "seconds": spread}
        for case in ("p", "q")
        for backend in ("cpu", "dual", "reference")
    ]
    parts = [{"part": name, "seconds": spread, "share": 0.5} for name in ("a", "b", "all")]
    for name, draw, rows in (("k", plot_kernels, kernels), ("p", plot_parts, parts)):
        path = draw(tmp_path / f"{name}.png", make_report(rows), overwrite=False)
        assert path.read_bytes().startswith(PNG)
