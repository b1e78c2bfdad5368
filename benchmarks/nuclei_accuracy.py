"""Accuracy of a model on the validation split of a data set, per modality.

The split was used to choose the checkpoint and the thresholds: these are not test scores.
"""

from __future__ import annotations

import argparse

from record import write_result

from tttunet.models.model import load_model
from tttunet.training.dataset import open_dataset
from tttunet.training.prepare import prepare
from tttunet.training.tuning import score_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--model", default="nuclei")
    parser.add_argument("--mirror", action="store_true", help="with test-time augmentation")
    parser.add_argument("--result", default="nuclei_accuracy", help="name of the result file")
    options = parser.parse_args()
    model = load_model(options.model)
    dataset = open_dataset(options.dataset)
    channels = model.config.network.input_channels
    cases = prepare(dataset, model.config.plan, split="val", channels=channels)
    scores = score_model(model, cases, mirror=options.mirror)
    for name, row in scores.items():
        print(f"{name:20s}", *(f"{key} {value}" for key, value in row.items()))
    result = {
        "model": f"{model.config.name} {model.config.version}",
        "dataset": dataset.title,
        "split": "val (used to choose checkpoint and thresholds)",
        "mirror": options.mirror,
        "scores": scores,
    }
    write_result(options.result, result)


if __name__ == "__main__":
    main()
