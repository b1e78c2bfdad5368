"""One number for a model, from whole validation images."""

from __future__ import annotations

import numpy as np
import torch

from tttunet.evaluation import instance_scores, semantic_scores
from tttunet.inference.segment import predict_labels
from tttunet.models.model import Model
from tttunet.training.prepare import IGNORE, PreparedCase

#: The evaluation knows no negative labels.
_IGNORED_CLASS = 2**30


def validate(model: Model, cases: list[PreparedCase], device: torch.device) -> float:
    """Mean over images of the F1 at IoU 0.5 (instances) or of the mean Dice of the classes."""
    scores = []
    for case in cases:
        image, label, _ = case.open()
        predicted = predict_labels(model, np.asarray(image, np.float32), device=device)
        scores.append(_score(model.config.task, predicted, np.asarray(label)))
    return float(np.nanmean(scores))


def _score(task: str, predicted: np.ndarray, label: np.ndarray) -> float:
    valid = label != IGNORE
    if task == "instance":
        truth = np.where(valid, label, 0)
        return instance_scores(predicted, truth, thresholds=(0.5,), valid=valid)[0].f1
    truth = np.where(valid, label, _IGNORED_CLASS)
    classes = semantic_scores(predicted, truth, ignore=_IGNORED_CLASS)
    dice = [scores.dice for scores in classes]
    return float(np.mean(dice)) if dice else float("nan")
