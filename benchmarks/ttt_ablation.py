"""The network of the recipe `nuclei` with its TTT layer and with the identity in its place.

Both arms have the same seed, patches, steps and schedule; thresholds stay at their defaults. One
seed says little about a difference of one or two points: read it as an order of magnitude.
Finished arms in OUTPUT are not trained again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from record import write_result

from tttunet.models.model import load_model
from tttunet.training.dataset import open_dataset
from tttunet.training.prepare import prepare
from tttunet.training.run import train
from tttunet.training.tuning import score_model

ARMS: dict[str, dict[str, Any]] = {"ttt": {}, "identity": {"ttt": None}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    arms = {}
    for name, network in ARMS.items():
        folder = options.output / name
        if not _finished(folder, options.steps):
            train(
                options.dataset,
                folder,
                recipe="nuclei",
                steps=options.steps,
                cache=options.output / "cache",
                overrides={"network": network, "train": {"seed": options.seed}},
                overwrite=True,
            )
        arms[name] = _score(options.dataset, folder)
        print(name, json.dumps(arms[name]["scores"]["all"]))
    write_result("ttt_ablation", {"steps": options.steps, "seed": options.seed, "arms": arms})


def _history(folder: Path) -> list[dict[str, float]]:
    path = folder / "history.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _finished(folder: Path, steps: int) -> bool:
    return any(row["step"] == steps and "score" in row for row in _history(folder))


def _score(dataset: str, folder: Path) -> dict[str, Any]:
    model = load_model(folder / "model")
    cases = prepare(
        open_dataset(dataset),
        model.config.plan,
        folder.parent / "cache",
        split="val",
        channels=model.config.network.input_channels,
    )
    history = _history(folder)
    return {
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "minutes": round(history[-1]["elapsed"] / 60, 1),
        "last_training_loss": [row["loss"] for row in history if "loss" in row][-1],
        "scores": score_model(model, cases),
    }


if __name__ == "__main__":
    main()
