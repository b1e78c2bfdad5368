"""Keys do what buttons do, clash with none of napari's, and are given back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from napari.components import ViewerModel
from qtpy.QtCore import Qt

from napari_tttunet.keys import KEYS, DockKeys, look_at, taken_keys
from napari_tttunet.objects import odd_first


def test_napari_has_none_of_our_keys() -> None:
    from napari import layers
    from napari.utils.key_bindings import coerce_keybinding

    ours = {coerce_keybinding(key) for key in KEYS.values()}
    assert len(ours) == len(KEYS)
    assert not ours & taken_keys()
    for kind in (layers.Image, layers.Labels, layers.Points, layers.Shapes, ViewerModel):
        assert not ours & set(kind.class_keymap), kind
    assert coerce_keybinding("V") in taken_keys(), "a clash would be seen"


def test_none_of_our_keys_is_in_the_keymaps_of_a_real_viewer(viewer: Any) -> None:
    """The action manager, all layers of a viewer, and the menus of its window."""
    from napari._app_model import get_app_model
    from napari.utils.action_manager import action_manager
    from napari.utils.key_bindings import coerce_keybinding

    viewer.add_image(np.zeros((3, 9, 9)))
    viewer.add_labels(np.zeros((3, 9, 9), int))
    viewer.add_shapes()
    viewer.add_points()
    ours = {coerce_keybinding(key) for key in KEYS.values()}
    managed = {
        coerce_keybinding(key) for keys in action_manager._shortcuts.values() for key in keys
    }
    bound = set(viewer.keymap) | set(type(viewer).class_keymap)
    for layer in viewer.layers:
        bound |= set(layer.keymap) | set(type(layer).class_keymap)
    assert len(managed) > 50
    assert not ours & managed
    assert not ours & {coerce_keybinding(key) for key in bound if key is not ...}
    menus = {str(entry.keybinding) for entry in get_app_model().keybindings}
    assert "Ctrl+O" in menus
    assert not {key.replace("-", "+") for key in KEYS.values()} & menus


@pytest.mark.usefixtures("one_engine")
def test_every_key_is_in_the_tooltip_of_its_control(viewer: Any, qtbot: Any) -> None:
    from qtpy.QtWidgets import QPushButton

    from napari_tttunet.segment_dock import SegmentDock

    dock = SegmentDock(viewer)
    viewer.window.add_dock_widget(dock)
    assert set(dock.keys.bound) == set(KEYS)
    for action, key in KEYS.items():
        name = "segment" if action == "segment_view" else action
        button = dock.findChild(QPushButton, name)
        assert f"{key.replace('-', '+')}." in button.toolTip().partition("Key")[2], action


def test_a_key_that_is_taken_is_left_alone_and_ours_are_given_back() -> None:
    viewer, heard = ViewerModel(), []
    viewer.bind_key(KEYS["accept"], lambda v: heard.append("theirs"))
    keys = DockKeys(viewer, {name: lambda name=name: heard.append(name) for name in KEYS})
    assert set(keys.bound) == set(KEYS) - {"accept"}
    assert keys.text("accept") == ""
    assert keys.text("previous_object") == " Key: Shift+N."
    for function in list(viewer.keymap.values()):
        function(viewer)
    assert sorted(heard) == sorted([*(set(KEYS) - {"accept"}), "theirs"])
    keys.release()
    assert len(viewer.keymap) == 1


def test_of_two_docks_the_one_opened_last_has_a_key() -> None:
    viewer, heard = ViewerModel(), []
    first = DockKeys(viewer, {"next_object": lambda: heard.append("first")})
    last = DockKeys(viewer, {"next_object": lambda: heard.append("last")})
    (pressed,) = viewer.keymap.values()
    pressed(viewer)
    assert last.text("next_object") == " Key: N."
    last.release()
    pressed(viewer)
    assert heard == ["last", "first"]
    viewer.bind_key("N", lambda v: heard.append("theirs"), overwrite=True)
    first.release()
    assert len(viewer.keymap) == 1, "what another plugin took meanwhile stays"


def test_a_shortcut_that_the_user_changed_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    from napari.settings import get_settings

    shortcuts = get_settings().shortcuts.shortcuts
    from napari.utils.key_bindings import coerce_keybinding

    monkeypatch.setitem(shortcuts, "napari:reset_view", [coerce_keybinding("N")])
    assert "next_object" not in DockKeys(ViewerModel(), {"next_object": lambda: None}).bound


def test_odd_sizes_come_first() -> None:
    labels = np.zeros((40, 60), int)
    for number, (row, size) in enumerate([(0, 4), (6, 4), (12, 5), (20, 18), (39, 1)], 3):
        labels[row : row + size, 10 : 10 + size] = number
    found = odd_first(labels)
    assert found.numbers.tolist()[:2] in ([6, 7], [7, 6])
    assert set(found.numbers) == {3, 4, 5, 6, 7}
    place = found.numbers.tolist().index(6)
    np.testing.assert_allclose(found.centres[place], (28.5, 18.5))
    assert len(odd_first(np.zeros((3, 4), int)).numbers) == 0


def test_the_view_goes_to_an_object() -> None:
    viewer = ViewerModel()
    layer = viewer.add_labels(np.zeros((9, 40, 60), int), scale=(5, 2, 2), translate=(1, 0, 0))
    viewer.dims.set_point(0, 1)
    look_at(viewer, layer, np.array([4.0, 10.0, 20.0]))
    assert viewer.dims.current_step[0] == 4
    camera = getattr(viewer, "scene", viewer).camera
    assert tuple(camera.center)[1:] == (20.0, 40.0)


@pytest.mark.usefixtures("one_engine")
def test_keys_pressed_in_the_window(viewer: Any, qtbot: Any) -> None:
    from napari_tttunet.segment_dock import SegmentDock

    dock = SegmentDock(viewer)
    viewer.window.add_dock_widget(dock)
    data = np.zeros((60, 60), np.int32)
    data[2:6, 2:6], data[20:24, 20:24], data[40:59, 40:59] = 1, 2, 3
    own = {"model": {"name": "nuclei"}}
    labels = viewer.add_labels(data, name="cells", metadata={"tttunet": own})
    canvas = viewer.window._qt_viewer.canvas.native
    canvas.setFocus()

    def press(key: Any, modifier: Any = Qt.KeyboardModifier.NoModifier) -> None:
        qtbot.keyClick(canvas, key, modifier)

    press(Qt.Key.Key_N)
    qtbot.waitUntil(lambda: labels.selected_label == 3, timeout=30_000)
    camera = getattr(viewer, "scene", viewer).camera
    assert tuple(camera.center)[1:] == (49.0, 49.0)
    assert "1 of 3" in dock.view.result.text()
    press(Qt.Key.Key_N)
    assert labels.selected_label != 3
    press(Qt.Key.Key_N, Qt.KeyboardModifier.ShiftModifier)
    assert labels.selected_label == 3
    press(Qt.Key.Key_H)
    assert not labels.visible
    press(Qt.Key.Key_H)
    assert labels.visible
    press(Qt.Key.Key_K)
    assert labels.metadata["tttunet"]["accepted"]
    assert labels.name == "cells \N{CHECK MARK}"
    assert "Key: N." in dock.view.next.toolTip()
    assert "Shift+S" in dock.view.segment.toolTip()
