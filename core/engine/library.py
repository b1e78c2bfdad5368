"""The library of models, for clients that cannot read it themselves or must not import torch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tttunet.engine.messages import (
    AddModel,
    DownloadModel,
    ExportModel,
    ListModels,
    Message,
    RemoveModel,
)
from tttunet.errors import Cancelled, ModelError
from tttunet.models.archive import export_model, unpack_model
from tttunet.models.labels import with_table
from tttunet.models.library import (
    ModelEntry,
    add_model,
    check_new_name,
    describe,
    list_models,
    remove_model,
)

if TYPE_CHECKING:
    from tttunet.engine.worker import Reporter

#: Arguments of `convert_checkpoint` that a request may give.
_OPTIONS = {"configuration", "fold", "title", "licence", "dtype"}


def run(request: Message, reporter: Reporter) -> dict[str, Any]:
    """Do what a request about the library asks for."""
    return _HANDLERS[request.kind](request, reporter)


def library() -> list[dict[str, Any]]:
    """An entry per model, with its card where model.json can be read; a face may call it too."""
    return [_described(entry) for entry in list_models()]


def _list(_request: ListModels, _reporter: Reporter) -> dict[str, Any]:
    """`models`: see `library`."""
    return {"models": library()}


def _add(request: AddModel, reporter: Reporter) -> dict[str, Any]:
    """The new `model`, and `warnings` of a conversion.

    Raises:
        ModelError, OutputError: as for `add_model`, `unpack_model` and `convert_checkpoint`.
    """
    warnings: tuple[str, ...] = ()
    unknown = sorted(set(request.options) - _OPTIONS)
    if unknown:
        raise ModelError(
            f"A conversion has no option '{unknown[0]}'.",
            f"There are {', '.join(sorted(_OPTIONS))}.",
        )
    check_new_name(request.name, overwrite=request.overwrite)
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(request.source).expanduser()
        if request.convert:
            from tttunet.models.convert import convert_checkpoint

            reporter.stage("converting")
            name = request.name or None
            found = convert_checkpoint(
                source, Path(temporary) / "model", name=name, **request.options
            )
            source, warnings = found.path, found.warnings
        elif source.is_file() and source.suffix.lower() == ".zip":
            source = _unpack(source, Path(temporary), reporter)
        model = _add_folder(source, request.name, request.overwrite, reporter)
    return {"model": model, "warnings": list(warnings)}


def _download(request: DownloadModel, reporter: Reporter) -> dict[str, Any]:
    """The new `model`, and the archive's `sha256` and size in `bytes`.

    Raises:
        ModelError, OutputError: as for `download`, `unpack_model` and `add_model`.
    """
    from tttunet.models.download import download

    check_new_name(request.name, overwrite=request.overwrite)
    reporter.stage("connecting")
    with tempfile.TemporaryDirectory() as temporary:
        found = download(
            request.url,
            Path(temporary) / "download.zip",
            sha256=request.sha256,
            limit=request.limit,
            progress=lambda done, total: reporter.progress("downloading", done, total),
            cancel=reporter.is_cancelled,
        )
        folder = _unpack(found.path, Path(temporary), reporter)
        model = _add_folder(folder, request.name, request.overwrite, reporter)
    return {"model": model, "sha256": found.sha256, "bytes": found.bytes}


def _export(request: ExportModel, reporter: Reporter) -> dict[str, Any]:
    """The `path` that was written.

    Raises:
        ModelError, OutputError: as for `export_model`.
    """
    path = export_model(
        request.name,
        request.output,
        overwrite=request.overwrite,
        progress=lambda done, total: reporter.progress("writing", done, total),
        cancel=reporter.is_cancelled,
    )
    return {"path": str(path)}


def _remove(request: RemoveModel, _reporter: Reporter) -> dict[str, Any]:
    """The `folder` that was deleted."""
    return {"folder": str(remove_model(request.name))}


def _unpack(archive: Path, temporary: Path, reporter: Reporter) -> Path:
    folder = temporary / "unpacked"
    folder.mkdir()
    return unpack_model(
        archive,
        folder,
        progress=lambda done, total: reporter.progress("unpacking", done, total),
        cancel=reporter.is_cancelled,
    )


def _add_folder(source: Path, name: str, overwrite: bool, reporter: Reporter) -> dict[str, Any]:
    if reporter.is_cancelled():
        raise Cancelled("The model was not added.")
    reporter.stage("checking the model")
    return _described(add_model(source, name or None, overwrite=overwrite))


def _described(entry: ModelEntry) -> dict[str, Any]:
    found = {**asdict(entry), "path": str(entry.path), "card": {}, "labels": []}
    if entry.task is not None:
        _, config = describe(entry.path)
        found["version"] = config.version
        found["card"] = config.card.model_dump(mode="json")
        if config.weights is not None:
            found["weights"] = {"sha256": config.weights.sha256, "bytes": config.weights.bytes}
        found["spacing"], found["unit"] = config.plan.spacing, config.plan.unit
        labels, _ = with_table(config.labels)  # a model that was trained here has no colours
        found["labels"] = [label.model_dump(mode="json") for label in labels]
        found["channels"] = config.plan.channels
        found["adapts"] = config.network.ttt is not None
        if config.plan.decoding is not None:
            found["decoding"] = config.plan.decoding.model_dump(mode="json")
    return found


_HANDLERS: dict[str, Callable[[Any, Any], dict[str, Any]]] = {
    ListModels.kind: _list,
    AddModel.kind: _add,
    RemoveModel.kind: _remove,
    ExportModel.kind: _export,
    DownloadModel.kind: _download,
}
