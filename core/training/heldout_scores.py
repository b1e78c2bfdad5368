"""Scores of few labels, with how far they can be trusted.

Labels are divided into square blocks, and every block keeps what its scores are made of (twice
the matches, and the objects of both sides; twice the shared pixels, and those of both sides). The
score of all blocks is exact; drawing blocks anew (the bootstrap) says how much it depends on which
labels there happen to be, and drawing the same blocks for two models what their difference is
worth.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tttunet.evaluation import match, overlap_table
from tttunet.inference.segment import predict_labels
from tttunet.models.model import Model
from tttunet.training.prepare import FOREGROUND, IGNORE, PreparedCase

#: Edge of a block in pixels, per number of dimensions.
BLOCK = {2: 64, 3: 32}
#: Objects match from these IoUs on; the first one's F1 is the one that is told.
IOUS = (0.5, 0.7)
DRAWS = 1000
_PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class Tally:
    """What the scores of one model on some cases are made of.

    Attributes:
        names: of the scores: `f1_iou50`, `f1_iou70` and `foreground_dice` for instances, else
            `dice_1`, ... per class.
        parts: [blocks, scores, 2] float64, numerator and denominator.
        objects: true objects, or for classes labelled foreground pixels.
    """

    names: tuple[str, ...]
    parts: np.ndarray
    objects: int

    def scores(self, blocks: np.ndarray | None = None) -> np.ndarray:
        """[scores]; NaN where nothing of the kind is there.

        Args:
            blocks: numbers of the blocks that count; None: all, once each.
        """
        total = (self.parts if blocks is None else self.parts[blocks]).sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return total[:, 0] / total[:, 1]

    @property
    def filled(self) -> np.ndarray:
        """[blocks] bool: whether anything is labelled or found there; others say nothing."""
        return self.parts[..., 1].sum(1) > 0

    @property
    def merit(self) -> float:
        """One number to choose a model by: the mean of the scores. NaN if there are none."""
        scores = self.scores()
        return float(np.nanmean(scores)) if np.isfinite(scores).any() else float("nan")

    def headline(self, blocks: np.ndarray | None = None) -> float:
        """What a user is told: F1 at IoU 0.5, or the mean Dice."""
        scores = self.scores(blocks)
        if self.names[0].startswith("f1"):
            # Nothing but clumps: no object could be counted.
            return float(scores[0] if self.objects else scores[-1])
        return float(np.nanmean(scores)) if np.isfinite(scores).any() else float("nan")

    @property
    def metric(self) -> str:
        """What `headline` is."""
        if self.names[0].startswith("f1"):
            return "F1 at IoU 0.5" if self.objects else "foreground Dice"
        return "Dice"


def tally(
    model: Model,
    cases: Sequence[PreparedCase],
    device: torch.device | str = "cpu",
    classes: Collection[int] | None = None,
) -> Tally:
    """Segment the cases and compare them with their labels, where there are any.

    Args:
        model: what segments.
        cases: with labels that may be incomplete.
        device: where the network runs.
        classes: those of a semantic model that count; None: all.
    """
    config = model.config
    instance = config.task == "instance"
    values = [n.value for n in config.labels if classes is None or n.value in classes]
    names = tuple(f"dice_{value}" for value in values)
    if instance:
        names = (*(f"f1_iou{round(100 * iou)}" for iou in IOUS), "foreground_dice")
    rows, objects = [], 0
    for case in cases:
        image, labels, _ = case.open()
        labels = np.asarray(labels)
        found = predict_labels(model, np.asarray(image, np.float32), device=device)
        if instance:
            parts, count = _instance_parts(found, labels)
        else:
            parts = np.stack([_dice_parts(found == v, labels == v, labels) for v in values], 1)
            count = int(np.isin(labels, values).sum() if classes else (labels > 0).sum())
        rows.append(parts)
        objects += count
    parts = np.concatenate(rows) if rows else np.zeros((0, len(names), 2))
    return Tally(names, parts, objects)


def interval(after: Tally, before: Tally | None = None, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of a headline, or of its difference from that before.

    The two must be of the same cases. With a single block it is [-1, 1] or [0, 1]: nothing known.
    """
    if before is not None and len(before.parts) != len(after.parts):
        raise ValueError("the two scores are of different cases")
    used = after.filled if before is None else after.filled | before.filled
    places = np.flatnonzero(used)
    count = len(places)
    if count < 2:
        return (0.0 if before is None else -1.0), 1.0
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(DRAWS):
        blocks = places[rng.integers(count, size=count)]
        reference = 0.0 if before is None else before.headline(blocks)
        values.append(after.headline(blocks) - reference)
    low, high = np.nanpercentile(values, _PERCENTILES)
    return float(low), float(high)


def summary(tally: Tally) -> dict[str, Any]:
    """All scores, counts and the interval, ready for JSON."""
    scores = {
        name: None if np.isnan(value) else round(float(value), 4)
        for name, value in zip(tally.names, tally.scores(), strict=True)
    }
    low, high = interval(tally)
    return {
        "metric": tally.metric,
        "score": round(tally.headline(), 4),
        "interval": [round(low, 4), round(high, 4)],
        "objects" if tally.names[0].startswith("f1") else "pixels": tally.objects,
        "blocks": int(tally.filled.sum()),
        **scores,
    }


def _blocks(shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
    """Number of the block of every pixel [*shape], and how many there are."""
    edge = BLOCK[len(shape)]
    counts = [-(-n // edge) for n in shape]
    places = np.meshgrid(*(np.arange(n) // edge for n in shape), indexing="ij")
    return np.ravel_multi_index(places, counts), int(np.prod(counts))


def _dice_parts(found: np.ndarray, true: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[blocks, 2]: twice the shared pixels, and the pixels of both, where there are labels."""
    block, count = _blocks(labels.shape)
    valid = labels != IGNORE
    found, true = found & valid, true & valid

    def sizes(mask: np.ndarray) -> np.ndarray:
        return np.bincount(block[mask], minlength=count)

    return np.stack([2.0 * sizes(found & true), sizes(found) + sizes(true)], 1)


def _instance_parts(found: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, int]:
    """[blocks, scores, 2] and the number of true objects."""
    valid = labels >= 0
    truth = np.where(valid, labels, 0)
    table = overlap_table(found, truth, valid)
    block, count = _blocks(labels.shape)
    places = {
        "pred": _places(found, table.pred_labels, block),
        "true": _places(truth, table.truth_labels, block),
    }

    def at(side: str, rows: np.ndarray) -> np.ndarray:
        return np.bincount(places[side][rows], minlength=count)

    columns = []
    for iou in IOUS:
        pairs = match(table, iou)
        hits = 2.0 * at("true", pairs.truth)
        misses = at("pred", pairs.unmatched_pred) + at("true", pairs.unmatched_truth)
        columns.append(np.stack([hits, hits + misses], 1))
    some_object = (labels > 0) | (labels == FOREGROUND)
    columns.append(_dice_parts(found > 0, some_object, labels))
    return np.stack(columns, 1), len(table.truth_labels)


def _places(labels: np.ndarray, numbers: np.ndarray, block: np.ndarray) -> np.ndarray:
    """The block of every object's centre."""
    from scipy import ndimage

    if not len(numbers):
        return np.zeros(0, np.int64)
    centres = np.array(ndimage.center_of_mass(labels > 0, labels, numbers))
    return block[tuple(centres.round().astype(int).T)]
