"""Memory that runs out, by networks that ask for too much; and what is estimated before."""

from __future__ import annotations

import errno
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tiny import make_config
from tttunet.engine import jobs, memory, segmenting
from tttunet.engine.client import Engine
from tttunet.engine.ladder import climb_down, rungs
from tttunet.engine.memory import estimate, is_out_of_memory
from tttunet.engine.messages import ImageRef, Log, Progress, Segment
from tttunet.engine.worker import Reporter, _outcome
from tttunet.inference.segment import segment
from tttunet.models.model import Model

from .conftest import finish, kill, noise


class Hungry(nn.Module):
    """A network that has room for tiles of at most so many pixels."""

    def __init__(self, network: nn.Module, room: int, error: Exception) -> None:
        super().__init__()
        self.network, self.room, self.error = network, room, error
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(x.shape[2:]))
        if x[0, 0].numel() > self.room:
            raise self.error
        return self.network(x)


ERRORS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
]


@pytest.fixture
def hungry(monkeypatch):
    """Puts a hungry network into the worker's code, which runs in this process."""

    def make(room: int, error: Exception) -> Model:
        torch.manual_seed(0)
        model = Model.create(make_config(2, "semantic"))
        model.network = Hungry(model.network.eval(), room, error)
        monkeypatch.setattr(jobs._MODELS, "get", lambda name: ((Path(name),), model))
        return model

    return make


def run(request: Segment) -> tuple[Any, list[Any]]:
    told: list[Any] = []
    return _outcome(request.to_dict(), Reporter(told.append, lambda: False)), told


def request(tmp_path: Path, array: np.ndarray, **options: Any) -> Segment:
    np.save(tmp_path / "image.npy", array)
    ref = ImageRef(array=str(tmp_path / "image.npy"), axes="YX")
    return Segment(ref, "m", str(tmp_path / "labels.npy"), device="cpu", **options)


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_smaller_tiles_are_tried_and_told(hungry, tmp_path: Path, error: Exception):
    model = hungry(20 * 20, error)
    array = noise((70, 90))
    outcome, told = run(request(tmp_path, array))
    assert outcome.kind == "done", outcome
    texts = [event.message for event in told if isinstance(event, Log)]
    assert texts == [
        "Memory ran out; trying tiles of 32 x 32.",
        "Memory ran out; trying tiles of 16 x 16.",
    ]
    assert outcome.result["tile"] == [16, 16]
    expected = segment_again(model, array, (16, 16))
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), expected)
    fractions = [e.fraction for e in told if isinstance(e, Progress) and e.stage == "tiles"]
    assert fractions[-1] == 1.0


def segment_again(model: Model, array: np.ndarray, tile: tuple[int, ...]) -> np.ndarray:
    from tttunet.imaging import Image

    return segment(Image.from_array(array), model, device="cpu", tile=tile).labels


def test_when_nothing_helps_the_user_is_told_why(hungry, tmp_path: Path):
    hungry(10, MemoryError())
    outcome, told = run(request(tmp_path, noise((70, 70))))
    assert (outcome.kind, outcome.problem) == ("failed", "memory")
    assert outcome.message == "There is not enough memory."
    assert len([e for e in told if isinstance(e, Log)]) == 2


def test_other_errors_are_no_reason_to_try_again(hungry, tmp_path: Path):
    model = hungry(10, ZeroDivisionError("a defect"))
    outcome, told = run(request(tmp_path, noise((70, 70))))
    assert (outcome.kind, outcome.problem) == ("failed", "defect")
    assert "ZeroDivisionError: a defect" in outcome.message
    assert "Traceback" in outcome.details
    assert len(model.network.seen) == 1
    assert not [e for e in told if isinstance(e, Log)]


def test_the_system_is_not_asked_for_what_it_has_not(hungry, tmp_path: Path, monkeypatch):
    """The system would end the process, so the first tile size is passed over."""
    model = hungry(10**9, MemoryError())
    needed = {
        tile: estimate(model.config, (70, 70), tile=(tile,) * 2).host for tile in (64, 32, 16)
    }
    assert needed[64] > needed[32] > needed[16]
    monkeypatch.setattr(segmenting, "host_memory", lambda: (10**12, needed[32]))
    outcome, told = run(request(tmp_path, noise((70, 70))))
    assert outcome.result["tile"] == [32, 32]
    texts = [event.message for event in told if isinstance(event, Log)]
    assert texts == ["Memory would not suffice; trying tiles of 32 x 32."]
    assert set(model.network.seen) == {(32, 32)}


def test_what_the_computer_cannot_hold_is_refused_at_once(hungry, tmp_path: Path, monkeypatch):
    model = hungry(10**9, MemoryError())
    estimated = estimate(model.config, (70, 70), tile=(16, 16), itemsize=4)
    least = estimated.host - estimated.mapped
    monkeypatch.setattr(segmenting, "host_memory", lambda: (least - 10**6, least - 10**6))
    monkeypatch.setattr(segmenting, "swap_memory", lambda: 10**6 - 1)
    outcome, told = run(request(tmp_path, noise((70, 70))))
    assert (outcome.kind, outcome.problem) == ("failed", "memory")
    assert outcome.message.startswith("There is not enough memory. This takes at least 0.1 GB, and")
    assert not model.network.seen
    assert not [event for event in told if isinstance(event, Log)]
    # With one byte more it is tried, as slow as that may be.
    monkeypatch.setattr(segmenting, "swap_memory", lambda: 10**6)
    assert run(request(tmp_path, noise((70, 70))))[0].kind == "done"


def test_a_long_film_on_the_disk_is_no_reason_to_refuse(hungry, monkeypatch):
    """Its frames are computed one by one; only their labels have to be in memory."""
    model = hungry(10**9, MemoryError())
    film = estimate(model.config, (1000, 1000), 30_000, tile=(64, 64), itemsize=2)
    total = 2 * 30_000 * 10**6
    assert film.host > total + 10**9
    monkeypatch.setattr(segmenting, "swap_memory", lambda: 0)
    monkeypatch.setattr(segmenting, "host_memory", lambda: (total, total))
    segmenting._check_possible(film)
    monkeypatch.setattr(segmenting, "host_memory", lambda: (total // 4, total // 4))
    with pytest.raises(memory.NotEnoughMemory, match="GB"):
        segmenting._check_possible(film)


def test_maps_of_the_last_attempt_are_decoded(hungry, tmp_path: Path):
    from tttunet.engine.messages import Decode

    hungry(20 * 20, MemoryError())
    run(request(tmp_path, noise((70, 70))))
    reporter = Reporter(lambda event: None, lambda: False)
    outcome = _outcome(Decode(str(tmp_path / "again.npy")).to_dict(), reporter)
    assert outcome.kind == "done"
    again, first = np.load(tmp_path / "again.npy"), np.load(tmp_path / "labels.npy")
    np.testing.assert_array_equal(again, first)


def test_every_step_from_the_gpu_to_the_cpu():
    config = make_config(2, "semantic")  # patches of 32, stride 4
    ways = rungs(config, "cuda:0", (64, 64))
    assert [(w.device, w.tile[0], w.stitch_on_cpu) for w in ways] == [
        ("cuda:0", 64, False),
        ("cuda:0", 64, True),
        ("cuda:0", 32, True),
        ("cuda:0", 16, True),
        ("cpu", 64, False),
        ("cpu", 32, False),
        ("cpu", 16, False),
    ]
    tried, told = [], []

    def compute(way):
        tried.append(way)
        if way.device != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "labels"

    model = Model.create(config)
    assert climb_down(compute, ways, model=model, log=told.append) == "labels"
    assert tried == ways[:5]
    assert told == [
        "Memory ran out; trying putting the tiles together on the CPU.",
        "Memory ran out; trying tiles of 32 x 32.",
        "Memory ran out; trying tiles of 16 x 16.",
        "Memory ran out; trying computing on the CPU.",
    ]


@pytest.mark.parametrize("tile", [(16, 16), (8, 8), (20, 64)])
def test_tiles_never_grow_on_the_way_down(tile):
    tiles = [way.tile for way in rungs(make_config(2, "semantic"), "cpu", tile)]
    assert tiles[0] == tile
    for larger, smaller in itertools.pairwise(tiles):
        assert all(b <= a for a, b in zip(larger, smaller, strict=True))
        assert smaller != larger


def test_only_lack_of_memory_is_taken_for_it():
    assert all(map(is_out_of_memory, ERRORS))
    # As oneDNN, C++ and the system said it when the worker's memory was limited.
    others = ("could not create a primitive", "could not create a memory object", "std::bad_alloc")
    assert all(is_out_of_memory(RuntimeError(text)) for text in others)
    assert is_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
    different = [
        RuntimeError("shape"),
        RuntimeError("could not create a primitive descriptor for a convolution"),
        ValueError("out of memory"),
        OSError(errno.ENOSPC, "No space left on device"),
    ]
    assert not any(map(is_out_of_memory, different))


def test_memory_of_this_machine():
    total, available = memory.host_memory()
    if total is not None and available is not None:
        assert 0 < available <= total


def test_estimate_grows_with_everything():
    config = make_config(2, "semantic")
    base = estimate(config, (500, 500), tile=(64, 64))
    larger = [
        estimate(config, (1000, 500), tile=(64, 64)),
        estimate(config, (500, 500), tile=(256, 256)),
        estimate(config, (500, 500), 3, tile=(64, 64)),
        estimate(config, (500, 500), tile=(64, 64), itemsize=4),
    ]
    assert all(one.host > base.host for one in larger)
    mirrored = estimate(config, (500, 500), tile=(64, 64), mirror=True)
    assert mirrored.work == 4 * base.work
    gpu = estimate(config, (500, 500), tile=(64, 64), on_gpu=True)
    assert gpu.device > 0
    assert gpu.host <= base.host


def test_files_that_were_read_leave_their_memory(tmp_path, monkeypatch):
    gibibyte = 2**30
    (tmp_path / "memory.max").write_text(f"{gibibyte}\n")
    (tmp_path / "memory.current").write_text(f"{gibibyte - 4096}\n")
    (tmp_path / "memory.stat").write_text(f"anon 4096\ninactive_file {gibibyte // 2}\nfile 0\n")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.host_memory() == (gibibyte, gibibyte // 2 + 4096)


def test_the_smallest_limit_of_all_groups_around_counts(tmp_path, monkeypatch):
    """As a job of a cluster has them: the root has none, the job and its step have."""
    mebibyte = 2**20
    for group, limit in (("job", "max"), ("job/step", 300 * mebibyte), ("job/step/task", "max")):
        (tmp_path / group).mkdir()
        (tmp_path / group / "memory.max").write_text(f"{limit}\n")
        (tmp_path / group / "memory.current").write_text(f"{100 * mebibyte}\n")
    (tmp_path / "own").write_text("0::/job/step/task\n")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_OWN_GROUP", tmp_path / "own")
    assert memory.host_memory() == (300 * mebibyte, 200 * mebibyte)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="looks at /proc")
def test_a_worker_with_a_real_limit_goes_down_or_refuses(models):
    """Of its address space; the job after one that was refused works."""
    with Engine(grace=10.0) as engine:  # of its own: what jobs before it left changes the room
        limit_and_segment(engine, models)


def limit_and_segment(engine: Engine, models) -> None:
    resource = pytest.importorskip("resource")
    model = models[2, "instance"]
    assert finish(engine.segment(noise((64, 64)), axes="YX", model=model)).kind == "done"
    pid = engine.worker_pid
    heard: list[str] = []

    def hear(_job: Any, event: Any) -> None:
        if isinstance(event, Log):
            heard.append(event.message)

    try:
        used = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(pid, resource.RLIMIT_AS, (used + 40 * 2**20, resource.RLIM_INFINITY))
        large, tile = noise((1200, 1200)), (512, 512)
        job = engine.segment(large, axes="YX", model=model, tile=tile, on_event=hear)
        outcome = finish(job)
        assert (outcome.kind, outcome.problem) == ("failed", "memory"), outcome
        assert outcome.message == "There is not enough memory."
        assert "Memory would not suffice; trying tiles of 256 x 256." in heard
        after = finish(engine.segment(noise((64, 64)), axes="YX", model=model))
        assert after.kind == "done", after
        assert engine.worker_pid == pid
    finally:
        kill(pid)
