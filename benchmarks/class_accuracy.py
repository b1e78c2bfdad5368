"""Dice and surface Dice of models of classes on the validation images of a data set.

Images are segmented as a user segments them, and the labels compared on the images' own grid. The
split chose the checkpoint: these are not test scores. Several models, such as the same network with
and without its TTT layers, are scored on the same images.

    python benchmarks/class_accuracy.py DATA/mr_hippocampus_msd hippocampus-mr RUN/without/model
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from record import write_result

from tttunet.evaluation import evaluate
from tttunet.imaging import load_image, save_labels
from tttunet.inference.segment import segment
from tttunet.models.model import Model, load_model
from tttunet.training.dataset import Case, open_dataset


def score(
    model: Model, cases: list[Case], tolerance: float, patient: str | None = None
) -> dict[str, Any]:
    """The summary of `tttunet.evaluation.report.Report`, with the seconds per image.

    `patient`: see `dice_of_patients`, which is added.
    """
    seconds = 0.0
    with tempfile.TemporaryDirectory() as folder:
        found, truth = Path(folder, "found"), Path(folder, "truth")
        for part in (found, truth):
            part.mkdir()
        for case in cases:
            result = segment(load_image(case.images[0]), model)
            seconds += result.seconds
            ending = "".join(case.label.suffixes)
            save_labels(found / f"{case.name}.nii.gz", result.labels, result.image)
            (truth / f"{case.name}{ending}").symlink_to(case.label.resolve())
        report = evaluate(found, truth, "semantic", tolerance=tolerance)
    summary = report.summary
    if patient is not None:
        summary |= dice_of_patients(report.cases, patient)
    return {**summary, "seconds_per_image": round(seconds / len(cases), 2)}


def dice_of_patients(cases: list[dict[str, Any]], pattern: str) -> dict[str, Any]:
    """Dice of all slices of a patient together, as a volume is scored: mean over the patients.

    Args:
        cases: of the report.
        pattern: see `patient_of`.
    """
    sizes: dict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0])
    for case in cases:
        for row in case["classes"]:
            both = sizes[patient_of(case["case"], pattern), row["label"]]
            both[0] += 2 * row["intersection"]
            both[1] += row["pred_size"] + row["truth_size"]
    scores = [overlap / size for overlap, size in sizes.values() if size]
    return {"patients": len({name for name, _ in sizes}), "dice_of_patients": fmean(scores)}


def patient_of(name: str, pattern: str) -> str:
    """The first group of a regular expression in the name of a case.

    Raises:
        SystemExit: there is none.
    """
    match = re.search(pattern, name)
    if not match or not match.groups():
        raise SystemExit(f"--patient: '{pattern}' finds no group in '{name}'.")
    return match[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1.0,
        help="of the surface Dice, in mm; in pixels for images without a size",
    )
    parser.add_argument(
        "--patient",
        metavar="REGEX",
        help="also score the slices of a patient together; the first group is who it is",
    )
    parser.add_argument("--record", action="store_true", help="write the result")
    options = parser.parse_args()
    dataset = open_dataset(options.dataset)
    cases = dataset.cases["val"]
    if options.patient is not None:
        # Before minutes are spent.
        for case in cases:
            patient_of(case.name, options.patient)
    rows = {}
    for name in options.models:
        model = load_model(name)
        rows[name] = {
            "model": f"{model.config.name} {model.config.version}",
            "ttt": model.config.network.ttt is not None,
            "training": {
                key: model.config.card.training.get(key)
                for key in ("steps", "minutes", "train_images", "parameters", "precision")
            },
            **score(model, cases, options.tolerance, options.patient),
        }
        print(name, rows[name])
    if options.record:
        result = {
            "dataset": dataset.title,
            "split": "val (used to choose the checkpoint)",
            "images": len(cases),
            "tolerance": options.tolerance,
            "models": list(rows.values()),
        }
        write_result(f"class_accuracy_{options.dataset.name}", result)


if __name__ == "__main__":
    main()
