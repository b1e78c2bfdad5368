"""The training loop, 2D and 3D, semantic and instance, on one device or several."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tttunet.errors import Cancelled, TTTUNetError
from tttunet.files import atomic_write
from tttunet.inference.segment import class_values
from tttunet.models.config import ModelConfig
from tttunet.models.model import Model, load_model
from tttunet.training.augment import AugmentConfig
from tttunet.training.checkpoint import load_checkpoint, save_checkpoint
from tttunet.training.config import TrainConfig
from tttunet.training.history import History
from tttunet.training.loader import make_loader
from tttunet.training.loss import deep_supervision_loss, without_classes
from tttunet.training.prepare import PreparedCase
from tttunet.training.targets import batch_targets
from tttunet.training.validation import validate

#: The history has the mean loss of this many steps.
LOG_EVERY = 20
#: This many steps in a row without a finite gradient end the training.
MAX_BAD_STEPS = 20
SGD_MOMENTUM = 0.99
POLY_POWER = 0.9


class TrainingFailed(TTTUNetError):
    """Training diverged; the models saved before are intact."""


@dataclass(frozen=True)
class TrainEvent:
    """What a listener hears: `kind` is `step`, `validation` or, at the end, `tuning`."""

    kind: str
    step: int
    progress: float
    elapsed: float
    loss: float
    score: float | None = None

    @property
    def remaining(self) -> float | None:
        """Estimated seconds left, None before the first step."""
        return self.elapsed * (1 - self.progress) / self.progress if self.progress else None


class Trainer:
    """Trains one model; `run` may be interrupted at any point and resumed exactly.

    The folder holds `model/` (the best model so far), `checkpoint.pt`, `history.jsonl`,
    `loss.png` and `training.json`.

    Args:
        model: what to train, with the weights to start from; the same ones on resuming.
        train_cases, val_cases: from `training.prepare`.
        config: the recipe.
        folder: output folder.
        listener: called with a `TrainEvent` after every step and every validation.
        cancel: asked at every step; True saves a checkpoint and raises `Cancelled`.
        score: gives a model's score, instead of `validate` on the validation cases.
        stop: asked at every step; True ends the training there, with the best model so far.
        pause: asked at every step; the training waits, and its time stands still, while True.
        preview: called every `preview_every` seconds with the model of the moment.
        hidden: classes of the model that the labels do not tell from background; see
            `loss.without_classes`.
        baseline: a score that a model must exceed to be saved; that of the model to start from,
            which the caller has saved.
        device: `auto`, `cpu`, `cuda` or `mps`.
        devices: processes, one device each; the script is started that many times.
    """

    def __init__(
        self,
        model: Model,
        train_cases: list[PreparedCase],
        val_cases: list[PreparedCase],
        config: TrainConfig,
        folder: str | Path,
        *,
        listener: Callable[[TrainEvent], None] | None = None,
        cancel: Callable[[], bool] | None = None,
        score: Callable[[Model], float] | None = None,
        stop: Callable[[], bool] | None = None,
        pause: Callable[[], bool] | None = None,
        preview: Callable[[Model], None] | None = None,
        preview_every: float = 5.0,
        hidden: Collection[int] = (),
        baseline: float | None = None,
        device: str = "auto",
        devices: int = 1,
    ) -> None:
        if config.steps is None and config.max_minutes is None:
            raise ValueError("give the training a number of steps or minutes")
        self.model_config: ModelConfig = model.config
        self.config = config
        self.train_cases, self.val_cases = train_cases, val_cases
        self.folder = Path(folder)
        self.listener = listener or (lambda event: None)
        self.cancel = cancel or (lambda: False)
        self.stop, self.pause = stop or (lambda: False), pause or (lambda: False)
        self.score, self.baseline = score, baseline
        values = enumerate((label.value for label in model.config.labels), 1)
        self.hidden = [place for place, value in values if value in hidden]
        self.preview, self.preview_every = preview, preview_every
        self.precision = _precision(config, device)
        # The lowest resolution has weight 0 in the loss: its head gets no gradient.
        strategy = "ddp_find_unused_parameters_true" if devices > 1 else "auto"
        self.fabric = Fabric(
            accelerator=device, devices=devices, strategy=strategy, precision=self.precision
        )
        self.fabric.launch()
        self.optimizer = _optimizer(model.network, config, self.fabric.device)
        self.average = AveragedModel(model.network, avg_fn=_average(config.ema_decay))
        self.start = (
            [p.detach().clone() for p in model.network.parameters()] if config.blend < 1 else []
        )
        self.network, self.optimizer = self.fabric.setup(model.network, self.optimizer)
        self.network.mark_forward_method("forward_all")
        self.average.to(self.fabric.device)
        self.step, self.elapsed = 0, 0.0
        self.best = -1.0 if baseline is None else baseline
        self.best_step, self.stale = 0, 0

    def run(self, *, resume: bool = False) -> Model:
        """Train to the end of the budget; returns the best model.

        Raises:
            Cancelled: asked to stop; a checkpoint was saved.
            TrainingFailed: the loss stayed non-finite.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if resume:
            self._restore(load_checkpoint(self.folder))
        else:
            with atomic_write(self.folder / "training.json", overwrite=True) as temporary:
                temporary.write_text(json.dumps(self.config.model_dump(), indent=2) + "\n")
        history = History(self.folder, self.step, write=self.fabric.is_global_zero)
        if self.baseline is not None and not resume:
            history.add(step=0, elapsed=0.0, score=self.baseline)
        start = time.monotonic() - self.elapsed
        previewed = time.monotonic()
        bad_steps, losses, validated = 0, [], -1
        for image, targets in self._batches():
            start += self._wait_in_pause()
            if self._agreed(self.cancel()):
                self._save()
                raise Cancelled("Training was cancelled.", "Go on with it by --resume.")
            if self.progress >= 1 or self._lost_patience() or self._agreed(self.stop()):
                break
            loss = self._train_step(image, targets)
            bad_steps = 0 if loss is not None else bad_steps + 1
            if bad_steps >= MAX_BAD_STEPS:
                raise TrainingFailed(
                    f"The loss was not finite for {bad_steps} steps before step {self.step}.",
                    "Lower the learning rate or train in full precision (32-true).",
                )
            if loss is not None:
                losses.append(loss)
            self.step += 1
            self.elapsed = self._agreed(time.monotonic() - start)
            if loss is not None:
                self._tell("step", loss)
            if losses and self.step % LOG_EVERY == 0:
                mean = sum(losses) / len(losses)
                losses.clear()
                history.add(step=self.step, elapsed=self.elapsed, lr=self._rate(), loss=mean)
            if self.step % self.config.validate_every == 0 and self.progress < 1:
                self._validate(history)
                validated = self.step
                self.elapsed = self._agreed(time.monotonic() - start)
                self._save()
            if self.preview is not None and time.monotonic() - previewed > self.preview_every:
                self.preview(self._current())
                previewed = time.monotonic()
        if validated != self.step:
            self._validate(history)
            self._save()
        self.fabric.barrier()
        return load_model(self.folder / "model")

    @property
    def progress(self) -> float:
        """Share of the budget that is used up, 0 to 1."""
        steps, minutes = self.config.steps, self.config.max_minutes
        by_steps = self.step / steps if steps else 0.0
        by_time = self.elapsed / (60 * minutes) if minutes else 0.0
        return min(1.0, max(by_steps, by_time))

    def _lost_patience(self) -> bool:
        return self.config.patience is not None and self.stale >= self.config.patience

    def _wait_in_pause(self) -> float:
        """Wait while the training is paused; returns for how many seconds."""
        start = time.monotonic()
        while self.pause() and not self.cancel() and not self.stop():
            time.sleep(0.1)
        return time.monotonic() - start

    def _current(self) -> Model:
        """What is judged, shown and saved: the averaged weights, blended with the first ones.

        It is to be used before the next step.
        """
        network = self.average.module
        if self.config.blend < 1:
            network = deepcopy(network)
            with torch.no_grad():
                for value, first in zip(network.parameters(), self.start, strict=True):
                    value.copy_(torch.lerp(first.to(value), value, self.config.blend))
        return Model(network.eval(), self.model_config)

    def _agreed(self, value: Any) -> Any:
        """The first process's value, so that all processes stop at the same step."""
        return self.fabric.broadcast(value) if self.fabric.world_size > 1 else value

    def _batches(self) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        config = self.config
        patch = config.patch_size or self.model_config.plan.patch_size
        loader = make_loader(
            self.train_cases,
            patch,
            config.batch_size,
            augment=config.augment or AugmentConfig.for_patch(patch),
            # Every process draws an order of its own.
            seed=config.seed + 1_000_003 * self.fabric.global_rank,
            start_step=self.step,
            workers=config.workers,
            oversample_foreground=config.oversample_foreground,
            balance="modality" if config.balance_modalities else "none",
            balance_exponent=config.balance_modalities,
        )
        values = None
        if self.model_config.task == "semantic":
            values = class_values(self.model_config).tolist()
        for image, labels in loader:
            targets = batch_targets(labels, self.model_config.task, values)
            yield self.fabric.to_device((image, targets))

    def _train_step(self, image: Tensor, targets: dict[str, Tensor]) -> float | None:
        """One optimiser step; None if the gradient was not finite and the step left out."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate() * group["share"]
        self.network.train()
        # On one device Fabric calls marked methods outside of its own autocast.
        with self.fabric.autocast():
            outputs = self.network.forward_all(image)
        if self.hidden:
            outputs, targets = without_classes(outputs, targets, self.hidden)
        loss = deep_supervision_loss(outputs, targets)
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        norm = self.fabric.clip_gradients(
            self.network, self.optimizer, max_norm=self.config.clip_norm, error_if_nonfinite=False
        )
        if norm is None or not torch.isfinite(norm):
            if self.precision == "16-mixed":
                self.optimizer.step()  # the gradient scaler leaves it out and lowers its scale
            return None
        self.optimizer.step()
        self.average.update_parameters(self.network.module)
        return float(loss.detach())

    def _rate(self) -> float:
        warmup = min(1.0, (self.step + 1) / max(1, self.config.warmup_steps))
        return self.config.learning_rate * warmup * (1 - self.progress) ** POLY_POWER

    def _validate(self, history: History) -> None:
        """Score the weights of the moment on whole validation images and keep the best model."""
        model = self._current()
        score = float("nan")
        if self.score is not None and self.val_cases:
            score = self.score(model)
        elif self.val_cases:
            limit = self.config.validation_cases or len(self.val_cases)
            every = max(1, len(self.val_cases) // limit)
            score = validate(model, self.val_cases[::every][:limit], self.fabric.device)
        if self.val_cases:
            history.add(step=self.step, elapsed=self.elapsed, score=score)
        # Without validation cases the last model is the best, and nothing runs out of patience.
        # Nor can be told what is better where neither truth nor result has anything (not a number).
        judged = bool(self.val_cases) and not math.isnan(score)
        better = not judged or (score >= self.best if self.baseline is None else score > self.best)
        self.stale = 0 if better else self.stale + 1
        if better:
            self.best_step = self.step
            self.best = score if judged else self.best
            if self.fabric.is_global_zero:
                model.save(self.folder / "model", overwrite=True, dtype="fp32")
        if self.fabric.is_global_zero:
            history.plot("F1" if self.model_config.task == "instance" else "Dice")
        loss = history.rows[-1].get("loss", float("nan")) if history.rows else float("nan")
        self._tell("validation", loss, score)

    def _tell(self, kind: str, loss: float, score: float | None = None) -> None:
        self.listener(TrainEvent(kind, self.step, self.progress, self.elapsed, loss, score))

    def _save(self) -> None:
        if self.fabric.is_global_zero:
            state: dict[str, Any] = {
                "network": self.network.module.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                # The scale of the gradients with 16-bit floats; otherwise empty.
                "precision": self.fabric.strategy.precision.state_dict(),
                "step": self.step,
                "elapsed": self.elapsed,
                "best": self.best,
                "best_step": self.best_step,
                "stale": self.stale,
            }
            save_checkpoint(self.folder, state)

    def _restore(self, state: dict[str, Any]) -> None:
        self.network.module.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.elapsed, self.best = state["step"], state["elapsed"], state["best"]
        # Checkpoints of older versions lack these.
        self.best_step, self.stale = state.get("best_step", 0), state.get("stale", 0)
        if precision := state.get("precision"):
            self.fabric.strategy.precision.load_state_dict(precision)


def _precision(config: TrainConfig, device: str) -> Literal["32-true", "16-mixed", "bf16-mixed"]:
    """Mixed precision where the hardware multiplies it fast: CUDA, and CPUs with AMX tiles.

    Other CPUs emulate bf16 and are many times slower with it. 16-bit floats need the scaling of
    gradients that only CUDA has here.
    """
    cuda = device != "cpu" and torch.cuda.is_available()
    if config.precision is not None:
        return "bf16-mixed" if config.precision == "16-mixed" and not cuda else config.precision
    if cuda:
        return "16-mixed"
    return "bf16-mixed" if torch.cpu._is_amx_tile_supported() else "32-true"


def _optimizer(
    network: nn.Module, config: TrainConfig, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW, or nnU-Net's SGD. Only weight matrices and filters decay."""
    body, heads = _moving(network, config.parts)
    shares = (
        [(body + heads, 1.0)] if config.body_rate == 1 else [(body, config.body_rate), (heads, 1.0)]
    )
    groups: list[dict[str, Any]] = []
    for names, share in shares:
        parameters = [p for name, p in network.named_parameters() if name in set(names)]
        groups += [
            {"params": [p for p in parameters if p.ndim >= 2], "share": share},
            {"params": [p for p in parameters if p.ndim < 2], "share": share, "weight_decay": 0.0},
        ]
    groups = [group for group in groups if group["params"]]
    if config.optimiser == "sgd":
        return torch.optim.SGD(
            groups,
            lr=config.learning_rate,
            momentum=SGD_MOMENTUM,
            nesterov=True,
            weight_decay=config.weight_decay,
        )
    # On CPUs one pass over the weights instead of a dozen. With a gradient scaler, Fabric refuses
    # to clip for a fused optimiser.
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=True if device.type == "cpu" else None,
    )


def _moving(network: nn.Module, parts: str) -> tuple[list[str], list[str]]:
    """Names of the parameters that are trained, body and heads; the others are frozen."""
    body: list[str] = []
    heads: list[str] = []
    for name, parameter in network.named_parameters():
        is_head = ".heads." in f".{name}"
        moves = is_head or parts == "all"
        moves |= parts == "decoder" and not name.startswith("encoder.")
        parameter.requires_grad_(moves)
        if moves:
            (heads if is_head else body).append(name)
    return body, heads


def _average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """Exponential moving average whose first steps are plain means, so that it starts fast."""

    def update(average: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
        share = max(1.0 / (float(count) + 1.0), 1.0 - decay)
        return torch.lerp(average, value.detach(), share)

    return update
