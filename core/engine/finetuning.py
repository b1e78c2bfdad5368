"""Fine-tuning in the worker: the curve, a preview of the user's view, pause and stop."""

from __future__ import annotations

import contextlib
import inspect
import math
import os
from pathlib import Path
from typing import Any

from tttunet.engine.grid import open_image
from tttunet.engine.messages import Finetune, Log, Metric, Partial, PlanFinetune, Progress
from tttunet.engine.models import LoadedModels
from tttunet.engine.worker import Reporter
from tttunet.errors import Cancelled, TTTUNetError
from tttunet.imaging.normalise import Scales
from tttunet.imaging.preprocess import image_scales
from tttunet.inference.device import pick_device
from tttunet.inference.segment import segment
from tttunet.models.card import read_config
from tttunet.models.library import resolve
from tttunet.models.model import Model
from tttunet.training.comparison import COMPARISON_NAME
from tttunet.training.defaults import SHARE, choose_settings
from tttunet.training.finetune import FinetuneResult, finetune
from tttunet.training.history import History
from tttunet.training.holdout import hold_out
from tttunet.training.notes import of_classes
from tttunet.training.samples import read_material
from tttunet.training.trainer import TrainEvent
from tttunet.training.transfer import initial_model, same_question

#: What a control file may say; anything else, or no file: go on.
PAUSE, STOP = "pause", "stop"
#: Arguments of `finetune` that are not for a request's options.
_OURS = {"model", "data", "output", "listener", "cancel", "stop", "pause", "preview", "say"}


def run_finetune(request: Finetune, reporter: Reporter) -> dict[str, Any]:
    """Fine-tune as the request says.

    Returns:
        `folder`, `model` (name, version), `before`, `after`, `forgetting`, `improved`,
        `best_step`, `steps`, `minutes` and `notes`; see `FinetuneResult`. `comparison`: file with
        pictures of held-out labels, see `save_comparison`; empty if there are none.

    Raises:
        TTTUNetError: an option is unknown, or what `finetune` raises.
        Cancelled: the reporter said so; a checkpoint is left in the output folder.
    """
    reporter.stage("preparing the corrections")
    known = set(inspect.signature(finetune).parameters) - _OURS
    unknown = sorted(set(request.options) - known)
    if unknown:
        raise TTTUNetError(
            f"A fine-tuning has no option '{unknown[0]}'.", f"There are {', '.join(sorted(known))}."
        )
    control = Path(request.control) if request.control else None
    said: list[str] = []

    def say(note: str) -> None:
        said.append(note)
        reporter.send(Log("info", note))

    result = finetune(
        request.model or None,
        request.data,
        request.output,
        **request.options,
        listener=_Teller(request, reporter),
        cancel=reporter.is_cancelled,
        stop=lambda: _said(control) == STOP,
        pause=lambda: _said(control) == PAUSE,
        preview=_Preview(request, reporter) if request.view and request.preview else None,
        say=say,
    )
    for note in result.notes:
        if note not in said:
            say(note)
    return _ready(result)


def plan_finetune(
    request: PlanFinetune, reporter: Reporter, models: LoadedModels
) -> dict[str, Any]:
    """What a fine-tuning would do, without training.

    Returns:
        `train` and `held_out`: numbers of labelled parts; `steps` at most (None if only the time
        is limited) and `minutes` at most (None without limit); `pixels` per step; `rate`: seconds
        per pixel of the last segmentation with the model in this process; None if there was none
        but the first, which is slow. `notes`: what is learnt about classes that nobody marked.

    Raises:
        TTTUNetError: the project cannot be trained on, or the model is unknown.
    """
    reporter.stage("looking at the corrections")
    options = dict(request.options)
    seed, share = int(options.get("seed", 0)), float(options.get("share", SHARE))
    # Twenty volumes are not read for a number.
    material = read_material(request.data, pixels=False)
    train, val = material.samples, material.val
    if not val:
        train, val = hold_out(train, material.task, seed, share)
    rate = None
    if request.model:
        folder = resolve(request.model).resolve()
        config = read_config(folder)
        notes = of_classes(config, material)
        device = str(pick_device(str(options.get("device", "auto"))))
        key = (folder,), device, "tile", False
        rate = models.rates[key] if key in models.warm else None
    else:
        config = initial_model(None, material, "new", seed).config
        notes = of_classes(None, material)
    chosen = dict(options.get("options") or {})
    chosen |= {name: options.get(name) for name in ("max_minutes", "steps", "learning_rate")}
    settings = choose_settings(
        config,
        len(train),
        new_head=not request.model or not same_question(config, material),
        from_scratch=not request.model,
        seed=seed,
        chosen=chosen,
    )
    patch = settings.patch_size or config.plan.patch_size
    return {
        "train": len(train),
        "held_out": len(val),
        "steps": settings.steps,
        "minutes": settings.max_minutes,
        "pixels": settings.batch_size * math.prod(patch),
        "rate": rate,
        "notes": notes,
    }


def _said(control: Path | None) -> str:
    try:
        return "" if control is None else control.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


class _Teller:
    """Tells progress and the curve, with what was before an interruption."""

    def __init__(self, request: Finetune, reporter: Reporter) -> None:
        self._reporter = reporter
        self._before = Path(request.output) if request.options.get("resume") else None

    def __call__(self, event: TrainEvent) -> None:
        before, self._before = self._before, None
        if before is not None:
            for row in History(before, event.step - 1, write=False).rows:
                self._point(row["step"], row.get("loss"), row.get("score"))
        self._point(event.step, event.loss, event.score)
        self._reporter.send(Progress(event.progress, "fine-tuning", event.remaining))

    def _point(self, step: int, loss: float | None, score: float | None) -> None:
        values = {"loss": loss, "score": score}
        known = {
            name: value
            for name, value in values.items()
            if value is not None and not math.isnan(value)
        }
        if known:
            self._reporter.send(Metric(step, known))


class _Preview:
    """Segments the user's view with the model of the moment, and tells where the labels are.

    Intensities are normalised as in a segmentation of the whole image.
    """

    def __init__(self, request: Finetune, reporter: Reporter) -> None:
        assert request.view is not None
        self._whole, _ = open_image(request.view, request.channel)
        self._image, self._grid = open_image(request.view, request.channel, request.part)
        self._path, self._reporter = Path(request.preview), reporter
        self._scales: Scales | None = None
        self._failed = False

    def __call__(self, model: Model) -> None:
        if self._failed:
            return
        try:
            self._show(model)
        except Cancelled:
            raise
        except Exception as error:  # a training is worth more than its preview
            self._failed = True
            self._reporter.log(f"The preview is left out: {error}")

    def _show(self, model: Model) -> None:
        config, stop = model.config, self._reporter.is_cancelled
        if self._scales is None and "T" not in self._whole.axes:
            channels = config.network.input_channels
            self._scales = image_scales(self._whole, config.plan, channels)
        labels = segment(self._image, model, scales=self._scales, cancel=stop).labels
        # The client may still be reading the last one.
        fresh = self._path.with_name(f"new-{self._path.name}")
        _, view = self._grid.create(fresh, labels.dtype)
        view[...] = labels
        del view
        # Windows replaces no file that somebody reads: there, this preview is left out.
        with contextlib.suppress(PermissionError):
            os.replace(fresh, self._path)
        bounds = tuple((0, size) for size in self._grid.shape)
        self._reporter.send(Partial(bounds, str(self._path)))


def _ready(result: FinetuneResult) -> dict[str, Any]:
    config = result.model.config
    pictures = result.folder.parent / COMPARISON_NAME
    names = ("before", "after", "forgetting", "improved", "best_step")
    return {
        **{name: getattr(result, name) for name in names},
        "folder": str(result.folder),
        "comparison": str(pictures) if pictures.is_file() else "",
        "notes": list(result.notes),
        "steps": config.card.training.get("steps"),
        "minutes": config.card.training.get("minutes"),
        "model": {"name": config.name, "version": config.version},
    }
