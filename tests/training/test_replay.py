import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tiny import blobs, make_config
from tttunet.errors import ModelError
from tttunet.models.config import DataSource
from tttunet.models.library import add_model, resolve
from tttunet.models.model import Model, load_model
from tttunet.training.prepare import IGNORE
from tttunet.training.replay import REPLAY_NAME, copy_replay, has_replay, load_replay, make_replay
from tttunet.training.samples import Sample, normalised

SOURCE = DataSource(title="discs", source="made up", licence="CC0-1.0")


def samples(dtype) -> list[Sample]:
    made = []
    for seed in range(9):
        image, labels = blobs(seed, (60, 70), count=12)
        image = (image.astype(np.float32) * 100 + 50).clip(0, 255).astype(dtype)
        labels[:5] = IGNORE
        modality = "rare" if seed < 3 else "usual"
        made.append(Sample(f"image{seed}", image, labels, modality=modality))
    return made


@pytest.fixture
def folder(tmp_path) -> Path:
    torch.manual_seed(0)
    return Model.create(make_config()).save(tmp_path / "model")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_crops_come_back_as_the_model_saw_them(folder, dtype):
    config, data = make_config(), samples(dtype)
    make_replay(folder, config, data, SOURCE, count=6, size=40)
    replay = load_replay(folder, config)
    assert (len(replay.train), len(replay.val)) == (4, 2)
    assert sorted(case.modality for case in replay.train) == ["rare", "rare", "usual", "usual"]
    listed = json.loads((folder / REPLAY_NAME / "replay.json").read_text())
    assert listed["source"]["licence"] == "CC0-1.0"
    assert len({row["from"] for row in listed["crops"]}) == 6
    by_name = {sample.name: sample for sample in data}
    rows = {row["image"]: row for row in listed["crops"]}
    for case in (*replay.train, *replay.val):
        row = rows[case.name]
        place = tuple(slice(*part) for part in row["place"])
        sample = by_name[row["from"]]
        assert np.array_equal(case.label, sample.labels[place])
        whole = normalised(sample, config)[1]
        assert np.allclose(case.image, whole[(slice(None), *place)], atol=2e-3)
        assert len(np.unique(case.locations[:, 0])) == len(np.unique(case.label[case.label > 0]))


def test_it_goes_where_the_model_goes(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TTTUNET_MODELS", str(tmp_path / "library"))
    make_replay(folder, make_config(), samples(np.uint8), SOURCE, count=6, size=40)
    add_model(folder, "mine")
    assert has_replay("mine")
    other = Model.create(make_config()).save(tmp_path / "other")
    copy_replay("mine", other)
    assert len(load_replay(other, make_config()).train) == 4
    # Saving a model over one with earlier data is no loss of something else.
    load_model(other).save(other, overwrite=True)
    assert not has_replay(other)
    assert load_replay(other, make_config()).train == []


def test_damage_is_told(folder):
    make_replay(folder, make_config(), samples(np.uint8), SOURCE, count=3, size=40)
    file = folder / REPLAY_NAME / "000.png"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ModelError, match=r"000.png' is damaged"):
        load_replay(folder, make_config())


def test_no_file_outside_is_read(folder):
    make_replay(folder, make_config(), samples(np.uint8), SOURCE, count=3, size=40)
    path = folder / REPLAY_NAME / "replay.json"
    shutil.copy(folder / REPLAY_NAME / "000.png", folder / "000.png")
    path.write_text(path.read_text().replace('"000.png"', '"../000.png"'))
    with pytest.raises(ModelError, match="cannot be read"):
        load_replay(folder, make_config())


def test_what_ships_with_the_model_of_nuclei():
    folder = resolve("nuclei") / REPLAY_NAME
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000
    listed = json.loads((folder / "replay.json").read_text())
    assert listed["source"]["licence"] == "CC0-1.0"
    replay = load_replay("nuclei", load_model("nuclei").config)
    assert (len(replay.train), len(replay.val)) == (16, 8)
    assert len({case.modality for case in replay.train}) == 4
    assert len({case.modality for case in replay.val}) == 4
    assert all(case.image.shape == (3, 192, 192) for case in replay.train)
    assert sum(len(np.unique(case.label)) for case in replay.val) > 80


def test_what_ships_is_of_images_to_train_on(data_dir):
    split = json.loads((data_dir / "nuclei_dsb2018" / "dataset.json").read_text())["split"]
    listed = json.loads((resolve("nuclei") / REPLAY_NAME / "replay.json").read_text())
    assert {row["from"] for row in listed["crops"]} <= set(split["train"])
