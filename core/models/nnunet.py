"""nnU-Net v2 folders: where the files are, and what plans.json and dataset.json mean here."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tttunet.errors import ModelError
from tttunet.imaging.intensity import Intensity, Scheme
from tttunet.models.config import Label, Plan

_CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth", "checkpoint_latest.pth")
#: nnU-Net's readers, and how they turn every volume; None leaves axes as they are stored.
_READERS = {
    "NibabelIOWithReorient": "RAS",
    "SimpleITKIOWithReorient": "RAS",
    "NibabelIO": None,
    "SimpleITKIO": None,
    "NaturalImage2DIO": None,
    "Tiff3DIO": None,
}
_SCHEMES: dict[str, Scheme] = {
    "NoNormalization": "none",
    "RescaleTo01Normalization": "rescale",
    "RGBTo01Normalization": "rgb",
}
_RGB_NAMES = {"r", "g", "b", "red", "green", "blue", "rgb_to_0_1"}


@dataclass(frozen=True)
class NNUNetFiles:
    """A checkpoint and the JSON files that describe it."""

    checkpoint: Path
    plans: dict[str, Any]
    dataset: dict[str, Any]
    configuration: str | None

    @property
    def fold(self) -> str:
        """Name of the checkpoint's folder, `fold_0` or `fold_all`."""
        return self.checkpoint.parent.name


@dataclass(frozen=True)
class Topology:
    """What a configuration of plans.json says about the network."""

    features: tuple[int, ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    blocks: tuple[int, ...]
    decoder_blocks: tuple[int, ...]


def find_files(source: Path, fold: str | None = None) -> NNUNetFiles:
    """Find the checkpoint in a trainer's folder, a fold's folder, or take it itself.

    Args:
        source: `.../TRAINER__PLANS__CONFIGURATION`, a `fold_X` in it, or a .pth file in that.
        fold: which fold of the trainer's folder, `0` or `all`.

    Raises:
        ModelError: a file is missing or damaged, or there are several folds.
    """
    if not source.exists():
        raise ModelError(
            f"There is no '{source}'.",
            "Give nnU-Net's folder TRAINER__PLANS__CONFIGURATION, or a .pth file in it.",
        )
    if source.is_file():
        checkpoint = source
    else:
        folder = _fold_folder(source, fold)
        checkpoint = next((folder / n for n in _CHECKPOINTS if (folder / n).is_file()), folder)
        if checkpoint is folder:
            raise ModelError(
                f"'{folder}' holds no {_CHECKPOINTS[0]} and no {_CHECKPOINTS[1]}.",
                "Give the folder that nnU-Net names TRAINER__PLANS__CONFIGURATION.",
            )
    plans_path = _find_above(checkpoint, "plans.json")
    dataset_path = _find_above(checkpoint, "dataset.json")
    parts = plans_path.parent.resolve().name.split("__")
    return NNUNetFiles(
        checkpoint,
        _read_json(plans_path),
        _read_json(dataset_path),
        parts[-1] if len(parts) == 3 else None,
    )


def configuration_of(plans: dict[str, Any], name: str) -> dict[str, Any]:
    """A configuration of plans.json with everything that it inherits.

    Raises:
        ModelError: there is no such configuration.
    """
    configurations = plans.get("configurations", {})
    chain: list[str] = []
    merged: dict[str, Any] = {}
    parent: str | None = name
    while parent is not None:
        if parent not in configurations or parent in chain:
            known = ", ".join(configurations) or "none"
            raise ModelError(f"plans.json has no usable configuration '{parent}'; it has {known}.")
        chain.append(parent)
        merged = {**configurations[parent], **merged}
        parent = configurations[parent].get("inherits_from")
    return merged


def read_topology(configuration: dict[str, Any]) -> Topology:
    """Channels, kernels, strides and blocks, from either form of plans.json.

    Args:
        configuration: see `configuration_of`. Since nnU-Net 2.4 the network is in
            `architecture.arch_kwargs`.

    Raises:
        ModelError: a field is missing.
    """
    network = configuration.get("architecture", {}).get("arch_kwargs")
    if network is not None:
        kernels, strides = _field(network, "kernel_sizes"), _field(network, "strides")
        features = _field(network, "features_per_stage")
        blocks = network.get("n_conv_per_stage") or _field(network, "n_blocks_per_stage")
        decoder = _field(network, "n_conv_per_stage_decoder")
    else:
        kernels = _field(configuration, "conv_kernel_sizes")
        strides = _field(configuration, "pool_op_kernel_sizes")
        base = _field(configuration, "UNet_base_num_features")
        limit = _field(configuration, "unet_max_num_features")
        features = [min(base * 2**stage, limit) for stage in range(len(kernels))]
        blocks = _field(configuration, "n_conv_per_stage_encoder")
        decoder = _field(configuration, "n_conv_per_stage_decoder")
    n = len(kernels)
    return Topology(
        tuple(features),
        tuple(tuple(row) for row in kernels),
        tuple(tuple(row) for row in strides),
        (blocks,) * n if isinstance(blocks, int) else tuple(blocks),
        (decoder,) * (n - 1) if isinstance(decoder, int) else tuple(decoder),
    )


def read_labels(dataset: dict[str, Any]) -> tuple[tuple[Label, ...], bool]:
    """The foreground classes of dataset.json, and whether they are overlapping regions.

    Classes are sorted by value, the ignore label is left out. Regions stay in the order of the
    network's outputs; the label of each is the number that nnU-Net writes for it.

    Raises:
        ModelError: there are no labels, or the order of the regions is missing or wrong.
    """
    found = {}
    for name, value in _field(dataset, "labels", "dataset.json").items():
        if isinstance(value, str):  # nnU-Net v1 writes {"1": "liver"}
            name, value = value, name
        numbers = tuple(int(n) for n in (value if isinstance(value, list | tuple) else [value]))
        if numbers != (0,) and name != "ignore":
            found[name] = numbers
    if all(len(numbers) == 1 for numbers in found.values()):
        labels = [Label(value=numbers[0], name=name) for name, numbers in found.items()]
        return tuple(sorted(labels, key=lambda label: label.value)), False
    order = dataset.get("regions_class_order")
    if not isinstance(order, list) or len(set(order)) != len(found) or len(order) != len(found):
        raise ModelError(
            f"dataset.json has {len(found)} regions, so it needs `regions_class_order` with as "
            "many different numbers."
        )
    pairs = zip(found, order, strict=True)
    return tuple(Label(value=int(value), name=name) for name, value in pairs), True


def read_plan(
    plans: dict[str, Any],
    dataset: dict[str, Any],
    configuration: dict[str, Any],
    mirror_axes: tuple[int, ...],
) -> tuple[Plan, list[str]]:
    """nnU-Net's preprocessing as a Plan, and a sentence for everything that it cannot express.

    Args:
        plans, dataset: plans.json and dataset.json.
        configuration: see `configuration_of`.
        mirror_axes: what the checkpoint allows test-time augmentation to flip.
    """
    patch_size = tuple(int(n) for n in _field(configuration, "patch_size"))
    spacing: tuple[float, ...] | None = tuple(float(s) for s in _field(configuration, "spacing"))
    reader = str(plans.get("image_reader_writer", "SimpleITKIO"))
    if reader == "NaturalImage2DIO":
        spacing = None
    names = dataset.get("channel_names") or dataset.get("modality") or {}
    is_rgb = len(names) == 3 and {str(n).lower() for n in names.values()} <= _RGB_NAMES
    intensities, warnings = _intensities(plans, configuration, len(names))
    warnings += _resampling(configuration)
    if reader not in _READERS:
        warnings.append(
            f"The reader {reader} is not known: volumes are taken in the orientation of their file."
        )
    order = plans.get("transpose_forward")
    plan = Plan(
        patch_size=patch_size,
        spacing=spacing,
        unit=None if spacing is None else "millimeter",
        channels="rgb" if is_rgb else "as_is",
        intensities=intensities,
        orientation=_READERS.get(reader),
        transpose=None if order is None or list(order) == sorted(order) else tuple(order),
        crop="nonzero",
        mirror_axes=mirror_axes,
    )
    return plan, warnings


def _intensities(
    plans: dict[str, Any], configuration: dict[str, Any], channels: int
) -> tuple[tuple[Intensity, ...], list[str]]:
    """One rule per channel, and a sentence for every scheme that is not known."""
    schemes = [str(scheme) for scheme in _field(configuration, "normalization_schemes")]
    schemes *= channels if len(schemes) == 1 else 1
    masked = list(configuration.get("use_mask_for_norm") or [])
    masked = masked * channels if len(masked) == 1 else masked + [False] * len(schemes)
    rules = []
    for channel, scheme in enumerate(schemes):
        if scheme == "CTNormalization":
            properties = _field(plans, "foreground_intensity_properties_per_channel")
            numbers = _field(properties, str(channel), "The foreground intensities of plans.json")
            rules.append(
                Intensity(
                    scheme="ct",
                    low=_field(numbers, "percentile_00_5"),
                    high=_field(numbers, "percentile_99_5"),
                    mean=_field(numbers, "mean"),
                    deviation=_field(numbers, "std"),
                )
            )
        elif scheme in _SCHEMES:
            rules.append(Intensity(scheme=_SCHEMES[scheme]))
        else:
            rules.append(Intensity(scheme="zscore_nonzero" if masked[channel] else "zscore"))
    unknown = sorted(set(schemes) - {*_SCHEMES, "CTNormalization", "ZScoreNormalization"})
    warnings = [
        f"The authors' normalisation ({', '.join(unknown)}) is replaced by z-scores; predictions "
        "may be worse than theirs."
    ]
    return tuple(rules), warnings if unknown else []


def _resampling(configuration: dict[str, Any]) -> list[str]:
    """What plans.json asks for beyond nnU-Net's default resampling."""
    for field, order in (("resampling_fn_data", 3), ("resampling_fn_probabilities", 1)):
        function = configuration.get(field, "resample_data_or_seg_to_shape")
        options = configuration.get(f"{field}_kwargs", {})
        usual = {"order": order, "order_z": 0, "force_separate_z": None}
        if function != "resample_data_or_seg_to_shape" or any(
            options.get(name, value) != value for name, value in usual.items()
        ):
            return [
                "The authors resample images in a way of their own; here it is nnU-Net's default "
                "(cubic for images, linear for probabilities, the coarse axis apart)."
            ]
    return []


def _fold_folder(source: Path, fold: str | None) -> Path:
    if fold is not None:
        folder = source / f"fold_{fold}"
        if not folder.is_dir():
            raise ModelError(f"'{source}' has no fold_{fold}.")
        return folder
    folds = sorted(path for path in source.glob("fold_*") if path.is_dir())
    if len(folds) > 1:
        names = ", ".join(path.name.removeprefix("fold_") for path in folds)
        raise ModelError(f"'{source}' has several folds ({names}).", "Choose one with --fold.")
    return folds[0] if folds else source


def _find_above(checkpoint: Path, name: str) -> Path:
    for folder in list(checkpoint.resolve().parents)[:2]:
        if (folder / name).is_file():
            return folder / name
    raise ModelError(
        f"There is no {name} beside '{checkpoint}' or one folder above it.",
        f"Copy the {name} that nnU-Net wrote when it trained the checkpoint.",
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"'{path}' cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise ModelError(f"'{path}' holds no JSON object.")
    return content


def _field(section: dict[str, Any], name: str, file: str = "plans.json") -> Any:
    if name not in section:
        raise ModelError(f"{file} lacks the field '{name}'.")
    return section[name]


def slug(text: str) -> str:
    """A name for a model, from any text."""
    return re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-._") or "model"
