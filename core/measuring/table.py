"""A table of objects by columns; needs numpy only, for faces that show it."""

from __future__ import annotations

import csv
import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tttunet.files import atomic_write

#: Rows that become text at once: a thread beside a window must not keep Python for long.
ROWS_AT_ONCE = 100


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        key: its name in `ObjectTable.values` and in settings.
        title: for people.
        unit: e.g. "µm²"; empty: a pure number.
        tip: what it means, in a sentence.
    """

    key: str
    title: str
    unit: str = ""
    tip: str = ""

    @property
    def header(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit else self.title


@dataclass(frozen=True, eq=False)
class ObjectTable:
    """N objects.

    Attributes:
        columns: in the order in which they are shown; the first is the label.
        values: by key, [N] each.
        centres: float [N, d], centre of mass in pixels, all axes of the labels.
        shape_axes: the axes that an object extends over, "YX" or "ZYX".
        boxes: int [N, 2, n], along `shape_axes`: first pixel, and first one outside.
    """

    columns: tuple[Column, ...]
    values: dict[str, np.ndarray]
    centres: np.ndarray
    shape_axes: str
    boxes: np.ndarray

    def __len__(self) -> int:
        return len(self.centres)

    def column(self, key: str) -> Column | None:
        return next((column for column in self.columns if column.key == key), None)

    @property
    def size_key(self) -> str:
        return "volume" if len(self.shape_axes) == 3 else "area"

    def rows(self, order: Sequence[int] | np.ndarray) -> Iterator[list[str]]:
        """Rows as text with nine digits, for files and the clipboard."""
        columns = [self.values[column.key] for column in self.columns]
        for first in range(0, len(order), ROWS_AT_ONCE):
            part = np.asarray(order[first : first + ROWS_AT_ONCE], np.int64)
            cells = [values[part].tolist() for values in columns]
            for row in zip(*cells, strict=True):
                yield [str(x) if isinstance(x, int) else f"{x:.9g}" for x in row]

    def save(self, path: str | Path) -> None:
        """Write an .npz file for `load`."""
        about = {"columns": [asdict(one) for one in self.columns], "shape_axes": self.shape_axes}
        arrays = {f"column_{i}": self.values[one.key] for i, one in enumerate(self.columns)}
        with Path(path).open("wb") as file:
            np.savez(
                file,
                about=np.array(json.dumps(about)),
                centres=self.centres,
                boxes=self.boxes,
                **arrays,  # type: ignore[arg-type]
            )

    @classmethod
    def load(cls, path: str | Path) -> ObjectTable:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as found:
            about = json.loads(str(found["about"]))
            columns = tuple(Column(**one) for one in about["columns"])
            values = {one.key: found[f"column_{i}"] for i, one in enumerate(columns)}
            return cls(columns, values, found["centres"], about["shape_axes"], found["boxes"])


def plain_header(column: Column) -> str:
    """The header in letters that every program reads: "Area (um^2)"."""
    header = column.header.replace("µ", "u").replace("²", "^2").replace("³", "^3")
    return header.encode("ascii", "replace").decode()


def write_csv(table: ObjectTable, path: Path, order: np.ndarray) -> Generator[int, None, Path]:
    """Writes rows of a table to a CSV file; the file appears only when it is complete.

    Args:
        table: what `measure` found.
        path: an existing file is replaced.
        order: which rows, in this order.

    Yields:
        The number of rows written so far, now and then.

    Raises:
        OutputError: the file cannot be written.
    """
    with (
        atomic_write(path, overwrite=True) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow([plain_header(column) for column in table.columns])
        for count, row in enumerate(table.rows(order), 1):
            writer.writerow(row)
            if count % ROWS_AT_ONCE == 0:
                yield count
    return path


def text_lines(
    table: ObjectTable, order: Sequence[int] | np.ndarray
) -> Generator[int, None, list[str]]:
    """Rows as spreadsheets paste them, the header first; yields as `write_csv` does."""
    lines = ["\t".join(plain_header(column) for column in table.columns)]
    for count, row in enumerate(table.rows(order), 1):
        lines.append("\t".join(row))
        if count % ROWS_AT_ONCE == 0:
            yield count
    return lines
