"""What came of a fine-tuning, in words. Standard library only: the faces show it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def scores_text(result: Mapping[str, Any], dim: int = 2) -> str:
    """Before and after in words, with how many labels they rest on.

    Args:
        result: see `tttunet.engine.finetuning.run_finetune`.
        dim: of the images; 3 has voxels for pixels.
    """
    lines = []
    before, after = result.get("before"), result.get("after")
    if not result.get("improved"):
        lines.append("Nothing better was found: the best model is the one that you started from.")
    if after is not None:
        count, what = next((after[name], name) for name in ("objects", "pixels") if name in after)
        what = "voxels" if what == "pixels" and dim == 3 else what
        told = f"{after['metric']} on held-out corrections"
        if before is not None:
            told += f": {before['score']:.2f} \N{RIGHTWARDS ARROW} {after['score']:.2f}"
        else:
            told += f": {after['score']:.2f}"
        lines.append(f"{told} ({count:,} {what if count != 1 else what[:-1]}).")
        interval = after.get("difference_interval")
        if interval is not None:
            lines.append(_difference(after["difference"], interval))
    forgetting = result.get("forgetting")
    if forgetting is not None:
        old, new = forgetting["before"], forgetting["after"]
        lines.append(
            f"On earlier data: {old['score']:.2f} \N{RIGHTWARDS ARROW} {new['score']:.2f} "
            f"({forgetting['difference']:+.2f})."
        )
    repeated = ("No step made the model better",)
    lines += [note for note in result.get("notes", ()) if not note.startswith(repeated)]
    return "\n".join(lines)


def _difference(difference: float, interval: tuple[float, float]) -> str:
    low, high = interval
    if low <= -1:
        return "Too few labels were held out to say how certain that is."
    if low == high == 0:
        return "There is no difference."
    text = f"Difference {difference:+.2f}, 95 % interval {low:+.2f} to {high:+.2f}"
    return f"{text}: not certain." if low <= 0 <= high else f"{text}."
