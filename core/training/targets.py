"""What the network should have said: class maps and distance maps from labels."""

from __future__ import annotations

import edt
import numpy as np
import torch
from skimage.segmentation import relabel_sequential
from torch import Tensor

from tttunet.models.config import INSTANCE_CHANNELS
from tttunet.training.prepare import IGNORE

#: Pixels of an object this close (in pixels) to anything else are its boundary: one pixel
#: wide, diagonal neighbours included.
BOUNDARY_WIDTH = 1.5

BACKGROUND, INTERIOR, BOUNDARY = (INSTANCE_CHANNELS.index(x) for x in INSTANCE_CHANNELS[:3])


def instance_targets(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class map and normalised distance map of an instance label image.

    Args:
        labels: [*spatial] integers, 0 background, negative: ignored.

    Returns:
        classes: [*spatial] int64, background, interior, boundary or `IGNORE`.
        distance: [*spatial] float32, the distance to the nearest pixel outside the object,
            divided by the object's largest: 1 in its middle whatever its size, 0 outside.
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
    classes[labels < 0] = IGNORE
    return classes, normalised


def batch_targets(labels: Tensor, task: str) -> dict[str, Tensor]:
    """Targets of a batch of labels.

    Args:
        labels: [batch, *spatial] integers; negative values are ignored.
        task: `instance` or `semantic`.

    Returns:
        `classes` [batch, *spatial] int64 and, for instances, `distance` [batch, 1, *spatial].
    """
    if task == "semantic":
        return {"classes": labels.long()}
    pairs = [instance_targets(label.numpy()) for label in labels]
    classes, distances = zip(*pairs, strict=True)
    return {
        "classes": torch.from_numpy(np.stack(classes)),
        "distance": torch.from_numpy(np.stack(distances))[:, None],
    }
