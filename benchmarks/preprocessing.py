"""Preprocessing and its inverse beside nnU-Net v2's own, on a real volume.

Needs nnU-Net where Python finds it: `pip install --no-deps --target FOLDER nnunetv2` with what it
asks for, and PYTHONPATH=FOLDER. Both get the same plans.json. The way back is compared on the same
smooth logits; nnU-Net interpolates these, we interpolate probabilities when segmenting.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.export_prediction import (
    convert_predicted_logits_to_segmentation_with_correct_shape,
)
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from record import write_result
from scipy import ndimage

from tttunet.imaging import Image, load_image
from tttunet.imaging.preprocess import preprocess
from tttunet.models.nnunet import configuration_of, read_plan

CASES: dict[str, dict[str, Any]] = {
    "isotropic": {"spacing": [2.0, 1.5, 2.5]},
    "transposed": {"spacing": [2.0, 1.5, 2.5], "transpose": [2, 0, 1]},
    "2d": {"spacing": [2.0, 1.5], "transpose": [1, 0, 2]},
    "anisotropic, masked": {"spacing": [6.0, 1.4, 1.4], "own": (9.0, 1.0, 1.3), "masked": True},
}
STATISTICS = {"mean": 50.0, "std": 200.0, "percentile_00_5": -800.0, "percentile_99_5": 700.0}
DATASET = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "a": 1, "b": 2},
    "file_ending": ".nii.gz",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", help="a CT volume")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results")
    options = parser.parse_args()
    image = load_image(options.image)
    rows = [{"case": name, **compare(image, **case)} for name, case in CASES.items()]
    for row in rows:
        print(row)
    if options.record:
        write_result("preprocessing", {"image": image.name, "rows": rows})


def compare(
    image: Image,
    spacing: list[float],
    transpose: list[int] | None = None,
    own: tuple[float, ...] | None = None,
    masked: bool = False,
) -> dict[str, Any]:
    """Largest difference of the network's input, and share of voxels that differ on the way back.

    Args:
        spacing, transpose: of the configuration.
        own: pretend that the image has this spacing.
        masked: z-scores inside the non-zero region in place of CT normalisation.
    """
    image = replace(image, spacing=own or image.spacing)
    plans = make_plans(spacing, transpose or [0, 1, 2], masked)
    manager = PlansManager(plans)
    configuration = manager.get_configuration("c")
    start = time.perf_counter()
    theirs, _, properties = DefaultPreprocessor(verbose=False).run_case_npy(
        image.array[None].astype(np.float32),
        None,
        {"spacing": list(image.spacing)},
        manager,
        configuration,
        DATASET,
    )[:3]
    middle = time.perf_counter()
    plan, _ = read_plan(plans, DATASET, configuration_of(plans, "c"), ())
    ours = preprocess(image, plan, 1)
    end = time.perf_counter()

    noise = np.random.default_rng(0).normal(size=(3, *ours.array.shape[1:]))
    logits = (30 * ndimage.gaussian_filter(noise, (0, 2, 2, 2))).astype(np.float32)
    back = convert_predicted_logits_to_segmentation_with_correct_shape(
        torch.from_numpy(logits),
        manager,
        configuration,
        manager.get_label_manager(DATASET),
        properties,
    )
    mine = ours.place.to_image_labels(logits, np.arange(3, dtype=np.uint8))
    return {
        "shape": list(ours.array.shape),
        "same_shape": ours.array.shape == theirs.shape,
        "largest_difference": float(np.abs(np.asarray(theirs) - ours.array).max()),
        "deviation_of_values": round(float(ours.array.std()), 3),
        "labels_that_differ": float((back != mine).mean()),
        "seconds_nnunet": round(middle - start, 2),
        "seconds_ours": round(end - middle, 2),
    }


def make_plans(spacing: list[float], transpose: list[int], masked: bool) -> dict[str, Any]:
    """plans.json as nnU-Net 2.4 writes it, as far as preprocessing reads it."""
    configuration: dict[str, Any] = {
        "data_identifier": "c",
        "preprocessor_name": "DefaultPreprocessor",
        "patch_size": [32] * len(spacing),
        "spacing": spacing,
        "normalization_schemes": ["ZScoreNormalization" if masked else "CTNormalization"],
        "use_mask_for_norm": [masked],
        "architecture": {"network_class_name": "", "arch_kwargs": {}, "_kw_requires_import": []},
    }
    for what, order in (("data", 3), ("seg", 1), ("probabilities", 1)):
        configuration[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
        configuration[f"resampling_fn_{what}_kwargs"] = {
            "is_seg": what == "seg",
            "order": order,
            "order_z": 0,
            "force_separate_z": None,
        }
    return {
        "dataset_name": "D",
        "plans_name": "P",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": transpose,
        "transpose_backward": [transpose.index(axis) for axis in range(3)],
        "configurations": {"c": configuration},
        "foreground_intensity_properties_per_channel": {"0": STATISTICS},
    }


if __name__ == "__main__":
    main()
