"""Networks. `build_network` is the only registry.

Configurations are imported without torch; a network is imported when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tttunet.networks.config import NetworkConfig, TTTConfig, uniform_config
from tttunet.networks.released import released_config

if TYPE_CHECKING:
    from tttunet.networks.cost import Cost, CostRow, count_cost, paper_cost_table
    from tttunet.networks.plain_unet import PlainUNet
    from tttunet.networks.ttt_unet import TTTUNet

__all__ = [
    "Cost",
    "CostRow",
    "NetworkConfig",
    "PlainUNet",
    "TTTConfig",
    "TTTUNet",
    "build_network",
    "count_cost",
    "paper_cost_table",
    "released_config",
    "uniform_config",
]

_ARCHITECTURES = {"ttt_unet": "TTTUNet", "plain_unet": "PlainUNet"}
_IMPORTED_LATE = {
    "Cost": "cost",
    "CostRow": "cost",
    "PlainUNet": "plain_unet",
    "TTTUNet": "ttt_unet",
    "count_cost": "cost",
    "paper_cost_table": "cost",
}


def build_network(config: NetworkConfig) -> TTTUNet | PlainUNet:
    """The network that `config` describes, with fresh weights, on the CPU in fp32."""
    return __getattr__(_ARCHITECTURES[config.architecture])(config)


def __getattr__(name: str) -> Any:
    if name not in _IMPORTED_LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_IMPORTED_LATE[name]}"), name)
