"""After training: thresholds and scores of the finished model, both from `val`."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tttunet.evaluation import (
    InstanceScores,
    instance_scores,
    mean_over_images,
    pool,
    semantic_scores,
)
from tttunet.inference.components import keep_largest
from tttunet.inference.instances import decode_instances
from tttunet.inference.segment import predict_labels, predict_maps
from tttunet.models.config import InstanceDecoding
from tttunet.models.model import Model
from tttunet.training.prepare import IGNORE, PreparedCase

#: What is tried: all combinations of the first three, then one after the other.
FOREGROUND = (0.4, 0.5, 0.6)
PROMINENCE = (0.1, 0.15, 0.2)
SMOOTHING = (1.0, 2.0)
CONFIDENCE = (0.0, 0.8, 0.85, 0.9)
MIN_SIZE = (15, 30, 50)
#: Validation images from which on components are removed.
FEWEST_CASES = 5
#: Thresholds are chosen by the F1 at these IoUs, half pooled over objects, half over images.
IOUS = (0.5, 0.7)

Progress = Callable[[int, int], None]


def tune_decoding(
    model: Model,
    cases: list[PreparedCase],
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> InstanceDecoding:
    """Choose the thresholds of an instance model on validation images.

    The network runs once per image; all combinations are read from the same maps.

    Args:
        model: an instance model.
        cases: validation cases from `prepare`.
        device: where the network runs.
        progress: called with (images done, images in all).

    Returns:
        The best combination; the model's own where it is as good as any.
    """
    start = model.config.plan.decoding
    assert start is not None
    predicted = []
    for done, case in enumerate(cases, start=1):
        image, label, _ = case.open()
        maps = predict_maps(model, np.asarray(image, np.float32), device=device)
        # Half precision: many maps are kept at once.
        predicted.append((maps.astype(np.float16), *_truth(label)))
        if progress is not None:
            progress(done, len(cases))
    grid = [
        {"foreground": f, "prominence": p, "smoothing": g}
        for f, p, g in itertools.product(FOREGROUND, PROMINENCE, SMOOTHING)
    ]
    best = start
    for changes in (
        grid,
        [{"confidence": value} for value in CONFIDENCE],
        [{"min_size": value} for value in MIN_SIZE],
    ):
        best = _best(predicted, [best, *(best.model_copy(update=change) for change in changes)])
    return best


def _best(
    predicted: list[tuple[np.ndarray, np.ndarray, np.ndarray]], candidates: list[InstanceDecoding]
) -> InstanceDecoding:
    """The candidate with the highest merit, the first one of equals."""

    def merit(decoding: InstanceDecoding) -> float:
        images = [
            instance_scores(decode_instances(maps.astype(np.float32), decoding), truth, IOUS, valid)
            for maps, truth, valid in predicted
        ]
        pooled = np.mean([scores.f1 for scores in pool(images)])
        averaged = np.mean([scores["f1"] for scores in mean_over_images(images)])
        return float(pooled + averaged) / 2

    return max(candidates, key=merit)


def tune_components(
    model: Model,
    cases: list[PreparedCase],
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> tuple[tuple[int, ...], ...]:
    """Choose the classes of which only the largest component is kept, on validation images.

    nnU-Net's rule: the whole foreground as one, if the mean Dice gains and no class loses by it;
    then every class by itself, if it gains.

    Args:
        model: a semantic model.
        cases: validation cases from `prepare`; with fewer than `FEWEST_CASES` nothing is chosen.
        device: where the network runs.
        progress: called with (images done, images in all).

    Returns:
        For `Plan.keep_largest`.
    """
    if len(cases) < FEWEST_CASES:
        return ()
    pairs = []
    plan = model.config.plan.model_copy(update={"keep_largest": ()})
    everything = Model(model.network, model.config.model_copy(update={"plan": plan}))
    for done, case in enumerate(cases, start=1):
        image, label, _ = case.open()
        found = predict_labels(everything, np.asarray(image, np.float32), device=device)
        pairs.append((found, *_truth(label)))
        if progress is not None:
            progress(done, len(cases))
    values = tuple(label.value for label in model.config.labels)

    def dice(groups: tuple[tuple[int, ...], ...]) -> np.ndarray:
        images = [
            {
                score.label: score.dice
                for score in semantic_scores(np.where(valid, keep_largest(p, groups), 0), truth)
            }
            for p, truth, valid in pairs
        ]
        rows = [[image.get(value, np.nan) for value in values] for image in images]
        count = (~np.isnan(rows)).sum(0)
        return np.where(count, np.nansum(rows, 0) / np.maximum(count, 1), 0.0)

    groups: tuple[tuple[int, ...], ...] = ()
    best = dice(groups)
    whole = dice((values,))
    if whole.mean() > best.mean() and (whole >= best).all():
        groups, best = (values,), whole
    if len(values) > 1:
        for place, value in enumerate(values):
            tried = dice((*groups, (value,)))
            if tried[place] > best[place]:
                groups, best = (*groups, (value,)), tried
    return groups


def score_model(
    model: Model,
    cases: list[PreparedCase],
    device: torch.device | str = "cpu",
    *,
    mirror: bool = False,
) -> dict[str, Any]:
    """Scores on validation images on the network's grid, all together and per modality.

    Args:
        mirror: with test-time augmentation.
    """
    groups: dict[str, list[Any]] = defaultdict(list)
    for case in cases:
        image, label, _ = case.open()
        predicted = predict_labels(
            model, np.asarray(image, np.float32), device=device, mirror=mirror
        )
        truth, valid = _truth(label)
        if model.config.task == "instance":
            result: Any = instance_scores(predicted, truth, valid=valid)
        else:
            found = semantic_scores(np.where(valid, predicted, 0), truth)
            result = {entry.label: entry.dice for entry in found}
        groups["all"].append(result)
        if case.modality:
            groups[case.modality].append(result)
    summarise = _instance_summary if model.config.task == "instance" else _semantic_summary
    return {name: {"images": len(rows), **summarise(rows)} for name, rows in groups.items()}


def _truth(label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    valid = np.asarray(label) != IGNORE
    return np.where(valid, label, 0), valid


def _instance_summary(images: list[tuple[InstanceScores, ...]]) -> dict[str, Any]:
    pooled, averaged = pool(images)[0], mean_over_images(images)[0]
    return {
        "objects": pooled.tp + pooled.fn,
        "f1_pooled_iou50": round(pooled.f1, 4),
        "precision_pooled_iou50": round(pooled.precision, 4),
        "recall_pooled_iou50": round(pooled.recall, 4),
        "f1_mean_over_images_iou50": round(averaged["f1"], 4),
        "ap_mean_iou50_95": round(float(np.mean([s.ap for s in pool(images)])), 4),
    }


def _semantic_summary(images: list[dict[int, float]]) -> dict[str, Any]:
    labels = sorted({label for image in images for label in image})
    dice = {
        str(label): float(np.nanmean([image.get(label, np.nan) for image in images]))
        for label in labels
    }
    return {
        "dice_mean": round(float(np.mean(list(dice.values()))), 4) if dice else None,
        "dice": {label: round(value, 4) for label, value in dice.items()},
    }
