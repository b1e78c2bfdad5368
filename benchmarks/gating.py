"""What it costs, and what it saves, that mini-batches of small loss make no inner step.

Of every second validation image, one half learns the gate: the largest one whose F1 is at most
`--cost` below that without a gate; the other half is reported; all of it for several ways to divide
them. Gates are quantiles of the losses of all mini-batches. Times are those of the TTT operators
alone (the rest of the network does not change) and of everything, without the accelerated path,
which takes no gate.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from record import write_result

from tttunet.evaluation import instance_scores, pool
from tttunet.inference.segment import automatic_tile, decode_maps
from tttunet.inference.tiled import instance_activation, predict
from tttunet.layers.adaptation import Adaptation
from tttunet.models.model import Model, load_model
from tttunet.training.dataset import open_dataset
from tttunet.training.prepare import prepare

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
SPLITS = 20


class Watched(Adaptation):
    """Counts and times what the layers do."""

    def __init__(self, network: torch.nn.Module, gate: float) -> None:
        super().__init__(network, gate=gate)
        self.seconds = 0.0
        self.losses: list[torch.Tensor] = []
        self.skipped = self.count = 0

    def run(self, *arguments: Any) -> torch.Tensor:
        start = time.perf_counter()
        result = super().run(*arguments)
        self.seconds += time.perf_counter() - start
        return result

    def _closed(self, losses: torch.Tensor) -> torch.Tensor:
        closed = super()._closed(losses)
        self.losses.append(losses.flatten())
        self.skipped += int(closed.sum())
        self.count += closed.numel()
        return closed


def segment(model: Model, image: np.ndarray, gate: float) -> tuple[np.ndarray, Watched, float]:
    """Labels, what the layers did, and seconds."""
    start = time.perf_counter()
    with Watched(model.network, gate) as watched:
        maps = predict(
            model.network,
            image,
            instance_activation,
            tile=automatic_tile(model.config),
            stride=model.config.network.total_stride,
        )
    labels = decode_maps(maps, model.config)
    return labels, watched, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--model", default="nuclei")
    parser.add_argument("--every", type=int, default=2, help="take every so many images")
    parser.add_argument("--cost", type=float, default=0.002, help="F1 that the gate may cost")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.model)
    dataset = open_dataset(options.dataset)
    channels = model.config.network.input_channels
    cases = prepare(dataset, model.config.plan, split="val", channels=channels)[:: options.every]
    images = [np.asarray(case.open()[0], np.float32) for case in cases]
    truths = [np.asarray(case.open()[1]) for case in cases]
    losses = torch.cat([
        part for image in images for part in segment(model, image, 1e-9)[1].losses
    ])  # fmt: skip
    gates = [0.0, *(float(losses.quantile(q)) for q in QUANTILES[1:-1]), float("inf")]
    scores: list[list[Any]] = [[] for _ in gates]
    rows: list[dict[str, float]] = [dict.fromkeys(("skipped", "count"), 0) for _ in gates]
    operators, whole = np.zeros(len(gates)), np.zeros(len(gates))
    for image, truth in zip(images, truths, strict=True):
        for number, gate in enumerate(gates):
            labels, watched, seconds = segment(model, image, gate)
            scores[number].append(instance_scores(labels, truth, thresholds=(0.5,)))
            rows[number]["skipped"] += watched.skipped
            rows[number]["count"] += watched.count
            operators[number] += watched.seconds
            whole[number] += seconds
    for number, (row, gate) in enumerate(zip(rows, gates, strict=True)):
        row["skipped"] = round(row["skipped"] / max(row.pop("count"), 1), 3)
        row |= {
            "gate": gate if np.isfinite(gate) else -1.0,
            "f1_pooled": round(pool(scores[number])[0].f1, 4),
            "operator_ms_per_image": round(1000 * float(operators[number]) / len(cases), 2),
            "ms_per_image": round(1000 * float(whole[number]) / len(cases), 1),
        }
        print(row)
    result = {
        "model": f"{model.config.name} {model.config.version}",
        "dataset": dataset.title,
        "images": len(cases),
        "threads": options.threads,
        "gates": rows,
        "no_limit_is": -1.0,
        "halves": halves(scores, options.cost),
    }
    print(result["halves"])
    write_result("gating", result)


def halves(scores: list[list[Any]], cost: float) -> dict[str, Any]:
    """Learn the gate on one half of the images, report the other."""
    rng = np.random.default_rng(0)
    chosen, differences = [], []
    for _ in range(SPLITS):
        order = rng.permutation(len(scores[0]))
        learn, report = np.array_split(order, 2)

        def f1(number: int, part: np.ndarray) -> float:
            return float(pool([scores[number][i] for i in part])[0].f1)

        free = f1(0, learn)
        best = max(n for n in range(len(scores)) if f1(n, learn) >= free - cost)
        chosen.append(best)
        differences.append(f1(best, report) - f1(0, report))
    return {
        "divisions": SPLITS,
        "allowed_cost": cost,
        "chosen_quantiles": [QUANTILES[n] for n in chosen],
        "f1_difference_mean": round(float(np.mean(differences)), 4),
        "f1_difference_extremes": [round(float(f(differences)), 4) for f in (min, max)],
    }


if __name__ == "__main__":
    main()
