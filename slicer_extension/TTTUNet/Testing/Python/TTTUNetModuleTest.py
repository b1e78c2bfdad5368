"""The module in a real Slicer: needs an installed engine (section Engine), else it is skipped."""

from __future__ import annotations

import unittest
from typing import Any

import numpy as np
import slicer

from TTTUNetLib.Logic import RequestError, TTTUNetLogic


def segmentDiscs(logic: Any) -> Any:
    """Segment four bright discs with the shipped model, and check what came.

    Raises:
        AssertionError: it is not what was drawn.
        RequestError: the engine is not installed.
    """
    image = np.full((1, 96, 96), 10, np.uint8)
    y, x = np.indices(image.shape[1:])
    for cy, cx in ((20, 20), (25, 65), (65, 30), (70, 75)):
        image[:, (y - cy) ** 2 + (x - cx) ** 2 < 81] = 180
    volume = slicer.util.addVolumeFromArray(image, name="discs")
    task = logic.segment(volume, model="nuclei", waitForCompletion=True)
    segments = task.segmentationNode.GetSegmentation()
    assert segments.GetNumberOfSegments() == 4, segments.GetNumberOfSegments()
    for number in range(4):
        name = segments.GetNthSegmentID(number)
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(task.segmentationNode, name, volume)
        assert 150 < np.count_nonzero(mask) < 350, np.count_nonzero(mask)
    return task


class TTTUNetModuleTest(unittest.TestCase):
    """Run by ctest."""

    def setUp(self) -> None:
        slicer.mrmlScene.Clear(0)

    def test_shipped_model(self) -> None:
        logic = TTTUNetLogic()
        try:
            segmentDiscs(logic)
        except RequestError as error:
            if "not installed" not in str(error):
                raise
            self.skipTest(str(error))
        finally:
            logic.close()
