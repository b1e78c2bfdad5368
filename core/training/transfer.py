"""The model that a fine-tuning begins with: as it is, with a new head, or planned from the data."""

from __future__ import annotations

import numpy as np
import torch

from tttunet.errors import ModelError
from tttunet.imaging.image import Image
from tttunet.models.config import (
    INSTANCE_CHANNELS,
    Card,
    InstanceDecoding,
    Label,
    ModelConfig,
)
from tttunet.models.labels import with_table
from tttunet.models.model import Model
from tttunet.training.planning import plan_network
from tttunet.training.prepare import FOREGROUND
from tttunet.training.samples import Material


def initial_model(parent: Model | None, material: Material, name: str, seed: int) -> Model:
    """A model that answers what the samples' labels say.

    Args:
        parent: the model to start from; None: fresh weights, planned from the samples.
        material: the samples.
        name: of the new model.
        seed: of fresh weights.

    Returns:
        A model of its own. If the parent finds the same, it has the parent's weights; if the
        parent finds something else, the parent's weights but for the heads, of which it takes
        over the rows of classes of the same number and name.

    Raises:
        ModelError: the parent has other dimensions than the labels.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if parent is None:
            return Model.create(_planned(material, name))
        if parent.config.network.dim != material.dim:
            raise ModelError(
                f"'{parent.config.name}' is a {parent.config.network.dim}D model, the labels are "
                f"{material.dim}D.",
                "Choose another model to start from, or start from scratch.",
            )
        config = parent.config if same_question(parent.config, material) else None
        model = Model.create(config or _with_new_head(parent.config, material))
    state = parent.network.state_dict()
    fresh = model.network.state_dict()
    rows = _shared_rows(parent.config, model.config)
    for key, value in fresh.items():
        if state[key].shape == value.shape and (config is not None or "heads." not in key):
            fresh[key] = state[key].clone()
        else:
            for new, old in rows:
                value[new] = state[key][old]
    model.network.load_state_dict(fresh)
    model.config = model.config.model_copy(update={"name": name})
    return model


def same_question(config: ModelConfig, material: Material) -> bool:
    """Whether a model finds what the labels say: then its head can be kept."""
    if config.task != material.task:
        return False
    if config.task == "instance":
        return True
    known = {label.value: label.name.casefold() for label in config.labels}
    return all(
        value in known and text.casefold() in (known[value], f"class {value}")
        for value, text in material.classes.items()
    )


def hidden_classes(config: ModelConfig, material: Material) -> dict[int, str]:
    """Classes of a model that finds what the labels say, and more, but the labels lack."""
    if config.task != "semantic":
        return {}
    return {n.value: n.name for n in config.labels if n.value not in material.classes}


def unmarked_classes(material: Material) -> dict[int, str]:
    """Classes that no label marks anywhere; where some object is marked, it may be of any."""
    if material.task != "semantic":
        return {}
    samples = (*material.samples, *material.val)
    marked = {int(value) for sample in samples for value in np.unique(sample.labels)}
    return {} if FOREGROUND in marked else {
        value: name for value, name in material.classes.items() if value not in marked
    }  # fmt: skip


def shared_classes(old: ModelConfig, new: ModelConfig) -> dict[int, str]:
    """Classes of the same number and name that two semantic models find."""
    rows = [row for row in _shared_rows(old, new) if row != (0, 0)]
    return {new.labels[i - 1].value: new.labels[i - 1].name for i, _ in rows}


def _planned(material: Material, name: str) -> ModelConfig:
    image = material.samples[0].image
    if isinstance(image, Image):
        shape, channels = image.spatial_shape, image.channels
    else:
        shape, channels = image.shape[1:], image.shape[0]
    shape = tuple(shape[-material.dim :])
    return plan_network(shape, channels, material.task, material.classes, name, material.sources)


def _with_new_head(config: ModelConfig, material: Material) -> ModelConfig:
    instance = material.task == "instance"
    outputs = len(INSTANCE_CHANNELS) if instance else len(material.classes) + 1
    decoding = config.plan.decoding or InstanceDecoding()
    labels, table = with_table(
        Label(value=v, name=text) for v, text in sorted(material.classes.items())
    )
    return ModelConfig(
        name=config.name,
        version=config.version,
        task=material.task,
        network=config.network.model_copy(update={"output_channels": outputs}),
        # What the old classes have one of, the new ones may have many of.
        plan=config.plan.model_copy(
            update={"decoding": decoding if instance else None, "keep_largest": ()}
        ),
        labels=labels,
        label_table=table,
        card=Card(title=config.card.title, licence=config.card.licence, data=config.card.data),
    )


def _shared_rows(old: ModelConfig, new: ModelConfig) -> list[tuple[int, int]]:
    """Output channels, new and old, that mean the same."""
    if old.task != "semantic" or new.task != "semantic":
        return []
    places = {(label.value, label.name.casefold()): i for i, label in enumerate(old.labels, 1)}
    shared = [
        (i, places[key])
        for i, label in enumerate(new.labels, 1)
        if (key := (label.value, label.name.casefold())) in places
    ]
    # Background without a class in common is another background.
    return [(0, 0), *shared] if shared else []
