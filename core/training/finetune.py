"""Fine-tuning: a better model from few corrections, or the same one and a sentence that says so."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tttunet.errors import Cancelled, DatasetError, ModelError
from tttunet.files import atomic_write
from tttunet.inference.allocator import tune_allocator
from tttunet.models.config import DataSource
from tttunet.models.folder import REPLAY_NAME
from tttunet.models.model import Model, load_model
from tttunet.training.comparison import found_labels, save_comparison, worth_showing
from tttunet.training.config import TrainConfig
from tttunet.training.dataset import Task
from tttunet.training.defaults import SHARE, choose_settings, with_low_confidence
from tttunet.training.heldout_scores import Tally, interval, summary, tally
from tttunet.training.holdout import hold_out
from tttunet.training.notes import (
    FROM_SCRATCH,
    NEW_HEAD,
    NO_EARLIER_DATA,
    NOT_BLENDED,
    TOO_FEW,
    UNCHANGED,
    of_classes,
    of_known_classes,
)
from tttunet.training.own_replay import OWN_LICENCE, OWN_SOURCE, add_own
from tttunet.training.prepare import PreparedCase
from tttunet.training.replay import Replay, as_one_modality, copy_replay, has_replay, load_replay
from tttunet.training.run import (
    MODEL_FOLDER,
    RECORD_NAME,
    accelerator,
    check_folder,
    remove_previous,
)
from tttunet.training.samples import Material, Sample, is_project, read_material, to_cases
from tttunet.training.snapshot import restore_snapshot, save_snapshot
from tttunet.training.trainer import Trainer, TrainEvent
from tttunet.training.transfer import (
    hidden_classes,
    initial_model,
    same_question,
    shared_classes,
)

#: Seconds between two previews.
PREVIEW_EVERY = 4.0


@dataclass(frozen=True)
class FinetuneResult:
    """What a fine-tuning brought.

    Attributes:
        model: the best model: the one to start from, if none was better.
        folder: where it is saved.
        before, after: scores on the labels that were held out (see `heldout_scores.summary`), with
            `difference` and its `difference_interval` in `after`; None if nothing was held out.
            `before` is None too where the model answers another question than its parent; then
            `after` has `known` with `before` and `after` of the classes that the parent finds too.
        forgetting: `before` and `after` on earlier data that was not trained on; None without.
        improved: whether another model than the one to start from is the best.
        best_step: the step of the best model; 0: none was better.
        settings: everything that decides the result.
        notes: sentences about the above for the user.
    """

    model: Model
    folder: Path
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    forgetting: dict[str, Any] | None
    improved: bool
    best_step: int
    settings: dict[str, Any]
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class _Plan:
    """Everything that is decided before the first step.

    `taught` are the model's classes that the labels tell, `hidden` the others (see `loss`), and
    `shared` those that a new head has in common with the old one.
    """

    start: Model
    new_head: bool
    taught: frozenset[int]
    hidden: frozenset[int]
    shared: frozenset[int]
    train: list[PreparedCase]
    val: list[PreparedCase]
    replay: Replay
    settings: TrainConfig
    record: dict[str, Any]
    notes: tuple[str, ...]


def finetune(
    model: str | Path | Model | None,
    data: str | Path | Iterable[Sample] | Any,
    output: str | Path,
    *,
    name: str | None = None,
    task: Task | None = None,
    classes: Mapping[int, str] | None = None,
    replay: bool | str | Path = True,
    seed: int = 0,
    max_minutes: float | None = None,
    steps: int | None = None,
    parts: str = "auto",
    learning_rate: float | None = None,
    blend: float | None = None,
    share: float = SHARE,
    options: Mapping[str, Any] | None = None,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    listener: Callable[[TrainEvent], None] | None = None,
    cancel: Callable[[], bool] | None = None,
    stop: Callable[[], bool] | None = None,
    pause: Callable[[], bool] | None = None,
    preview: Callable[[Model], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> FinetuneResult:
    """Fit a model to corrections, and measure on others what that brought.

    A part of the labels is held out and never trained on (see `holdout`). The training ends when
    the score on it rises no more, and its best model is kept: the one to start from, if no other
    is better. As the same labels choose that model and tell its score, the score `after` is
    slightly optimistic; scores of other images tell what the model is worth.

    Two things keep the model from forgetting what it learnt before: a sample of that is trained on
    in turn (in the new model, crops of the labels join it, see `own_replay`), and every model that
    is judged, shown or kept is a mean of the tuned weights and those to start from (Wortsman et
    al. 2022, Robust fine-tuning of zero-shot models): such a mean keeps more of the old than it
    loses of the new.

    `output` receives `model/`, and `loss.png`, `history.jsonl`, `checkpoint.pt`, the settings and,
    if something was held out, `comparison.npz` (see `comparison`).
    The model to start from is never changed.

    Args:
        model: name or folder of the model to start from, or the model; None: a new one. If the
            labels are of another task or other classes, it gets a new head. Classes that only
            the model knows stay: what the labels call background may be of these.
        data: samples, a data set's folder, or a project or its folder; see `read_material`.
        output: working folder.
        name: of the new model; None: the old one's with `-tuned`.
        task: of samples; `instance` for a mask of one class that an instance model is to learn.
        classes: of samples, number to name.
        replay: train on earlier data too, if some lies beside the model; or the name or folder of
            the model beside which it lies.
        seed: decides what is held out, the order and the augmentation.
        max_minutes, steps: the budget; whichever is used up first ends the training. If neither
            is given, steps by the amount of data, in two minutes or a little more.
        parts: which weights move: `all`, `decoder`, `head`, or `auto`, which is all of them,
            however few the labels are: blending and replay keep what was known.
        learning_rate: initial; None: by the kind of start.
        blend: share of the tuned weights in that mean, above 0 to 1; None: `defaults.BLEND`. A
            new head has no weights to go back to: then it is 1.
        share: of the labels to hold out, above 0 and below 1.
        options: further fields of `TrainConfig`.
        device: `auto`, `cpu`, `cuda` or `mps`.
        resume: go on from the checkpoint in `output`, with the same samples and settings; of a
            project, with the corrections that there were when it began.
        overwrite: replace a previous training in `output`.
        listener: called with every `TrainEvent`.
        cancel: asked at every step; True saves a checkpoint and raises `Cancelled`.
        stop: asked at every step; True ends the training with the best model so far.
        pause: asked at every step; the training waits while True.
        preview: called every few seconds with the model of the moment.
        say: called with the notes of the result that are known before the first step.

    Raises:
        DatasetError: the samples make no sense, a share is none, or there is nothing to resume.
        ModelError: the model does not fit the samples.
        OutputError: `output` holds a training already, or cannot be written.
        Cancelled: `cancel` returned True.
    """
    _check_shares(share, blend)
    tune_allocator()
    folder = Path(output)
    kind = accelerator(device)
    check_folder(folder, resume, overwrite)
    parent = model if model is None or isinstance(model, Model) else load_model(model)
    if parent is not None and parent.config.regions:
        raise ModelError(
            f"'{parent.config.name}' finds overlapping regions, which cannot be fine-tuned.",
            "Start with another model, or with a new one.",
        )
    material = read_material(data, task=task, classes=dict(classes) if classes else None)
    of_project = is_project(data)
    if of_project and resume:
        material = replace(material, samples=restore_snapshot(folder, material.samples))
    chosen = dict(options or {})
    chosen |= {"max_minutes": max_minutes, "steps": steps, "learning_rate": learning_rate}
    chosen |= {"blend": blend} if blend is not None else {}
    chosen["parts"] = None if parts == "auto" else parts
    name = name or (f"{parent.config.name}-tuned" if parent else material.name)
    beside = model if replay is True and isinstance(model, str | Path) else replay
    _ask(cancel)
    plan = _prepare(parent, material, name, seed, share, beside, chosen)
    if resume:
        _check_same(folder, plan.record)
    if say is not None:
        for note in plan.notes:
            say(note)
    _ask(cancel)
    before = tally(plan.start, plan.val, kind, plan.taught) if plan.val else None
    known = None
    if parent is not None and plan.val and plan.shared:
        known = tally(parent, plan.val, kind, plan.shared)
    _ask(cancel)
    old = tally(plan.start, plan.replay.val, kind) if plan.replay.val else None
    _ask(cancel)
    shown = worth_showing(plan.val)
    found_before = found_labels(plan.start, shown, kind)
    if not resume:
        remove_previous(folder)
        if of_project:
            save_snapshot(folder, material.samples)
        plan.start.save(folder / MODEL_FOLDER, overwrite=True)
        _write(folder / RECORD_NAME, plan.record)
    plan.start.config = with_low_confidence(plan.start.config)

    def score(found: Model) -> float:
        return _merit(tally(found, plan.val, kind, plan.taught))

    # Of a new head nothing is expected before it has learnt something.
    baseline = None if before is None else 0.0 if plan.new_head else _merit(before)
    trainer = Trainer(
        plan.start,
        as_one_modality(plan.train, "new") + as_one_modality(plan.replay.train, "earlier"),
        plan.val,
        plan.settings,
        folder,
        listener=listener,
        cancel=cancel,
        score=score if plan.val else None,
        stop=stop,
        pause=pause,
        preview=preview,
        preview_every=PREVIEW_EVERY,
        hidden=plan.hidden,
        baseline=baseline,
        device=kind,
    )
    best = trainer.run(resume=resume)
    if shown:
        found_after = found_labels(best, shown, trainer.fabric.device)
        save_comparison(folder, shown, found_before, found_after)
    return _finish(best, plan, trainer, before, known, old, beside, parent, material, folder)


def _check_shares(share: float, blend: float | None) -> None:
    if not 0 < share < 1:
        raise DatasetError(
            f"A share of {share:g} of the labels cannot be held out.",
            "Choose one between 0 and 1, for example 0.25.",
        )
    if blend is not None and not 0 < blend <= 1:
        raise DatasetError(
            f"Trained weights cannot have a share of {blend:g} in the model.",
            "Choose one above 0, and 1 at most.",
        )


def _ask(cancel: Callable[[], bool] | None) -> None:
    if cancel is not None and cancel():
        raise Cancelled("The fine-tuning was cancelled.")


def _prepare(
    parent: Model | None,
    material: Material,
    name: str,
    seed: int,
    share: float,
    beside: bool | str | Path,
    chosen: dict[str, Any],
) -> _Plan:
    start = initial_model(parent, material, name, seed)
    new_head = parent is None or not same_question(parent.config, material)
    train, val = material.samples, material.val
    if not val:
        train, val = hold_out(material.samples, material.task, seed, share)
    hidden = {} if parent is None or new_head else hidden_classes(parent.config, material)
    shared = shared_classes(parent.config, start.config) if parent and new_head else {}
    kept, any_kept = Replay([], []), False
    if isinstance(beside, str | Path) and not new_head:
        any_kept = has_replay(beside)
        kept = load_replay(beside, start.config, (*material.samples, *material.val))
    notes = []
    if not val:
        notes.append(TOO_FEW)
    if parent is None:
        notes.append(FROM_SCRATCH)
    elif new_head:
        notes.append(NEW_HEAD)
    elif beside and not any_kept:
        notes.append(NO_EARLIER_DATA)
    if new_head and chosen.get("blend", 1) != 1:
        notes.append(NOT_BLENDED)
    notes += of_classes(None if parent is None else parent.config, material)
    settings = choose_settings(
        start.config,
        len(train),
        new_head=new_head,
        from_scratch=parent is None,
        seed=seed,
        chosen=chosen,
    )
    record = {
        "parent": f"{parent.config.name} {parent.config.version}" if parent else None,
        "start": _weights_hash(start) if parent and not new_head else None,
        "name": name,
        "seed": seed,
        "share": share,
        "samples": [_fingerprint(sample) for sample in (*material.samples, *material.val)],
        "replay": len(kept.train),
        "settings": settings.model_dump(mode="json"),
    }
    classes = frozenset(label.value for label in start.config.labels)
    return _Plan(
        start,
        new_head,
        classes - frozenset(hidden),
        frozenset(hidden),
        frozenset(shared),
        to_cases(train, start.config),
        to_cases(val, start.config),
        kept,
        settings,
        record,
        tuple(notes),
    )


def _merit(score: Tally) -> float:
    return 0.0 if np.isnan(score.merit) else score.merit


def _fingerprint(sample: Sample) -> dict[str, str]:
    labels = np.ascontiguousarray(sample.labels, np.int32)
    return {"name": sample.name, "labels": hashlib.sha256(labels.tobytes()).hexdigest()[:16]}


def _weights_hash(model: Model) -> str:
    digest = hashlib.sha256()
    for value in model.network.state_dict().values():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _check_same(folder: Path, record: dict[str, Any]) -> None:
    try:
        stored = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DatasetError(
            f"There is no fine-tuning to resume in '{folder}'.", "Start it without --resume."
        ) from None
    stored = {"share": SHARE, **stored}  # older versions did not say it
    changed = [key for key in record if stored.get(key) != record[key]]
    if changed:
        raise DatasetError(
            f"A resumed fine-tuning goes on as it began, but these differ: {', '.join(changed)}.",
            "Start again with --overwrite.",
        )


def _finish(
    best: Model,
    plan: _Plan,
    trainer: Trainer,
    before: Tally | None,
    known: Tally | None,
    old: Tally | None,
    beside: bool | str | Path,
    parent: Model | None,
    material: Material,
    folder: Path,
) -> FinetuneResult:
    """Score the best model, and write into its card where it comes from."""
    device = trainer.fabric.device
    improved = trainer.best_step > 0
    notes = list(plan.notes)
    if not improved:
        notes.append(UNCHANGED)
    after = forgetting = None
    if before is not None:
        found = tally(best, plan.val, device, plan.taught)
        after = summary(found)
        if not plan.new_head:
            low, high = interval(found, before)
            after["difference"] = round(found.headline() - before.headline(), 4)
            after["difference_interval"] = [round(low, 4), round(high, 4)]
        if known is not None and known.objects:
            again = summary(tally(best, plan.val, device, plan.shared))
            after["known"] = {"before": summary(known), "after": again}
            names = [n.name for n in best.config.labels if n.value in plan.shared]
            notes.append(of_known_classes(names, after["known"]))
    if old is not None:
        new = tally(best, plan.replay.val, device)
        low, high = interval(new, old)
        forgetting = {
            "before": summary(old),
            "after": summary(new),
            "difference": round(new.headline() - old.headline(), 4),
            "difference_interval": [round(low, 4), round(high, 4)],
        }
    first = None if before is None or plan.new_head else summary(before)
    config = best.config
    data = config.card.data if parent else ()
    sources = [source for source in material.sources if source not in data]
    training = {
        "steps": trainer.step,
        "best_step": trainer.best_step,
        "minutes": round(trainer.elapsed / 60, 2),
        "precision": trainer.precision,
        "seed": plan.record["seed"],
        "samples": [sample["name"] for sample in plan.record["samples"]],
        "train_parts": len(plan.train),
        "held_out_parts": len(plan.val),
        "replay": len(plan.replay.train),
        "settings": plan.settings.model_dump(mode="json", exclude_none=True),
    }
    card = config.card.model_copy(
        update={
            "parent": plan.record["parent"],
            "licence": config.card.licence if parent and not sources else "unknown",
            "data": (*data, *sources),
            "training": training,
            "scores": {
                "held_out": {"before": first, "after": after},
                "earlier_data": forgetting,
            },
        }
    )
    version = _next_version(parent.config.version) if parent else config.version
    finished = Model(best.network, config.model_copy(update={"card": card, "version": version}))
    finished.save(folder / MODEL_FOLDER, overwrite=True)
    if isinstance(beside, str | Path) and not plan.new_head:
        copy_replay(beside, folder / MODEL_FOLDER)
    # Where some classes are not labelled, crops would teach later that there are none.
    if beside and improved and not plan.hidden:
        samples = (*material.samples, *material.val)
        own = DataSource(title=material.name, source=OWN_SOURCE, licence=OWN_LICENCE)
        source = material.sources[0] if material.sources else own
        add_own(folder / MODEL_FOLDER / REPLAY_NAME, plan.train, plan.val, samples, source)
    return FinetuneResult(
        finished,
        folder / MODEL_FOLDER,
        first,
        after,
        forgetting,
        improved,
        trainer.best_step,
        plan.record,
        tuple(notes),
    )


def _next_version(version: str) -> str:
    """1.4.2 becomes 1.5.0; what is no such version gets `.1`."""
    major, _, rest = version.partition(".")
    minor = rest.partition(".")[0]
    numbers = major.isdigit() and minor.isdigit()
    return f"{major}.{int(minor) + 1}.0" if numbers else f"{version}.1"


def _write(path: Path, content: dict[str, Any]) -> None:
    with atomic_write(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
