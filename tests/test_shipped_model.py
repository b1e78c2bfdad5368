"""What ships: the models, their cards, and the demo on the sample images."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest

from tttunet.cli import main
from tttunet.evaluation import instance_scores, pool, semantic_scores
from tttunet.imaging import image_stem, load_image, load_labels
from tttunet.inference.segment import segment
from tttunet.models import list_models
from tttunet.models.model import load_model


def test_the_demo_segments_the_samples(tmp_path: Path):
    assert main(["demo", "--output", str(tmp_path)]) == 0
    samples = Path(str(files("tttunet.resources") / "samples"))
    names = [
        entry["name"] for entry in json.loads((samples / "samples.json").read_text())["images"]
    ]
    scores = []
    for name in names:
        truth = load_labels(samples / f"{name}_labels.tif").array
        found = load_labels(tmp_path / f"{name}_labels.ome.tif").array
        scores.append(instance_scores(found, truth, (0.5,)))
        assert (tmp_path / f"{name}_overlay.png").stat().st_size > 10_000
    assert pool(scores)[0].f1 > 0.78


@pytest.mark.parametrize(
    ("model", "sample", "least"),
    [
        ("polyp", "colonoscopy_polyp.png", 0.85),
        ("hippocampus-mr", "hippocampus.nii.gz", 0.8),
        ("liver-ct", "ct_liver.png", 0.85),
        ("kidney-mr", "mr_kidney.png", 0.8),
    ],
)
def test_models_of_classes_segment_their_sample(model: str, sample: str, least: float):
    """Nobody trained on these."""
    samples = Path(str(files("tttunet.resources") / "samples"))
    (truth,) = samples.glob(f"{image_stem(sample)}_labels.*")
    found = segment(load_image(samples / sample), load_model(model)).labels
    scores = semantic_scores(found, load_labels(truth).array)
    assert sum(score.dice for score in scores) / len(scores) > least


def test_models_are_small_and_say_what_they_come_from():
    shipped = [entry.name for entry in list_models() if entry.origin == "shipped"]
    assert {"nuclei", "polyp", "hippocampus-mr", "liver-ct", "kidney-mr"} <= set(shipped)
    for name in shipped:
        config = load_model(name).config
        assert config.weights is not None
        assert config.weights.bytes < 25e6
        assert config.card.licence.startswith(("CC0", "CC-BY"))
        assert "NC" not in config.card.licence
        assert config.card.data
        assert "Not for diagnostic use" in config.card.limitations


def test_the_card_says_what_the_weights_come_from():
    entry = next(entry for entry in list_models() if entry.name == "nuclei")
    assert entry.ok
    config = load_model("nuclei").config
    assert config.card.licence == "CC0-1.0"
    assert [source.licence for source in config.card.data] == ["CC0-1.0"]
    assert {"fluorescence", "histology_purple", "histology_white", "brightfield_grey"} <= set(
        config.card.scores["val"]
    )
    assert config.weights is not None
    assert config.weights.bytes < 25e6
