"""A small and strict stand-in for PythonQt, ctk and qMRML, over PySide6 and Slicer's real scene.

It shows that the module's form and code agree with each other: object names, signals, properties,
what is enabled when. It cannot show that PythonQt, ctk and qMRML behave as it does; for that there
is the manual test sheet and the test that runs in Slicer. Whatever it does not know is an error.

It changes PySide6's classes for the whole process: never beside napari.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import slicer
from PySide6 import QtCore, QtWidgets
from PySide6.QtUiTools import QUiLoader

_SIGNALS = ("clicked(bool)", "toggled(bool)", "currentIndexChanged(int)", "timeout()")
_NODE_CHANGED = "currentNodeChanged(vtkMRMLNode*)"
#: Names that are methods in PySide6 and properties in PythonQt, by class.
_PROPERTIES: dict[type, tuple[str, ...]] = {
    QtWidgets.QWidget: ("enabled", "visible", "toolTip"),
    QtWidgets.QAbstractButton: ("text", "checked"),
    QtWidgets.QLabel: ("text",),
    QtWidgets.QProgressBar: ("value",),
    QtWidgets.QComboBox: ("currentIndex", "currentText", "count"),
    QtWidgets.QListWidget: ("count",),
    QtWidgets.QSpinBox: ("value",),
}
_READ_ONLY = {"count"}


def _getter(cls: type, name: str) -> Any:
    for candidate in (name, f"is{name[0].upper()}{name[1:]}"):
        found = getattr(cls, candidate, None)
        if callable(found):
            return found
    raise AttributeError(f"{cls.__name__}.{name}")


def _as_property(cls: type, name: str) -> None:
    getter = _getter(cls, name)
    setter = None if name in _READ_ONLY else getattr(cls, f"set{name[0].upper()}{name[1:]}")
    setattr(cls, name, property(getter, setter))


def _connect(self: Any, signal: str, slot: Any) -> None:
    if signal not in _SIGNALS:
        raise ValueError(f"The stand-in knows no signal '{signal}'.")
    getattr(self, signal.partition("(")[0]).connect(slot)


class QMRMLWidget(QtWidgets.QWidget):
    """Passes its scene to the node combo boxes in it, as the form's connections do."""

    def setMRMLScene(self, scene: Any) -> None:
        for box in self.findChildren(QMRMLNodeComboBox):
            box.setMRMLScene(scene)


class QMRMLNodeComboBox(QtWidgets.QComboBox):
    """The nodes of some classes, kept as the scene has them."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self.scene: Any = None
        self.nodes: list[Any] = [None]
        self._listeners: list[Any] = []
        self.currentIndexChanged.connect(self._tell)

    def setMRMLScene(self, scene: Any) -> None:
        self.scene = scene
        for event in (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndCloseEvent):
            scene.AddObserver(event, lambda *_: self.refresh())
        self.refresh()

    def refresh(self) -> None:
        chosen = self.currentNode()
        types = list(self.property("nodeTypes") or [])
        every = [self.scene.GetNthNode(i) for i in range(self.scene.GetNumberOfNodes())]
        self.nodes = [None, *(n for n in every if any(n.IsA(kind) for kind in types))]
        self.blockSignals(True)
        self.clear()
        self.addItems(["None" if node is None else node.GetName() for node in self.nodes])
        self.blockSignals(False)
        self.setCurrentNode(chosen)
        if chosen not in self.nodes:
            self._tell()

    def currentNode(self) -> Any:
        place: Any = self.currentIndex  # a property since `install`
        return self.nodes[place] if 0 <= place < len(self.nodes) else None

    def setCurrentNode(self, node: Any) -> None:
        if node in self.nodes:
            self.setCurrentIndex(self.nodes.index(node))

    def connect(self, signal: str, slot: Any) -> None:
        if signal != _NODE_CHANGED:
            raise ValueError(f"The stand-in knows no signal '{signal}'.")
        self._listeners.append(slot)

    def _tell(self, *_: Any) -> None:
        for listener in self._listeners:
            listener(self.currentNode())


def _set_known(self: Any, name: str, value: Any) -> None:
    """PythonQt refuses properties that a class does not have; a spelling mistake is found."""
    if not hasattr(type(self), name):
        raise AttributeError(f"{type(self).__name__} has no '{name}'.")
    super(type(self), self).__setattr__(name, value)


class CtkCollapsibleButton(QtWidgets.QWidget):
    """A section; `collapsed` hides nothing here."""

    collapsed = property(
        lambda self: bool(self.property("collapsed")),
        lambda self, value: self.setProperty("collapsed", bool(value)),
    )
    __setattr__ = _set_known


class CtkPathLineEdit(QtWidgets.QWidget):
    """A path."""

    Dirs = 1
    currentPath = ""
    filters = 0
    __setattr__ = _set_known


_CUSTOM = {
    "qMRMLWidget": QMRMLWidget,
    "qMRMLNodeComboBox": QMRMLNodeComboBox,
    "ctkCollapsibleButton": CtkCollapsibleButton,
    "ctkPathLineEdit": CtkPathLineEdit,
}
_PLAIN = (
    "QLabel",
    "QComboBox",
    "QCheckBox",
    "QPushButton",
    "QProgressBar",
    "QPlainTextEdit",
    "QListWidget",
    "QSpinBox",
)


class _Loader(QUiLoader):
    """Makes the widgets of a form: those above, some of Qt's, and no others."""

    def createWidget(self, name: str, parent: Any = None, called: str = "") -> Any:
        if name in _CUSTOM:
            widget = _CUSTOM[name](parent)
        elif name in _PLAIN:
            widget = getattr(qt, name)(parent)
        else:
            raise ValueError(f"The stand-in knows no class '{name}'.")
        widget.setObjectName(called)
        return widget


class Settings:
    """In place of QSettings, so that no test meets another's."""

    shared: dict[str, str] = {}  # noqa: RUF012

    def value(self, name: str) -> Any:
        return self.shared.get(name)

    def setValue(self, name: str, value: Any) -> None:
        self.shared[name] = value


qt = types.ModuleType("qt")
ctk = types.ModuleType("ctk")


def _load_ui(path: str) -> Any:
    loader = _Loader()
    widget = loader.load(str(path))
    if widget is None:
        raise ValueError(loader.errorString())
    return widget


def _child_variables(widget: Any) -> Any:
    names = {w.objectName(): w for w in widget.findChildren(QtWidgets.QWidget) if w.objectName()}
    return types.SimpleNamespace(**names)


class _ModuleWidget:
    """`ScriptedLoadableModuleWidget`, as far as the module uses it."""

    def __init__(self, parent: Any = None) -> None:
        self.parent = parent
        self.layout = parent.layout()
        self.reloaded = False

    def setup(self) -> None:
        pass

    def resourcePath(self, name: str) -> str:
        import TTTUNetLib

        return str(Path(TTTUNetLib.__file__).parents[1] / "Resources" / name)

    def onReload(self) -> None:
        self.reloaded = True


class _Module:
    """`ScriptedLoadableModule`: what Slicer calls with the module's own object."""

    def __init__(self, parent: Any) -> None:
        self.parent = parent


class _ModuleTest:
    """`ScriptedLoadableModuleTest`."""

    def delayDisplay(self, message: str) -> None:
        print(message)


def install() -> None:
    """Put the stand-ins where Slicer has the real ones."""
    if "qt" in sys.modules:
        return
    QtWidgets.QApplication.instance() or QtWidgets.QApplication([])
    for cls, names in _PROPERTIES.items():
        for name in names:
            _as_property(cls, name)
    for name in _PLAIN:
        # PySide6 looks `connect` up in the class itself and not in its bases.
        setattr(qt, name, type(name, (getattr(QtWidgets, name),), {"connect": _connect}))
    qt.QTimer = type("QTimer", (QtCore.QTimer,), {"connect": _connect})  # type: ignore[attr-defined]
    qt.QSettings = Settings  # type: ignore[attr-defined]
    qt.Qt = QtCore.Qt  # type: ignore[attr-defined]
    ctk.ctkPathLineEdit = CtkPathLineEdit  # type: ignore[attr-defined]
    module = types.ModuleType("slicer.ScriptedLoadableModule")
    module.ScriptedLoadableModule = _Module  # type: ignore[attr-defined]
    module.ScriptedLoadableModuleTest = _ModuleTest  # type: ignore[attr-defined]
    module.ScriptedLoadableModuleWidget = _ModuleWidget  # type: ignore[attr-defined]
    sys.modules |= {"qt": qt, "ctk": ctk, module.__name__: module}
    slicer.util.loadUI = _load_ui
    slicer.util.childWidgetVariables = _child_variables
