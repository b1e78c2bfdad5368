"""Pictures of held-out labels, with what a model finds there before and after a fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tttunet.files import atomic_write
from tttunet.inference.segment import predict_labels
from tttunet.models.model import Model
from tttunet.training.prepare import IGNORE, PreparedCase

#: The file in the working folder.
COMPARISON_NAME = "comparison.npz"
#: So many pictures at most, of at most so many pixels per side, with so much around the labels.
PICTURES, EDGE, MARGIN = 2, 256, 16
#: Intensities between these percentiles get all the shades of grey.
_PERCENTILES = (1.0, 99.5)


def worth_showing(cases: Sequence[PreparedCase]) -> list[PreparedCase]:
    """The cases with most labelled foreground, most first."""
    ranked = sorted(cases, key=lambda case: -int((np.asarray(case.open()[1]) > 0).sum()))
    return ranked[:PICTURES]


def found_labels(
    model: Model, cases: Sequence[PreparedCase], device: torch.device | str
) -> list[np.ndarray]:
    """Labels [*spatial] of every case."""
    return [
        predict_labels(model, np.asarray(case.open()[0], np.float32), device=device)
        for case in cases
    ]


def save_comparison(
    folder: Path,
    cases: Sequence[PreparedCase],
    before: Sequence[np.ndarray],
    after: Sequence[np.ndarray],
) -> Path:
    """Write `COMPARISON_NAME` into a folder.

    It holds per picture N `image_N` uint8 [Y, X] or [Y, X, 3], and int32 [Y, X] `truth_N` (-1:
    not labelled), `before_N` and `after_N`. Of a volume it is the slice with most foreground.

    Args:
        folder: where.
        cases: from `worth_showing`.
        before, after: labels of the cases, from `found_labels`.

    Raises:
        OutputError: it cannot be written.
    """
    arrays: dict[str, Any] = {}
    for number, (case, old, new) in enumerate(zip(cases, before, after, strict=True)):
        image, labels, _ = case.open()
        labels = np.asarray(labels)
        place = _place(labels)
        arrays[f"image_{number}"] = _shades(np.asarray(image, np.float32)[(slice(None), *place)])
        for name, found in (("truth", labels), ("before", old), ("after", new)):
            arrays[f"{name}_{number}"] = found[place].astype(np.int32)
    path = folder / COMPARISON_NAME
    with atomic_write(path, overwrite=True) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    return path


def _place(labels: np.ndarray) -> tuple[int | slice, ...]:
    """The labelled part of the plane that shows most."""
    planes = labels.reshape(-1, *labels.shape[-2:])
    index = int((planes > 0).sum((1, 2)).argmax())
    leading = np.unravel_index(index, labels.shape[:-2]) if labels.ndim > 2 else ()
    known = planes[index] != IGNORE
    place: list[int | slice] = [int(i) for i in leading]
    for axis, size in enumerate(known.shape):
        hits = np.flatnonzero(known.any(1 - axis))
        first, last = (int(hits[0]), int(hits[-1]) + 1) if len(hits) else (0, size)
        first, last = max(0, first - MARGIN), min(size, last + MARGIN)
        place.append(slice(first, min(last, first + EDGE)))
    return tuple(place)


def _shades(pixels: np.ndarray) -> np.ndarray:
    """[C, Y, X] to uint8: three channels as colours, else the first as grey."""
    low, high = np.percentile(pixels, _PERCENTILES)
    shades = np.clip((pixels - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
    return np.moveaxis(shades, 0, -1) if len(shades) == 3 else shades[0]
