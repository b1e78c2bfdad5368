"""What each axis of a layer is: guessed from what napari knows, shown to the user, and edited.

The letters are those of `tttunet.imaging`: T time, C channel, Z, Y, X, and at the end S for the
colours of an RGB layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tttunet.errors import ImageError

LETTERS = "TCZYX"
_NAMES = {
    "T": "t time times frame frames timepoint timepoints",
    "C": "c ch channel channels color colour",
    "Z": "z plane planes slice slices depth",
    "Y": "y row rows height",
    "X": "x col cols column columns width",
}
_LETTER_OF = {name: letter for letter, names in _NAMES.items() for name in names.split()}
#: An axis of more entries is not taken for channels.
_MOST_CHANNELS = 4
#: An axis of fewer pixels is not taken for rows or columns beside a channel axis at the end.
_SMALLEST_PLANE = 8
_HINT = "Give one letter per axis: T time, C channel, Z, Y, X; for example TZYX."


@dataclass(frozen=True)
class AxesGuess:
    """What the axes of a layer probably are.

    Attributes:
        axes: one letter per data axis, the colours of an RGB layer included.
        reason: where the letters come from, to be shown beside them.
        certain: every axis was named; otherwise the user should look.
    """

    axes: str
    reason: str
    certain: bool


def data_shape(layer: Any, level: int = 0) -> tuple[int, ...]:
    """The shape of a layer's data without the colours of an RGB layer; nothing is computed."""
    data = layer.data[level] if getattr(layer, "multiscale", False) else layer.data
    return tuple(int(size) for size in data.shape[: layer.ndim])


def is_rgb(layer: Any) -> bool:
    """Whether the last data axis holds colours; Labels layers have no such axis."""
    return bool(getattr(layer, "rgb", False))


def guess_axes(layer: Any, viewer_labels: Sequence[str] = ()) -> AxesGuess:
    """What the axes of an Image or Labels layer probably are.

    Names count before shapes: those of the layer, of an xarray, of the layer's metadata, then
    of the viewer's dims.

    Args:
        layer: an Image or Labels layer; its data are not read.
        viewer_labels: `viewer.dims.axis_labels`.

    Raises:
        ImageError: the layer has more axes than there are letters.
    """
    shape, rgb = data_shape(layer), is_rgb(layer)
    channels = not rgb and hasattr(layer, "rgb")
    most = len(LETTERS) if channels else len(LETTERS) - 1
    if len(shape) > most:
        raise ImageError(
            f"'{layer.name}' has {len(shape)} axes; at most {most} can be named.",
            "Take a part of it, for example one position of a well plate.",
        )
    sources = (
        ("the layer's axis labels", layer.axis_labels),
        ("the axes of the array", getattr(layer.data, "dims", ())),
        ("the layer's metadata", _names_in_metadata(layer.metadata)),
        ("the viewer's axis labels", tuple(viewer_labels)[-len(shape) :]),
    )
    known: list[str | None] = [None] * len(shape)
    reasons: list[str] = []
    for reason, names in sources:
        found = _letters(names, len(shape), channels)
        new = [a or (b if b not in known else None) for a, b in zip(known, found, strict=True)]
        if new != known:
            known, reasons = new, [*reasons, reason]
    certain = None not in known
    if not certain:
        known = _fill(known, shape, layer, channels)
        reasons.append("the shape")
    axes = "".join(letter or "" for letter in known) + ("S" if rgb else "")
    return AxesGuess(axes, "From " + " and ".join(reasons), certain)


def parse_axes(text: str, layer: Any) -> str:
    """Checks what a person typed: "zyx", "Z Y X" or "T, Z, Y, X".

    Args:
        text: one letter per data axis; the S of an RGB layer's colours may be left out.
        layer: an Image or Labels layer.

    Returns:
        The letters in upper case, an RGB layer's S included.

    Raises:
        ImageError: a letter is unknown or occurs twice, Y or X is missing, or there are not as
            many letters as axes.
    """
    shape, rgb = data_shape(layer), is_rgb(layer)
    letters = "".join(c for c in text.upper() if c.isalnum())
    if rgb and len(letters) == len(shape) + 1 and letters[-1] in "CS":
        letters = letters[:-1]
    unknown = sorted(set(letters) - set(LETTERS))
    if unknown:
        raise ImageError(f"'{unknown[0]}' is not the name of an axis.", _HINT)
    twice = sorted({letter for letter in letters if letters.count(letter) > 1})
    if twice:
        raise ImageError(f"The axis {twice[0]} is named twice.", _HINT)
    if rgb and "C" in letters:
        raise ImageError(
            "The colours of an RGB image are its channels, so no other axis can be C.", _HINT
        )
    if not hasattr(layer, "rgb") and "C" in letters:
        raise ImageError("Labels have no channels.", _HINT)
    if len(letters) != len(shape):
        raise ImageError(
            f"'{layer.name}' has {len(shape)} axes of size {' x '.join(map(str, shape))}, "
            f"but {len(letters)} are named.",
            _HINT,
        )
    if not {"X", "Y"} <= set(letters):
        raise ImageError("Y or X is missing.", _HINT)
    return letters + ("S" if rgb else "")


def _names_in_metadata(metadata: Any) -> Iterable[Any]:
    """Names of axes where readers leave them: a string, or a list of strings or of dicts."""
    if not isinstance(metadata, dict):
        return ()
    own = metadata.get("tttunet")
    for place in (own if isinstance(own, dict) else {}, metadata):
        for key in ("axes", "dims", "axis_labels", "dimension_order"):
            if place.get(key) is not None:
                return place[key]
    return ()


def _letters(names: Any, count: int, channels: bool) -> list[str | None]:
    """The letters that names stand for; all None if they cannot be those of these axes."""
    nothing: list[str | None] = [None] * count
    if not isinstance(names, Iterable):
        return nothing
    names = [n.get("name", "") if isinstance(n, dict) else n for n in names]
    letters = [_LETTER_OF.get(str(name).strip().lower()) for name in names]
    if len(letters) > count:
        # The names of the whole image, of which the layer is one channel, or has colours.
        kept = [x for x, n in zip(letters, names, strict=True) if x != "C" and str(n) not in "Ss"]
        letters = kept if len(kept) == count else letters
    letters = [letter if channels or letter != "C" else None for letter in letters]
    present = [letter for letter in letters if letter]
    if len(letters) > count or len(set(present)) != len(present):
        return nothing
    return [None] * (count - len(letters)) + letters


def _fill(
    known: list[str | None], shape: Sequence[int], layer: Any, channels: bool
) -> list[str | None]:
    """Gives every axis without a name the letter that its size and unit suggest."""
    found = list(known)

    def free() -> list[int]:
        return [i for i, letter in enumerate(found) if letter is None]

    kinds = [_kind(unit) for unit in layer.units]
    maybe_channel = [
        channels
        and "C" not in known
        and 1 < size <= _MOST_CHANNELS
        and kind is None
        and float(scale) == 1.0
        for size, kind, scale in zip(shape, kinds, layer.scale, strict=True)
    ]
    if (
        len(shape) > 2
        and found[-3:] == [None] * 3
        and maybe_channel[-1]
        and min(shape[-3:-1]) >= _SMALLEST_PLANE
    ):
        found[-1] = "C"
    for letter in "XY":
        if letter not in found and free():
            found[free()[-1]] = letter
    for i in free():
        if kinds[i] == "time" and "T" not in found:
            found[i] = "T"
        elif kinds[i] == "length" and "Z" not in found:
            found[i] = "Z"
    few = [i for i in free() if maybe_channel[i]]
    if few and "C" not in found:
        found[min(reversed(few), key=lambda i: shape[i])] = "C"
    # Films have colours more often than stacks do; of grey images it is the other way round.
    alone = "TZ" if not channels and hasattr(layer, "rgb") else "ZT"
    left = [x for x in alone if x not in found][: len(free())]
    if len(left) < len(free()):
        left.append("C")
    for i, letter in zip(free(), sorted(left, key="TCZ".index), strict=False):
        found[i] = letter
    return found


def _kind(unit: Any) -> str | None:
    """Whether a unit of napari (pint's) is one of time or length; pixels are neither."""
    dimension = dict(unit.dimensionality)
    if dimension == {"[time]": 1}:
        return "time"
    return "length" if dimension == {"[length]": 1} else None
