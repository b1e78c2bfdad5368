"""What a benchmark found: rows for programs, a table for people."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tttunet.bench.machine import describe_machine
from tttunet.bench.paired import Spread
from tttunet.files import atomic_write


@dataclass(frozen=True)
class Report:
    """A finished measurement; make it while the number of threads is the one that was measured.

    Attributes:
        benchmark: name of the sub-command.
        title: of the table.
        columns: headings of the table.
        cells: the table, as text.
        rows: the same and more as numbers; a `Spread` becomes its median and quartiles.
        settings: everything that was asked for.
        gate: what was shown to be right before it was timed, with the errors found.
        notes: sentences below the table.
        machine: see `describe_machine`.
        date: day of the measurement, ISO format, UTC.
    """

    benchmark: str
    title: str
    columns: tuple[str, ...]
    cells: list[tuple[str, ...]]
    rows: list[dict[str, Any]]
    settings: dict[str, Any]
    gate: dict[str, Any]
    notes: tuple[str, ...] = ()
    machine: dict[str, Any] = field(default_factory=describe_machine)
    date: str = field(
        default_factory=lambda: datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    )

    def as_dict(self) -> dict[str, Any]:
        """Everything but the text, ready for JSON."""
        names = ("benchmark", "date", "machine", "settings", "gate", "rows")
        return {name: _plain(getattr(self, name)) for name in names}

    def markdown(self) -> str:
        """The table with machine and notes."""
        lines = [f"### {self.title}", "", _markdown_row(self.columns)]
        lines.append(_markdown_row(["---", *["---:"] * (len(self.columns) - 1)]))
        lines += [_markdown_row(row) for row in self.cells]
        lines += ["", *self.notes, f"{self.machine_line()}, {self.date}."]
        return "\n".join(lines) + "\n"

    def machine_line(self) -> str:
        """The machine in one line."""
        m = self.machine
        threads = f"{m['torch_threads']} thread{'' if m['torch_threads'] == 1 else 's'}"
        gpu = f", {m['gpu']}" if "gpu" in m else ""
        return f"{m['processor']}, {threads} of {m['cores']} cores{gpu}, torch {m['torch']}"

    def write(
        self, json_path: Path | None, markdown_path: Path | None, *, overwrite: bool
    ) -> list[Path]:
        """Write the files that are asked for; returns their paths.

        Raises:
            OutputError: a file exists and `overwrite` is false, or cannot be written.
        """
        texts = {
            json_path: json.dumps(self.as_dict(), indent=2) + "\n",
            markdown_path: self.markdown(),
        }
        written = []
        for path, text in texts.items():
            if path is not None:
                with atomic_write(path, overwrite=overwrite) as temporary:
                    temporary.write_text(text, encoding="utf-8")
                written.append(path)
        return written


def part_rows(parts: Mapping[str, Spread], whole: Spread) -> list[dict[str, Any]]:
    """Rows of the parts of a whole and, at the end, of the whole itself."""
    return [
        {"part": name, "seconds": spread, "share": spread.median / whole.median}
        for name, spread in {**parts, "all": whole}.items()
    ]


def part_cells(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The table of `part_rows`."""
    return [(row["part"], milliseconds(row["seconds"]), f"{row['share']:.0%}") for row in rows]


def milliseconds(spread: Spread) -> str:
    """`12.3 (12.1-12.9)` from seconds."""
    return str(spread.scaled(1e3))


def megabytes(count: int | None) -> str:
    return "?" if count is None else f"{count / 1e6:.1f}"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(value: Any) -> Any:
    if isinstance(value, Spread):
        return value.as_dict()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
