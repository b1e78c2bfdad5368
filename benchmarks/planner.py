"""Self-configuration beside nnU-Net v2's own planner, on real and made-up data sets.

Needs nnunetv2 where Python finds it, for instance

    pip install --no-deps --target FOLDER nnunetv2 dynamic-network-architectures acvl-utils
    PYTHONPATH=FOLDER python benchmarks/planner.py DATA

with DATA the folder of several data sets. Both planners get the same fingerprint; of the real
volumes nnU-Net also takes its own fingerprint, which is compared with ours.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from record import RESULTS, write_result

from tttunet.training.dataset import Dataset, open_dataset
from tttunet.training.plan.fingerprint import Fingerprint, take_fingerprint
from tttunet.training.plan.rules import GPU, configurations

REAL = ("mr_hippocampus_msd", "mr_cardiac_acdc", "ctmr_totalseg_demo", "ct_liver_msd")
RANDOM = 20
#: nnU-Net has a third axis for 2D images, of this spacing.
_FLAT = 999.0
_FIELDS = ("spacing", "patch", "strides", "kernels", "features", "batch")


def made_up() -> dict[str, Fingerprint]:
    """Kinds of data sets, and some by chance."""
    rng = np.random.default_rng(0)
    kinds: dict[str, tuple[list, list]] = {
        "CT of the abdomen": (
            [(int(z), 512, 512) for z in rng.integers(80, 260, 40)],
            [
                (float(z), float(xy), float(xy))
                for z, xy in rng.uniform((1, 0.6), (5, 0.95), (40, 2))
            ],
        ),
        "CT of the whole body": ([(600, 512, 512)] * 9, [(1.0, 0.98, 0.98)] * 9),
        "MR of the prostate": ([(20, 320, 320)] * 30, [(3.6, 0.62, 0.62)] * 30),
        "MR of the brain": ([(138, 170, 140)] * 50, [(1.0, 1.0, 1.0)] * 50),
        "MR of the heart, cine": (
            [(9, 256, 216)] * 40,
            [(float(z), 1.56, 1.56) for z in rng.choice([5.0, 7.0, 10.0], 40)],
        ),
        "coarse axis last": ([(256, 256, 30)] * 20, [(0.8, 0.8, 4.0)] * 20),
        "coarse axis in the middle": ([(200, 24, 220)] * 20, [(1.0, 5.0, 1.0)] * 20),
        "slices that overlap in spacing": (
            [(12, 200, 200)] * 20,
            [(float(z), 1.0, 1.0) for z in [0.9] * 4 + [6.0] * 16],
        ),
        "tiny volumes": ([(16, 18, 17)] * 60, [(1.0, 1.0, 1.0)] * 60),
        "vessels": ([(400, 512, 512)] * 20, [(0.5, 0.4, 0.4)] * 20),
        "microscopy, 2D": ([(512, 512)] * 200, [(1.0, 1.0)] * 200),
        "endoscopy, 2D": ([(384, 640)] * 300, [(1.0, 1.0)] * 300),
        "large images, 2D": ([(2048, 1536)] * 30, [(1.0, 1.0)] * 30),
        "small images, 2D": ([(60, 80)] * 30, [(1.0, 1.0)] * 30),
    }
    for number in range(RANDOM):
        cases = int(rng.integers(5, 80))
        shape = rng.integers((8, 40, 40), (200, 400, 400), (cases, 3))
        spacing = np.exp(rng.uniform(np.log((0.5, 0.4, 0.4)), np.log((8.0, 2.0, 2.0))))
        spacings = spacing * rng.uniform(0.8, 1.25, (cases, 1))
        order = rng.permutation(3)
        kinds[f"random {number}"] = (shape[:, order].tolist(), spacings[:, order].tolist())
    return {name: _fingerprint(*kind) for name, kind in kinds.items()}


def _fingerprint(shapes: list, spacings: list) -> Fingerprint:
    return Fingerprint(
        dim=len(shapes[0]),
        unit="millimeter",
        names=tuple(str(i) for i in range(len(shapes))),
        shapes=tuple(map(tuple, shapes)),
        spacings=tuple(map(tuple, spacings)),
        relative_size=1.0,
        orientation=None,
        channels=("MR",),
        rgb=False,
        statistics=None,
    )


def ours(fingerprint: Fingerprint, outputs: int) -> dict[str, dict[str, Any]]:
    """Our configurations in plain numbers."""
    return {
        name: {
            "spacing": [round(value, 6) for value in found.spacing],
            "patch": _text(found.patch),
            "strides": _rows(found.topology.strides),
            "kernels": _rows(found.topology.kernels),
            "features": _text(found.features),
            "batch": found.batch_size,
        }
        for name, found in configurations(fingerprint, outputs, GPU).items()
    }


def theirs(fingerprint: Fingerprint, outputs: int, folder: Path) -> dict[str, dict[str, Any]]:
    """nnU-Net's plans in the same form."""
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
        ExperimentPlanner,
    )

    flat = fingerprint.dim == 2
    description = {
        "channel_names": dict(enumerate(fingerprint.channels)),
        "labels": {str(value): value for value in range(outputs)},
        "numTraining": len(fingerprint.shapes),
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
        "dataset": {"a": {"images": ["a_0000.nii.gz"], "label": "a.nii.gz"}},
    }
    content = {
        "spacings": [((_FLAT,) if flat else ()) + row for row in fingerprint.spacings],
        "shapes_after_crop": [((1,) if flat else ()) + row for row in fingerprint.shapes],
        "foreground_intensity_properties_per_channel": {},
        "median_relative_size_after_cropping": fingerprint.relative_size,
    }
    for part in ("raw", "preprocessed"):
        (folder / part / "Dataset001_x").mkdir(parents=True, exist_ok=True)
    (folder / "raw/Dataset001_x/dataset.json").write_text(json.dumps(description))
    prepared = folder / "preprocessed/Dataset001_x"
    (prepared / "nnUNetPlans.json").unlink(missing_ok=True)
    (prepared / "dataset_fingerprint.json").write_text(json.dumps(content))
    with contextlib.redirect_stdout(io.StringIO()):
        plans = ExperimentPlanner("Dataset001_x").plan_experiment()
    found = {}
    for name, one in plans["configurations"].items():
        if "patch_size" not in one:
            continue  # the cascade inherits from another one
        network = one["architecture"]["arch_kwargs"]
        found[name] = {
            "spacing": [round(float(value), 6) for value in one["spacing"]],
            "patch": _text(one["patch_size"]),
            "strides": _rows(network["strides"]),
            "kernels": _rows(network["kernel_sizes"]),
            "features": _text(network["features_per_stage"]),
            "batch": int(one["batch_size"]),
        }
    return found


def _text(numbers: Any) -> str:
    return " ".join(str(int(number)) for number in numbers)


def _rows(rows: Any) -> str:
    return ", ".join(map(_text, rows))


def their_facts(dataset: Dataset) -> dict[str, Any]:
    """What nnU-Net's fingerprint has of the real files, case by case."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import (
        DatasetFingerprintExtractor,
    )
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    found = [
        DatasetFingerprintExtractor.analyze_case(
            [str(path) for path in case.images], str(case.label), SimpleITKIO, 100
        )
        for case in dataset.cases["train"]
    ]
    return {
        "shapes": [list(map(int, one[0])) for one in found],
        "spacings": [[round(float(value), 5) for value in one[1]] for one in found],
    }


def compare(name: str, fingerprint: Fingerprint, outputs: int, folder: Path) -> dict[str, Any]:
    """Both plans, and what differs."""
    left, right = ours(fingerprint, outputs), theirs(fingerprint, outputs, folder)
    different = (
        [f"configurations {sorted(set(left) ^ set(right))}"] if set(left) != set(right) else []
    )
    for key in sorted(set(left) & set(right)):
        different += [
            f"{key}.{field}" for field in _FIELDS if left[key][field] != right[key][field]
        ]
    print(f"{name}: {', '.join(different) or 'equal'}", flush=True)
    rows = {"name": name, "different": different, "ours": left}
    return rows | {"nnunet": right} if different else rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| data set | configuration | spacing | patch | batch | beside nnU-Net v2 |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        for key, one in row["ours"].items():
            wrong = [d for d in row["different"] if d.startswith((f"{key}.", "configurations"))]
            spacing = " x ".join(f"{value:.3g}" for value in one["spacing"])
            patch = one["patch"].replace(" ", " x ")
            cells = [row["name"], key, spacing, patch, one["batch"], ", ".join(wrong) or "equal"]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of the data sets")
    options = parser.parse_args()
    rows, facts = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for part in ("raw", "preprocessed", "results"):
            os.environ[f"nnUNet_{part}"] = str(folder / part)
        for name in REAL:
            dataset = open_dataset(options.data / name)
            found = take_fingerprint(dataset)
            rows.append(compare(name, found, len(dataset.classes) + 1, folder))
            if found.dim == 3:
                other = their_facts(dataset)
                facts[name] = {
                    "cases": len(found.shapes),
                    "shapes_equal": [list(row) for row in found.shapes] == other["shapes"],
                    "spacings_equal": bool(
                        np.allclose(found.spacings, other["spacings"], atol=1e-4)
                    ),
                }
                print(name, facts[name])
        for name, found in made_up().items():
            rows.append(compare(name, found, 4, folder))
    equal = sum(not row["different"] for row in rows)
    configured = sum(len(row["ours"]) for row in rows)
    summary = {"data_sets": len(rows), "equal": equal, "configurations": configured}
    print(summary)
    write_result(
        "planner",
        {"nnunetv2": version("nnunetv2"), **summary, "fingerprints": facts, "rows": rows},
    )
    text = f"{equal} of {len(rows)} data sets are planned alike.\n\n{table(rows)}\n"
    (RESULTS / "planner.md").write_text(text)


if __name__ == "__main__":
    sys.exit(main())
