"""The window of the module: shows what the logic and the installer do, and decides nothing.

Everything that takes time runs elsewhere; a timer brings what was told in the meantime.
"""

from __future__ import annotations

import gc
import sys
from dataclasses import replace
from typing import Any

import ctk
import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleWidget
from slicer.util import VTKObservationMixin

from TTTUNetLib import Forms, Parameters
from TTTUNetLib.Batches import NodesTask
from TTTUNetLib.BatchPanel import BatchPanel
from TTTUNetLib.EngineClient import clean_environment
from TTTUNetLib.FineTunePanel import FineTunePanel
from TTTUNetLib.Installer import Installer
from TTTUNetLib.Logic import SegmentationTask, TTTUNetLogic
from TTTUNetLib.Volumes import RequestError

#: Milliseconds between two polls.
POLL = 50
#: Polls between two looks at Python's garbage.
_GARBAGE_EVERY = 10
_MOST_LOG_LINES = 2000


class TTTUNetWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Input, model, Apply, progress; the engine and the log in sections of their own.

    Attributes:
        panel: the section "Correct and fine-tune".
        batch: the section "Several volumes".
        wanted: what is chosen.
        models: of the library, with their cards.
    """

    def __init__(self, parent: Any = None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic: Any = None
        self.installer: Any = None
        self.settings: Any = None
        self.task: SegmentationTask | None = None
        self._result: Any = None
        self.models: list[dict[str, Any]] = []
        self._busy = ""
        self.wanted = Parameters.Parameters()
        self._updating = False
        self._polls = 0
        self._collecting = False

    def setup(self) -> None:
        """Build the window; the engine is looked for and its models read in the background."""
        ScriptedLoadableModuleWidget.setup(self)
        form = slicer.util.loadUI(self.resourcePath("UI/TTTUNet.ui"))
        self.layout.addWidget(form)
        self.ui = slicer.util.childWidgetVariables(form)
        form.setMRMLScene(slicer.mrmlScene)
        self.logic = TTTUNetLogic()
        self.installer = Installer(variables=clean_environment())
        self.settings = qt.QSettings()
        self.ui.logText.setMaximumBlockCount(_MOST_LOG_LINES)
        self.ui.computeSelector.addItem(_("CPU"), "cpu")
        self.ui.computeSelector.addItem(_("NVIDIA GPU (CUDA)"), "cuda")
        self.ui.deviceSelector.addItem(_("automatic"), "auto")
        self.ui.deviceSelector.addItem(_("CPU"), "cpu")
        self.ui.wheelsPath.filters = ctk.ctkPathLineEdit.Dirs
        self.panel, self.batch = FineTunePanel(self), BatchPanel(self)
        self._connect()
        scene = slicer.mrmlScene
        self.addObserver(scene, slicer.vtkMRMLScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, slicer.vtkMRMLScene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(scene, slicer.vtkMRMLScene.NodeRemovedEvent, self.onNodeRemoved)
        self.addObserver(scene, slicer.vtkMRMLScene.NodeAddedEvent, self.onNodeAdded)
        self.addObserver(scene, slicer.vtkMRMLScene.EndImportEvent, self.onSceneEndImport)
        self._takeParameters()
        self.timer = qt.QTimer()
        self.timer.setInterval(POLL)
        self.timer.connect("timeout()", self.onPoll)
        self.timer.start()
        self.checkEnvironment()

    def _connect(self) -> None:
        ui = self.ui
        ui.applyButton.connect("clicked(bool)", self.onApply)
        for selector in (ui.inputSelector, ui.roiSelector):
            selector.connect("currentNodeChanged(vtkMRMLNode*)", self.onChoice)
        for combo in (ui.modelSelector, ui.deviceSelector):
            combo.connect("currentIndexChanged(int)", self.onChoice)
        ui.roiSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.onRegion)
        for box in self._boxes().values():
            box.connect("toggled(bool)", self.onChoice)
        ui.show3DCheckBox.connect("toggled(bool)", self.onShow3D)
        ui.installButton.connect("clicked(bool)", self.onInstall)
        ui.adoptButton.connect("clicked(bool)", self.onAdopt)
        ui.removeButton.connect("clicked(bool)", self.onRemove)

    def _boxes(self) -> dict[str, Any]:
        """By the name of their parameter."""
        ui = self.ui
        return {
            "mirror": ui.mirrorCheckBox,
            "table": ui.tableCheckBox,
            "show3D": ui.show3DCheckBox,
            "probability": ui.probabilityCheckBox,
            "uncertainty": ui.uncertaintyCheckBox,
            "adaptation": ui.adaptationCheckBox,
        }

    def enter(self) -> None:
        """The module is shown again, perhaps after corrections in Segment Editor."""
        self.panel.onSegmentation()
        self.batch.refresh()
        self.onRegion()

    def cleanup(self) -> None:
        """End what runs; called when the module is reloaded or Slicer closes."""
        self.timer.stop()
        self.removeObservers()
        self.panel.close()
        self.batch.close()
        if self.task is not None:
            self.task.onFinished = None
            self.task.cancel()
        self.installer.cancel()
        self.logic.close()
        gc.enable()

    def onReload(self) -> None:
        """Forget the library too, so that its files are read again."""
        sys.meta_path[:] = [one for one in sys.meta_path if not _is_ours(type(one).__module__)]
        for name in [*sys.modules]:
            if _is_ours(name):
                del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)

    def onPoll(self) -> None:
        """Hear what the background threads told."""
        self.logic.mailbox.pump()
        self._polls += 1
        if self._polls % _GARBAGE_EVERY:
            return
        if self.logic.connected:
            # Else the engine's threads destroy nodes and widgets.
            self.logic.client.collect_garbage()
            self._collecting = True
        elif self._collecting:
            self._collecting = False
            gc.enable()  # nobody else would collect Slicer's

    # The scene

    def onSceneStartClose(self, caller: Any, event: Any) -> None:
        if self.task is not None:
            self.task.cancel()
        if isinstance(self.batch.task, NodesTask):
            self.batch.close()

    def onSceneEndClose(self, caller: Any, event: Any) -> None:
        self._result = None
        self.batch.refresh()
        self._takeParameters()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeRemoved(self, caller: Any, event: Any, node: Any) -> None:
        if self.task is not None and node is self.task.volumeNode:
            self.task.cancel()
        if node is self._result:
            self._result = None
        self.onNodeAdded(caller, event, node)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeAdded(self, caller: Any, event: Any, node: Any) -> None:
        if node.IsA("vtkMRMLVolumeNode") and not slicer.mrmlScene.IsBatchProcessing():
            self.batch.refresh()
            self.update()

    def onSceneEndImport(self, caller: Any, event: Any) -> None:
        self.batch.refresh()
        self._takeParameters()

    def _takeParameters(self) -> None:
        self.wanted, volume, region = Parameters.load(self.settings)
        self._updating = True
        ui = self.ui
        for selector, node in ((ui.inputSelector, volume), (ui.roiSelector, region)):
            if node is not None:
                selector.setCurrentNode(node)
        for name, box in self._boxes().items():
            box.checked = getattr(self.wanted, name)
        Forms.choose(ui.deviceSelector, self.wanted.device)
        Forms.choose(ui.modelSelector, self.wanted.model)
        self._updating = False
        self.update()

    def onChoice(self, *_args: Any) -> None:
        """A control was changed."""
        if self._updating:
            return
        ui = self.ui
        self.wanted = Parameters.Parameters(
            model=Forms.chosen(ui.modelSelector) or self.wanted.model,
            device=Forms.chosen(ui.deviceSelector) or "auto",
            **{name: box.checked for name, box in self._boxes().items()},
        )
        volume, region = ui.inputSelector.currentNode(), ui.roiSelector.currentNode()
        Parameters.save(self.wanted, volume, region, self.settings)
        self.update()

    def onRegion(self, *_args: Any) -> None:
        """Another region was chosen, or its segments may have changed."""
        selector, region = self.ui.regionSegmentSelector, self.ui.roiSelector.currentNode()
        before = Forms.chosen(selector)
        selector.clear()
        if region is not None and region.IsA("vtkMRMLSegmentationNode"):
            selector.addItem(_("all segments"), "")
            for name in Forms.segmentNames(region):
                selector.addItem(name, name)
            Forms.choose(selector, before)
        self.update()

    @property
    def idle(self) -> bool:
        """There is an engine; it is not being changed, and Apply does not run."""
        return self.logic.connected and bool(self.models) and not self._busy and self.task is None

    def busyElsewhere(self, panel: Any = None) -> bool:
        """Another section than this one runs something."""
        others = (other for other in (self.panel, self.batch) if other is not panel)
        return any(other.running for other in others)

    def update(self) -> None:
        """Enable what can be used now."""
        ui, running = self.ui, self.task is not None
        ready = self.idle and not self.busyElsewhere()
        ui.applyButton.text = _("Cancel") if running else _("Apply")
        ui.applyButton.enabled = running or (ready and ui.inputSelector.currentNode() is not None)
        ui.progressBar.visible = running or bool(self._busy)
        choices = (ui.inputSelector, ui.roiSelector, ui.modelSelector, ui.deviceSelector)
        for control in (*choices, *self._boxes().values()):
            control.enabled = not running
        ui.regionSegmentSelector.enabled = not running and ui.regionSegmentSelector.count > 0
        idle = not (running or self._busy or self.panel.busy or self.batch.running)
        ui.installButton.text = _("Cancel") if self._busy == "install" else _("Install")
        ui.installButton.enabled = idle or self._busy == "install"
        ui.adoptButton.enabled = ui.removeButton.enabled = idle
        card = Forms.modelOf(self.models, Forms.chosen(ui.modelSelector))
        ui.modelCard.text = "" if card is None else Forms.cardLine(card)
        ui.modelCard.toolTip = "" if card is None else Forms.cardText(card)
        self.panel.update()
        self.batch.update()

    # Segmenting

    def onApply(self, *_args: Any) -> None:
        """Segment, or cancel."""
        if self.task is not None:
            self.task.cancel()
            return
        ui, wanted = self.ui, self.wanted
        self.say(_("Starting"))
        ui.progressBar.value = 0
        try:
            self.task = self.logic.segment(
                ui.inputSelector.currentNode(),
                model=wanted.model,
                device=wanted.device,
                mirror=wanted.mirror,
                table=wanted.table,
                roiNode=ui.roiSelector.currentNode(),
                roiSegment=Forms.chosen(ui.regionSegmentSelector),
                maps=wanted.maps,
                onProgress=self.onProgress,
                onLog=self.log,
                onFinished=self.onFinished,
            )
        except RequestError as error:
            self.say(str(error))
        self.update()

    def onProgress(self, fraction: float, stage: str, eta: float | None) -> None:
        self.ui.progressBar.value = round(100 * fraction)
        self.say(Forms.progressText(fraction, stage, eta), log=False)

    def onFinished(self, task: SegmentationTask) -> None:
        self.task = None
        if task.state == "done":
            made = task.sequenceNode or task.segmentationNode
            self.say(_("{0} segments in '{1}'").format(len(task.voxels), made.GetName()))
            self._result = task.segmentationNode
            if self.wanted.show3D:
                self.onShow3D()
        elif task.state == "failed":
            self.say(task.error)
            self.log(task.details)
        else:
            self.say(_("Cancelled; nothing was changed."))
        self.update()

    def onShow3D(self, *_args: Any) -> None:
        """Show the last result as surfaces, or not."""
        node = self._result
        if self._updating or node is None:
            return
        if self.wanted.show3D:
            node.CreateClosedSurfaceRepresentation()
        node.GetDisplayNode().SetVisibility3D(self.wanted.show3D)

    # The engine

    def checkEnvironment(self) -> None:
        """Look in the background whether there is an engine, and connect it."""
        self._work("check", self.installer.environment, self._onEnvironment)

    def _work(self, name: str, work: Any, then: Any) -> None:
        self._busy = name
        self.update()

        def done(result: Any) -> None:
            self._busy = ""
            then(result)
            self.update()

        self.logic.mailbox.compute(work, done)

    def _onEnvironment(self, found: Any) -> None:
        if isinstance(found, Exception):
            self.ui.environmentLabel.text = str(found)
            self.ui.engineButton.collapsed = False
            self.say(_("The engine is not ready: see Engine."))
            return
        self.ui.environmentLabel.text = str(found)
        self.panel.close()
        try:
            self.logic.connect(found)
        except RequestError as error:
            self.ui.environmentLabel.text = str(error)
            return
        self.say(_("Reading the list of models"), log=False)
        self._readModels(self._onModels)

    def _readModels(self, then: Any, refresh: bool = False) -> None:
        """Hand over the models, unless the engine is closed meanwhile."""
        client = self.logic.client

        def show(models: list[dict[str, Any]]) -> None:
            if self.logic.connected and self.logic.client is client:
                then(models)

        self.logic.models(show, refresh=refresh)

    def _onModels(self, models: list[dict[str, Any]]) -> None:
        self.models = [model for model in models if model["error"] is None]
        self._updating = True
        self.ui.modelSelector.clear()
        for model in self.models:
            self.ui.modelSelector.addItem(f"{model['name']}: {model['title']}", model["name"])
        Forms.choose(self.ui.modelSelector, self.wanted.model)
        for device in self.logic.client.engine.about.get("devices", []):
            if device != "cpu" and self.ui.deviceSelector.findData(device) < 0:
                self.ui.deviceSelector.addItem(device, device)
        Forms.choose(self.ui.deviceSelector, self.wanted.device)
        self._updating = False
        self.panel.showModels()
        self.say(_("Ready") if models else _("The engine cannot be started: see Log."))
        if not models:
            self.log("\n".join(self.logic.client.engine.worker_output))
        self.update()

    def chooseModel(self, name: str) -> None:
        """Read the library again, and choose this model."""
        if not self.logic.connected:
            return

        def show(models: list[dict[str, Any]]) -> None:
            self.wanted = replace(self.wanted, model=name)
            self._onModels(models)
            self.onChoice()

        self._readModels(show, refresh=True)

    def onInstall(self, *_args: Any) -> None:
        """Make the environment after the user agreed, or cancel that."""
        if self._busy == "install":
            self.installer.cancel()
            return
        compute, wheels = Forms.chosen(self.ui.computeSelector), self.ui.wheelsPath.currentPath
        self._work("plan", lambda: self.installer.plan(compute, wheels or None), self._onPlan)

    def _onPlan(self, plan: Any) -> None:
        if isinstance(plan, Exception):
            self.say(str(plan))
            return
        if not slicer.util.confirmOkCancelDisplay(plan.summary):
            return
        mailbox = self.logic.mailbox

        def tell(stage: str, fraction: float, line: str) -> None:
            mailbox.put(lambda: self._onInstalling(stage, fraction, line))

        self._work("install", lambda: self.installer.install(plan, tell), self._onInstalled)

    def _onInstalled(self, found: Any) -> None:
        if isinstance(found, Exception) and self.logic.connected:
            self.say(str(found))  # the engine from before works on
        else:
            self._onEnvironment(found)

    def _onInstalling(self, stage: str, fraction: float, line: str) -> None:
        self.ui.progressBar.value = round(100 * fraction)
        self.say(stage, log=False)
        self.log(line)

    def _disconnect(self) -> None:
        """The engine's files are about to change."""
        self.panel.close()
        self.batch.close()
        self.logic.close()
        self.models = []

    def onAdopt(self, *_args: Any) -> None:
        """Use an interpreter that has napari-tttunet."""
        python = self.ui.pythonPath.currentPath
        self._work("adopt", lambda: self.installer.adopt(python), self._onEnvironment)

    def onRemove(self, *_args: Any) -> None:
        """Delete the environment."""
        question = _("Delete the engine's environment in '{0}'?").format(self.installer.root)
        if not slicer.util.confirmOkCancelDisplay(question):
            return
        self._disconnect()
        self.ui.modelSelector.clear()

        def remove() -> Any:
            self.installer.remove()
            return self.installer.environment()

        self._work("remove", remove, self._onEnvironment)

    # What is said

    def say(self, text: str, log: bool = True) -> None:
        """Show a sentence below the button."""
        self.ui.statusLabel.text = text
        if log:
            self.log(text)

    def log(self, text: str) -> None:
        """Add lines to the section Log."""
        if text.strip():
            self.ui.logText.appendPlainText(text)


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == "TTTUNetLib"
