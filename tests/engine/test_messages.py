"""Messages survive the way through JSON, and strange ones are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tttunet.engine import messages, wire
from tttunet.engine.messages import ImageRef, Partial, ProtocolError, Segment, from_dict

EXAMPLES = [
    Segment(
        ImageRef(
            array="a.npy", axes="ZYX", spacing=(2.0, 0.5, 0.5), direction=((1.0, 0.0), (0.0, 1.0))
        ),
        "nuclei",
        "out.npy",
        tile=(64, 64),
        decoding={"min_size": 3, "list": [1, 2]},
    ),
    Partial(((0, 1), (3, 9)), "preview.npy"),
    messages.Hello(),
    messages.Decode("out.npy", {"foreground": 0.4}),
    messages.Review("l.npy", "id", 5),
    messages.Estimate((3, 4), "YX", "nuclei"),
    messages.ReviewImage("project", "plate-1", "nuclei"),
    messages.ReadImage("project", "ct-1", "/tmp/image.npy", "/tmp/labels.npy"),
    messages.Train("data", "run", {"steps": 3}),
    messages.Finetune(
        "nuclei",
        "project",
        "run",
        {"seed": 1},
        ImageRef(array="view.npy", axes="YX"),
        "out.npy",
        part=((3, 9), (0, 20)),
    ),
    messages.PlanFinetune("nuclei", "project", {"seed": 1}),
    messages.Evaluate("a", "b", "instance"),
    messages.Measure(
        "l.npy", "t.npz", "YX", "YX", ((1.0, 0.0), (0.0, 1.0)), "µm", (("a", "a.npy"),)
    ),
    messages.Batch({"inputs": ["a"]}),
    messages.ListModels(),
    messages.AddModel("folder", "name", convert=True, options={"fold": "0"}),
    messages.RemoveModel("name"),
    messages.ExportModel("name", "name.zip", overwrite=True),
    messages.DownloadModel("https://example.org/a.zip", "ab" * 32, "name"),
    messages.Queued(2),
    messages.Started(True),
    messages.Progress(0.5, "tiles", None),
    messages.Log("warning", "text"),
    messages.FileStatus(0, 2, "done", "a", "b", "3 objects", 0.1),
    messages.Metric(3, {"loss": 0.2}),
    messages.Done({"count": 3}),
    messages.Failed("input", "text", "hint"),
    messages.Cancelled(),
    messages.Lost("text"),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: m.kind)
def test_round_trip(message: messages.Message):
    assert from_dict(json.loads(json.dumps(message.to_dict()))) == message


def test_every_kind_has_an_example():
    assert {type(message) for message in EXAMPLES} == set(wire._KINDS.values())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "no message"),
        ({"kind": "dance"}, "'dance'"),
        ({"kind": "hello", "colour": 3}, "colour"),
        ({"kind": "segment", "model": "nuclei"}, "incomplete"),
        ({"kind": "segment", "image": {"size": 3}, "model": "m", "output": "o"}, "size"),
    ],
)
def test_strange_messages_are_refused(data: dict, message: str):
    with pytest.raises(ProtocolError, match=message):
        from_dict(data)


def test_model_paths_become_absolute(monkeypatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    assert messages.model_reference("nuclei") == "nuclei"
    assert messages.model_reference("runs/mine") == str(tmp_path / "runs" / "mine")
    assert messages.model_reference("~/mine") == str(Path.home() / "mine")


def test_client_imports_no_heavy_library():
    heavy = ["torch", "pydantic", "scipy", "skimage", "yaml", "napari"]
    program = f"import sys, tttunet.engine.client; print(sorted(set({heavy}) & set(sys.modules)))"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"


def test_batch_files_are_made_without_torch():
    heavy = ["torch", "scipy", "skimage", "SimpleITK"]
    program = f"import sys, tttunet.engine.batch; print(sorted(set({heavy}) & set(sys.modules)))"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"
