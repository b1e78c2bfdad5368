"""Training from a data set folder to a model folder: the function behind `tttunet train`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from tttunet.errors import DatasetError, ModelError, OutputError, TTTUNetError
from tttunet.files import atomic_write, check_output
from tttunet.inference.allocator import tune_allocator
from tttunet.inference.device import pick_device
from tttunet.models.config import CARD_NAME, WEIGHTS_NAME, ModelConfig
from tttunet.models.folder import REPLAY_NAME
from tttunet.models.model import Model, load_model
from tttunet.training.checkpoint import CHECKPOINT_NAME
from tttunet.training.config import TrainConfig
from tttunet.training.dataset import Dataset, open_dataset
from tttunet.training.folds import with_fold, without_split
from tttunet.training.plan.rules import CPU, GPU
from tttunet.training.planning import load_recipe, plan_training
from tttunet.training.prepare import PreparedCase, Progress, prepare
from tttunet.training.snapshot import SNAPSHOT_NAME
from tttunet.training.trainer import Trainer, TrainEvent
from tttunet.training.tuning import score_model, tune_components, tune_decoding

#: Used if neither steps nor minutes are given.
DEFAULT_MINUTES = 60.0

MODEL_FOLDER = "model"
PLAN_NAME = "plan.json"
SETTINGS_NAME = "training.json"
RECORD_NAME = "finetune.json"
_MODEL_FILES = (CARD_NAME, WEIGHTS_NAME)
_PRODUCTS = (
    PLAN_NAME,
    SETTINGS_NAME,
    CHECKPOINT_NAME,
    "history.jsonl",
    "loss.png",
    RECORD_NAME,
    SNAPSHOT_NAME,
)

#: Settings that may change when a training is resumed.
_BUDGET = {"steps", "max_minutes"}
_FREE = _BUDGET | {"workers", "validate_every", "validation_cases"}


def train(
    dataset: str | Path,
    output: str | Path,
    *,
    recipe: str | None = None,
    name: str | None = None,
    steps: int | None = None,
    max_minutes: float | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    start: str | Path | Model | None = None,
    configuration: str | None = None,
    preset: str | None = None,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    cache: str | Path | None = None,
    listener: Callable[[TrainEvent], None] | None = None,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Model:
    """Train a model, or go on with a training that was stopped.

    `output` receives `model/` (the best model so far), `loss.png` and `history.jsonl` (the curve),
    `checkpoint.pt`, `plan.json`, `training.json` and `cache/` (the preprocessed data).

    Args:
        dataset: folder with a `dataset.json`, or a CSV file of pairs, see `open_dataset`.
        output: folder of this training.
        recipe: name of a shipped recipe, or path of a JSON file; None: planned from the data.
        name: of the model; None: of the data set.
        steps, max_minutes: the budget; whichever is used up first ends the training. If neither
            is given here or in the recipe, `DEFAULT_MINUTES`.
        overrides: changes the recipe's parts `network`, `plan`, `train` and `card`, e.g.
            `{"network": {"ttt": None}, "train": {"batch_size": 2}}`.
        start: model whose weights, network and plan to start from.
        configuration, preset: see `plan_from_fingerprint`; for data sets of classes.
        device: `auto`, `cpu`, `cuda` or `mps`.
        resume: go on from the checkpoint in `output` with the settings stored there. A budget
            given here replaces the stored one; other settings may be repeated, not changed.
        overwrite: replace a previous training in `output`.
        cache: folder of the preprocessed data; None: `output/cache`.
        listener: called with every `TrainEvent`.
        progress: called with (images read, images in all), first for the fingerprint, then for
            the preprocessing.
        cancel: asked at every step; True saves a checkpoint and raises `Cancelled`.

    Returns:
        The best model, which is also in `output/model`.

    Raises:
        DatasetError: the data set or the recipe is wrong, or there is nothing to resume.
        ModelError: the start model does not fit the data set or the recipe.
        OutputError: `output` holds a training already, or cannot be written.
        Cancelled: `cancel` returned True.
    """
    tune_allocator()
    folder = Path(output)
    kind = accelerator(device)
    data = open_dataset(dataset)
    check_folder(folder, resume, overwrite)
    parent = start if start is None or isinstance(start, Model) else load_model(start)
    asked = _merge(overrides or {}, {"train": _given(steps=steps, max_minutes=max_minutes)})
    parts = _merge(
        {} if recipe is None else load_recipe(recipe),
        {} if parent is None else _parts_of(parent, data),
        asked,
    )
    stored = _resumed(folder, asked["train"]) if resume else None
    wanted = parts["train"] if stored is None else parts["train"] | _fold_of(stored[1])
    seen = data
    if wanted.get("folds"):
        # All folds have one plan, so that their models can be averaged.
        seen = without_split(data)
        data = with_fold(data, wanted["folds"], wanted.get("fold", 0))
    cache = cache or folder / "cache"

    def plan(name: str | None) -> tuple[ModelConfig, TrainConfig]:
        return plan_training(
            seen,
            parts,
            name,
            configuration=configuration,
            preset=preset,
            budget=GPU if kind == "cuda" else CPU,
            cache=cache,
            progress=progress,
        )

    if stored is not None:
        config, settings = stored
        _check_dataset(config, data)
        if recipe or name or parent or configuration or preset or _changes_the_recipe(asked):
            _check_unchanged(config, settings, *plan(name or config.name))
    else:
        config, settings = plan(name)
        if settings.steps is None and settings.max_minutes is None:
            settings = settings.model_copy(update={"max_minutes": DEFAULT_MINUTES})

    model = _initial_model(config, settings.seed, parent)
    train_cases, val_cases = _prepare(data, config, cache, progress)
    if not resume:
        remove_previous(folder)
    _write_json(folder / PLAN_NAME, config.model_dump_json(indent=2))
    _write_json(folder / SETTINGS_NAME, settings.model_dump_json(indent=2))
    trainer = Trainer(
        model,
        train_cases,
        val_cases,
        settings,
        folder,
        listener=listener,
        cancel=cancel,
        device=kind,
    )
    best = trainer.run(resume=resume)
    return _finish(best, trainer, val_cases, data, folder)


def accelerator(device: str) -> str:
    """Fabric's name of the device to train on."""
    kind = pick_device(device).type
    if ":" in device:
        raise TTTUNetError(
            f"Training cannot be told to use '{device}'.",
            "Choose 'cuda' and make one GPU visible through CUDA_VISIBLE_DEVICES.",
        )
    return kind


def check_folder(folder: Path, resume: bool, overwrite: bool) -> None:
    """Whether `folder` may receive a training, before the work begins."""
    if resume and overwrite:
        raise OutputError("A training is either resumed or overwritten.", "Choose one of them.")
    check_output(folder / PLAN_NAME, overwrite=True)
    if resume:
        return
    model = folder / MODEL_FOLDER
    others = (
        {path.name for path in model.iterdir()} - {*_MODEL_FILES, REPLAY_NAME}
        if model.is_dir()
        else ()
    )
    if others:
        raise OutputError(
            f"'{model}' holds something else than a model ('{min(others)}') and is not replaced.",
            "Choose another folder.",
        )
    if overwrite:
        return
    if any((folder / name).exists() for name in (*_PRODUCTS, MODEL_FOLDER)):
        raise OutputError(
            f"'{folder}' holds a training already.",
            "Go on with it (--resume), replace it (--overwrite), or choose another folder.",
        )


def remove_previous(folder: Path) -> None:
    """Remove the products of an earlier training."""
    # Not the cache: it is checked against the data set and used again.
    for name in (*_PRODUCTS, *(f"{MODEL_FOLDER}/{file}" for file in _MODEL_FILES)):
        (folder / name).unlink(missing_ok=True)


def _merge(*recipes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Later recipes change the fields of earlier ones."""
    merged: dict[str, dict[str, Any]] = {}
    for recipe in recipes:
        for part, values in recipe.items():
            merged[part] = {**merged.get(part, {}), **values}
    return merged


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _parts_of(parent: Model, data: Dataset) -> dict[str, dict[str, Any]]:
    _check_dataset(parent.config, data)
    return {
        "network": parent.config.network.model_dump(),
        "plan": parent.config.plan.model_dump(),
        "card": {"parent": f"{parent.config.name} {parent.config.version}"},
    }


def _fold_of(settings: TrainConfig) -> dict[str, Any]:
    """What a resumed training held out stays held out."""
    return {"folds": settings.folds, "fold": settings.fold}


def _check_dataset(config: ModelConfig, data: Dataset) -> None:
    """The model must solve the data set's task."""
    found = (data.task, data.dim, sorted(data.classes) if data.task == "semantic" else None)
    values = sorted(label.value for label in config.labels)
    wanted = (config.task, config.network.dim, values if config.task == "semantic" else None)
    if found != wanted:
        raise ModelError(
            f"The model '{config.name}' ({_task(*wanted)}) does not fit the data set "
            f"'{data.name}' ({_task(*found)})."
        )


def _task(task: str, dim: int, classes: list[int] | None) -> str:
    return f"{task}, {dim}D" if classes is None else f"{task}, {dim}D, classes {classes}"


def _resumed(folder: Path, asked: Mapping[str, Any]) -> tuple[ModelConfig, TrainConfig]:
    """The stored settings with the changes that a resumed training may have."""
    try:
        config = ModelConfig.model_validate_json((folder / PLAN_NAME).read_text())
        stored = json.loads((folder / SETTINGS_NAME).read_text())
        if not (folder / CHECKPOINT_NAME).exists():
            raise FileNotFoundError
        if _BUDGET & set(asked):
            stored |= dict.fromkeys(_BUDGET)
        changed = {key: value for key, value in asked.items() if key in _FREE}
        return config, TrainConfig(**(stored | changed))
    except FileNotFoundError:
        raise DatasetError(
            f"There is no training to resume in '{folder}'.", "Start it without --resume."
        ) from None
    except (OSError, ValidationError, json.JSONDecodeError) as error:
        raise DatasetError(
            f"The training in '{folder}' cannot be resumed: its settings are damaged ({error}).",
            "Start again with --overwrite.",
        ) from error


def _changes_the_recipe(asked: Mapping[str, Mapping[str, Any]]) -> bool:
    return any(
        set(values) - (_FREE if part == "train" else set()) for part, values in asked.items()
    )


def _check_unchanged(
    config: ModelConfig, settings: TrainConfig, new: ModelConfig, new_settings: TrainConfig
) -> None:
    changed = [] if config.name == new.name else ["name"]
    for part, old, asked in (
        ("network", config.network, new.network),
        ("plan", config.plan, new.plan),
        ("train", settings, new_settings),
    ):
        before, after = old.model_dump(), asked.model_dump()
        changed += [f"{part}.{key}" for key in before if before[key] != after[key]]
    changed = [key for key in changed if key.removeprefix("train.") not in _FREE]
    if changed:
        raise DatasetError(
            f"A resumed training keeps its settings, but these differ: {', '.join(changed)}.",
            "Leave the options away, or give those of the first run.",
        )


def _initial_model(config: ModelConfig, seed: int, parent: Model | None) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Model.create(config)
    if parent is None:
        return model
    if parent.config.network != config.network:
        raise ModelError(
            f"The network of '{parent.config.name}' cannot be changed when training from it.",
            "Leave away the options that change the network.",
        )
    model.network.load_state_dict(parent.network.state_dict())
    return model


def _prepare(
    data: Dataset, config: ModelConfig, cache: str | Path, progress: Progress | None
) -> tuple[list[PreparedCase], list[PreparedCase]]:
    first = len(data.cases["train"])
    total = first + len(data.cases["val"])

    def run(split: Any, offset: int) -> list[PreparedCase]:
        report = None if progress is None else lambda done, _: progress(offset + done, total)
        channels = config.network.input_channels
        return prepare(data, config.plan, cache, report, split=split, channels=channels)

    return run("train", 0), run("val", first)


def _write_json(path: Path, text: str) -> None:
    with atomic_write(path, overwrite=True) as temporary:
        temporary.write_text(text + "\n")


def _finish(
    model: Model, trainer: Trainer, val_cases: list[PreparedCase], data: Dataset, folder: Path
) -> Model:
    """Choose the thresholds, and write into the card how the model was trained and its scores."""

    def report(done: int, total: int) -> None:
        event = TrainEvent("tuning", trainer.step, done / total, trainer.elapsed, math.nan)
        trainer.listener(event)

    network, config = model.network, model.config
    if val_cases and config.task == "instance":
        decoding = tune_decoding(model, val_cases, trainer.fabric.device, report)
        plan = config.plan.model_copy(update={"decoding": decoding})
        config = config.model_copy(update={"plan": plan})
    elif val_cases:
        groups = tune_components(model, val_cases, trainer.fabric.device, report)
        plan = config.plan.model_copy(update={"keep_largest": groups})
        config = config.model_copy(update={"plan": plan})
    scores = {}
    if val_cases:
        tuned = Model(network, config)
        scores = {"val": score_model(tuned, val_cases, trainer.fabric.device)}
    training = {
        "steps": trainer.step,
        "minutes": round(trainer.elapsed / 60, 1),
        "train_images": len(data.cases["train"]),
        "val_images": len(val_cases),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "precision": trainer.precision,
        "settings": trainer.config.model_dump(exclude_none=True),
    }
    card = config.card.model_copy(update={"training": training, "scores": scores})
    finished = Model(network, config.model_copy(update={"card": card}))
    finished.save(folder / MODEL_FOLDER, overwrite=True)
    return finished
