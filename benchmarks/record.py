"""Writing of benchmark results together with what they were measured on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tttunet.bench.machine import describe_machine

RESULTS = Path(__file__).parent / "results"


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Write `results/NAME.json`; prints its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"environment": describe_machine(), **result}, indent=2) + "\n")
    print(f"wrote {path}")
    return path
