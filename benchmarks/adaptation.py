"""What the TTT layers' adaptation at inference is worth: accuracy and time of each mode.

Images of the validation split, which chose the model's checkpoint and thresholds with adaptation
per tile: a small advantage of that mode is no news. Every image is segmented in all modes in turn,
in tiles of the training patch (so that there is something to carry on) and of the default size.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from record import write_result

from tttunet.evaluation import instance_scores, mean_over_images, pool
from tttunet.inference.segment import automatic_tile, predict_labels
from tttunet.layers.adaptation import MODES
from tttunet.models.model import load_model
from tttunet.training.dataset import open_dataset
from tttunet.training.prepare import prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--model", default="nuclei")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.model)
    dataset = open_dataset(options.dataset)
    channels = model.config.network.input_channels
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
                scores[tile, mode].append(instance_scores(labels, truth, thresholds=(0.5,)))
    rows = []
    for (tile, mode), found in scores.items():
        row = {
            "tile": tile,
            "mode": mode,
            "f1_pooled": round(pool(found)[0].f1, 4),
            "f1_mean": round(mean_over_images(found)[0]["f1"], 4),
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
    write_result("adaptation", result)


if __name__ == "__main__":
    main()
