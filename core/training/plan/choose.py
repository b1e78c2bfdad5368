"""From a fingerprint to a network, a plan and a batch size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tttunet.errors import DatasetError
from tttunet.imaging.intensity import Intensity
from tttunet.models.config import Card, DataSource, Label, ModelConfig, Plan
from tttunet.networks.config import NetworkConfig, TTTConfig
from tttunet.training.plan.fingerprint import Fingerprint
from tttunet.training.plan.presets import find_preset
from tttunet.training.plan.rules import CPU, Budget, Configuration, configurations

#: Volumes that lose more than the rest of this by cropping are normalised over what is left.
_SMALL = 3 / 4
#: nnU-Net's names of channels that say how to normalise; all others are z-scored.
_SCHEMES: dict[str, str] = {
    "ct": "ct",
    "nonorm": "none",
    "rescale_to_0_1": "rescale",
    "rgb_to_0_1": "rgb",
}
_UNITS = ("millimeter", "micrometer")
CASCADE = "3d_cascade_fullres"


def plan_from_fingerprint(
    fingerprint: Fingerprint,
    classes: Mapping[int, str],
    name: str,
    *,
    configuration: str | None = None,
    preset: str | None = None,
    budget: Budget = CPU,
    sources: tuple[DataSource, ...] = (),
) -> tuple[ModelConfig, dict[str, Any]]:
    """Network, plan and recipe for a semantic data set, by nnU-Net's rules.

    The network is TTT-UNet in the paper's flavour, with as many convolutions per stage as nnU-Net
    has; or, with `preset`, the authors' own.

    Args:
        fingerprint: of the training images.
        classes: number to name, foreground only.
        name: of the model.
        configuration: `2d` (2D images), `3d_fullres` or `3d_lowres` (volumes); None: the finest.
        preset: name of a column of the paper's Table 6, see `presets`.
        budget: what training may take.
        sources: of the data, for the card.

    Returns:
        The model's configuration, and fields of `TrainConfig`.

    Raises:
        DatasetError: there is no such configuration or preset for these images.
    """
    outputs = len(classes) + 1
    intensities = _intensities(fingerprint)
    found = _configuration(fingerprint, outputs, budget, configuration)
    if preset is None:
        batch_size, patch = found.batch_size, found.patch
        network = _network(found, len(intensities), outputs)
    else:
        chosen = find_preset(preset, fingerprint.dim)
        batch_size, patch = chosen.batch_size, chosen.patch
        network = chosen.network(len(intensities), outputs)
    plan = Plan(
        patch_size=patch,
        **_geometry(fingerprint, found),
        intensities=intensities,
        mirror_axes=tuple(range(len(patch))),
    )
    labels = tuple(Label(value=value, name=text) for value, text in sorted(classes.items()))
    config = ModelConfig(
        name=name,
        task="semantic",
        network=network,
        plan=plan,
        labels=labels,
        card=Card(title=name, data=sources),
    )
    return config, {"batch_size": batch_size}


def _configuration(
    fingerprint: Fingerprint, outputs: int, budget: Budget, wanted: str | None
) -> Configuration:
    if wanted == CASCADE:
        raise DatasetError(
            "A cascade is not trained: a second network that refines the first one's result would "
            "double training time and memory at inference.",
            "Choose 3d_fullres, or 3d_lowres where the whole organ should fit into the patch.",
        )
    found = configurations(fingerprint, outputs, budget)
    offered = [key for key in found if (key == "2d") == (fingerprint.dim == 2)]
    if not offered:
        raise DatasetError(
            "The volumes have a single slice.", "Save them as 2D images and label them in 2D."
        )
    if wanted is None:
        wanted = offered[0]
    for key in offered:
        if key == wanted:
            return found[key]
    if wanted == "3d_lowres" and fingerprint.dim == 3:
        reason = "The patch at full resolution sees enough of these images."
    elif wanted == "2d":
        reason = "Volumes are trained in 3D; for a 2D network, save their slices as 2D images."
    elif wanted == "3d_fullres":
        reason = "The images are 2D."
    else:
        reason = f"There is no configuration '{wanted}'."
    raise DatasetError(reason, f"Choose {' or '.join(offered)}.")


def _network(found: Configuration, channels: int, outputs: int) -> NetworkConfig:
    """One residual block has the two convolutions that nnU-Net has per stage; the bottleneck gets
    two blocks before its TTT layer, as in Figure 1b of the paper."""
    stages = len(found.features)
    return NetworkConfig(
        dim=2 if len(found.patch) == 2 else 3,
        input_channels=channels,
        output_channels=outputs,
        features=found.features,
        kernel_sizes=found.topology.kernels,
        strides=found.topology.strides,
        encoder_blocks=(1,) * (stages - 1) + (2,),
        decoder_blocks=(1,) * (stages - 1),
        ttt=TTTConfig(heads=8, residual=True),
    )


def _geometry(fingerprint: Fingerprint, found: Configuration) -> dict[str, Any]:
    """Fields of `Plan` between the image's grid and the network's."""
    fields: dict[str, Any] = {"unit": fingerprint.unit if fingerprint.unit in _UNITS else None}
    if fields["unit"] is not None or len(set(fingerprint.spacings)) > 1:
        fields["spacing"] = found.spacing
    if fingerprint.dim == 3:
        fields |= {"crop": "nonzero", "orientation": fingerprint.orientation}
        if found.order != (0, 1, 2):
            fields["transpose"] = found.order
    return fields


def _intensities(fingerprint: Fingerprint) -> tuple[Intensity, ...]:
    masked = fingerprint.dim == 3 and fingerprint.relative_size < _SMALL
    statistics = fingerprint.statistics
    bytes_only = statistics is None or all(0 <= s.minimum <= s.maximum <= 255 for s in statistics)
    rules = []
    for number, channel in enumerate(fingerprint.channels):
        default = "rgb" if fingerprint.rgb and bytes_only else "zscore"
        scheme: Any = _SCHEMES.get(channel.casefold(), default)
        if scheme == "zscore" and masked:
            scheme = "zscore_nonzero"
        if scheme != "ct":
            rules.append(Intensity(scheme=scheme))
            continue
        if statistics is None:
            raise DatasetError("Nothing is labelled in the training images.")
        s = statistics[number]
        rules.append(
            Intensity(scheme="ct", low=s.low, high=s.high, mean=s.mean, deviation=s.deviation)
        )
    return tuple(rules)
