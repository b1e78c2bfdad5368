"""What the TTT layers' adaptation at inference is worth: accuracy and time of each mode.

Images of the validation split, which chose the model's checkpoint and thresholds with adaptation
per tile: a small advantage of that mode is no news. Every image is segmented in all modes in turn,
in tiles of the training patch (so that there is something to carry on) and of the default size.
Objects are scored by F1 at IoU 0.5, classes by their mean Dice, on the network's grid.

    python benchmarks/adaptation.py DATA/nuclei_dsb2018
    python benchmarks/adaptation.py DATA/mr_hippocampus_msd --model hippocampus-mr
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import write_result

from tttunet.evaluation import instance_scores, mean_over_images, pool
from tttunet.evaluation.semantic import nan_mean, semantic_scores
from tttunet.inference.segment import automatic_tile, predict_labels
from tttunet.layers.adaptation import MODES
from tttunet.models.model import load_model
from tttunet.training.dataset import open_dataset
from tttunet.training.prepare import prepare


def score(found: np.ndarray, truth: np.ndarray, task: str) -> Any:
    """Of one image: for `summary`."""
    if task == "instance":
        return instance_scores(found, truth, thresholds=(0.5,))
    return nan_mean(result.dice for result in semantic_scores(found, truth))


def summary(scores: list[Any], task: str) -> dict[str, float]:
    """Of all images."""
    if task == "semantic":
        return {"dice": round(nan_mean(scores), 4)}
    f1 = {"f1_pooled": pool(scores)[0].f1, "f1_mean": mean_over_images(scores)[0]["f1"]}
    return {name: round(value, 4) for name, value in f1.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--model", default="nuclei")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.model)
    dataset = open_dataset(options.dataset)
    channels, task = model.config.network.input_channels, model.config.task
    cases = prepare(dataset, model.config.plan, split="val", channels=channels)
    tiles = {"patch": model.config.plan.patch_size, "default": automatic_tile(model.config)}
    scores: dict[tuple[str, str], list[Any]] = defaultdict(list)
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    several: dict[str, int] = defaultdict(int)
    for case in cases:
        image, truth, _ = case.open()
        image, truth = np.asarray(image, np.float32), np.asarray(truth)
        for tile, size in tiles.items():
            several[tile] += any(n > t for n, t in zip(truth.shape, size, strict=True))
            for mode in MODES:
                start = time.perf_counter()
                labels = predict_labels(model, image, tile=size, adaptation=mode)
                seconds[tile, mode] += time.perf_counter() - start
                scores[tile, mode].append(score(labels, truth, task))
    rows = []
    for (tile, mode), found in scores.items():
        row = {
            "tile": tile,
            "mode": mode,
            **summary(found, task),
            "seconds_per_image": round(seconds[tile, mode] / len(cases), 3),
        }
        print(row)
        rows.append(row)
    result = {
        "model": f"{model.config.name} {model.config.version}",
        "dataset": dataset.title,
        "split": "val (used to choose checkpoint and thresholds)",
        "images": len(cases),
        "images_of_several_tiles": dict(several),
        "threads": options.threads,
        "rows": rows,
    }
    write_result(f"adaptation_{options.dataset.name}", result)


if __name__ == "__main__":
    main()
