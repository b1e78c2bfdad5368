"""OpenVINO for the network on CPUs, where it is installed and faster.

Which of the two is faster depends on the machine, the network and the tile, so the first tiles of
a size are computed by both in turn; their results are used, and nothing is computed twice but one
tile, whose two results must agree. Then the faster one goes on. Setting the environment variable
TTTUNET_OPENVINO to 0 leaves OpenVINO out.
"""

from __future__ import annotations

import functools
import logging
import os
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[[Tensor], Tensor]

#: Largest difference between the two, relative to the range of the output.
TOLERANCE = 1e-3
#: Tiles that every one of the two has computed before one is chosen.
TRIALS = 3
#: Calls after which one is chosen, at the latest: the first one, with the other one, twice more.
SETTLED = 2 * TRIALS
#: Input shapes whose choice, with the compiled model, is kept for a network.
SHAPES = 4

_log = logging.getLogger(__name__)
_networks: weakref.WeakKeyDictionary[nn.Module, Accelerated] = weakref.WeakKeyDictionary()


@functools.cache
def available() -> bool:
    """Whether OpenVINO is installed and wanted."""
    return os.environ.get("TTTUNET_OPENVINO") != "0" and find_spec("openvino") is not None


def accelerated(network: nn.Module) -> nn.Module:
    """The network for inference, by whatever is fastest here.

    Args:
        network: in eval mode.

    Returns:
        The network itself, or what computes the same within `TOLERANCE`. The second call for a
        network gives the same module, which remembers what it learned about this machine.
    """
    if not available():
        return network
    from tttunet.inference.openvino_graph import supports

    if not supports(network):
        return network
    return _networks.setdefault(network, Accelerated(network))


class Accelerated(nn.Module):
    """A network that learns, per shape of its input, which way is faster.

    Args:
        network: one that `openvino_graph.supports`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        # The dictionary of networks must not keep them alive.
        self._network = weakref.ref(network)
        self._choices: OrderedDict[tuple[Any, ...], _Choice] = OrderedDict()
        self._weights = _versions(network)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, C, *spatial] -> [batch, K, *spatial], fp32 on the CPU."""
        network = self._network()
        assert network is not None
        if (weights := _versions(network)) != self._weights:
            # Trained on: the compiled models have copies of the old weights.
            self._choices.clear()
            self._weights = weights
        key = (*x.shape, torch.get_num_threads())
        choice = self._choices.setdefault(key, _Choice())
        self._choices.move_to_end(key)
        if len(self._choices) > SHAPES:
            self._choices.popitem(last=False)
        return choice.run(network, x)

    @property
    def trying(self) -> bool:
        """Whether a shape that was seen has no choice yet, or none was seen."""
        return not self._choices or any(choice.name is None for choice in self._choices.values())

    def chosen(self, *shape: int) -> str | None:
        """`torch` or `openvino` for inputs of a shape, or None while that is open."""
        choice = self._choices.get((*shape, torch.get_num_threads()))
        return choice.name if choice is not None else None


def _versions(network: nn.Module) -> tuple[int, ...]:
    """Counts of the changes in place of every weight."""
    return tuple(0 if p.is_inference() else p._version for p in network.parameters())


class _Choice:
    """The two ways for one shape, until the slower one is given up."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.openvino: Forward | None = None
        self.seconds: dict[str, list[float]] = {"torch": [], "openvino": []}

    def run(self, network: nn.Module, x: Tensor) -> Tensor:
        if self.name == "openvino":
            assert self.openvino is not None
            return self.openvino(x)
        if self.name == "torch":
            return network(x)
        ours, theirs = self.seconds.values()
        if not ours:
            # An image of one tile is done before anything is compiled.
            return self._timed("torch", network, x)
        if self.openvino is None:
            return self._compile(network, x)
        if len(ours) > len(theirs):
            y = self._timed("openvino", self.openvino, x)
        else:
            y = self._timed("torch", network, x)
        if len(theirs) >= TRIALS:
            best = {name: min(seconds) for name, seconds in self.seconds.items()}
            self._choose(min(best, key=best.__getitem__), f"seconds per batch: {best}")
        return y

    def _compile(self, network: nn.Module, x: Tensor) -> Tensor:
        y = self._timed("torch", network, x)
        try:
            self.openvino = _compiled(network, tuple(x.shape))
            other = self.openvino(x)
        except Exception as error:  # an optional library: whatever it is, PyTorch is there
            # It says at length in which of its files.
            _log.debug("OpenVINO failed: %s", error)
            self._choose("torch", "OpenVINO could not compile it", logging.WARNING)
            return y
        difference = float((other - y).abs().max() / (y.max() - y.min()))
        if not difference <= TOLERANCE:
            reason = f"OpenVINO's result differs by {difference:.1e} of the range"
            self._choose("torch", reason, logging.WARNING)
        return y

    def _timed(self, name: str, forward: Forward, x: Tensor) -> Tensor:
        start = time.perf_counter()
        y = forward(x)
        self.seconds[name].append(time.perf_counter() - start)
        return y

    def _choose(self, name: str, reason: str, level: int = logging.INFO) -> None:
        self.name = name
        if name == "torch":
            self.openvino = None
        _log.log(level, "The network is computed by %s; %s.", name, reason)


@functools.cache
def openvino_core() -> Any:
    """OpenVINO's one entry of this process, kept for good.

    On CPUs with AMX it gives the calling thread a signal stack, which it would free with itself,
    perhaps from another thread: the next signal (Ctrl-C) would be the end of the process.
    """
    import openvino

    return openvino.Core()


def _compiled(network: nn.Module, shape: tuple[int, ...]) -> Forward:
    from tttunet.inference.openvino_graph import build

    settings = {
        # On CPUs with bf16 it would take that of itself.
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    graph = build(network, shape)  # type: ignore[arg-type]
    model = openvino_core().compile_model(graph, "CPU", settings)

    def forward(x: Tensor) -> Tensor:
        return torch.from_numpy(model(x.contiguous().numpy(), share_inputs=True)[0])

    return forward
