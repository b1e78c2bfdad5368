"""What the worker does for every kind of request."""

from __future__ import annotations

import inspect
import json
import math
import platform
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tttunet.engine import exchange, messages
from tttunet.engine.memory import device_memory, host_memory
from tttunet.engine.models import LoadedModels
from tttunet.engine.worker import Reporter
from tttunet.errors import Cancelled, DatasetError, TTTUNetError

#: What the worker keeps from one job to the next.
_MODELS = LoadedModels()
_last_maps: Any = None

#: Arguments of `train` that are not for a request.
_OURS = {"dataset", "output", "listener", "progress", "cancel"}


def run(message: messages.Message, reporter: Reporter) -> dict[str, Any]:
    """Do what a request asks for.

    Returns:
        The result, ready for JSON; arrays are in the files that the request names.

    Raises:
        ProtocolError: there is no such request.
        TTTUNetError: the request cannot be done as it is.
        Cancelled: the reporter said so.
    """
    handler = _HANDLERS.get(message.kind)
    if handler is None:
        raise messages.ProtocolError(f"A worker does not take messages like '{message.kind}'.")
    return handler(message, reporter)


def rest() -> None:
    """Free the GPUs until the next job; to be called when no error holds on to tensors."""
    _MODELS.rest()


def _hello(request: messages.Hello, _reporter: Reporter) -> dict[str, Any]:
    about = {
        "protocol": messages.PROTOCOL,
        "version": messages.package_version(),
        "python": platform.python_version(),
    }
    if request.light:
        return about
    import torch

    from tttunet.inference.device import pick_device
    from tttunet.kernels import available_backends

    device = str(pick_device())
    total, available = host_memory()
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    names = {f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    gpu_total, gpu_available = device_memory(device) if device != "cpu" else (None, None)
    return {
        **about,
        "torch": torch.__version__,
        "devices": devices,
        "device_names": names,
        "device": device,
        "threads": torch.get_num_threads(),
        "backend": available_backends(device)[0],
        "memory": {"total": total, "available": available},
        "device_memory": {"total": gpu_total, "available": gpu_available},
    }


def _segment(request: messages.Segment, reporter: Reporter) -> dict[str, Any]:
    global _last_maps
    from tttunet.engine.segmenting import run_segment

    _last_maps = None  # their memory is needed
    result, _last_maps = run_segment(request, reporter, _MODELS)
    return result


def _decode(request: messages.Decode, reporter: Reporter) -> dict[str, Any]:
    from tttunet.engine.segmenting import run_decode

    return run_decode(request, reporter, _last_maps)


def _review(request: messages.Review, reporter: Reporter) -> dict[str, Any]:
    from tttunet.engine.reviewing import run_review

    return run_review(request, reporter, _last_maps)


def _review_image(request: messages.ReviewImage, reporter: Reporter) -> dict[str, Any]:
    from tttunet.engine.reviewing import run_review_image

    return run_review_image(request, reporter, _MODELS)


def _read_image(request: messages.ReadImage, reporter: Reporter) -> dict[str, Any]:
    from tttunet.engine.reading import run_read_image

    return run_read_image(request, reporter)


def _estimate(request: messages.Estimate, _reporter: Reporter) -> dict[str, Any]:
    from tttunet.engine.segmenting import run_estimate

    return run_estimate(request, _MODELS)


def _batch(request: messages.Batch, reporter: Reporter) -> dict[str, Any]:
    from tttunet.engine.batch import Batch
    from tttunet.engine.run_batch import run_batch

    return run_batch(Batch.from_dict(request.plan), reporter, _MODELS)


def _train(request: messages.Train, reporter: Reporter) -> dict[str, Any]:
    global _last_maps
    reporter.stage("preparing the data")
    from tttunet.models.card import read_config
    from tttunet.training.run import MODEL_FOLDER, train
    from tttunet.training.trainer import TrainEvent

    _last_maps = None
    known = set(inspect.signature(train).parameters) - _OURS
    unknown = sorted(set(request.options) - known)
    if unknown:
        raise TTTUNetError(
            f"A training has no option '{unknown[0]}'.", f"There are {', '.join(sorted(known))}."
        )

    def hear(event: TrainEvent) -> None:
        if event.kind == "tuning":
            reporter.progress("choosing thresholds", event.progress, 1.0)
            return
        values = {"loss": event.loss, "score": math.nan if event.score is None else event.score}
        values = {name: value for name, value in values.items() if not math.isnan(value)}
        if values:
            reporter.send(messages.Metric(event.step, values))
        reporter.send(messages.Progress(event.progress, "training", event.remaining))

    train(
        request.dataset,
        request.output,
        **request.options,
        listener=hear,
        progress=lambda done, total: reporter.progress("preparing the data", done, total),
        cancel=reporter.is_cancelled,
    )
    folder = Path(request.output) / MODEL_FOLDER
    config = read_config(folder)
    return {
        "folder": str(folder),
        "model": {
            "name": config.name,
            "version": config.version,
            "sha256": config.weights.sha256 if config.weights else "",
        },
        "scores": config.card.scores,
        "training": config.card.training,
    }


def _finetune(request: messages.Finetune, reporter: Reporter) -> dict[str, Any]:
    global _last_maps
    from tttunet.engine.finetuning import run_finetune

    _last_maps = None
    return run_finetune(request, reporter)


def _plan_finetune(request: messages.PlanFinetune, reporter: Reporter) -> dict[str, Any]:
    from tttunet.engine.finetuning import plan_finetune

    return plan_finetune(request, reporter, _MODELS)


def _library(request: Any, reporter: Reporter) -> dict[str, Any]:
    from tttunet.engine.library import run

    return run(request, reporter)


def _evaluate(request: messages.Evaluate, reporter: Reporter) -> dict[str, Any]:
    reporter.stage("comparing")
    from tttunet.evaluation import evaluate

    if request.pred.endswith(".npy"):
        pred, truth = exchange.open_array(request.pred), exchange.open_array(request.truth)
        result = evaluate_arrays(pred, truth, request.task, **request.options)
        if request.painted:
            _paint(pred, truth, request, result, reporter)
        return result
    report = evaluate(
        request.pred,
        request.truth,
        request.task,  # type: ignore[arg-type]
        **request.options,
        progress=lambda done, total: reporter.progress("comparing", done, total),
    )
    return dict(json.loads(report.to_json()))


def _paint(
    pred: np.ndarray,
    truth: np.ndarray,
    request: messages.Evaluate,
    result: dict[str, Any],
    reporter: Reporter,
) -> None:
    from tttunet.measuring.agreement import paint_classes, paint_objects

    painted = exchange.create_array(request.painted, pred.shape, np.uint8)
    if request.task == "instance":
        steps = paint_objects(pred, truth, result, painted)
    else:
        steps = paint_classes(pred, truth, painted)
    for fraction in steps:
        reporter.progress("painting", fraction, 1.0)
        if reporter.is_cancelled():
            raise Cancelled("The labels were not compared.")


def evaluate_arrays(
    pred: np.ndarray, truth: np.ndarray, task: str, threshold: float = 0.5
) -> dict[str, Any]:
    """Scores of one label array against another, and which objects match.

    Args:
        pred, truth: integers of the same shape.
        task: `instance` or `semantic`.
        threshold: IoU from which two objects match.

    Returns:
        For instances `scores` (per IoU threshold), `mean_ap`, and the label numbers `matched`
        (predicted, true, IoU), `missed` (true) and `false` (predicted); for classes `classes`
        (label, dice, sizes) and their mean `dice`.
    """
    from tttunet.evaluation import instance_scores, match, mean_ap, overlap_table, semantic_scores
    from tttunet.evaluation.semantic import nan_mean

    if task == "semantic":
        found = semantic_scores(pred, truth)
        classes = [
            {
                "label": one.label,
                "dice": one.dice,
                "pred_size": one.pred_size,
                "truth_size": one.truth_size,
            }
            for one in found
        ]
        return {"classes": classes, "dice": nan_mean(one.dice for one in found)}
    if task != "instance":
        raise DatasetError(f"The task is instance or semantic, not {task}.")
    scores = instance_scores(pred, truth)
    table = overlap_table(pred, truth)
    pairs = match(table, threshold)
    matched = zip(
        table.pred_labels[pairs.pred].tolist(),
        table.truth_labels[pairs.truth].tolist(),
        pairs.iou.tolist(),
        strict=True,
    )
    return {
        "scores": [one.to_dict() for one in scores],
        "mean_ap": mean_ap(scores),
        "threshold": threshold,
        "matched": [list(one) for one in matched],
        "missed": table.truth_labels[pairs.unmatched_truth].tolist(),
        "false": table.pred_labels[pairs.unmatched_pred].tolist(),
    }


def _measure(request: messages.Measure, reporter: Reporter) -> dict[str, Any]:
    """`count` of objects, `checksum` of the labels if wanted, and whether they have `changed`."""
    from tttunet.measuring import Grid, measure

    labels = exchange.open_array(request.labels)
    checksum = None
    if request.known is not None:
        checksum = f"{zlib.crc32(np.ascontiguousarray(labels).data):08x}"
        if checksum == request.known:
            return {"checksum": checksum, "changed": False}
    matrix = np.array(request.matrix, float)
    grid = Grid(request.axes, request.shape_axes, matrix, request.unit)
    channels = [(name, exchange.open_array(path)) for name, path in request.channels]
    steps = measure(labels, grid, channels)
    while True:
        if reporter.is_cancelled():
            raise Cancelled("The objects were not measured.")
        try:
            reporter.progress("measuring", next(steps), 1.0)
        except StopIteration as stop:
            table = stop.value
            break
    table.save(request.output)
    return {"count": len(table), "checksum": checksum, "changed": True}


_HANDLERS: dict[str, Callable[[Any, Reporter], dict[str, Any]]] = {
    "hello": _hello,
    "segment": _segment,
    "decode": _decode,
    "review": _review,
    "review_image": _review_image,
    "read_image": _read_image,
    "estimate": _estimate,
    "train": _train,
    "finetune": _finetune,
    "plan_finetune": _plan_finetune,
    "evaluate": _evaluate,
    "measure": _measure,
    "batch": _batch,
    "list_models": _library,
    "add_model": _library,
    "remove_model": _library,
    "export_model": _library,
    "download_model": _library,
}
