"""Labels beside the truth: what the engine compares, and where objects were matched or missed.

Nothing is read here before it is sliced, so that large layers are copied by the engine's thread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from napari_tttunet.axes import data_shape
from napari_tttunet.layers import Window, layer_array
from napari_tttunet.measure import channels_under
from tttunet.errors import ImageError
from tttunet.measuring.agreement import DIFFERENT, FALSE, MATCHED, MISSED

#: Frames are told apart by bits above those of the labels.
_LABEL_BITS = 32

#: Colours that colour-blind people tell from each other.
COLOURS = {MATCHED: "#009e73", MISSED: "#d55e00", FALSE: "#56b4e9", DIFFERENT: "#f0e442"}


@dataclass(frozen=True, eq=False)
class Pair:
    """Predicted and true labels on one grid.

    Attributes:
        frames: the axes along which objects are not the same, whatever their labels.
    """

    pred: Window
    truth: Window
    frames: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.pred.shape

    def objects(self) -> tuple[Any, Any]:
        """Both sides with numbers that differ between frames."""
        if all(self.shape[axis] == 1 for axis in self.frames):
            return self.pred, self.truth
        return Numbered(self.pred, self.frames), Numbered(self.truth, self.frames)


def pair_of(layer: Any, axes: str, truth: Any, volumes: bool) -> Pair:
    """Two Labels layers to be compared; the true one may cover more than the other.

    Args:
        layer: what was predicted.
        axes: its axes.
        truth: what is true.
        volumes: objects extend over Z; else every slice is compared by itself.

    Raises:
        ImageError: their pixels do not coincide.
    """
    pred = layer_array(layer)
    found = channels_under(layer, axes, truth)
    if len(found) != 1 or found[0].window.ndim != pred.ndim:
        ours, true = (" x ".join(map(str, data_shape(one))) for one in (layer, truth))
        raise ImageError(
            f"'{layer.name}' ({ours}) and '{truth.name}' ({true}) do not lie on the same pixels.",
            "Choose labels of the same image, at the same place and scale.",
        )
    within = "ZYX" if volumes else "YX"
    frames = tuple(i for i, letter in enumerate(axes) if letter not in within)
    return Pair(pred, found[0].window, frames)


class Numbered:
    """Labels with the number of the frame above their own bits; an array for the engine."""

    def __init__(self, window: Window, frames: Sequence[int]) -> None:
        self.window, self.frames = window, frames
        self.shape, self.dtype, self.ndim = window.shape, np.dtype(np.int64), window.ndim
        self.nbytes = math.prod(self.shape) * 8

    def __getitem__(self, key: Any) -> np.ndarray:
        parts = key if isinstance(key, tuple) else (key,)
        parts = (*parts, *[slice(None)] * (self.ndim - len(parts)))
        labels = np.asarray(self.window[parts]).astype(np.int64)
        if labels.size and not 0 <= labels.min() <= labels.max() < 2**_LABEL_BITS:
            raise ImageError("Labels of a film or stack must be between 0 and 4294967295.")
        number = np.zeros((1,) * self.ndim, np.int64)
        for axis in self.frames:
            first, last, _ = parts[axis].indices(self.shape[axis])
            index = np.arange(first, last).reshape(
                [-1 if i == axis else 1 for i in range(self.ndim)]
            )
            number = number * self.shape[axis] + index
        return np.where(labels > 0, labels + (number << _LABEL_BITS), 0)


class Foreground:
    """1 where there is an object, else 0; an array for the engine."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self.shape, self.dtype, self.ndim = window.shape, np.dtype(np.uint8), window.ndim
        self.nbytes = math.prod(self.shape)

    def __getitem__(self, key: Any) -> np.ndarray:
        return (np.asarray(self.window[key]) != 0).astype(np.uint8)


@dataclass(frozen=True)
class Scores:
    """What is shown: `rows` of name, value and explanation, and `counts` per kind.

    Attributes:
        counts: of objects per kind (MATCHED, MISSED, FALSE); empty for classes.
    """

    rows: tuple[tuple[str, float, str], ...]
    counts: dict[int, int]


def object_scores(result: dict[str, Any], foreground: dict[str, Any]) -> Scores:
    """From the engine's comparison of objects and of foregrounds."""
    tp, fn, fp = (len(result[key]) for key in ("matched", "missed", "false"))

    def share(part: float, whole: float) -> float:
        return part / whole if whole else 1.0 if tp + fn + fp == 0 else 0.0

    limit = f"at an overlap (IoU) of {result['threshold']:g}"
    dice = foreground["dice"]
    rows = (
        ("F1", share(2 * tp, 2 * tp + fp + fn), f"Balance of precision and recall {limit}"),
        ("Precision", share(tp, tp + fp), f"Share of the objects that are true {limit}"),
        ("Recall", share(tp, tp + fn), f"Share of the true objects that were found {limit}"),
        ("AP", share(tp, tp + fp + fn), f"Matched among all objects of both sides {limit}"),
        ("Mean AP", result["mean_ap"], "Mean of AP at the overlaps 0.5, 0.55, ... 0.95"),
        ("Dice", 1.0 if math.isnan(dice) else dice, "Overlap of all objects' pixels together"),
    )
    return Scores(rows, {MATCHED: tp, MISSED: fn, FALSE: fp})


def class_scores(result: dict[str, Any]) -> Scores:
    """From the engine's comparison of classes."""
    mean = [("Mean Dice", result["dice"], "Mean over the classes")]
    rows = [
        (f"Dice of {one['label']}", one["dice"], f"Overlap of the pixels of class {one['label']}")
        for one in result["classes"]
    ]
    return Scores((*mean, *rows), {})
