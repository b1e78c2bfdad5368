"""The layer that shows where labels agree with true labels, and what it hides meanwhile."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from napari_tttunet.comparison import COLOURS
from napari_tttunet.geometry import Transform

_KIND = "comparison"


def is_comparison(layer: Any) -> bool:
    """Whether a layer was made here, so that nobody takes it for objects."""
    own = layer.metadata.get("tttunet") if isinstance(layer.metadata, dict) else None
    return isinstance(own, dict) and own.get("kind") == _KIND


def is_covered(layer: Any) -> bool:
    """Whether a layer is hidden only because a comparison is shown in its place."""
    return not layer.visible and any(layer in cover.hidden for cover in list(_covers.values()))


class ComparisonLayers:
    """Shows comparisons in a viewer.

    Args:
        viewer: napari's viewer.
    """

    def __init__(self, viewer: Any) -> None:
        self._viewer = viewer
        self._edited: weakref.WeakSet[Any] = weakref.WeakSet()

    def show(self, layer: Any, truth: Any, painted: np.ndarray, axes: str, task: str) -> None:
        """Show a comparison in place of what was compared.

        One of the same labels that was shown before is replaced unless somebody painted in it.

        Args:
            layer, truth: what was compared.
            painted: [*layer] kinds of `tttunet.measuring.agreement`.
            axes: of the layer.
            task: `instance` or `semantic`.
        """
        own = {"kind": _KIND, "of": layer.name, "truth": truth.name, "axes": axes, "task": task}
        for shown in self._viewer.layers:
            same = is_comparison(shown) and shown.metadata["tttunet"].get("of") == layer.name
            if same and shown not in self._edited and shown.data.shape == painted.shape:
                for name, value in Transform.of(layer).arguments().items():
                    setattr(shown, name, value)
                shown.metadata["tttunet"] = own
                shown.visible = False  # what was hidden with it comes back
                shown.data = painted
                break
        else:
            shown = self._add(layer, painted, own)
        _covers[shown] = _Cover(self._viewer, shown, (layer, truth))
        shown.visible = True

    def _add(self, layer: Any, painted: np.ndarray, own: dict[str, Any]) -> Any:
        from napari.utils.colormaps import DirectLabelColormap

        active = self._viewer.layers.selection.active
        colours: dict[Any, Any] = {None: (0, 0, 0, 0), 0: (0, 0, 0, 0), **COLOURS}
        added = self._viewer.add_labels(
            painted,
            name=f"{layer.name}: comparison",
            colormap=DirectLabelColormap(color_dict=colours),
            opacity=0.6,
            units=layer.units,
            axis_labels=layer.axis_labels,
            metadata={"tttunet": own},
            visible=False,
            **Transform.of(layer).arguments(),
        )
        edited, shown = self._edited, weakref.ref(added)
        added.events.paint.connect(lambda _: edited.add(shown()), ref=False)
        # Who looks at objects goes on looking at them.
        self._viewer.layers.selection.active = active
        return added


class _Cover:
    """Hides compared layers while their comparison is visible: colours of both would mix.

    Lives as long as the comparison does, so that the layers come back after the dock has gone.

    Args:
        viewer: napari's viewer.
        comparison: a layer that is not visible yet.
        compared: the layers to hide with it.

    Attributes:
        hidden: those that were visible.
    """

    def __init__(self, viewer: Any, comparison: Any, compared: tuple[Any, ...]) -> None:
        self._comparison = weakref.ref(comparison)
        self._compared = weakref.WeakSet(compared)
        self.hidden: weakref.WeakSet[Any] = weakref.WeakSet()
        # napari does not keep the listeners alive.
        comparison.events.visible.connect(self._turned)
        viewer.layers.events.removed.connect(self._removed)
        for layer in compared:
            layer.events.data.connect(self._outdated)

    def end(self) -> None:
        """Show what was hidden, and the comparison no more."""
        comparison = self._comparison()
        if comparison is not None:
            comparison.visible = False

    def _turned(self, _: Any = None) -> None:
        comparison = self._comparison()
        if comparison is not None and comparison.visible:
            for layer in [one for one in self._compared if one.visible]:
                self.hidden.add(layer)
                layer.visible = False
        else:
            self._restore()

    def _removed(self, event: Any) -> None:
        if event.value is self._comparison():
            self._restore()

    def _outdated(self, _: Any = None) -> None:
        """Other labels came, e.g. from the next run: those shall be seen."""
        self.end()

    def _restore(self) -> None:
        hidden, self.hidden = list(self.hidden), weakref.WeakSet()
        for layer in hidden:
            layer.visible = True


_covers: weakref.WeakKeyDictionary[Any, _Cover] = weakref.WeakKeyDictionary()
