"""Make the sample of earlier data that ships with a model.

    python tools/make_replay.py nuclei_dsb2018 resources/models/nuclei

Only images that the model was trained on, whose licence allows to hand them on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tttunet.models.card import read_config
from tttunet.training.replay import make_replay
from tttunet.training.samples import read_split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    samples, source = read_split(options.dataset)
    folder = make_replay(
        options.model,
        read_config(options.model),
        samples,
        source,
        count=options.count,
        size=options.size,
        seed=options.seed,
    )
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {len(list(folder.glob('*_labels.tif')))} crops, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
