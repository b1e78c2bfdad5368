"""What the network should have said: class maps and distance maps from labels."""

from __future__ import annotations

from collections.abc import Sequence

import edt
import numpy as np
import torch
from skimage.segmentation import relabel_sequential
from torch import Tensor

from tttunet.models.config import INSTANCE_CHANNELS
from tttunet.training.prepare import FOREGROUND, IGNORE
from tttunet.training.sparse import UNKNOWN_DISTANCE, neighbours

#: Pixels of an object this close (in pixels) to anything else are its boundary: one pixel
#: wide, diagonal neighbours included.
BOUNDARY_WIDTH = 1.5

BACKGROUND, INTERIOR, BOUNDARY = (INSTANCE_CHANNELS.index(x) for x in INSTANCE_CHANNELS[:3])


def instance_targets(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class map and normalised distance map of an instance label image.

    Args:
        labels: [*spatial] integers, 0 background, `IGNORE` where nothing is known, `FOREGROUND`
            where some object is.

    Returns:
        classes: [*spatial] int64, background, interior, boundary, `IGNORE`, or `FOREGROUND` where
            the pixel is an object's, but whether its boundary's depends on pixels not labelled.
        distance: [*spatial] float32, the distance to the nearest pixel outside the object,
            divided by the object's largest: 1 in its middle whatever its size, 0 outside.
            `UNKNOWN_DISTANCE` in objects that may go on where nothing is labelled.
    """
    index, _, _ = relabel_sequential(np.where(labels > 0, labels, 0))
    index = index.astype(np.uint32)
    distance = edt.edt(index, black_border=False, parallel=1)
    # An object that fills the image has no outside: its distance is infinite everywhere.
    distance = np.where(np.isfinite(distance), distance, 1e6).astype(np.float32)
    inside = index > 0
    classes = np.full(labels.shape, BACKGROUND, np.int64)
    classes[inside] = np.where(distance[inside] <= BOUNDARY_WIDTH, BOUNDARY, INTERIOR)
    largest = np.zeros(int(index.max()) + 1, np.float32)
    np.maximum.at(largest, index[inside], distance[inside])
    normalised = np.zeros(labels.shape, np.float32)
    normalised[inside] = distance[inside] / largest[index[inside]]
    if labels.min(initial=0) < 0:
        _leave_open(labels, classes, normalised)
    return classes, normalised


def _leave_open(labels: np.ndarray, classes: np.ndarray, distance: np.ndarray) -> None:
    """Take back what would be different if the pixels that are not labelled were.

    Args:
        labels: as for `instance_targets`.
        classes, distance: as if nothing but background lay there; changed in place.
    """
    beside_known, beside_unknown = neighbours(labels)
    classes[(classes == BOUNDARY) & beside_unknown & ~beside_known] = FOREGROUND
    largest = int(labels.max(initial=0))
    is_open = np.zeros(largest + 1, bool)
    is_open[np.unique(labels[beside_unknown & (labels > 0)])] = True
    distance[is_open[np.maximum(labels, 0)]] = UNKNOWN_DISTANCE
    classes[labels < 0] = np.where(labels[labels < 0] == FOREGROUND, FOREGROUND, IGNORE)
    distance[labels < 0] = UNKNOWN_DISTANCE


def batch_targets(
    labels: Tensor, task: str, values: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """Targets of a batch of labels.

    Args:
        labels: [batch, *spatial] integers; negative values are ignored.
        task: `instance` or `semantic`.
        values: the number in `labels` of every output of a semantic network, background (0)
            first; None: they are numbered like the outputs.

    Returns:
        `classes` [batch, *spatial] int64 and, for instances, `distance` [batch, 1, *spatial].
    """
    if task == "semantic":
        labels = labels.long()
        if values is None:
            return {"classes": labels}
        outputs = torch.zeros(max(values) + 1, dtype=torch.long)
        outputs[torch.tensor(values)] = torch.arange(len(values))
        return {"classes": torch.where(labels > 0, outputs[labels.clamp_min(0)], labels)}
    pairs = [instance_targets(label.numpy()) for label in labels]
    classes, distances = zip(*pairs, strict=True)
    return {
        "classes": torch.from_numpy(np.stack(classes)),
        "distance": torch.from_numpy(np.stack(distances))[:, None],
    }
