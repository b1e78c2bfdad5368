"""`history.jsonl`: one line per event, and what can be rebuilt from them."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tttunet.files import output_error
from tttunet.projects.schema import now

NAME = "history.jsonl"


class Journal:
    """Appends to the history; every line is complete in itself, so a crash costs one at most."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._lock = threading.Lock()

    def add(self, event: str, **values: Any) -> None:
        """Append a line that holds the time, the event and its values (JSON).

        Raises:
            OutputError: the file cannot be written.
        """
        line = json.dumps({"time": now(), "event": event, **values}, ensure_ascii=False)
        try:
            with self._lock, self.path.open("ab+") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":  # a process was killed in the middle of a line
                        line = f"\n{line}"
                file.write(f"{line}\n".encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise output_error(self.path, error) from error

    def events(self) -> list[dict[str, Any]]:
        """All events, oldest first; lines that cannot be read are left out."""
        return [event for event in self._lines() if event is not None]

    def damaged_lines(self) -> int:
        return sum(event is None for event in self._lines())

    def _lines(self) -> Iterator[dict[str, Any] | None]:
        try:
            content = self.path.read_bytes()
        except OSError:
            return
        for line in content.split(b"\n"):
            if line.strip():
                yield _parse(line)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    usable = isinstance(event, dict) and isinstance(event.get("event"), str)
    return event if usable else None
