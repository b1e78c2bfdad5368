"""A batch in the worker: file by file, telling where each one is."""

from __future__ import annotations

import functools
import time
from typing import Any

from tttunet.engine.batch import Batch
from tttunet.engine.memory import is_out_of_memory, shortage
from tttunet.engine.messages import FileStatus
from tttunet.engine.models import LoadedModels
from tttunet.engine.segmenting import segment_in_memory
from tttunet.engine.worker import Reporter
from tttunet.errors import Cancelled, OutputError, TTTUNetError
from tttunet.files import remove_leftovers
from tttunet.inference.device import pick_device
from tttunet.inference.files import (
    FileJob,
    describe_result,
    expand_inputs,
    plan_jobs,
    segment_file,
    without_further_channels,
)
from tttunet.inference.segment import changed_decoding, tile_size


def run_batch(batch: Batch, reporter: Reporter, models: LoadedModels) -> dict[str, Any]:
    """Segment the files of a batch; one that fails does not stop the others.

    Returns:
        Numbers of files `done`, `skipped` and `failed`, and a record per file.

    Raises:
        TTTUNetError: nothing can be done at all: no images, no such model, ...
        Cancelled: the reporter said so; files that are done stay.
    """
    jobs = plan_jobs(
        expand_inputs(batch.inputs, batch.ending, batch.frames),
        batch.output,
        overlay=batch.overlay,
        table=batch.table,
        adaptation=batch.adaptation_map,
        existing=batch.existing,
        ending=batch.ending,
        suffix="" if batch.format == "auto" else batch.format,
        frames=batch.frames,
    )
    pick_device(batch.device)
    reporter.stage("loading the model")
    folders, model = models.get(*batch.models)
    jobs = without_further_channels(jobs, model.config)
    decoding = changed_decoding(model.config, batch.decoding)
    options: dict[str, Any] = {
        "axes": batch.axes,
        "channel": batch.channel,
        "device": batch.device,
        "tile": tile_size(model.config, batch.tile),
        "overlap": batch.overlap,
        "mirror": batch.mirror,
        "adaptation": batch.adaptation,
        "decoding": decoding,
        "smoothing": batch.smoothing,
        "cancel": reporter.is_cancelled,
        "note": reporter.log,
        "compute": functools.partial(
            segment_in_memory, reporter=reporter, models=models, folders=folders
        ),
    }
    start, states = time.monotonic(), []
    for index, job in enumerate(jobs):
        if reporter.is_cancelled():
            raise Cancelled("The batch was cancelled.", "Go on with it by starting it again.")

        def update(done: float, total: float, index: int = index) -> None:
            reporter.progress("segmenting", index + done / total, len(jobs))

        tell = _Teller(reporter, index, len(jobs), job)
        if batch.existing == "skip" and job.complete:
            states.append(tell("skipped"))
            continue
        if batch.existing == "skip" and job.labels.exists():
            states.append(tell("failed", _missing_beside(job)))
            continue
        tell("running")
        update(0, 1)
        try:
            overwrite = batch.existing != "error"
            for path in job.outputs if overwrite else ():
                remove_leftovers(path)
            result = segment_file(job, model, overwrite=overwrite, progress=update, **options)
        except Cancelled:
            raise
        except Exception as error:
            states.append(tell("failed", _reason(error)))
            if isinstance(error, OutputError) and "disk is full" in str(error):
                raise
            continue
        states.append(tell("done", describe_result(result, model.config), result.seconds))
    return {
        **{name: states.count(name) for name in ("done", "skipped", "failed")},
        "seconds": time.monotonic() - start,
    }


def _missing_beside(job: FileJob) -> str:
    """All files of a job come together, so labels without the others may have been corrected."""
    missing = ", ".join(path.name for path in job.outputs if not path.exists())
    return (
        f"{job.labels.name} is there already and is kept, as somebody may have corrected it; "
        f"{missing} is missing. Overwrite the results, or choose another folder."
    )


class _Teller:
    """Tells the state of one file."""

    def __init__(self, reporter: Reporter, index: int, total: int, job: FileJob) -> None:
        self._reporter, self._place = reporter, (index, total)
        self._files = str(job.source), str(job.labels)

    def __call__(self, state: str, text: str = "", seconds: float = 0.0) -> str:
        self._reporter.send(FileStatus(*self._place, state, *self._files, text, seconds))
        return state


def _reason(error: Exception) -> str:
    if isinstance(error, TTTUNetError):
        return str(error)
    if is_out_of_memory(error):
        return shortage(error)
    text = (str(error).strip().splitlines() or [""])[0]
    return f"Unexpected {type(error).__name__}{f': {text}' if text else ''}."
