"""Dice + cross-entropy with deep supervision for labels of every degree of completeness.

Written here because MONAI's Dice + CE knows no ignore label, which sparse corrections need.
Where a pixel is known to be foreground, but not which class, the sum of the classes counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tttunet.training.prepare import FOREGROUND, IGNORE

DICE_SMOOTHING = 1e-5
#: Pixels of objects count more than background in the distance loss: they carry the seeds.
OBJECT_WEIGHT = 3.0
#: Weight of the distance loss beside Dice + CE.
DISTANCE_WEIGHT = 2.0


def soft_dice_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """1 - mean soft Dice over the foreground classes, over the batch as a whole.

    Args:
        logits: [batch, C, *spatial].
        classes: [batch, *spatial] int64; negative ones are left out.
    """
    valid = (classes >= 0)[:, None]
    probability = logits.softmax(1) * valid
    onehot = torch.zeros_like(probability).scatter_(1, classes.clamp_min(0)[:, None], 1.0) * valid
    axes = (0, *range(2, logits.ndim))
    overlap = (probability * onehot).sum(axes)[1:]
    total = (probability + onehot).sum(axes)[1:]
    return 1 - ((2 * overlap + DICE_SMOOTHING) / (total + DICE_SMOOTHING)).mean()


def segmentation_loss(logits: Tensor, targets: dict[str, Tensor]) -> Tensor:
    """Dice + CE at one resolution; with `distance` the last channel is the distance map.

    Args:
        logits: [batch, C, *spatial].
        targets: `classes` [batch, *spatial] int64, which may be `IGNORE` or `FOREGROUND`, and for
            instances `distance` [batch, 1, *spatial], negative where it is not known.
    """
    logits = logits.float()
    classes = targets["classes"]
    valid = classes != IGNORE
    regression = torch.zeros((), device=logits.device)
    if "distance" in targets:
        logits, predicted = logits[:, :-1], logits[:, -1:]
        known = valid[:, None] & (targets["distance"] >= 0)
        weight = known * (1 + (OBJECT_WEIGHT - 1) * (targets["distance"] > 0))
        error = F.smooth_l1_loss(predicted, targets["distance"], reduction="none", beta=0.1)
        regression = (weight * error).sum() / weight.sum().clamp_min(1)
    foreground = classes == FOREGROUND
    exact = classes.masked_fill(foreground, IGNORE)
    entropy = F.cross_entropy(logits, exact, ignore_index=IGNORE, reduction="sum")
    if foreground.any():
        missing = logits.logsumexp(1) - logits[:, 1:].logsumexp(1)  # -log P(not background)
        entropy = entropy + (missing * foreground).sum()
    entropy = entropy / valid.sum().clamp_min(1)
    return entropy + soft_dice_loss(logits, classes) + DISTANCE_WEIGHT * regression


def without_classes(
    outputs: Sequence[Tensor], targets: dict[str, Tensor], hidden: Sequence[int]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs and targets of labels that say nothing about some classes.

    Who labelled did not tell these classes from background: so their probabilities are added to
    the background's (the marginal loss of Shi et al. 2021), and a pixel labelled as background
    says only that it is of no other class.

    Args:
        outputs: [batch, C, *spatial] logits of a semantic network at every resolution.
        targets: from `batch_targets`, classes numbered like the outputs.
        hidden: numbers of the outputs that are left out; not 0.

    Returns:
        Logits [batch, C - len(hidden), *spatial] in 32 bits, and targets numbered like them.
    """
    count = outputs[0].shape[1]
    kept = [place for place in range(1, count) if place not in hidden]
    merged = []
    for output in outputs:
        logits = output.float()
        background = logits[:, [0, *hidden]].logsumexp(1, keepdim=True)
        merged.append(torch.cat([background, logits[:, kept]], 1))
    classes = targets["classes"]
    numbers = torch.zeros(count, dtype=classes.dtype, device=classes.device)
    numbers[kept] = torch.arange(1, len(kept) + 1, dtype=classes.dtype, device=classes.device)
    renumbered = torch.where(classes > 0, numbers[classes.clamp_min(0)], classes)
    return merged, {**targets, "classes": renumbered}


def deep_supervision_loss(outputs: Sequence[Tensor], targets: dict[str, Tensor]) -> Tensor:
    """Weighted sum over resolutions, highest first: weights 1, 1/2, 1/4, ..., normalised.

    As in nnU-Net the lowest resolution has weight 0 (unless it is the only one). Targets are
    brought to each resolution by nearest-neighbour sampling.
    """
    weights = [0.5**i for i in range(len(outputs))]
    if len(weights) > 1:
        weights[-1] = 0.0
    total = torch.zeros((), device=outputs[0].device)
    for weight, output in zip(weights, outputs, strict=True):
        if weight:
            resized = {name: _resize(target, output) for name, target in targets.items()}
            total = total + weight * segmentation_loss(output, resized)
    return total / sum(weights)


def _resize(target: Tensor, like: Tensor) -> Tensor:
    """Nearest-neighbour sampling of [batch, (1,) *spatial] to the spatial size of `like`."""
    size = like.shape[2:]
    if target.shape[-len(size) :] == size:
        return target
    if target.ndim == like.ndim:
        return F.interpolate(target, size=size, mode="nearest")
    resized = F.interpolate(target[:, None].float(), size=size, mode="nearest")
    return resized[:, 0].to(target.dtype)
