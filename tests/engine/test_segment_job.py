"""Segment, decode and estimate through a real worker process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tttunet.engine.client import Engine, Preview
from tttunet.engine.messages import Decode, Estimate, Progress
from tttunet.imaging import Image
from tttunet.inference.segment import segment
from tttunet.models.model import load_model

from .conftest import Heard, finish, noise


@pytest.mark.parametrize(
    ("axes", "shape", "dim", "task"),
    [
        ("YX", (70, 90), 2, "instance"),
        ("ZYX", (3, 24, 40), 2, "instance"),
        ("TYX", (2, 24, 40), 2, "semantic"),
        ("TZYX", (2, 9, 20, 24), 3, "semantic"),
    ],
)
def test_labels_equal_those_without_a_worker(engine: Engine, models, axes, shape, dim, task):
    array = noise(shape)
    job = engine.segment(array, axes=axes, model=models[dim, task], device="cpu")
    result = finish(job).result
    expected = segment(Image.from_array(array, axes), load_model(models[dim, task]), device="cpu")
    assert result["labels"].dtype == expected.labels.dtype
    np.testing.assert_array_equal(result["labels"], expected.labels)
    assert result["count"] == expected.count
    assert result["axes"] == axes


@pytest.mark.parametrize(
    ("axes", "shape", "labels"),
    [
        ("YXZ", (24, 40, 3), (24, 40, 3)),
        ("ZCYX", (1, 1, 24, 40), (1, 24, 40)),
        ("XY", (40, 24), (40, 24)),
        ("YX", (1, 33), (1, 33)),
        ("CTYX", (1, 2, 24, 20), (2, 24, 20)),
    ],
)
def test_labels_have_the_shape_and_the_order_that_was_asked(
    engine: Engine, models, axes, shape, labels
):
    array = noise(shape)
    heard = Heard()
    job = engine.segment(
        array, axes=axes, model=models[2, "semantic"], maps=True, preview=True, on_event=heard
    )
    result = finish(job).result
    assert result["labels"].shape == labels
    assert result["maps"].shape == (2, *labels)
    np.testing.assert_array_equal(result["labels"], result["maps"].argmax(0))
    for event in heard:
        if isinstance(event, Preview):
            part = tuple(slice(*bounds) for bounds in event.bounds)
            assert event.labels.shape == result["labels"][part].shape


@pytest.mark.parametrize(("dim", "mode"), [(2, "image"), (2, "off"), (2, "both"), (3, "tile")])
def test_the_mode_of_adaptation_and_its_map_travel(engine: Engine, models, dim: int, mode: str):
    array = noise((2, *(40,) * dim))
    axes = "TZYX" if dim == 3 else "ZYX"
    model = models[dim, "instance"]
    options = {"tile": (32,) * dim, "adaptation": mode, "device": "cpu"}
    job = engine.segment(array, axes=axes, model=model, adaptation_map=True, **options)
    result = finish(job).result
    expected = segment(
        Image.from_array(array, axes), load_model(model), adaptation_map=True, **options
    )
    np.testing.assert_array_equal(result["labels"], expected.labels)
    np.testing.assert_allclose(result["adaptation_map"], expected.adaptation_map, rtol=1e-4)
    assert result["adaptation_map"].dtype == np.float32
    before, after = result["adaptation_map"]
    assert np.allclose(before, after, rtol=1e-4) == (mode == "off")
    assert result["adaptation"] == mode

    # With the client's axes, also where these are in another order.
    turned = np.moveaxis(array, 0, -1)
    job = engine.segment(
        turned, axes=axes[1:] + axes[0], model=model, adaptation_map=True, **options
    )
    other = finish(job).result["adaptation_map"]
    np.testing.assert_allclose(np.moveaxis(other, -1, 1), result["adaptation_map"], rtol=1e-4)
    plain = finish(engine.segment(array, axes=axes, model=model, **options)).result
    assert "adaptation_map" not in plain


def test_an_unknown_adaptation_is_explained(engine: Engine, models):
    job = engine.segment(noise((20, 20)), axes="YX", model=models[2, "instance"], adaptation="x")
    failed = finish(job)
    assert failed.problem == "input"
    assert "no adaptation 'x'" in failed.message


def test_events_come_in_order(engine: Engine, models):
    heard = Heard()
    job = engine.segment(
        noise((200, 200)), axes="YX", model=models[2, "instance"], tile=(32, 32), on_event=heard
    )
    finish(job)
    assert heard.kinds[:2] == ["queued", "started"]
    assert heard.kinds[-1] == "done"
    assert set(heard.kinds[2:-1]) == {"progress"}
    stages = list(dict.fromkeys(e.stage for e in heard if isinstance(e, Progress)))
    assert stages == ["loading the model", "reading the image", "tiles", "finding objects"]
    tiles = [e.fraction for e in heard if isinstance(e, Progress) and e.stage == "tiles"]
    assert tiles == sorted(tiles)
    assert tiles[-1] == 1.0


def test_the_result_is_a_record(engine: Engine, models):
    job = engine.segment(
        noise((40, 50)), axes="YX", model=models[2, "instance"], decoding={"min_size": 3}
    )
    result = finish(job).result
    config = load_model(models[2, "instance"]).config
    assert result["model"] == {
        "name": "tiny",
        "version": "1.0.0",
        "sha256": config.weights.sha256,
        "task": "instance",
    }
    assert result["decoding"]["min_size"] == 3
    assert (result["tile"], result["overlap"], result["mirror"]) == ([64, 64], 0.25, False)
    assert result["device"] == engine.about["device"]
    assert result["backend"] == engine.about["backend"]
    assert result["seconds"] > 0


def test_finished_tiles_are_shown(engine: Engine, models):
    heard = Heard()
    job = engine.segment(
        noise((2, 150, 150)),
        axes="ZYX",
        model=models[2, "semantic"],
        tile=(32, 32),
        preview=True,
        on_event=heard,
    )
    labels = finish(job).result["labels"]
    previews = [event for event in heard if isinstance(event, Preview)]
    assert previews
    for preview in previews:
        assert preview.labels.dtype == labels.dtype
        assert preview.labels.shape == tuple(b - a for a, b in preview.bounds)
    # Tiles are blended at their borders only: the first one is nearly the result.
    first = previews[0]
    part = tuple(slice(*bounds) for bounds in first.bounds)
    assert (first.labels == labels[part]).mean() > 0.8


def test_decoding_again_needs_no_network(engine: Engine, models):
    array = noise((3, 40, 50))
    model = models[2, "instance"]
    first = finish(engine.segment(array, axes="ZYX", model=model, decoding={"min_size": 0})).result
    again = finish(engine.decode({"min_size": 0}, first["maps_id"])).result
    np.testing.assert_array_equal(again["labels"], first["labels"])
    assert again["count"] == first["count"]
    changed = {"foreground": 0.3, "confidence": 0.1, "min_size": 0}
    whole = finish(engine.segment(array, axes="ZYX", model=model, decoding=changed)).result
    fast = finish(engine.decode(changed)).result
    np.testing.assert_array_equal(fast["labels"], whole["labels"])
    assert whole["count"] != first["count"]


def test_decoding_without_maps_says_what_to_do(engine: Engine, models, tmp_path: Path):
    finish(engine.segment(noise((20, 20)), axes="YX", model=models[2, "instance"]))
    failed = finish(engine.request(Decode(str(tmp_path / "labels.npy"), {}, "of another image")))
    assert (failed.kind, failed.problem) == ("failed", "input")
    assert "Segment it again" in failed.hint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoding": {"foreground": 2}}, "foreground"),
        ({"decoding": {"size": 2}}, "size"),
        ({"tile": (1, 2, 3)}, "2D model"),
        ({"device": "abacus"}, "Unknown device"),
        ({"model": "no-such-model"}, "No model is called"),
        ({"axes": "YX"}, "needs 3 axes"),
        ({"channel": "7"}, "no channel"),
    ],
)
def test_wrong_requests_are_explained(engine: Engine, models, options, message: str):
    heard = Heard()
    given = {"axes": "ZYX", "model": models[2, "instance"], **options}
    failed = finish(engine.segment(noise((2, 20, 20)), on_event=heard, **given))
    assert (failed.kind, failed.problem) == ("failed", "input")
    assert message in failed.message
    assert heard.terminal == [failed]
    assert "Traceback" not in failed.message + failed.hint


def test_empty_image_is_refused(engine: Engine, models):
    job = engine.segment(np.zeros((0, 5), np.uint8), axes="YX", model=models[2, "instance"])
    failed = finish(job)
    assert failed.problem == "input"
    assert "empty" in failed.message


def test_an_image_without_numbers_is_refused(engine: Engine, models):
    job = engine.segment(
        np.full((8, 8), np.nan, np.float32), axes="YX", model=models[2, "instance"]
    )
    failed = finish(job)
    assert failed.problem == "input"
    assert "holds no numbers: every pixel is NaN or infinite" in failed.message


def test_a_defect_has_its_traceback(engine: Engine, models, tmp_path: Path):
    broken = tmp_path / "no" / "folder"
    job = engine.request(Decode(str(broken / "labels.npy")))
    finish(engine.segment(noise((20, 20)), axes="YX", model=models[2, "instance"]))
    failed = finish(engine.request(Decode(str(broken / "labels.npy"))))
    assert (failed.kind, failed.problem) == ("failed", "disk")
    assert "labels.npy" in failed.message
    assert finish(job).kind == "failed"


def test_estimate_says_memory_and_after_a_run_seconds(engine: Engine, models):
    ask = Estimate((400, 400), "YX", models[2, "semantic"], device="cpu", tile=(64, 64))
    finish(engine.segment(noise((80, 80)), axes="YX", model=models[2, "semantic"], tile=(64, 64)))
    small = finish(engine.request(ask)).result
    large = finish(
        engine.request(Estimate((800, 400), "YX", ask.model, device="cpu", tile=(64, 64)))
    ).result
    assert 1.5 < large["tiles"] / small["tiles"] < 2.5
    assert large["bytes"] > small["bytes"] > 400 * 400
    assert large["seconds"] > small["seconds"] > 0
    assert small["fits"]
    other = finish(engine.request(Estimate((400, 400), "YX", models[3, "semantic"])))
    assert other.kind == "failed"


def test_lazy_array_is_read_chunk_by_chunk(engine: Engine, models, monkeypatch):
    from tttunet.engine import exchange

    monkeypatch.setattr(exchange, "CHUNK_BYTES", 64 * 40)
    array = noise((96, 40))

    class Lazy:
        shape, dtype, chunks = array.shape, array.dtype, ((30, 30, 30, 6), (40,))
        read: list[tuple[slice, ...]] = []  # noqa: RUF012

        def __getitem__(self, part: tuple[slice, ...]) -> np.ndarray:
            self.read.append(part)
            return array[part]

    job = engine.segment(Lazy(), axes="YX", model=models[2, "semantic"])
    labels = finish(job).result["labels"]
    assert [(p[0].start, p[0].stop) for p in Lazy.read] == [(0, 60), (60, 120)]
    whole = finish(engine.segment(array, axes="YX", model=models[2, "semantic"])).result["labels"]
    np.testing.assert_array_equal(labels, whole)


def test_image_files_are_read_by_the_worker(engine: Engine, models, tmp_path: Path):
    import tifffile

    from tttunet.engine.messages import ImageRef, Segment

    tifffile.imwrite(tmp_path / "a.tif", noise((3, 30, 40)), metadata={"axes": "ZYX"})
    request = Segment(
        ImageRef(path=str(tmp_path / "a.tif")), models[2, "semantic"], str(tmp_path / "out.npy")
    )
    result = finish(engine.request(request)).result
    assert np.load(tmp_path / "out.npy").shape == (3, 30, 40)
    assert result["axes"] == "ZYX"
