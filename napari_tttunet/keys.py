"""Keys of the docks, and the order in which objects are looked at.

Keys are bound to one viewer, only where neither napari's shortcuts (as the user has set them) nor
another binding of this viewer has them, and are given back when the dock goes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from napari_tttunet.regions import viewer_camera, world_factors

#: Per action, the key that it gets.
KEYS = {
    "segment_view": "Shift-S",
    "accept": "K",
    "next_object": "N",
    "previous_object": "Shift-N",
    "toggle_labels": "H",
}
#: The same of the Fine-tune dock. Of two docks with the same key, the one opened last has it.
FINETUNE_KEYS = {
    "mark_checked": "G",
    "take_back": "Shift-G",
    "complete_region": "W",
    "remove_region": "Shift-W",
    "next_unchecked": "N",
}

#: Where a function that is bound to a key of ours has its actions, one per dock.
_ACTIONS = "tttunet_actions"


class DockKeys:
    """Binds keys to actions in one viewer.

    Args:
        viewer: napari's viewer.
        actions: per name of `keys` what to do.
        keys: per action, the key that it gets.

    Attributes:
        bound: per action the key that it got.
    """

    def __init__(
        self,
        viewer: Any,
        actions: Mapping[str, Callable[[], object]],
        keys: Mapping[str, str] = KEYS,
    ) -> None:
        from napari.utils.key_bindings import coerce_keybinding

        self._viewer = weakref.ref(viewer)
        self.bound: dict[str, str] = {}
        self._actions = dict(actions)
        shortcuts = taken_keys()
        for name, action in actions.items():
            key = coerce_keybinding(keys[name])
            ours = getattr(viewer.keymap.get(key), _ACTIONS, None)
            if ours is not None:
                ours.append(action)
            elif key in shortcuts or key in viewer.keymap:
                continue
            else:
                viewer.bind_key(keys[name], _pressed(action))
            self.bound[name] = keys[name]

    def text(self, action: str) -> str:
        """How a tooltip names the key of an action; empty if it has none."""
        key = self.bound.get(action)
        return f" Key: {key.replace('-', '+')}." if key else ""

    def release(self) -> None:
        """Give the keys back."""
        from napari.utils.key_bindings import coerce_keybinding

        viewer = self._viewer()
        bound, self.bound = self.bound, {}
        if viewer is None:
            return
        for name, key in bound.items():
            ours = getattr(viewer.keymap.get(coerce_keybinding(key)), _ACTIONS, None)
            if ours is None:
                continue  # somebody else has it now
            ours.remove(self._actions[name])
            if not ours:
                viewer.bind_key(key, None)


def taken_keys() -> set[Any]:
    """The keys of all shortcuts of napari, as the user has set them."""
    from napari.settings import get_settings
    from napari.utils.key_bindings import coerce_keybinding

    shortcuts = get_settings().shortcuts.shortcuts
    return {coerce_keybinding(key) for keys in shortcuts.values() for key in keys}


def _pressed(action: Callable[[], object]) -> Callable[[Any], None]:
    """What a key of ours does: the last one of its actions."""
    actions = [action]

    def pressed(_viewer: Any) -> None:
        actions[-1]()

    setattr(pressed, _ACTIONS, actions)
    return pressed


def look_at(viewer: Any, layer: Any, centre: np.ndarray) -> None:
    """Move the sliders and the camera to a place in a layer's data; the zoom stays."""
    world = np.asarray(layer.data_to_world(centre), float) * world_factors(viewer, layer)
    shift = viewer.dims.ndim - layer.ndim
    point = list(viewer.dims.point)
    point[shift:] = world
    hidden = [axis for axis in range(viewer.dims.ndim) if axis not in viewer.dims.displayed]
    for axis in hidden:
        viewer.dims.set_point(axis, point[axis])
    camera = viewer_camera(viewer)
    shown = [point[axis] for axis in viewer.dims.displayed]
    camera.center = (*tuple(camera.center)[: 3 - len(shown)], *shown)
