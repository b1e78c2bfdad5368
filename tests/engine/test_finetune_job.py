"""Fine-tuning through the worker: curve, preview, stop, cancel, scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tttunet.engine.client import Engine
from tttunet.engine.messages import Finetune, PlanFinetune
from tttunet.imaging import Image
from tttunet.imaging.preprocess import image_scales
from tttunet.inference.segment import segment
from tttunet.models.card import read_config
from tttunet.models.model import load_model

from .conftest import Heard, finish

FAST = {"steps": 6, "options": {"precision": "32-true", "batch_size": 2, "validate_every": 3}}


def test_curve_preview_and_scores(engine: Engine, models, dataset: Path, tmp_path: Path):
    heard = Heard()
    view = np.zeros((1, 40, 50), np.uint8)
    view[0, 10:20, 10:20] = 200
    long = {**FAST, "steps": None, "max_minutes": 0.5}
    job = engine.finetune(
        models[2, "instance"],
        dataset,
        tmp_path / "run",
        view=view,
        axes="ZYX",
        on_event=heard,
        **long,
    )
    done = finish(job)
    assert done.kind == "done", done
    result = done.result
    assert Path(result["folder"]) == tmp_path / "run" / "model"
    assert read_config(tmp_path / "run" / "model").card.scores["held_out"]["after"]
    assert result["before"]["metric"] == "F1 at IoU 0.5"
    assert result["forgetting"] is None
    assert any("earlier data" in note for note in result["notes"])
    metrics = [event for event in heard if getattr(event, "kind", "") == "metric"]
    assert {"loss", "score"} <= {name for event in metrics for name in event.values}
    previews = [event for event in heard if not hasattr(event, "kind")]
    assert previews
    assert previews[-1].bounds == ((0, 1), (0, 40), (0, 50))
    assert previews[-1].labels.shape == view.shape


def test_the_preview_is_normalised_as_the_whole_image(
    engine: Engine, models, dataset: Path, tmp_path: Path
):
    """A dim corner of a bright image: what it shows is what the whole image's labels have there."""
    whole = np.random.default_rng(0).integers(0, 40, (64, 96), np.uint8)
    whole[:, 48:] *= 6
    part = ((0, 64), (0, 40))
    heard = Heard()
    start = models[2, "instance"]
    # Without learning anything, the model of the moment stays the first one. Rare validations lose
    # no patience before the first preview.
    rare = {**FAST["options"], "validate_every": 10**6}
    frozen = {"options": rare, "max_minutes": 0.25, "learning_rate": 1e-12}
    given = {"view": whole, "axes": "YX", "part": part, "on_event": heard}
    done = finish(engine.finetune(start, dataset, tmp_path / "run", **given, **frozen))
    assert done.kind == "done", done
    shown = [event for event in heard if not hasattr(event, "kind")][-1]
    assert shown.bounds == ((0, 64), (0, 40))
    model = load_model(Path(done.result["folder"]))
    image = Image.from_array(whole, "YX")
    crop = Image.from_array(whole[:, :40], "YX")
    scales = image_scales(image, model.config.plan, model.config.network.input_channels)
    as_whole = segment(crop, model, device="cpu", scales=scales).labels
    on_its_own = segment(crop, model, device="cpu").labels
    assert (as_whole != on_its_own).mean() > 0.05, "the test needs an image where it matters"
    assert (shown.labels == as_whole).mean() > 0.999


def test_how_many_steps_there_would_be(engine: Engine, models, dataset: Path, tmp_path: Path):
    model = models[2, "instance"]

    def plan(model: str, **options) -> dict:
        return finish(engine.request(PlanFinetune(model, str(dataset), options))).result

    automatic = plan(model)
    finish(engine.finetune(model, dataset, tmp_path / "run", **FAST))
    done = read_config(tmp_path / "run" / "model").card.training
    assert (automatic["train"], automatic["held_out"]) == (
        done["train_parts"],
        done["held_out_parts"],
    )
    # The minutes are for machines that are slow.
    assert (automatic["minutes"], automatic["notes"]) == (2.0, [])
    assert automatic["pixels"] == 4 * 32 * 32, "its batches are larger than those of `FAST`"
    assert plan("")["steps"] > automatic["steps"] > 0, "a new model needs more"
    assert plan(model, steps=7)["steps"] == 7
    limited = plan(model, max_minutes=0.5)
    assert (limited["steps"], limited["minutes"]) == (None, 0.5)
    ramp = np.zeros((64, 64), np.uint8) + np.arange(64, dtype=np.uint8)
    for _ in range(2):  # the first one says little
        finish(engine.segment(ramp, axes="YX", model=model))
    assert plan(model)["rate"] > 0
    failed = finish(engine.request(PlanFinetune("no-such-model", str(dataset))))
    assert (failed.kind, failed.problem) == ("failed", "input")


def test_stop_by_the_control_file(engine: Engine, models, dataset: Path, tmp_path: Path):
    control = tmp_path / "control"

    def act(job, event) -> None:
        if getattr(event, "kind", "") == "metric":
            control.write_text("stop")

    job = engine.finetune(
        models[2, "instance"],
        dataset,
        tmp_path / "run",
        control=control,
        on_event=Heard(act),
        **{**FAST, "steps": 5000},
    )
    done = finish(job)
    assert done.kind == "done", done
    assert done.result["steps"] < 5000


def test_cancel_leaves_the_model_as_it_was(engine: Engine, models, dataset: Path, tmp_path: Path):
    start = Path(models[2, "instance"])
    before = {path.name: path.read_bytes() for path in start.iterdir()}

    def act(job, event) -> None:
        if getattr(event, "kind", "") == "metric":
            job.cancel()

    options = {**FAST, "steps": 5000}
    job = engine.finetune(str(start), dataset, tmp_path / "run", on_event=Heard(act), **options)
    assert finish(job).kind == "cancelled"
    assert {path.name: path.read_bytes() for path in start.iterdir()} == before
    assert (tmp_path / "run" / "checkpoint.pt").exists()


def test_an_unknown_option_is_refused(engine: Engine, models, dataset: Path, tmp_path: Path):
    request = Finetune(models[2, "instance"], str(dataset), str(tmp_path / "run"), {"speed": 3})
    failed = finish(engine.request(request))
    assert (failed.problem, "speed" in failed.message) == ("input", True)
