"""What the application sets up and the package `slicer-core` does not: scene, logics, cache, names.

To be imported before TTTUNetLib.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import slicer
import slicer_core.vtkITK

_texts = ModuleType("slicer.i18n")
_texts.tr = lambda text: text  # type: ignore[attr-defined]
_texts.translate = lambda context, text: text  # type: ignore[attr-defined]
sys.modules[_texts.__name__] = _texts
sys.modules["vtkITK"] = slicer_core.vtkITK  # is at the top in the application


def set_up(cache_folder: Path) -> Any:
    """Make `slicer.mrmlScene` and the logics in `slicer.modules`; returns the application's logic.

    Args:
        cache_folder: for files that a scene unpacks.
    """
    scene = slicer.mrmlScene = slicer.vtkMRMLScene()
    logic = slicer.vtkSlicerApplicationLogic()
    logic.SetMRMLScene(scene)
    logic.GetColorLogic().SetMRMLScene(scene)
    logic.GetColorLogic().AddDefaultColorNodes()

    cache, files = slicer.vtkCacheManager(), slicer.vtkDataIOManager()
    cache.SetRemoteCacheDirectory(str(cache_folder))
    files.SetCacheManager(cache)
    scene.SetCacheManager(cache)
    scene.SetDataIOManager(files)

    def register(module: Any, name: str) -> SimpleNamespace:
        module.SetMRMLScene(scene)
        module.SetMRMLApplicationLogic(logic)
        logic.SetModuleLogic(name, module)
        return SimpleNamespace(logic=lambda: module)

    slicer.modules = SimpleNamespace(
        plots=register(slicer.vtkSlicerPlotsLogic(), "Plots"),
        segmentations=register(slicer.vtkSlicerSegmentationsModuleLogic(), "Segmentations"),
        sequences=register(slicer.vtkSlicerSequencesLogic(), "Sequences"),
        volumes=register(slicer.vtkSlicerVolumesLogic(), "Volumes"),
    )
    return logic
