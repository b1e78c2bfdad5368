"""The networks and patches of the paper's Table 6, as the authors' code builds them.

The table gives patch, number of stages and halvings per axis. Strides and kernels follow from
nnU-Net's rules at the spacing of the data sets that were used. For abdomen CT it prints the
halvings (3, 3, 5), which do not fit the rules; (3, 5, 5) does. The batch sizes are those of
U-Mamba, whose settings the authors took over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tttunet.errors import DatasetError
from tttunet.networks.config import NetworkConfig, Placement
from tttunet.networks.released import released_config
from tttunet.training.plan.topology import plan_topology, stage_features

#: nnU-Net's width, which the authors kept.
_BASE, _MOST = 32, {2: 512, 3: 320}


@dataclass(frozen=True)
class Preset:
    """One column of Table 6.

    Attributes:
        patch: in the network's order of axes.
        batch_size: patches per step.
        spacing: typical of the data, which decides strides and kernels.
        placement: `bottleneck` is TTT-UNet_Bot, `encoder` TTT-UNet_Enc.
    """

    patch: tuple[int, ...]
    batch_size: int
    spacing: tuple[float, ...]
    placement: Placement = "bottleneck"

    @property
    def dim(self) -> Literal[2, 3]:
        return 2 if len(self.patch) == 2 else 3

    def network(self, input_channels: int, output_channels: int) -> NetworkConfig:
        """The network for so many channels of images and so many classes with background."""
        topology = plan_topology(self.spacing, self.patch)
        return released_config(
            dim=self.dim,
            input_channels=input_channels,
            output_channels=output_channels,
            features=stage_features(len(topology.strides), _BASE, _MOST[self.dim]),
            kernel_sizes=topology.kernels,
            strides=topology.strides,
            placement=self.placement,
            patch_size=self.patch,
        )


#: TTT-UNet_Enc was released for 2D, and of Table 6 runs with the microscopy setting only.
PRESETS = {
    "abdomen-ct-3d": Preset((40, 224, 192), 2, (2.5, 0.8, 0.8)),
    "abdomen-mr-3d": Preset((48, 160, 224), 2, (3.0, 1.2, 1.2)),
    "abdomen-mr-2d": Preset((320, 320), 30, (1.2, 1.2)),
    "endoscopy": Preset((384, 640), 13, (1.0, 1.0)),
    "microscopy": Preset((512, 512), 12, (1.0, 1.0)),
    "microscopy-enc": Preset((512, 512), 12, (1.0, 1.0), "encoder"),
}


def find_preset(name: str, dim: int) -> Preset:
    """The preset of a name, for data of `dim` dimensions.

    Raises:
        DatasetError: there is none, or it is for other dimensions.
    """
    preset = PRESETS.get(name)
    if preset is None:
        raise DatasetError(f"There is no preset '{name}'.", f"There are {', '.join(PRESETS)}.")
    if preset.dim != dim:
        fitting = ", ".join(key for key, value in PRESETS.items() if value.dim == dim)
        raise DatasetError(
            f"The preset '{name}' is {preset.dim}D and the data set {dim}D.",
            f"For {dim}D there are {fitting}.",
        )
    return preset
