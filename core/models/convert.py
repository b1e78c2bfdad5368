"""The authors' checkpoints (nnU-Net folders) as models of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from tttunet.errors import ModelError
from tttunet.models.card import first_problem
from tttunet.models.config import Card, ModelConfig
from tttunet.models.labels import with_table
from tttunet.models.model import Model, Precision, network_with_weights
from tttunet.models.nnunet import (
    NNUNetFiles,
    configuration_of,
    find_files,
    read_labels,
    read_plan,
    read_topology,
    slug,
)
from tttunet.models.released import convert_network
from tttunet.networks import NetworkConfig, released_config
from tttunet.networks.config import Placement

_SCALAR = np.float64(0).__reduce__()[0]
#: nnU-Net logs numpy scalars. Their module has another name in files written with numpy 1.
_SAFE_GLOBALS: list[Any] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int64)),
]
_HEAD = re.compile(r"decoder\.seg_layers\.(\d+)\.weight")
_WRAPPER_PREFIX = re.compile(r"^(module\.|_orig_mod\.)+")


@dataclass(frozen=True)
class Conversion:
    """A converted checkpoint.

    Attributes:
        path: the model folder.
        config: its model.json.
        warnings: one sentence for everything that differs from the authors' inference; they are
            in the card's limitations too.
    """

    path: Path
    config: ModelConfig
    warnings: tuple[str, ...]


def convert_checkpoint(
    source: str | Path,
    output: str | Path,
    *,
    name: str | None = None,
    configuration: str | None = None,
    fold: str | None = None,
    title: str | None = None,
    licence: str = "unknown",
    dtype: Precision = "fp32",
    overwrite: bool = False,
) -> Conversion:
    """Convert a checkpoint of the authors' TTT-UNet code to a model folder.

    Args:
        source: nnU-Net's folder TRAINER__PLANS__CONFIGURATION, one fold of it, or a .pth file with
            plans.json and dataset.json beside or one folder above it.
        output: the model folder to write.
        name: name of the model; by default that of the output folder.
        configuration: `2d` or `3d_fullres`; by default what the checkpoint says.
        fold: which fold to take if there are several, `0` or `all`.
        title, licence: for the card.
        dtype: of the weights on disk.
        overwrite: replace an existing model.

    Raises:
        ModelError: a file is missing or damaged, the checkpoint contains anything but tensors and
            numbers, is no TTT-UNet, or does not fit its plans.json.
        OutputError: the output cannot be written.
    """
    files = find_files(Path(source).expanduser(), fold)
    checkpoint = _load_checkpoint(files.checkpoint)
    state = _network_state(checkpoint, files.checkpoint)
    mirror = checkpoint.get("inference_allowed_mirroring_axes") or ()
    output = Path(output)
    try:
        chosen = configuration or _configuration_name(checkpoint, files)
        section = configuration_of(files.plans, chosen)
        plan, warnings = read_plan(
            files.plans, files.dataset, section, tuple(int(axis) for axis in mirror)
        )
        network_config = _network_config(state, section, plan.patch_size)
        found, regions = read_labels(files.dataset)
        # The name of a region is that of the whole, its label what no later region covers.
        labels, table = (found, None) if regions else with_table(found)
        config = ModelConfig(
            name=name or slug(output.absolute().name),
            task="semantic",
            network=network_config,
            plan=plan,
            labels=labels,
            label_table=table,
            regions=regions,
            card=_card(checkpoint, files, chosen, title, licence, warnings),
        )
    except ValidationError as error:
        raise ModelError(
            f"'{files.checkpoint}' does not fit its plans.json or dataset.json: "
            f"{first_problem(error)}."
        ) from error
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelError(
            f"The plans.json or dataset.json of '{files.checkpoint}' is malformed: {error}."
        ) from error
    weights = convert_network(state, network_config)
    network = network_with_weights(network_config, weights, f"'{files.checkpoint}'")
    path = Model(network, config).save(output, overwrite=overwrite, dtype=dtype)
    return Conversion(path, config, tuple(warnings))


def _load_checkpoint(path: Path) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals(_SAFE_GLOBALS):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"'{path}' cannot be read: {error.strerror or error}.") from error
    except Exception as error:
        foreign = re.search(r"(?:GLOBAL|[Uu]nsupported (?:class|global):?)\s+([\w.]+)", str(error))
        if foreign:
            raise ModelError(
                f"'{path}' contains Python objects ('{foreign[1]}') and loading it could run code "
                "that is hidden in it: it was not loaded."
            ) from error
        raise ModelError(
            f"'{path}' is damaged or no PyTorch checkpoint.",
            "Copy it again from where it was trained, and compare the sizes.",
        ) from error
    if not isinstance(checkpoint, dict) or "network_weights" not in checkpoint:
        raise ModelError(f"'{path}' is no nnU-Net checkpoint: it has no 'network_weights'.")
    return checkpoint


def _network_state(checkpoint: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    weights = checkpoint["network_weights"]
    if not isinstance(weights, Mapping) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise ModelError(f"'network_weights' of '{path}' is no table of tensors.")
    state = {_WRAPPER_PREFIX.sub("", str(name)): value for name, value in weights.items()}
    if not any(".TTTLinear." in name for name in state):
        kind = "U-Mamba" if any("mamba" in name for name in state) else "another network"
        raise ModelError(f"'{path}' is no TTT-UNet: its weights are those of {kind}.")
    return state


def _configuration_name(checkpoint: Mapping[str, Any], files: NNUNetFiles) -> str:
    """What the checkpoint itself says, else the folder, else the only one there is."""
    arguments = checkpoint.get("init_args")
    configurations = list(files.plans.get("configurations", {}))
    chosen = arguments.get("configuration") if isinstance(arguments, Mapping) else None
    chosen = chosen or files.configuration
    if chosen is None and len(configurations) == 1:
        chosen = configurations[0]
    if chosen is None:
        raise ModelError(
            f"Nothing says which configuration '{files.checkpoint}' was trained with.",
            f"Choose one with --configuration: {', '.join(configurations)}.",
        )
    return str(chosen)


def _network_config(
    state: Mapping[str, Tensor], configuration: dict[str, Any], patch_size: tuple[int, ...]
) -> NetworkConfig:
    topology = read_topology(configuration)
    stem = state.get("encoder.stem.0.conv1.weight")
    heads = {int(m[1]): v for k, v in state.items() if (m := _HEAD.fullmatch(k))}
    if stem is None or not heads:
        raise ModelError("The checkpoint lacks the first convolution or the prediction heads.")
    dim: Literal[2, 3] = 3 if stem.ndim == 5 else 2
    bottleneck = any(name.startswith("TTT_layer.") for name in state)
    placement: Placement = "bottleneck" if bottleneck else "encoder"
    return released_config(
        dim=dim,
        input_channels=stem.shape[1],
        output_channels=heads[max(heads)].shape[0],
        features=topology.features,
        kernel_sizes=topology.kernel_sizes,
        strides=topology.strides,
        blocks=topology.blocks,
        decoder_blocks=topology.decoder_blocks,
        placement=placement,
        patch_size=patch_size,
        deep_supervision=len(heads) > 1,
    )


def _card(
    checkpoint: Mapping[str, Any],
    files: NNUNetFiles,
    configuration: str,
    title: str | None,
    licence: str,
    warnings: list[str],
) -> Card:
    trainer = str(checkpoint.get("trainer_name", "unknown"))
    dataset = str(files.plans.get("dataset_name") or files.dataset.get("name") or "unknown")
    return Card(
        title=title or f"TTT-UNet, {dataset}",
        description="Converted from a checkpoint of the authors' code, trained with nnU-Net.",
        licence=licence,
        training={
            "framework": "nnU-Net v2",
            "trainer": trainer,
            "configuration": configuration,
            "fold": files.fold,
            "epochs": checkpoint.get("current_epoch"),
            "dataset": dataset,
        },
        limitations=" ".join(warnings),
    )
