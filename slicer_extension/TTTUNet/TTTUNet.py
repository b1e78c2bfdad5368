"""The scripted module TTTUNet: what Slicer loads. The rest is in TTTUNetLib."""

from __future__ import annotations

from typing import Any

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import ScriptedLoadableModule, ScriptedLoadableModuleTest

from TTTUNetLib import Samples
from TTTUNetLib.Logic import TTTUNetLogic
from TTTUNetLib.SelfTest import segmentDiscs
from TTTUNetLib.Widget import TTTUNetWidget

__all__ = ["TTTUNet", "TTTUNetLogic", "TTTUNetTest", "TTTUNetWidget"]


class TTTUNet(ScriptedLoadableModule):
    """Title, category and help."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("TTT-UNet")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = ["Segmentations"]
        parent.contributors = ["The napari-tttunet developers"]
        parent.helpText = _(
            "Segments volumes with TTT-UNet, a U-Net with test-time training layers. Choose a "
            "volume and a model, and press Apply: the result is a segmentation on the volume's "
            "grid. The network runs in a Python environment of its own, which the section Engine "
            "installs; Slicer's Python is not changed. From Python: "
            "TTTUNetLogic().segment(volumeNode, model='hippocampus-mr', waitForCompletion=True)."
        )
        parent.acknowledgementText = _(
            "The method is TTT-UNet by Zhou et al. (github.com/rongzhou7/TTT-Unet); this is an "
            "implementation of its own."
        )
        # The module Sample Data may be loaded after this one.
        slicer.app.connect("startupCompleted()", Samples.register)


class TTTUNetTest(ScriptedLoadableModuleTest):
    """Runs in Slicer: Reload and Test, or ctest."""

    def runTest(self) -> None:
        slicer.mrmlScene.Clear()
        self.delayDisplay("Segmenting a made-up volume")
        logic = TTTUNetLogic()
        try:
            segmentDiscs(logic)
        finally:
            logic.close()
        self.delayDisplay("Passed")
