"""Corrections that a model was trained on, kept for its next fine-tuning."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from discs import run, sample
from tiny import make_config
from tttunet.errors import ModelError
from tttunet.models.archive import export_model
from tttunet.models.config import DataSource
from tttunet.models.model import load_model
from tttunet.training.own_replay import MOST, NEW_TRAIN, OWN_LICENCE, add_own, load_own
from tttunet.training.prepare import FOREGROUND, IGNORE
from tttunet.training.replay import load_replay
from tttunet.training.samples import Sample, to_cases

SOURCE = DataSource(title="mine", source="corrections", licence=OWN_LICENCE)


def listed(model: Path) -> list[dict]:
    return json.loads((model / "replay" / "own" / "replay.json").read_text())["crops"]


def few(seed: int) -> list[Sample]:
    """Too few labels to hold some out: the last step's model is kept."""
    return [sample(seed, count=1)]


def test_corrections_join_what_came_with_the_model(bright, tmp_path):
    data = few(0)
    first = run(bright, data, tmp_path / "first", steps=2)
    assert first.improved
    came = {path.name: path.read_bytes() for path in (bright / "replay").iterdir()}
    with_it = first.folder / "replay"
    assert {p.name: p.read_bytes() for p in with_it.iterdir() if p.is_file()} == came
    rows = listed(first.folder)
    assert [(row["from"], row["val"]) for row in rows] == [("image0", False)]
    assert rows[0]["source"]["licence"] == OWN_LICENCE

    config = load_model(first.folder).config
    before, after = load_replay(bright, config), load_replay(first.folder, config)
    assert len(after.train) == len(before.train) + 1
    assert len(after.val) == len(before.val)
    # Other images: they are trained on in turn. The same ones may be held out now.
    other = run(first.folder, few(7), tmp_path / "other", steps=1)
    assert other.settings["replay"] == len(after.train)
    same = run(first.folder, data, tmp_path / "same", steps=1)
    assert same.settings["replay"] == len(before.train)


def test_a_model_from_scratch_is_protected_later(tmp_path):
    first = run(None, few(0), tmp_path / "first", steps=2, name="mine")
    assert any("begins from scratch" in note for note in first.notes)
    assert not (first.folder / "replay" / "replay.json").exists()
    again = run(first.folder, few(5), tmp_path / "again", steps=1)
    assert again.settings["replay"] == 1
    assert {row["from"] for row in listed(again.folder)} == {"image0", "image5"}
    # Everything earlier is among the corrections: that is no lack of earlier data.
    same = run(first.folder, few(0), tmp_path / "same", steps=1)
    assert same.settings["replay"] == 0
    assert not any("earlier data" in note for note in same.notes)


def large(seed: int) -> Sample:
    """Several crops, a part that nobody looked at, and a clump."""
    one = sample(seed, shape=(200, 230), count=60)
    one.labels[:, 150:180] = IGNORE
    one.labels[one.labels == one.labels.max()] = FOREGROUND
    return one


def test_crops_are_what_was_trained_on(tmp_path):
    samples, config = [large(0), sample(1)], make_config()
    case, held = to_cases(samples, config)
    add_own(tmp_path, [case], [held], samples, SOURCE)
    found = load_own(tmp_path, config)
    assert [crop.name for crop, val in found if val] == ["image1"]
    crops = [crop for crop, val in found if not val]
    assert sorted(crop.label.shape for crop in crops) == [(100, 115)] * 4
    corners = [(y, x) for y in (0, 100) for x in (0, 115)]
    places = [np.s_[y : y + 100, x : x + 115] for y, x in corners]
    for crop in crops:
        (place,) = [p for p in places if np.array_equal(case.label[p], crop.label)]
        assert np.array_equal(case.image[(slice(None), *place)], crop.image)
        assert (crop.image.dtype, crop.label.dtype) == (np.float16, np.int32)
        assert len(crop.locations) > 0
    together = np.concatenate([crop.label.ravel() for crop in crops])
    assert {IGNORE, FOREGROUND, 0} < set(together.tolist())
    assert load_own(tmp_path, config, samples) == []


def test_the_newest_of_a_bounded_number_stay(tmp_path):
    config = make_config()
    for seed in range(5):
        samples = [large(10 * seed + i) for i in range(4)]
        add_own(tmp_path, to_cases(samples, config), [], samples, SOURCE)
        rows = json.loads((tmp_path / "own" / "replay.json").read_text())["crops"]
        assert len(rows) == min((seed + 1) * NEW_TRAIN, MOST)
        assert {row["from"] for row in rows[-NEW_TRAIN:]} == {one.name for one in samples}
    assert len(list((tmp_path / "own").iterdir())) == 2 * MOST + 1
    # The same images again replace their crops.
    add_own(tmp_path, to_cases(samples, config), [], samples, SOURCE)
    rows = json.loads((tmp_path / "own" / "replay.json").read_text())["crops"]
    assert len(rows) == MOST
    assert len({row["image"] for row in rows}) == MOST


def test_volumes_have_crops_too(tmp_path):
    labels = np.zeros((70, 20, 20), np.int32)
    labels[4:9, 4:9, 4:9], labels[60:66, 5:9, 5:9] = 1, 2
    samples, config = [Sample("volume", labels[None].astype(np.float32), labels)], make_config(3)
    add_own(tmp_path, to_cases(samples, config), [], samples, SOURCE)
    crops = load_own(tmp_path, config)
    assert [crop.image.shape for crop, _ in crops] == [(1, 35, 20, 20)] * 2


def test_own_pictures_are_not_exported_and_damage_is_told(bright, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(bright, model)
    samples, config = [sample(0)], load_model(bright).config
    add_own(model / "replay", to_cases(samples, config), [], samples, SOURCE)
    exported = export_model(str(model), tmp_path / "model.zip")
    with zipfile.ZipFile(exported) as archive:
        names = archive.namelist()
    assert any(name.endswith("replay/replay.json") for name in names)
    assert not any("own" in name.split("/") for name in names)
    path = model / "replay" / "own" / "0000.tif"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ModelError, match=r"0000.tif' is damaged"):
        load_replay(model, config)
