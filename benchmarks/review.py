"""Does correcting the suggested places first pay? F1 against corrections, beside random places.

Every place of every image (see `tttunet.inference.review`) is looked at once, over all images
together: the most doubtful first, or in random order. A look costs one correction. An object that
matches no true one is taken out, true objects that lie mostly in it come in its place; at a gap the
missed true objects that it touches are added; a place that was right changes nothing. The area
under the curve of pooled F1 at IoU 0.5, up to a budget of corrections, tells how fast the labels
become good.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
from record import write_result
from scipy import ndimage

from tttunet.evaluation import match, overlap_table
from tttunet.inference.review import rank_places
from tttunet.inference.segment import decode_maps, predict_maps
from tttunet.measuring.places import Place
from tttunet.models.model import load_model
from tttunet.training.dataset import open_dataset
from tttunet.training.prepare import prepare

#: Budgets, as shares of all places.
BUDGETS = (0.05, 0.1, 0.25)
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Look:
    """What a look at a place of an image would change: predictions taken out, objects added."""

    doubt: float
    wrong: int
    gained: frozenset[tuple[int, int]]


def looks(image: int, labels: np.ndarray, truth: np.ndarray, places: list[Place]) -> list[Look]:
    pairs = match(table := overlap_table(labels, truth), 0.5)
    false = set(table.pred_labels[pairs.unmatched_pred].tolist())
    missed = np.isin(truth, table.truth_labels[pairs.unmatched_truth])
    found = []
    for place in places:
        box = tuple(slice(start, stop) for start, stop in place.bounds)
        if place.kind == "object":
            inside = labels[box] == place.label
            wrong = int(place.label in false)
            inside &= bool(wrong)
        else:
            inside, wrong = labels[box] == 0, 0
        numbers, counts = np.unique(truth[box][inside & missed[box]], return_counts=True)
        sizes = np.array([np.count_nonzero(truth == n) for n in numbers])
        share = 0.5 if place.kind == "object" else 0.0
        gained = frozenset((image, int(n)) for n in numbers[counts > share * sizes])
        found.append(Look(place.doubt, wrong, gained))
    return found


def curve(order: list[Look], tp: int, fp: int, fn: int) -> np.ndarray:
    """F1 after 0, 1, 2, ... corrections."""
    scores, known = [], set()
    for look in [Look(0, 0, frozenset()), *order]:
        new = look.gained - known
        known |= new
        tp, fp, fn = tp + len(new), fp - look.wrong, fn - len(new)
        scores.append(2 * tp / max(2 * tp + fp + fn, 1))
    return np.array(scores)


def measure(dataset: str, model: Any, split: Any) -> dict[str, Any]:
    data = open_dataset(dataset)
    channels = model.config.network.input_channels
    found: list[Look] = []
    tp = fp = fn = 0
    for number, case in enumerate(prepare(data, model.config.plan, split=split, channels=channels)):
        image, truth, _ = case.open()
        truth = np.asarray(truth)
        if data.task == "semantic":  # touching objects are one
            truth, _ = ndimage.label(truth > 0)
        maps = predict_maps(model, np.asarray(image, np.float32))
        labels = decode_maps(maps, model.config)
        found += looks(number, labels, truth, rank_places(maps, labels, "instance"))
        pairs = match(overlap_table(labels, truth), 0.5)
        tp += len(pairs.iou)
        fp += len(pairs.unmatched_pred)
        fn += len(pairs.unmatched_truth)
    orders = {"suggested": [sorted(found, key=lambda look: -look.doubt)]}
    orders["random"] = [
        [found[i] for i in np.random.default_rng(seed).permutation(len(found))] for seed in SEEDS
    ]
    curves = {name: [curve(one, tp, fp, fn) for one in some] for name, some in orders.items()}
    areas: dict[str, Any] = {}
    for budget in BUDGETS:
        count = max(1, round(budget * len(found)))
        areas[f"{budget:.0%} of the places"] = {"corrections": count} | {
            name: [round(float(one[: count + 1].mean()), 4) for one in some]
            for name, some in curves.items()
        }
    return {
        "dataset": data.title,
        "split": split,
        "places": len(found),
        "f1_before": round(2 * tp / max(2 * tp + fp + fn, 1), 4),
        "mean_f1_along_the_curve": areas,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("datasets", nargs="+", help="data sets of nuclei")
    parser.add_argument("--model", default="nuclei")
    parser.add_argument("--split", default="val")
    options = parser.parse_args()
    model = load_model(options.model)
    results = [measure(dataset, model, options.split) for dataset in options.datasets]
    for result in results:
        print(result)
    name = f"{model.config.name} {model.config.version}"
    write_result("review", {"model": name, "seeds": list(SEEDS), "results": results})


if __name__ == "__main__":
    main()
