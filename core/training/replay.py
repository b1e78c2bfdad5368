"""A small sample of what a model has learnt, kept beside it and learnt again with everything new.

`replay/` lies beside model.json: pictures and labels of crops, and `replay.json`, which says where
they are from, under which licence, how they were normalised (with their whole image), and which of
them are never trained on, but tell what was forgotten. Crops of a user's own corrections lie in a
folder of their own (see `own_replay`).
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image as Picture

from tttunet.errors import DatasetError, ModelError
from tttunet.files import atomic_write
from tttunet.imaging.normalise import CLIP
from tttunet.imaging.readers import load_image, load_labels
from tttunet.models.config import DataSource, ModelConfig
from tttunet.models.folder import REPLAY_NAME
from tttunet.models.library import resolve
from tttunet.training.own_replay import LIST_NAME, OWN_NAME, checksum, load_own
from tttunet.training.prepare import IGNORE, PreparedCase, find_locations
from tttunet.training.samples import Sample, keeps_grid, normalised, plane

_FORMAT = 1
#: Share of the crops that are kept for telling what was forgotten.
VALIDATION_SHARE = 1 / 3
#: Crops are drawn until one has so many objects (for classes: any foreground).
_FEWEST_OBJECTS = 4
_TRIES = 20


@dataclass(frozen=True)
class Replay:
    """Earlier data of a model: to train on, and to tell what was forgotten."""

    train: list[PreparedCase]
    val: list[PreparedCase]


def has_replay(model: str | Path) -> bool:
    """Whether a sample of earlier data lies beside a model."""
    folder = resolve(model) / REPLAY_NAME
    return any((part / LIST_NAME).is_file() for part in (folder, folder / OWN_NAME))


def load_replay(model: str | Path, config: ModelConfig, samples: Sequence[Sample] = ()) -> Replay:
    """Read the sample of earlier data beside a model; empty if there is none.

    Args:
        model: its name or folder.
        config: of the model, which says how many channels it takes.
        samples: what is learnt from now: no own crop of the same images is read.

    Raises:
        ModelError: it is damaged.
    """
    folder = resolve(model) / REPLAY_NAME
    cases: list[tuple[PreparedCase, bool]] = []
    try:
        if (folder / LIST_NAME).is_file():
            listed = json.loads((folder / LIST_NAME).read_text(encoding="utf-8"))
            cases += [(_read(folder, row, config), bool(row["val"])) for row in listed["crops"]]
        cases += load_own(folder, config, samples)
    except (OSError, ValueError, KeyError, TypeError, DatasetError) as error:
        raise ModelError(
            f"The earlier data in '{folder}' cannot be read ({error}).",
            "Copy the model again, or fine-tune without replay.",
        ) from error
    return Replay([c for c, val in cases if not val], [c for c, val in cases if val])


def copy_replay(model: str | Path, folder: Path) -> None:
    """Keep the earlier data of a model beside another one."""
    if has_replay(model):
        source, target = resolve(model) / REPLAY_NAME, folder / REPLAY_NAME
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)


def make_replay(
    model: str | Path,
    config: ModelConfig,
    samples: Sequence[Sample],
    source: DataSource,
    count: int = 24,
    size: int = 192,
    seed: int = 0,
) -> Path:
    """Cut crops out of a model's training data and keep them beside it.

    Modalities share the crops evenly, and no image gives crops to both sides.

    Args:
        model: its folder.
        config: of the model.
        samples: fully labelled images that it was trained on.
        source: where they are from, and their licence.
        count: crops in all.
        size: edge of a crop in pixels.
        seed: decides which.

    Returns:
        The folder `replay`.
    """
    if config.plan.normalisation != "percentile" or not keeps_grid(config.plan):
        raise ModelError(
            f"Earlier data cannot be kept for '{config.name}': it sees images on a grid of its own "
            "or normalised otherwise than by percentiles."
        )
    rng = np.random.default_rng(seed)
    folder = Path(model) / REPLAY_NAME
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    rows = [
        _write(folder, f"{number:03d}", sample, config, size, val, rng)
        for number, (sample, val) in enumerate(_choose(samples, count, rng))
    ]
    listed = {"format": _FORMAT, "source": source.model_dump(), "seed": seed, "crops": rows}
    with atomic_write(folder / LIST_NAME) as temporary:
        temporary.write_text(json.dumps(listed, indent=1) + "\n")
    return folder


def _choose(
    samples: Sequence[Sample], count: int, rng: np.random.Generator
) -> list[tuple[Sample, bool]]:
    """Samples with whether they are for validation: modality by modality in turn, every
    `1 / VALIDATION_SHARE`-th time for validation."""
    by_modality = defaultdict(list)
    for index in rng.permutation(len(samples)):
        by_modality[samples[index].modality or ""].append(samples[index])
    queues = [by_modality[name] for name in sorted(by_modality)]
    chosen: list[tuple[Sample, bool]] = []
    sides: dict[str, bool] = {}
    for turn in range(count * len(queues) * 3):
        queue = queues[turn % len(queues)]
        val = (turn // len(queues)) % round(1 / VALIDATION_SHARE) == 0
        fits = [i for i, sample in enumerate(queue) if sides.get(sample.origin, val) == val]
        if fits and len(chosen) < count:
            sample = queue.pop(fits[-1])
            sides[sample.origin] = val
            chosen.append((sample, val))
    return sorted(chosen, key=lambda pair: pair[1])


def _write(
    folder: Path,
    name: str,
    sample: Sample,
    config: ModelConfig,
    size: int,
    val: bool,
    rng: np.random.Generator,
) -> dict[str, Any]:
    place = _place(sample.labels, size, rng)
    labels = sample.labels[place]
    whole = (slice(None), *place)
    pixels, normal = (plane(part, sample, config)[whole] for part in normalised(sample, config))
    if len(pixels) > 1 and (pixels == pixels[:1]).all():
        pixels = pixels[:1]
    image = f"{name}.png" if pixels.dtype == np.uint8 and pixels.ndim == 3 else f"{name}.tif"
    if image.endswith(".png"):
        picture = Picture.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1))
        picture.save(folder / image, optimize=True)
    else:
        tifffile.imwrite(folder / image, pixels, compression="zlib")
    # One more, so that pixels without a label have a number too.
    stored = (labels + 1).astype(np.uint16)
    tifffile.imwrite(folder / f"{name}_labels.tif", stored, compression="zlib")
    return {
        "image": image,
        "labels": f"{name}_labels.tif",
        "val": val,
        "from": sample.name,
        "place": [[part.start, part.stop] for part in place],
        "modality": sample.modality,
        "scale": [_affine(raw, scaled) for raw, scaled in zip(pixels, normal, strict=False)],
        "sha256": {file: checksum(folder / file) for file in (image, f"{name}_labels.tif")},
    }


def _place(labels: np.ndarray, size: int, rng: np.random.Generator) -> tuple[slice, ...]:
    """The crop with the most objects of some tries; the first that has enough."""
    best: tuple[slice, ...] = ()
    most = -1
    for _ in range(_TRIES):
        start = [int(rng.integers(max(n - size, 0) + 1)) for n in labels.shape]
        place = tuple(slice(a, min(a + size, n)) for a, n in zip(start, labels.shape, strict=True))
        objects = len(np.unique(labels[place][labels[place] > 0]))
        if objects > most:
            best, most = place, objects
        if most >= _FEWEST_OBJECTS:
            break
    return best


def _affine(raw: np.ndarray, scaled: np.ndarray) -> list[float]:
    """Factor and offset of the normalisation, from two pixels that it did not clip."""
    inside = (scaled > CLIP[0]) & (scaled < CLIP[1])
    if not inside.any() or np.ptp(raw[inside]) == 0:
        return [0.0, float(scaled.mean())]
    values, results = raw[inside].astype(np.float64), scaled[inside].astype(np.float64)
    low, high = int(values.argmin()), int(values.argmax())
    factor = (results[high] - results[low]) / (values[high] - values[low])
    return [float(factor), float(results[low] - factor * values[low])]


def _read(folder: Path, row: dict[str, Any], config: ModelConfig) -> PreparedCase:
    for file, expected in row["sha256"].items():
        if Path(file).name != file or checksum(folder / file) != expected:
            raise DatasetError(f"'{file}' is damaged")
    if {row["image"], row["labels"]} != set(row["sha256"]):
        raise DatasetError(f"'{row['image']}' has no checksum")
    if row["image"].endswith(".png"):
        image = load_image(folder / row["image"])
        pixels = image.array if "C" in image.axes else image.array[None]
    else:
        pixels = tifffile.imread(folder / row["image"])
    scale = np.array(row["scale"], np.float32).reshape(-1, 2, *(1,) * (pixels.ndim - 1))
    normal = (pixels * scale[:, 0] + scale[:, 1]).clip(*CLIP)
    channels = config.network.input_channels
    if len(normal) == 1:
        normal = np.repeat(normal, channels, 0)
    labels = load_labels(folder / row["labels"]).array.astype(np.int32) + IGNORE
    return PreparedCase(
        row["image"],
        normal.astype(np.float16),
        labels,
        find_locations(labels, config.task),
        modality=row["modality"],
    )


def as_one_modality(cases: Sequence[PreparedCase], name: str) -> list[PreparedCase]:
    """The cases with one modality, so that two kinds of cases can be balanced."""
    return [replace(case, modality=name) for case in cases]
