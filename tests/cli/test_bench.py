"""`tttunet bench` through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tttunet.bench.kernels import Case

from .conftest import Run


@pytest.fixture(autouse=True)
def quick_gate(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tttunet.bench.kernels.GATE_TOKENS", 20)


@pytest.fixture
def small_cases(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tttunet.bench.kernels.CASES", {"bot": Case("here", 66, 8, 2)})


def outputs(folder: Path) -> tuple[str | Path, ...]:
    json_, markdown, plot = (folder / "new" / f"r.{end}" for end in ("json", "md", "png"))
    return ("--json", json_, "--markdown", markdown, "--plot", plot)


def check(ran, folder: Path, benchmark: str) -> dict:
    assert ran.code == 0, ran.err
    content = json.loads((folder / "new" / "r.json").read_text())
    assert content["benchmark"] == benchmark
    assert set(content) == {"benchmark", "date", "machine", "settings", "gate", "rows"}
    assert content["machine"]["torch_threads"] == 1
    assert content["rows"][0]["seconds"]["rounds"] == 1
    assert "| --- |" in (folder / "new" / "r.md").read_text()
    assert (folder / "new" / "r.png").read_bytes().startswith(b"\x89PNG")
    assert "1 thread of" in ran.out
    return content


QUICK = ("--rounds", 1, "--threads", 1)


def test_kernels(run: Run, tmp_path: Path, small_cases):
    words = ("bench", "kernels", "--case", "bot", "--backend", "dual", "--inner", "mlp")
    ran = run(*words, "--device", "cpu", *QUICK, *outputs(tmp_path))
    content = check(ran, tmp_path, "kernels")
    assert [row["pass"] for row in content["rows"]] == ["forward", "forward + backward"]
    assert "TTT-MLP" in ran.out


def test_inference(run: Run, tmp_path: Path, instance_model: Path):
    words = ("bench", "inference", "--model", instance_model, "--size", "40x36", "--tile", 32)
    ran = run(*words, "--device", "cpu", *QUICK, *outputs(tmp_path))
    content = check(ran, tmp_path, "inference")
    assert content["settings"]["size"] == [40, 36]
    assert content["settings"]["tile"] == [32, 32]
    for part in ("preparation", "network", "tiles", "decoding", "all"):
        assert part in ran.out


def test_training(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tttunet.bench.training._SIDE", {2: 64})
    recipe = {
        "network": {
            "features": [4, 8],
            "kernel_sizes": [[3, 3]] * 2,
            "strides": [[1, 1], [2, 2]],
            "encoder_blocks": [1, 1],
            "decoder_blocks": [1],
        },
        "plan": {"patch_size": [32, 32]},
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    words = ("bench", "training", "--recipe", tmp_path / "recipe.json", "--batch-size", 1)
    ran = run(*words, "--device", "cpu", *QUICK, *outputs(tmp_path))
    content = check(ran, tmp_path, "training")
    parts = [row["part"] for row in content["rows"]]
    assert parts == ["data", "forward", "backward", "optimiser", "all"]


def test_scaling(run: Run, tmp_path: Path, instance_model: Path):
    words = ("bench", "scaling", "--tokens", "64,128", "--backend", "dual", "--sizes", "16,32")
    ran = run(*words, "--model", instance_model, "--device", "cpu", *QUICK, *outputs(tmp_path))
    content = check(ran, tmp_path, "scaling")
    assert [row.get("tokens") for row in content["rows"]] == [64, 128, None, None]
    assert "exponent" in ran.out


def test_scaling_of_one_kind(run: Run):
    ran = run("bench", "scaling", "--tokens", 64, "--sizes", 0, "--backend", "dual", *QUICK)
    assert ran.code == 0, ran.err
    assert "64 tokens" in ran.out


@pytest.mark.parametrize("command", ["kernels", "inference", "training", "scaling"])
def test_every_measurement_explains_itself(run: Run, command: str):
    ran = run("bench", command, "--help")
    assert ran.code == 0
    assert f"tttunet bench {command}" in ran.out.split("Example", 1)[1]
    for option in ("--rounds", "--threads", "--json", "--markdown", "--plot", "--device"):
        assert option in ran.out


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["kernels", "--case", "bottom"], 1, "There is no case 'bottom'. There is: bot"),
        (["kernels", "--backend", "turbo"], 1, "The backend 'turbo' cannot run on 'cpu'."),
        (["kernels", "--rounds", "0"], 2, "--rounds"),
        (["kernels", "--threads", "0"], 2, "--threads"),
        (["kernels", "--device", "tpu"], 1, "Unknown device 'tpu'"),
        (["kernels", "--inner", "cubic"], 2, "--inner"),
        (["kernels", "--plot", "plot.txt"], 2, "must end in .png"),
        (["inference", "--size", "0"], 2, "give a size such as"),
        (["inference", "--size", "big"], 2, "give a size such as"),
        (["inference", "--size", "8x8x8"], 1, "is a 2D model"),
        (["inference", "--tile", "8x8x8"], 1, "is a 2D model"),
        (["inference", "--model", "nothing-there"], 1, "nothing-there"),
        (["training", "--recipe", "nothing-there"], 1, "There is no recipe 'nothing-there'."),
        (["training", "--batch-size", "0"], 2, "--batch-size"),
        (["scaling", "--tokens", "1k"], 2, "give numbers such as"),
        (["scaling", "--tokens", "0", "--sizes", "0"], 2, "nothing to measure"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments_in_one_sentence(run: Run, words: list[str], code: int, text: str):
    ran = run("bench", *words)
    assert ran.code == code
    assert text in " ".join(ran.err.replace("│", " ").split())
    assert "Traceback" not in ran.err


def test_existing_files_are_kept_and_noticed_before_measuring(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "kernels.json"
    path.write_text("mine")
    measured: list[int] = []
    monkeypatch.setattr("tttunet.bench.kernels.measure_kernels", lambda *a, **k: measured.append(1))
    ran = run("bench", "kernels", "--json", path)
    assert (ran.code, measured, path.read_text()) == (1, [], "mine")
    assert "--overwrite" in ran.err


def test_interrupted_leaves_nothing_behind(
    run: Run, tmp_path: Path, small_cases, monkeypatch: pytest.MonkeyPatch
):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tttunet.bench.kernels.run_paired", interrupt)
    words = ("bench", "kernels", "--case", "bot", "--backend", "dual")
    ran = run(*words, "--json", tmp_path / "r.json")
    assert ran.code == 130
    assert "Traceback" not in ran.err
    assert list(tmp_path.iterdir()) == []
