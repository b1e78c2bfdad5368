"""The training curve: one JSON object per line, and a plot."""

from __future__ import annotations

import json
from pathlib import Path

from tttunet.files import atomic_write


class History:
    """Appends to `history.jsonl`; survives a crash because every line is complete in itself.

    Args:
        folder: where `history.jsonl` and `loss.png` live.
        step: on resume, later lines (of a run that went on after its last checkpoint) are dropped.
        write: False keeps the rows in memory: only one of several processes writes.
    """

    def __init__(self, folder: Path, step: int = 0, *, write: bool = True) -> None:
        self.write = write
        self.path = folder / "history.jsonl"
        self.rows: list[dict] = []
        if self.path.exists():
            rows = [json.loads(line) for line in self.path.read_text().splitlines() if line]
            self.rows = [row for row in rows if row["step"] <= step]
        if write:
            with atomic_write(self.path, overwrite=True) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in self.rows))

    def add(self, **row: float) -> None:
        self.rows.append(row)
        if not self.write:
            return
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def plot(self, score_name: str) -> Path:
        """Draw loss and validation score over the steps; returns the PNG's path."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot(xlabel="step", ylabel="training loss")
        losses = [row for row in self.rows if "loss" in row]
        axes.plot([r["step"] for r in losses], [r["loss"] for r in losses], color="tab:blue")
        axes.grid(alpha=0.3)
        scores = [row for row in self.rows if "score" in row]
        if scores:
            right = axes.twinx()
            right.set_ylabel(f"validation {score_name}", color="tab:orange")
            steps, values = [r["step"] for r in scores], [r["score"] for r in scores]
            right.plot(steps, values, "o-", color="tab:orange")
        path = self.path.with_name("loss.png")
        with atomic_write(path, overwrite=True) as temporary:
            figure.savefig(temporary, dpi=120)
        return path
