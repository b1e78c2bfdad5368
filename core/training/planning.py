"""From a data set to a network, a plan and a recipe: defaults that a recipe file may change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from tttunet.errors import DatasetError
from tttunet.imaging import load_image
from tttunet.models.config import (
    INSTANCE_CHANNELS,
    Card,
    DataSource,
    InstanceDecoding,
    Label,
    ModelConfig,
    Plan,
)
from tttunet.models.labels import with_table
from tttunet.networks.config import NetworkConfig, TTTConfig
from tttunet.training.config import TrainConfig
from tttunet.training.dataset import Dataset, Task
from tttunet.training.plan.choose import plan_from_fingerprint
from tttunet.training.plan.fingerprint import Progress, take_fingerprint
from tttunet.training.plan.rules import CPU, Budget

#: Largest patch per number of dimensions, and the features of the first stage.
LARGEST_PATCH = {2: 256, 3: 64}
BASE_FEATURES = {2: 24, 3: 16}
MOST_FEATURES = 256
#: The bottleneck keeps at least this many positions per axis.
SMALLEST_MAP = 4
MOST_STAGES = 6
#: Images looked at to choose the patch.
SAMPLED_CASES = 20


def plan_training(
    dataset: Dataset,
    overrides: dict[str, Any] | None = None,
    name: str | None = None,
    *,
    configuration: str | None = None,
    preset: str | None = None,
    budget: Budget = CPU,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> tuple[ModelConfig, TrainConfig]:
    """Choose network, plan and recipe for a data set.

    Instances are planned from the size of the images (`plan_network`), classes by nnU-Net's rules
    from a fingerprint of all training images (`tttunet.training.plan`).

    Args:
        dataset: from `open_dataset`.
        overrides: parts `network`, `plan`, `train` and `card`, each with the fields to change,
            as in the recipe files of `tttunet.resources.recipes`.
        name: of the model; None: of the data set.
        configuration, preset, budget: see `plan_from_fingerprint`.
        cache: folder of the fingerprint; None: it is not kept.
        progress: called with (images looked at, images in all).

    Raises:
        DatasetError: an override names an unknown field or has a wrong value, or there is no such
            configuration or preset.
    """
    overrides = overrides or {}
    unknown = set(overrides) - {"network", "plan", "train", "card"}
    if unknown:
        raise DatasetError(f"A recipe has no part {sorted(unknown)}.")
    dim = dataset.dim
    rows = overrides.get("network", {}).get("strides") or [(0,) * dim]
    if len(rows[0]) != dim:
        raise DatasetError(
            f"The recipe is for {len(rows[0])}D images, but '{dataset.name}' is {dim}D.",
            "Leave the recipe away: a network is then planned from the data.",
        )
    name = name or dataset.name
    source = DataSource(
        title=dataset.title or dataset.name, source=dataset.source, licence=dataset.licence
    )
    train: dict[str, Any] = {}
    if dataset.task == "semantic" and not set(Plan.model_fields) <= set(overrides.get("plan", {})):
        base, train = plan_from_fingerprint(
            take_fingerprint(dataset, cache, progress),
            dataset.classes,
            name,
            configuration=configuration,
            preset=preset,
            budget=budget,
            sources=(source,),
        )
    elif configuration or preset:
        raise DatasetError(
            "Configurations and presets are for data sets of classes that are planned anew.",
            "Leave the option away.",
        )
    else:
        shape, channels = _typical_image(dataset)
        base = plan_network(shape, channels, dataset.task, dataset.classes, name, (source,))
    network, plan = base.network.model_dump(), base.plan.model_dump()
    card = base.card.model_dump() | {"licence": dataset.licence}
    labels, table = with_table(base.labels)
    try:
        chosen = NetworkConfig(**(network | overrides.get("network", {})))
        # The patch was chosen for the planned network: another one may halve it more often.
        plan["patch_size"] = tuple(
            -(-n // s) * s for n, s in zip(plan["patch_size"], chosen.total_stride, strict=True)
        )
        config = ModelConfig(
            name=name,
            task=dataset.task,
            network=chosen,
            plan=Plan(**(plan | overrides.get("plan", {}))),
            labels=labels,
            label_table=table,
            card=Card(**(card | overrides.get("card", {}))),
        )
        return config, TrainConfig(**(train | overrides.get("train", {})))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DatasetError(f"The recipe has a wrong value at '{where}': {first['msg']}.") from error


def plan_network(
    shape: tuple[int, ...],
    channels: int,
    task: Task,
    classes: Mapping[int, str],
    name: str,
    sources: tuple[DataSource, ...] = (),
) -> ModelConfig:
    """Choose network and plan for images of a kind.

    Args:
        shape: spatial shape of a typical image.
        channels: of the images.
        task: what is to be found.
        classes: number to name, foreground only.
        name: of the model.
        sources: of the data, for the card.
    """
    dim, instance = len(shape), task == "instance"
    patch = tuple(_patch_length(length, LARGEST_PATCH[dim]) for length in shape)
    # The same treatment of colour for every image of a mixed set: grey becomes RGB.
    rgb = dim == 2 and channels in (1, 3) and instance
    named = (Label(value=value, name=text) for value, text in sorted(classes.items()))
    labels, table = with_table(named)
    return ModelConfig(
        name=name,
        task=task,
        network=NetworkConfig(
            dim=dim,
            input_channels=3 if rgb else channels,
            output_channels=len(INSTANCE_CHANNELS) if instance else len(classes) + 1,
            **_stages(dim, patch),
            ttt=TTTConfig(heads=8, residual=True),
        ),
        plan=Plan(
            patch_size=patch,
            channels="rgb" if rgb else "as_is",
            normalisation="percentile" if instance else "zscore",
            decoding=InstanceDecoding() if instance else None,
            mirror_axes=tuple(range(dim)),
        ),
        labels=labels or (Label(value=1, name="object"),),
        label_table=table,
        card=Card(title=name, data=sources),
    )


def load_recipe(name_or_path: str) -> dict[str, Any]:
    """Read a recipe: the name of a shipped one or the path of a JSON file.

    Raises:
        DatasetError: no such recipe, or no valid JSON.
    """
    path = Path(name_or_path)
    shipped = resources.files("tttunet.resources") / "recipes"
    text: str
    if path.suffix == ".json" and path.is_file():
        text = path.read_text()
    elif (shipped / f"{name_or_path}.json").is_file():
        text = (shipped / f"{name_or_path}.json").read_text()
    else:
        names = sorted(p.name[:-5] for p in shipped.iterdir() if p.name.endswith(".json"))
        raise DatasetError(f"There is no recipe '{name_or_path}'.", f"Shipped: {', '.join(names)}.")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DatasetError(f"Recipe '{name_or_path}' is not valid JSON: {error}.") from error


def _typical_image(dataset: Dataset) -> tuple[tuple[int, ...], int]:
    """Median spatial shape and number of channels of some training images."""
    cases = dataset.cases["train"]
    every = max(1, len(cases) // SAMPLED_CASES)
    images = [load_image(case.images[0]) for case in cases[::every][:SAMPLED_CASES]]
    shapes = np.array([image.spatial_shape for image in images])
    counts = [i.array.shape[i.axes.index("C")] if "C" in i.axes else 1 for i in images]
    files = len(cases[0].images)
    channels = files if files > 1 else max(counts)
    return tuple(int(n) for n in np.median(shapes, axis=0)), channels


def _patch_length(length: int, largest: int) -> int:
    """Multiple of 16 up to `largest` (at least 32), no larger than needed for `length`."""
    return int(np.clip(-(-length // 16) * 16, 32, largest))


def _stages(dim: int, patch: tuple[int, ...]) -> dict[str, Any]:
    """Halve every axis while it stays at least `SMALLEST_MAP` long."""
    size, strides = list(patch), [(1,) * dim]
    while len(strides) < MOST_STAGES and max(size) >= 2 * SMALLEST_MAP:
        stride = tuple(2 if n >= 2 * SMALLEST_MAP and n % 2 == 0 else 1 for n in size)
        if max(stride) == 1:
            break
        size = [n // step for n, step in zip(size, stride, strict=True)]
        strides.append(stride)
    n = len(strides)
    features = tuple(min(BASE_FEATURES[dim] * 2**s, MOST_FEATURES) for s in range(n))
    return {
        "features": features,
        "kernel_sizes": ((3,) * dim,) * n,
        "strides": tuple(strides),
        "encoder_blocks": (1,) * (n - 1) + (2,),
        "decoder_blocks": (1,) * (n - 1),
    }
