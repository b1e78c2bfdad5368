"""What a fine-tuning tells the user beside its scores, one sentence each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tttunet.models.config import ModelConfig
from tttunet.training.samples import Material
from tttunet.training.transfer import hidden_classes, same_question, unmarked_classes

TOO_FEW = "There are too few labels to hold some out, so no score can be told."
FROM_SCRATCH = (
    "The model begins from scratch, so there is no score before to compare with, and nothing that "
    "it could forget."
)
NEW_HEAD = (
    "The labels ask for something else than the model finds, so its last layer begins anew: there "
    "is no score before to compare with, no earlier data is trained on, and what is forgotten is "
    "not measured."
)
NO_EARLIER_DATA = "No earlier data lies beside the model, so it may forget some of it."
NOT_BLENDED = "The head is new, so the weights are not blended with the earlier ones."
UNCHANGED = "No step made the model better: it is the one to start from, unchanged."


def of_classes(config: ModelConfig | None, material: Material) -> list[str]:
    """What is learnt about classes that nobody marked.

    Args:
        config: of the model to start from; None: a new one.
        material: what it learns from.
    """
    known = config is not None and same_question(config, material)
    hidden = hidden_classes(config, material) if known and config is not None else {}
    unmarked = unmarked_classes(material)
    return [
        *([of_hidden_classes(hidden)] if hidden else []),
        *([of_unmarked_classes(unmarked)] if unmarked else []),
    ]


def of_unmarked_classes(classes: Mapping[int, str]) -> str:
    """About classes that the labels could mark, but do not."""
    return (
        f"Nothing is marked as {_names(classes.values(), 'or')}: where background is checked, the "
        "model learns that there is none."
    )


def of_hidden_classes(classes: Mapping[int, str]) -> str:
    """About classes that the model finds and the labels lack."""
    several = len(classes) > 1
    return (
        f"The model also finds {_names(classes.values())}, which the labels have no class for: "
        f"{'they are' if several else 'it is'} neither trained nor scored, and a region that is "
        f"called complete does not say that there {'are' if several else 'is'} none."
    )


def of_known_classes(names: Iterable[str], scores: Mapping[str, Any]) -> str:
    """About classes that the model found before it got a new head.

    Args:
        names: of the classes.
        scores: `before` and `after`, see `heldout_scores.summary`.
    """
    before, after = scores["before"]["score"], scores["after"]["score"]
    return (
        f"On {_names(names)}, which the model knew already, the {scores['before']['metric']} on "
        f"held-out corrections went from {before:.2f} to {after:.2f}."
    )


def _names(names: Iterable[str], word: str = "and") -> str:
    *first, last = (f"'{name}'" for name in names)
    return f"{', '.join(first)} {word} {last}" if first else last
