"""What the user chose: in the scene's parameter node, and the last choice in Slicer's settings."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import slicer

from TTTUNetLib import Maps

_NAME = "TTTUNet"
_INPUT, _REGION = "Input", "Region"


@dataclass(frozen=True)
class Parameters:
    """The controls of the window, but for the nodes.

    Attributes:
        model: name in the library, or folder.
        device: `auto`, `cpu`, `cuda:N` or `mps`.
        mirror: average over flips.
        table: make a table of volumes.
        show3D: show the segments as surfaces.
        probability, uncertainty, adaptation: make these volumes, see `Maps`.
    """

    model: str = "hippocampus-mr"
    device: str = "auto"
    mirror: bool = False
    table: bool = True
    show3D: bool = False
    probability: bool = False
    uncertainty: bool = False
    adaptation: bool = False

    @property
    def maps(self) -> tuple[str, ...]:
        """The volumes that are wanted beside the labels."""
        return tuple(name for name in Maps.KINDS if getattr(self, name))

    def to_texts(self) -> dict[str, str]:
        """By name; booleans as 0 and 1."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {k: str(int(v)) if isinstance(v, bool) else v for k, v in values.items()}

    def updated(self, texts: dict[str, str]) -> Parameters:
        """With the values of a scene or of settings; what makes no sense is left out."""
        good: dict[str, Any] = {}
        for name, default in ((field.name, field.default) for field in fields(self)):
            text = texts.get(name)
            if isinstance(default, bool):
                if text in ("0", "1"):
                    good[name] = text == "1"
            elif text:
                good[name] = text
        return replace(self, **good)


def parameter_node() -> Any:
    """The scene's node for the parameters; made if there is none."""
    scene = slicer.mrmlScene
    node = scene.GetSingletonNode(_NAME, "vtkMRMLScriptedModuleNode")
    if node is None:
        node = scene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.UnRegister(None)
        node.SetSingletonTag(_NAME)
        node.SetModuleName(_NAME)
        node.SetName(_NAME)
        node = scene.AddNode(node)
    return node


def load(settings: Any) -> tuple[Parameters, Any, Any]:
    """The parameters, input and region of the scene; else those of the settings, None and None.

    Args:
        settings: a `QSettings`, or what has its `value` and `setValue`.
    """
    names = [field.name for field in fields(Parameters)]
    remembered = {name: str(settings.value(f"{_NAME}/{name}") or "") for name in names}
    node = parameter_node()
    in_scene = {name: node.GetParameter(name) for name in names}
    found = Parameters().updated(remembered).updated(in_scene)
    return found, node.GetNodeReference(_INPUT), node.GetNodeReference(_REGION)


def save(parameters: Parameters, volume: Any, region: Any, settings: Any) -> None:
    """Keep the choice in the scene, and for the next one in the settings."""
    node = parameter_node()
    for name, text in parameters.to_texts().items():
        node.SetParameter(name, text)
        settings.setValue(f"{_NAME}/{name}", text)
    for role, chosen in ((_INPUT, volume), (_REGION, region)):
        node.SetNodeReferenceID(role, chosen.GetID() if chosen is not None else None)
