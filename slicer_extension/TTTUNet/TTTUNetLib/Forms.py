"""Small things that every section of the window does with its controls."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import qt
from slicer.i18n import tr as _

#: Of a model's labels; the tool tip has all.
_MOST_NAMES = 5


def chosen(combo: Any) -> str:
    """The data of what is chosen in a combo box; empty: nothing."""
    return str(combo.itemData(combo.currentIndex) or "")


def choose(combo: Any, value: str) -> None:
    """Choose an item by its data, if there is one."""
    index = combo.findData(value)
    if index >= 0:
        combo.currentIndex = index


def segmentNames(node: Any) -> list[str]:
    """Of a segmentation; none if it is None."""
    if node is None:
        return []
    content = node.GetSegmentation()
    count = range(content.GetNumberOfSegments())
    return [str(content.GetNthSegment(number).GetName()) for number in count]


def showChecks(boxes: Any, names: Sequence[str], checked: Collection[int]) -> None:
    """Fill a list with names to check; the rows of those that are checked are given."""
    boxes.clear()
    for row, name in enumerate(names):
        boxes.addItem(name)
        boxes.item(row).setCheckState(qt.Qt.Checked if row in checked else qt.Qt.Unchecked)


def checkedRows(boxes: Any) -> list[int]:
    """What is checked in such a list."""
    rows = range(boxes.count)
    return [row for row in rows if boxes.item(row).checkState() == qt.Qt.Checked]


def progressText(fraction: float, stage: str, eta: float | None) -> str:
    """Stage, percent, and the seconds to go if they are known."""
    left = "" if not eta else ", " + _("{0:.0f} s left").format(eta)
    return f"{stage} {fraction:.0%}{left}"


def modelOf(models: Sequence[dict[str, Any]], name: str) -> dict[str, Any] | None:
    """A model of the library by its name."""
    return next((model for model in models if model["name"] == name), None)


def cardLine(model: dict[str, Any]) -> str:
    """Dimensions, labels and licence, for a label."""
    names = [label["name"] for label in model["labels"]]
    more = len(names) - _MOST_NAMES
    shown = ", ".join(names[:_MOST_NAMES]) + (_(" and {0} more").format(more) if more > 0 else "")
    return f"{model['dim']}D: {shown}. " + _("Licence: {0}.").format(model["card"]["licence"])


def cardText(model: dict[str, Any]) -> str:
    """The card, for a tool tip."""
    names = ", ".join(label["name"] for label in model["labels"])
    card = model["card"]
    return "\n\n".join(
        part for part in (card["title"], names, card["description"], card["limitations"]) if part
    )
