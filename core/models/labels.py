"""Tables of labels: names, colours and SNOMED CT codes of what models find.

A table is a JSON file of `resources/labels`; models refer to it by its file name.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from importlib import resources
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from tttunet.errors import ModelError
from tttunet.layers.config import StrictModel
from tttunet.models.card import first_problem
from tttunet.models.config import Label

Byte = Annotated[int, Field(ge=0, le=255)]


class Concept(StrictModel):
    """A concept of a terminology (DICOM's triple of scheme, value and meaning)."""

    scheme: Literal["SCT"]
    value: Annotated[str, Field(pattern=r"^\d{6,18}$")]
    meaning: str


class Code(Concept):
    """What a label is; `modifier` tells the side."""

    modifier: Concept | None = None

    def __str__(self) -> str:
        """As 3D Slicer writes terminology: `SCT^64033007^Kidney~SCT^24028007^Right`."""
        parts = (self, self.modifier) if self.modifier else (self,)
        return "~".join(f"{one.scheme}^{one.value}^{one.meaning}" for one in parts)


class Entry(StrictModel):
    """A label of a table; `also` are other names for the same thing."""

    value: int = Field(ge=1)
    name: str = Field(min_length=1)
    also: tuple[str, ...] = ()
    color: tuple[Byte, Byte, Byte]
    code: Code | None = None


class LabelTable(StrictModel):
    """Labels that belong together, with different numbers, names and colours."""

    title: str
    labels: tuple[Entry, ...]

    @model_validator(mode="after")
    def _distinct(self) -> LabelTable:
        names = [_plain(name) for entry in self.labels for name in (entry.name, *entry.also)]
        for what, found in (
            ("numbers", [entry.value for entry in self.labels]),
            ("colours", [entry.color for entry in self.labels]),
            ("names", names),
        ):
            if len(set(found)) < len(found):
                raise ValueError(f"two labels have the same {what}")
        return self


def table_names() -> tuple[str, ...]:
    """Names of the tables that there are."""
    folder = resources.files("tttunet.resources") / "labels"
    return tuple(sorted(one.name[:-5] for one in folder.iterdir() if one.name.endswith(".json")))


@functools.cache
def load_table(name: str) -> LabelTable:
    """Read a table.

    Raises:
        ModelError: there is no such table, or it is damaged.
    """
    if name not in table_names():
        raise ModelError(
            f"There is no table of labels '{name}'.", f"There are {', '.join(table_names())}."
        )
    file = resources.files("tttunet.resources") / "labels" / f"{name}.json"
    try:
        return LabelTable.model_validate_json(file.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise ModelError(f"The table '{name}' is damaged: {first_problem(error)}.") from error


def labels_of(name: str) -> tuple[Label, ...]:
    """The labels of a table, for a new model."""
    return tuple(
        Label(
            value=entry.value,
            name=entry.name,
            color=entry.color,
            code=None if entry.code is None else str(entry.code),
        )
        for entry in load_table(name).labels
    )


def with_table(labels: Iterable[Label]) -> tuple[tuple[Label, ...], str | None]:
    """Give labels the colours and codes of the table that knows all of them.

    Numbers and names stay; names are compared without regard to case, order of words and
    punctuation, so that `kidney_right` is the right kidney.

    Args:
        labels: of a model, colours and codes that it has are kept.

    Returns:
        The labels, and the name of a table with exactly these names and numbers, or None.
    """
    labels = tuple(labels)
    best: tuple[tuple[Label, ...], str | None] = (labels, None)
    for name in table_names():
        table = load_table(name)
        known = {_plain(n): entry for entry in table.labels for n in (entry.name, *entry.also)}
        entries = [known.get(_plain(label.name)) for label in labels]
        if not labels or None in entries:
            continue
        found = tuple(
            label.model_copy(
                update={
                    "color": label.color or entry.color,
                    "code": label.code or (str(entry.code) if entry.code else None),
                }
            )
            for label, entry in zip(labels, entries, strict=True)
            if entry is not None
        )
        numbers = [entry.value for entry in entries if entry is not None]
        same = [label.value for label in labels] == numbers and len(numbers) == len(table.labels)
        if same:
            return found, name
        best = (found, None) if best[0] is labels else best
    return best


def _plain(name: str) -> tuple[str, ...]:
    return tuple(sorted(re.findall(r"[a-z0-9]+", name.lower())))
