"""Batch files: what they say, what is refused, what is written, and how they go on."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from tttunet.engine.batch import Batch, BatchError, command_line, segment_command
from tttunet.engine.client import Engine, Job
from tttunet.engine.messages import Batch as BatchRequest
from tttunet.engine.messages import FileStatus, ImageRef, Segment
from tttunet.errors import OutputError
from tttunet.imaging import load_labels
from tttunet.inference.files import expand_inputs

from .conftest import Heard, finish, kill, noise


def images(folder: Path, *names: str, size: int = 40) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Pillow.fromarray(noise((size, size), number)).save(folder / name)
    return [folder / name for name in names]


def run(engine: Engine, batch: Batch, act=None) -> tuple[object, Heard, list[tuple[str, str]]]:
    heard = Heard(act)
    outcome = finish(engine.request(BatchRequest(batch.model_dump(mode="json")), heard))
    states = [(Path(e.source).name, e.state) for e in heard if isinstance(e, FileStatus)]
    return outcome, heard, states


def test_yaml_round_trip(tmp_path: Path):
    batch = Batch(
        inputs=(str(tmp_path / "plate"), "*.tif"),
        output=str(tmp_path / "Ergebnisse ü"),
        decoding={"min_size": 30},
        tile=(64, 64),
        table=True,
        existing="overwrite",
    )
    for name in ("a.yaml", "a.json"):
        path = batch.write(tmp_path / name)
        assert Batch.read(path) == batch.absolute(tmp_path)
    assert "overlap" not in (tmp_path / "a.yaml").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["version"] == 1
    with pytest.raises(OutputError, match="exists"):
        batch.write(tmp_path / "a.yaml")
    with pytest.raises(BatchError, match="no name of a batch file"):
        batch.write(tmp_path / "a.txt")


def test_paths_start_from_the_folder_of_the_file(tmp_path: Path):
    text = "inputs: plate/*.tif\noutput: out/\nmodel: ./mine\ntile: 64\nchannel: 1\n"
    (tmp_path / "b.yaml").write_text(text)
    batch = Batch.read(tmp_path / "b.yaml")
    assert batch.inputs == (f"{tmp_path}/plate/*.tif",)
    assert (batch.output, batch.model) == (f"{tmp_path}/out/", f"{tmp_path}/mine")
    assert (batch.tile, batch.channel) == ((64,), "1")
    (tmp_path / "plate [1]").mkdir()
    (tmp_path / "plate [1]" / "a.tif").touch()
    bracketed = Batch(inputs=("*.tif",), output="o").absolute(tmp_path / "plate [1]")
    assert expand_inputs(bracketed.inputs) == [tmp_path / "plate [1]" / "a.tif"]
    (tmp_path / "nuclei").mkdir()
    (tmp_path / "nuclei" / "model.json").write_text("{}")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "model.json").write_text("{}")
    names = {name: Batch(inputs=("a",), output="o", model=name) for name in ("nuclei", "own")}
    assert names["nuclei"].absolute(tmp_path).model == "nuclei"
    assert names["own"].absolute(tmp_path).model == str(tmp_path / "own")
    (tmp_path / "folds" / "0").mkdir(parents=True)
    several = Batch(inputs=("a",), output="o", model=["nuclei", "own", "folds"])
    folders = (str(tmp_path / "own"), str(tmp_path / "folds"))
    assert several.absolute(tmp_path).model == ("nuclei", *folders)
    assert Batch.read(several.write(tmp_path / "several.yaml")) == several.absolute(tmp_path)
    assert Batch(inputs=("a",), output="o", model=["own"]).model == "own"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("output: out", "inputs: Field required"),
        ("inputs: a\noutput: out\nouput: x", "ouput: Extra inputs"),
        ("inputs: []\noutput: out", "inputs"),
        ("inputs: a\noutput: out\ntile: [0]", "tile: sizes must be positive"),
        ("inputs: a\noutput: out\noverlap: 2", "overlap"),
        ("inputs: a\noutput: out\nexisting: maybe", "existing"),
        ("inputs: a\noutput: out\nformat: .gif", "format: choose auto or one of .ome.tif"),
        ("inputs: a\noutput: out\nending: a/b", "ending"),
        ("inputs: a\noutput: out\nversion: 2", "version"),
        ("inputs: a\noutput: out\nmodel: []", "model: there is none"),
        ("inputs: a\noutput: out\nmodel: 3", "model: write a name or a path"),
        ("inputs: [a\noutput: out", "no valid YAML in line 2"),
        ("- a\n- b", "holds no fields"),
        ("", "holds no fields"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str):
    (tmp_path / "b.yaml").write_text(text)
    with pytest.raises(BatchError) as caught:
        Batch.read(tmp_path / "b.yaml")
    assert message in caught.value.message
    assert "b.yaml" in caught.value.message


def test_missing_file_is_an_error(tmp_path: Path):
    with pytest.raises(BatchError, match="cannot be read"):
        Batch.read(tmp_path / "b.yaml")


def test_files_are_written_and_a_second_run_skips_them(engine: Engine, models, tmp_path: Path):
    sources = images(tmp_path / "in", "a.png", "b.png")
    (tmp_path / "in" / "broken.png").write_bytes(sources[0].read_bytes()[:60])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".0123abcd-a_seg.nrrd").write_text("left by a killed process")
    batch = Batch(
        inputs=(str(tmp_path / "in"),),
        output=str(tmp_path / "out"),
        model=models[2, "semantic"],
        ending="_seg",
        format=".nrrd",
        table=True,
    )
    outcome, heard, states = run(engine, batch)
    assert states == [
        *(("a.png", state) for state in ("running", "done")),
        *(("b.png", state) for state in ("running", "done")),
        *(("broken.png", state) for state in ("running", "failed")),
    ]
    counts = {name: outcome.result[name] for name in ("done", "skipped", "failed")}
    assert counts == {"done": 2, "skipped": 0, "failed": 1}
    failed = next(e for e in heard if isinstance(e, FileStatus) and e.state == "failed")
    assert "broken.png" in failed.text
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        *("a_objects.csv", "a_seg.nrrd", "b_objects.csv", "b_seg.nrrd")
    ]
    whole = finish(
        engine.segment(np.array(Pillow.open(sources[0])), axes="YX", model=models[2, "semantic"])
    )
    labels = load_labels(tmp_path / "out" / "a_seg.nrrd").array
    np.testing.assert_array_equal(labels, whole.result["labels"])

    # Labels that are there may have been corrected, whatever else is missing.
    (tmp_path / "out" / "a_objects.csv").unlink()
    (tmp_path / "out" / "b_seg.nrrd").unlink()
    before = (tmp_path / "out" / "a_seg.nrrd").stat().st_mtime_ns
    outcome, heard, states = run(engine, batch)
    assert states[:3] == [("a.png", "failed"), ("b.png", "running"), ("b.png", "done")]
    assert "a_objects.csv is missing" in next(e for e in heard if isinstance(e, FileStatus)).text
    assert (tmp_path / "out" / "a_seg.nrrd").stat().st_mtime_ns == before
    assert (tmp_path / "out" / "b_seg.nrrd").exists()


def test_existing_files_are_refused_or_replaced(engine: Engine, models, tmp_path: Path):
    images(tmp_path, "a.png")
    batch = Batch(
        inputs=(str(tmp_path / "a.png"),),
        output=str(tmp_path / "out"),
        model=models[2, "semantic"],
        existing="error",
    )
    assert run(engine, batch)[0].kind == "done"
    outcome, _, states = run(engine, batch)
    assert (outcome.kind, outcome.problem, states) == ("failed", "input", [])
    assert "exists already" in outcome.message
    (tmp_path / "out" / "a_labels.ome.tif").write_bytes(b"old")
    replaced = batch.model_copy(update={"existing": "overwrite"})
    assert run(engine, replaced)[0].result["done"] == 1
    assert load_labels(tmp_path / "out" / "a_labels.ome.tif").array.shape == (40, 40)


def after_first(act):
    done = []

    def listen(job: Job, event: object) -> None:
        if isinstance(event, FileStatus) and event.state == "done" and not done:
            done.append(True)
            act(job)

    return listen


@pytest.mark.parametrize("how", ["cancel", pytest.param("kill", marks=pytest.mark.slow)])
def test_an_interrupted_batch_goes_on(engine: Engine, models, tmp_path: Path, how: str):
    images(tmp_path / "in", *(f"{i}.png" for i in range(6)), size=150)
    batch = Batch(
        inputs=(str(tmp_path / "in"),),
        output=str(tmp_path / "out"),
        model=models[2, "semantic"],
        tile=(32,),
    )
    act = Job.cancel if how == "cancel" else lambda job: kill(job.engine.worker_pid)
    outcome, heard, _ = run(engine, batch, after_first(act))
    assert outcome.kind == ("cancelled" if how == "cancel" else "lost")
    assert heard.terminal == [outcome]
    written = sorted((tmp_path / "out").iterdir())
    assert 1 <= len([p for p in written if not p.name.startswith(".")]) < 6
    outcome, _, states = run(engine, batch)
    assert outcome.result["done"] + outcome.result["skipped"] == 6
    assert outcome.result["skipped"] >= 1
    assert states[0] == ("0.png", "skipped")
    for path in (tmp_path / "out").glob("*.ome.tif"):
        assert tifffile.imread(path).shape == (150, 150)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": ("nothing/*.png",)}, "No image matches"),
        ({"model": "no-such-model"}, "No model is called"),
        ({"decoding": {"min_size": 3}}, "classes, not objects"),
        ({"device": "abacus"}, "Unknown device"),
        ({"tile": (1, 2, 3)}, "2D model"),
    ],
)
def test_what_cannot_begin_at_all(engine: Engine, models, tmp_path: Path, changes, message: str):
    images(tmp_path, "a.png")
    fields = {"inputs": (str(tmp_path / "a.png"),), "output": str(tmp_path / "out")}
    batch = Batch(**{**fields, "model": models[2, "semantic"], **changes})
    outcome, _, states = run(engine, batch)
    assert (outcome.kind, outcome.problem, states) == ("failed", "input", [])
    assert message in outcome.message


def test_a_request_as_a_command(tmp_path: Path):
    ref = ImageRef(path="/data/my cells.tif", axes="ZYX")
    request = Segment(ref, "nuclei", "x.npy", tile=(64, 64), mirror=True, overlap=0.5)
    request = Segment(
        ref, "nuclei", "x.npy", tile=(64, 64), mirror=True, overlap=0.5, channel="DAPI",
        decoding={"min_size": 3, "fill_holes": False}, adaptation="off", adaptation_map="x.npy",
    )  # fmt: skip
    text = command_line(request, "results/")
    assert shlex.split(text) == [
        *("tttunet", "segment", "/data/my cells.tif", "--output", "results/"),
        *("--model", "nuclei", "--adaptation-map", "--axes", "ZYX", "--channel", "DAPI"),
        *("--tile", "64,64", "--overlap", "0.5", "--adaptation", "off", "--tta"),
        *("--decoding", "min_size=3", "--decoding", "fill_holes=false"),
    ]
    plain = Segment(ImageRef(path="a.tif"), "nuclei", "x.npy")
    assert command_line(plain, "o/") == "tttunet segment a.tif --output o/ --model nuclei"
    assert command_line(Segment(ImageRef(array="x.npy"), "nuclei", "x.npy"), "o/") is None


def test_a_batch_as_a_command():
    plain = Batch(inputs=("a b.tif", "c"), output="o/", existing="skip").model_dump(mode="json")
    command = "tttunet segment 'a b.tif' c --engine --output o/ --model nuclei"
    assert segment_command(plain) == command
    changes = {
        **{"overlay": True, "existing": "overwrite", "axes": "ZYX", "overlap": 0.0},
        **{"tile": [64, 96], "decoding": {"min_size": 3}, "adaptation_map": True},
    }
    assert segment_command({**plain, **changes}) == (
        f"{command} --overlay --adaptation-map --overwrite --axes ZYX --tile 64,96 --overlap 0.0 "
        "--decoding min_size=3"
    )
    several = segment_command({**plain, "model": ["a", "b"]})
    assert several.endswith("--output o/ --model a --model b")
    assert segment_command({**plain, "ending": "_seg"}) is None
    assert segment_command({**plain, "format": ".nrrd"}) is None
