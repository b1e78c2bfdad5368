"""The authors' results on disk: nnU-Net folders around the weights of golden cases."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from golden import GoldenCase


def per_stage(value: int | list[int], stages: int) -> list[int]:
    return [value] * stages if isinstance(value, int) else list(value)


def old_configuration(facts: dict[str, Any]) -> dict[str, Any]:
    """A configuration as nnU-Net 2.1 writes it. Its features double up to a limit."""
    features = facts["features_per_stage"]
    n = len(features)
    return {
        "patch_size": facts["patch_size"],
        "spacing": [0.8] * len(facts["patch_size"]),
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": features[0],
        "unet_max_num_features": features[-1],
        "n_conv_per_stage_encoder": per_stage(facts["n_conv_per_stage_given"], n),
        "n_conv_per_stage_decoder": per_stage(facts["n_conv_per_stage_decoder_given"], n - 1),
        "conv_kernel_sizes": facts["kernel_sizes"],
        "pool_op_kernel_sizes": facts["strides"],
    }


def new_configuration(facts: dict[str, Any]) -> dict[str, Any]:
    """A configuration as nnU-Net 2.4 and later write it."""
    old = old_configuration(facts)
    kept = ("patch_size", "spacing", "normalization_schemes", "use_mask_for_norm")
    arguments = {
        "n_stages": len(facts["features_per_stage"]),
        "features_per_stage": facts["features_per_stage"],
        "kernel_sizes": facts["kernel_sizes"],
        "strides": facts["strides"],
        "n_conv_per_stage": old["n_conv_per_stage_encoder"],
        "n_conv_per_stage_decoder": old["n_conv_per_stage_decoder"],
    }
    architecture = {"network_class_name": "PlainConvUNet", "arch_kwargs": arguments}
    return {**{name: old[name] for name in kept}, "architecture": architecture}


def make_checkpoint(weights: dict[str, torch.Tensor], configuration: str) -> dict[str, Any]:
    """What nnU-Net's trainer saves, its numpy scalars and its optimiser included."""
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimiser = torch.optim.SGD([parameter], lr=0.01, momentum=0.99, nesterov=True)
    parameter.sum().backward()
    optimiser.step()
    return {
        "network_weights": OrderedDict(weights),
        "optimizer_state": optimiser.state_dict(),
        "grad_scaler_state": None,
        "logging": {
            "mean_fg_dice": [np.float64(0.5)],
            "ema_fg_dice": [np.float32(0.5)],
            "dice_per_class_or_region": [[np.float64(0.5), np.float64(0.6)]],
            "train_losses": [np.float32(-0.1)],
            "epoch_start_timestamps": [1700000000.5],
        },
        "_best_ema": np.float64(0.5),
        "current_epoch": 1000,
        "init_args": {
            "plans": {"configurations": {}},
            "configuration": configuration,
            "fold": "all",
            "dataset_json": {},
            "unpack_dataset": True,
            "device": torch.device("cuda"),
        },
        "trainer_name": "nnUNetTrainerUMambaBot",
        "inference_allowed_mirroring_axes": (0, 1),
    }


class NNUNetFolder:
    """A trainer's folder on disk; attributes are written by `write`."""

    def __init__(self, root: Path, case: GoldenCase) -> None:
        facts = case.config
        dim = len(facts["patch_size"])
        self.name = "2d" if dim == 2 else "3d_fullres"
        self.path = root / f"nnUNetTrainerUMambaBot__nnUNetPlans__{self.name}"
        self.fold = self.path / "fold_all"
        self.file = self.fold / "checkpoint_final.pth"
        self.plans: dict[str, Any] = {
            "dataset_name": "Dataset702_AbdomenMR",
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [0, 1, 2],
            "configurations": {self.name: new_configuration(facts)},
        }
        classes = range(1, facts["num_classes"])
        self.dataset: dict[str, Any] = {
            "channel_names": {str(i): "MR" for i in range(facts["input_channels"])},
            "labels": {"background": 0, **{f"organ {i}": i for i in classes}},
            "file_ending": ".nii.gz",
        }
        self.checkpoint: Any = make_checkpoint(case.group("param."), self.name)

    @property
    def configuration(self) -> dict[str, Any]:
        return self.plans["configurations"][self.name]

    def write(self) -> Path:
        self.fold.mkdir(parents=True, exist_ok=True)
        (self.path / "plans.json").write_text(json.dumps(self.plans))
        (self.path / "dataset.json").write_text(json.dumps(self.dataset))
        torch.save(self.checkpoint, self.file)
        return self.path
