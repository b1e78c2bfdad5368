"""Models: a network, its plan, labels and card; the library of them; import of checkpoints.

Cards and the library are read without torch; what computes is imported when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tttunet.models.config import Card, InstanceDecoding, Label, ModelConfig, Plan
from tttunet.models.library import (
    ModelEntry,
    add_model,
    describe,
    list_models,
    remove_model,
    resolve,
)

if TYPE_CHECKING:
    from tttunet.models.convert import Conversion, convert_checkpoint
    from tttunet.models.model import Model, load_model

__all__ = [
    "Card",
    "Conversion",
    "InstanceDecoding",
    "Label",
    "Model",
    "ModelConfig",
    "ModelEntry",
    "Plan",
    "add_model",
    "convert_checkpoint",
    "describe",
    "list_models",
    "load_model",
    "remove_model",
    "resolve",
]

_IMPORTED_LATE = {
    "Conversion": "convert",
    "Model": "model",
    "convert_checkpoint": "convert",
    "load_model": "model",
}


def __getattr__(name: str) -> Any:
    if name not in _IMPORTED_LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_IMPORTED_LATE[name]}"), name)
