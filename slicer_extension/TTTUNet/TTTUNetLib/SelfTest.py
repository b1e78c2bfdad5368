"""The check that ships with the module: one made-up image through the real engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer

from TTTUNetLib.Logic import SegmentationTask, TTTUNetLogic

_CENTRES = ((20, 20), (25, 65), (65, 30), (70, 75))
_RADIUS = 9


def segmentDiscs(logic: TTTUNetLogic) -> SegmentationTask:
    """Segment four bright discs with the shipped model, and check what came.

    Raises:
        AssertionError: it is not what was drawn.
        RequestError: the engine is not installed.
    """
    image = np.full((1, 96, 96), 10, np.uint8)
    y, x = np.indices(image.shape[1:])
    for cy, cx in _CENTRES:
        image[:, (y - cy) ** 2 + (x - cx) ** 2 < _RADIUS**2] = 180
    volume: Any = slicer.util.addVolumeFromArray(image, name="discs")
    task = logic.segment(volume, model="nuclei", waitForCompletion=True)
    segments = task.segmentationNode.GetSegmentation()
    assert segments.GetNumberOfSegments() == len(_CENTRES), segments.GetNumberOfSegments()
    for number in range(len(_CENTRES)):
        name = segments.GetNthSegmentID(number)
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(task.segmentationNode, name, volume)
        assert 150 < np.count_nonzero(mask) < 350, np.count_nonzero(mask)
    return task
