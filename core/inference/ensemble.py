"""Several models as one: the mean of their probabilities, e.g. of a cross-validation's folds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from tttunet.errors import ModelError
from tttunet.models.config import CARD_NAME, ModelConfig
from tttunet.models.library import list_models
from tttunet.models.model import Model, load_model

#: Fields of a plan that may differ: what is done after the network.
_AFTERWARDS = {"decoding", "keep_largest"}


class Ensemble(nn.Module):
    """Networks whose probabilities are averaged.

    Args:
        networks: with the same inputs and outputs.
        maps: output channels after the classes (the distance map of instances), which are averaged
            as they are.
        regions: the outputs are logits of overlapping regions, not of classes.
    """

    def __init__(self, networks: Sequence[nn.Module], maps: int = 0, regions: bool = False) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.maps, self.regions = maps, regions

    def forward(self, x: Tensor) -> Tensor:
        """[batch, C, *spatial] -> [batch, K, *spatial] fp32.

        The softmax of the result over the classes is the mean of the networks' softmax; of regions,
        the sigmoid.
        """
        outputs = [network(x).float() for network in self.networks]
        if self.regions:
            return torch.stack([output.sigmoid() for output in outputs]).mean(0).logit(1e-6)
        classes = outputs[0].shape[1] - self.maps
        logs = torch.stack([output[:, :classes].log_softmax(1) for output in outputs])
        mean = logs.logsumexp(0)
        if not self.maps:
            return mean
        return torch.cat([mean, torch.stack([o[:, classes:] for o in outputs]).mean(0)], 1)


def ensemble(models: Sequence[Model]) -> Model:
    """One model out of several, for `segment`; it cannot be saved.

    Args:
        models: that find the same in the same way prepared images, as those of the folds of one
            cross-validation.

    Returns:
        A model with the first one's configuration; components are removed where all models do.

    Raises:
        ModelError: there is no model, or one does not fit the first.
    """
    if not models:
        raise ModelError("An ensemble needs at least one model.")
    first = models[0].config
    for model in models[1:]:
        for what, ours, theirs in zip(
            ("task", "labels", "preprocessing", "input"),
            _question(first),
            _question(model.config),
            strict=True,
        ):
            if ours != theirs:
                raise ModelError(
                    f"'{model.config.name}' and '{first.name}' differ in their {what}, so they "
                    "cannot be averaged.",
                    "Train them on folds of one data set, with the same recipe.",
                )
    shared = [set(model.config.plan.keep_largest) for model in models]
    kept = tuple(g for g in first.plan.keep_largest if all(g in groups for groups in shared))
    plan = first.plan.model_copy(update={"keep_largest": kept})
    maps = 1 if first.task == "instance" else 0
    network = Ensemble([model.network for model in models], maps, first.regions)
    return Model(network.eval(), first.model_copy(update={"plan": plan}))


def load_ensemble(references: Sequence[str | Path]) -> Model:
    """A model, or several as one.

    Args:
        references: names or folders as for `load_model`, or folders of folds: their folders are
            models, or results of `tttunet train`, which have the model in `model/`.

    Raises:
        ModelError: one cannot be loaded, or they do not fit each other.
    """
    folders = [member for reference in references for member in members(reference)]
    if len(folders) == 1:
        return load_model(folders[0])
    return ensemble([load_model(folder) for folder in folders])


def members(reference: str | Path) -> list[str | Path]:
    """The folders of the folds, if it is a folder of these; else the reference itself."""
    folder = Path(reference).expanduser()
    known = isinstance(reference, str) and reference in {entry.name for entry in list_models()}
    if known or not folder.is_dir() or (folder / CARD_NAME).is_file():
        return [reference]
    found: list[str | Path] = []
    for fold in sorted(path for path in folder.iterdir() if path.is_dir()):
        places = (place for place in (fold, fold / "model") if (place / CARD_NAME).is_file())
        found.extend(list(places)[:1])
    return found or [reference]


def _question(config: ModelConfig) -> tuple[object, ...]:
    network = config.network
    return (
        config.task,
        (config.regions, [(label.value, label.name) for label in config.labels]),
        config.plan.model_dump(exclude=_AFTERWARDS),
        (network.dim, network.input_channels, network.total_stride),
    )
