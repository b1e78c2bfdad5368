"""The module in a real Slicer, for ctest; skipped where the engine is not installed."""

from __future__ import annotations

import unittest

import slicer

from TTTUNetLib.Logic import RequestError, TTTUNetLogic
from TTTUNetLib.SelfTest import segmentDiscs


class TTTUNetModuleTest(unittest.TestCase):
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
