"""Model = network + everything in model.json; safetensors and JSON on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from tttunet.errors import ModelError
from tttunet.models.card import card_text, read_config, weights_path
from tttunet.models.config import CARD_NAME, WEIGHTS_NAME, ModelConfig, Weights
from tttunet.models.folder import atomic_folder, write_file
from tttunet.models.library import resolve
from tttunet.networks import build_network

if TYPE_CHECKING:
    from tttunet.networks import NetworkConfig, PlainUNet, TTTUNet

Precision = Literal["fp16", "fp32"]
_DTYPES = {"fp16": torch.float16, "fp32": torch.float32}

#: Entries of a state dict that an error message names of each kind.
_NAMED = 3


@dataclass
class Model:
    """A network and the configuration it is built, fed and read by.

    Attributes:
        network: a `TTTUNet` or `PlainUNet`: [batch, C, *spatial] -> logits of the same size.
        config: the content of model.json; `weights` is filled in on disk only.
    """

    network: nn.Module
    config: ModelConfig

    @classmethod
    def create(cls, config: ModelConfig) -> Model:
        """A model with fresh weights, on the CPU in fp32, in training mode."""
        return cls(build_network(config.network), config)

    def save(
        self, folder: str | Path, *, overwrite: bool = False, dtype: Precision = "fp32"
    ) -> Path:
        """Write model.json and model.safetensors; a reader never meets half of a model.

        Args:
            folder: the folder to make.
            overwrite: replace the model in an existing folder, after the new one is complete.
            dtype: of the weights on disk; computing is always in fp32.

        Returns:
            The folder.

        Raises:
            ModelError: a weight is NaN or infinite, or too large for fp16.
            OutputError: the folder exists, holds something else, or cannot be written.
        """
        folder = Path(folder)
        tensors = {
            name: value.detach().to("cpu", _DTYPES[dtype]).contiguous()
            for name, value in self.network.state_dict().items()
        }
        _check_finite(tensors, f"The model '{self.config.name}', written as {dtype},")
        content = safetensors.torch.save(tensors)
        weights = Weights(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
        config = self.config.model_copy(update={"weights": weights})
        with atomic_folder(folder, overwrite=overwrite) as temporary:
            write_file(temporary / WEIGHTS_NAME, content)
            write_file(temporary / CARD_NAME, card_text(config).encode())
        return folder


def load_model(name_or_path: str | Path) -> Model:
    """Load a model of the library, or from its folder or model.json.

    Args:
        name_or_path: a name that `tttunet models list` shows, or a path.

    Returns:
        The model on the CPU, in fp32 and eval mode.

    Raises:
        ModelError: no such model; or model.json or the weights are damaged, do not fit each other
            or come from a newer version. The message says which.
    """
    folder = resolve(name_or_path)
    config = read_config(folder)
    tensors = _read_weights(config, folder)
    return Model(network_with_weights(config.network, tensors, f"'{folder}'"), config)


def network_with_weights(
    config: NetworkConfig, tensors: Mapping[str, Tensor], source: str
) -> TTTUNet | PlainUNet:
    """The network that `config` describes with given weights, in fp32 and eval mode.

    Args:
        config: the network.
        tensors: its complete state dict, in any floating point dtype.
        source: what an error message calls the origin of the tensors.

    Raises:
        ModelError: names or shapes do not fit the network, or a value is NaN or infinite.
    """
    with torch.device("meta"):
        network = build_network(config)
    _check_fit({name: tuple(t.shape) for name, t in network.state_dict().items()}, tensors, source)
    _check_finite(tensors, source)
    # A copy: the tensors may lie in one read-only buffer.
    weights = {name: t.to(torch.float32, copy=True) for name, t in tensors.items()}
    network.load_state_dict(weights, assign=True)
    return network.eval()


def _read_weights(config: ModelConfig, folder: Path) -> dict[str, Tensor]:
    path = weights_path(config, folder)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"'{path}' cannot be read: {error.strerror}.") from error
    if config.weights is None or hashlib.sha256(content).hexdigest() != config.weights.sha256:
        raise ModelError(
            f"The weights file '{path}' has another checksum (sha256) than {CARD_NAME} says.",
            "It is damaged or was replaced: copy or download the model again.",
        )
    try:
        return safetensors.torch.load(content)
    except SafetensorError as error:
        raise ModelError(f"'{path}' is no valid safetensors file ({error}).") from error


def _check_fit(
    shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor], source: str
) -> None:
    missing = [name for name in shapes if name not in tensors]
    unexpected = [name for name in tensors if name not in shapes]
    wrong = [
        f"{name} is {list(tensors[name].shape)} instead of {list(shape)}"
        for name, shape in shapes.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    problems = [
        f"{len(names)} {kind} ({', '.join(names[:_NAMED])}{', ...' * (len(names) > _NAMED)})"
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of the wrong shape", wrong),
        )
        if names
    ]
    if problems:
        raise ModelError(f"The weights of {source} do not fit its network: {'; '.join(problems)}.")


def _check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    for name, value in tensors.items():
        if not value.is_floating_point():
            raise ModelError(f"{source} has a weight that is no floating point number ('{name}').")
        if not value.isfinite().all():
            raise ModelError(f"{source} has NaN or infinite weights ('{name}').")
