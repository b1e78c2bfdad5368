"""Put a trained model into the package, with its weights in half precision.

tttunet train DATASET --recipe nuclei --output RUN --max-minutes 95
python tools/ship_model.py RUN/model nuclei
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tttunet.models.labels import labels_of, with_table
from tttunet.models.model import Model, load_model

SHIPPED = Path(__file__).parents[1] / "resources" / "models"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="folder of the trained model")
    parser.add_argument("name", help="the name users call it by")
    parser.add_argument("--version", default="1.0.0")
    options = parser.parse_args()
    model = load_model(options.source)
    labels, table = with_table(model.config.labels)
    changes = {"name": options.name, "version": options.version}
    changes |= {"labels": labels_of(table) if table else labels, "label_table": table}
    config = model.config.model_copy(update=changes)
    folder = Model(model.network, config).save(SHIPPED / options.name, overwrite=True, dtype="fp16")
    size = (folder / "model.safetensors").stat().st_size
    print(f"{folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
