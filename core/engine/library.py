"""The library of models, for clients that cannot read it themselves or must not import torch."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tttunet.engine.messages import AddModel, ListModels, RemoveModel
from tttunet.engine.worker import Reporter
from tttunet.errors import ModelError
from tttunet.models.library import ModelEntry, add_model, describe, list_models, remove_model

#: Arguments of `convert_checkpoint` that a request may give.
_OPTIONS = {"configuration", "fold", "title", "licence", "dtype"}


def run_list(_request: ListModels, _reporter: Reporter) -> dict[str, Any]:
    """`models`: an entry each, with its card where model.json can be read."""
    return {"models": [_described(entry) for entry in list_models()]}


def run_add(request: AddModel, reporter: Reporter) -> dict[str, Any]:
    """The new `model`, and `warnings` of a conversion.

    Raises:
        ModelError, OutputError: as for `add_model` and `convert_checkpoint`.
    """
    warnings: tuple[str, ...] = ()
    unknown = sorted(set(request.options) - _OPTIONS)
    if unknown:
        raise ModelError(
            f"A conversion has no option '{unknown[0]}'.",
            f"There are {', '.join(sorted(_OPTIONS))}.",
        )
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(request.source)
        if request.convert:
            from tttunet.models.convert import convert_checkpoint

            reporter.stage("converting")
            source = Path(temporary) / "model"
            name = request.name or None
            found = convert_checkpoint(request.source, source, name=name, **request.options)
            warnings = found.warnings
        reporter.stage("checking the model")
        entry = add_model(source, request.name or None, overwrite=request.overwrite)
    return {"model": _described(entry), "warnings": list(warnings)}


def run_remove(request: RemoveModel, _reporter: Reporter) -> dict[str, Any]:
    """The `folder` that was deleted."""
    return {"folder": str(remove_model(request.name))}


def _described(entry: ModelEntry) -> dict[str, Any]:
    found = {**asdict(entry), "path": str(entry.path), "card": {}, "labels": []}
    if entry.task is not None:
        _, config = describe(entry.path)
        found["version"] = config.version
        found["card"] = config.card.model_dump(mode="json")
        found["labels"] = [label.model_dump(mode="json") for label in config.labels]
        found["channels"] = config.plan.channels
        if config.plan.decoding is not None:
            found["decoding"] = config.plan.decoding.model_dump(mode="json")
    return found
