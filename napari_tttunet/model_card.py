"""The card of a model as text for the eye: everything that comes from the card is escaped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

_ORIGINS = {"shipped": "comes with the plugin", "user": "added by you"}
_TASKS = {"instance": "finds single objects", "semantic": "finds regions of a kind"}
_CHANNELS = {"rgb": "grey or colour (RGB)", "as_is": "as many channels as it was trained with"}
#: What cards call things, and what people do. Scores at an overlap (IoU) of 0.5 are the usual ones.
_NAMES = {
    "train_images": "images learned from",
    "val_images": "images held back",
    "val": "On images held back",
    "held_out": "On corrections held back",
    "all": "all images",
    "f1_pooled_iou50": "F1",
    "precision_pooled_iou50": "precision",
    "recall_pooled_iou50": "recall",
    "f1_mean_over_images_iou50": "F1 per image",
    "ap_mean_iou50_95": "mean AP",
    "f1_iou50": "F1",
    "f1_iou70": "F1 at an overlap of 0.7",
    "dice_mean": "mean Dice",
    "foreground_dice": "Dice of all objects together",
}
_OVERLAP = (
    "F1, precision and recall count an object as found if it and the true one share at least half "
    "of all their pixels (IoU 0.5); mean AP is the mean from 0.5 to 0.95."
)
#: More of a value's text is cut off: a card is read by people.
_LONGEST = 4000


def card_html(model: Mapping[str, Any]) -> str:
    """A model of the library as HTML.

    Args:
        model: an entry of `tttunet.engine.library.library`.
    """
    card = model.get("card") or {}
    parts = [f"<h3>{_text(card.get('title') or model['name'])}</h3>"]
    if model.get("error"):
        parts.append(f"<p><b>It cannot be used:</b> {_text(model['error'])}</p>")
    parts.append(_paragraph(card.get("description")))
    parts.append(_rows(_facts(model)))
    if card.get("data"):
        sources = "".join(_source(one) for one in card["data"])
        parts.append(f"<h4>Trained on</h4><ul>{sources}</ul>")
    parts.append(_section("Training", _rows(_plain(_training(card.get("training"))))))
    scores = card.get("scores") or {}
    note = _paragraph(_OVERLAP) if "_iou50" in str(scores) else ""
    parts.append(_section("Scores", _scores(scores) + note))
    parts.append(_section("Keep in mind", _paragraph(card.get("limitations"))))
    parts.append(_section("File", _rows(_file(model))))
    return "".join(parts)


def summary_html(model: Mapping[str, Any]) -> str:
    """What a person should know before using a model: for a tooltip, or a label in a narrow dock.

    Args:
        model: an entry of `tttunet.engine.library.library`.
    """
    if model.get("error"):
        return _text(model["error"])
    card = model.get("card") or {}
    kind = "single objects" if model.get("task") == "instance" else "classes of pixels"
    trained = [str(source.get("title", "")) for source in card.get("data", ())]
    rows = [
        ("Finds", kind),
        ("Names", ", ".join(str(label["name"]) for label in model.get("labels", ()))),
        ("Works in", f"{model.get('dim')}D"),
        ("Trained on", "; ".join(filter(None, trained))),
        ("Licence", card.get("licence")),
        ("Limits", card.get("limitations")),
        ("Scores", "\n".join(_main_scores(card.get("scores") or {}))),
    ]
    title = f"<b>{_text(card.get('title') or model.get('name'))}</b>"
    lines = (
        f"<p><b>{name}:</b> {_text(value)}</p>".replace("\n", "<br>")
        for name, value in rows
        if value
    )
    return "".join((title, _paragraph(card.get("description")), *lines))


def _main_scores(scores: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """A line per group of scores, with its first two numbers between 0 and 1."""
    numbers = [(k, v) for k, v in scores.items() if isinstance(v, float) and 0 <= v <= 1]
    if numbers:
        shown = ", ".join(f"{_words(k)} {v:.2f}" for k, v in numbers[:2])
        yield f"{where}: {shown}" if where else shown
    for name, value in scores.items():
        if isinstance(value, Mapping):
            yield from _main_scores(value, f"{where}, {_words(name)}" if where else _words(name))


def _facts(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    card = model.get("card") or {}
    spacing = model.get("spacing")
    facts = [
        ("Name", model["name"]),
        ("Version", model.get("version")),
        ("Origin", _ORIGINS.get(model.get("origin", ""), model.get("origin"))),
        ("Task", _TASKS.get(model.get("task") or "", "")),
        ("Dimensions", f"{model['dim']}D" if model.get("dim") else ""),
        ("Images", _CHANNELS.get(model.get("channels", ""), "")),
        ("Pixel size", f"{_numbers(spacing)} {model.get('unit') or ''}" if spacing else ""),
        ("Labels", ", ".join(str(label["name"]) for label in model.get("labels", ()))),
        ("Licence", card.get("licence")),
        ("Authors", ", ".join(card.get("authors") or ())),
        ("Made from", card.get("parent")),
    ]
    return [(name, str(value).strip()) for name, value in facts if value]


def _file(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    weights = model.get("weights") or {}
    facts = [("Folder", model.get("path", ""))]
    if weights:
        facts += [("Size", size(weights["bytes"])), ("SHA-256", weights["sha256"])]
    return facts


def size(count: float) -> str:
    """`512 bytes`, `8.5 MB`."""
    if count < 1000:
        return f"{count:.0f} bytes"
    for unit in ("kB", "MB"):
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.2f} GB"


def _source(source: Mapping[str, Any]) -> str:
    licence = f" ({_text(source['licence'])})" if source.get("licence") else ""
    where = f"<br><small>{_text(source['source'])}</small>" if source.get("source") else ""
    return f"<li>{_text(source.get('title', ''))}{licence}{where}</li>"


def _training(values: Any) -> Any:
    """Scores have a precision, too, which is something else."""
    if not isinstance(values, Mapping):
        return values
    return {"arithmetic" if name == "precision" else name: v for name, v in values.items()}


def _plain(values: Any) -> list[tuple[str, str]]:
    """The entries that are single numbers or words; settings of the optimiser are for the file."""
    if not isinstance(values, Mapping):
        return []
    return [
        (_words(name), _number(value))
        for name, value in values.items()
        if isinstance(value, str | int | float) and not isinstance(value, bool)
    ]


def _scores(scores: Mapping[str, Any], title: str = "") -> str:
    """Groups of numbers side by side as a table, everything else as rows."""
    groups = {k: v for k, v in scores.items() if isinstance(v, Mapping)}
    leaves = {k: v for k, v in scores.items() if k not in groups}
    heading = f"<p><b>{_text(_words(title))}</b></p>" if title else ""
    parts = [_rows(_plain(leaves))] if leaves else []
    columns = {k: v for k, v in groups.items() if _plain(v) and len(_plain(v)) == len(v)}
    if columns:
        parts.append(_table(columns))
    parts += [_scores(v, k) for k, v in groups.items() if k not in columns]
    return heading + "".join(parts) if any(parts) else ""


def _table(groups: Mapping[str, Mapping[str, Any]]) -> str:
    """One block per group: a dock is narrow, and groups may be many."""
    blocks = []
    for name, values in groups.items():
        rows = ", ".join(f"{_text(n)} {_text(v)}" for n, v in _plain(values))
        blocks.append(f"<p><b>{_text(_words(name))}</b>: {rows}</p>")
    return "".join(blocks)


def _rows(rows: Sequence[tuple[str, str]]) -> str:
    if not rows:
        return ""
    body = "".join(
        f"<tr><td><b>{_text(name)}&nbsp;</b></td><td>{_breakable(value)}</td></tr>"
        for name, value in rows
    )
    return f"<table cellspacing='2'>{body}</table>"


def _section(title: str, content: str) -> str:
    return f"<h4>{title}</h4>{content}" if content else ""


def _paragraph(text: Any) -> str:
    return f"<p>{_text(text)}</p>" if text else ""


def _words(name: Any) -> str:
    return _NAMES.get(str(name)) or str(name).replace("_", " ")


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}".replace(",", "\N{NO-BREAK SPACE}") if isinstance(value, int) else str(value)


def _numbers(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)


def _text(value: Any) -> str:
    text = str(value)
    return escape(text if len(text) <= _LONGEST else text[:_LONGEST] + " ...")


def _breakable(value: str) -> str:
    """Long words (paths, checksums) may be broken: Qt does not do so by itself."""
    words = []
    for word in str(value)[:_LONGEST].split(" "):
        pieces = [escape(word[i : i + 20]) for i in range(0, len(word), 20)]
        words.append("&#8203;".join(pieces))
    return " ".join(words)
