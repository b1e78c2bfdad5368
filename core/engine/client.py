"""The engine's client: a queue of jobs, done one after the other by a worker process.

    with Engine() as engine:
        job = engine.segment(array, axes="YX", model="nuclei", on_event=print)
        labels = job.wait().result["labels"]

Only the standard library, numpy and appose are needed here, so that 3D Slicer's Python can use
it. Nothing here waits for the worker but `Job.wait` and, for some seconds, `Engine.close`.

Jobs. `segment`, `evaluate` and `measure` take arrays, `decode` changes the thresholds of the last
segmentation without the network, `review` says where its labels are doubtful, `finetune` shows what
the model becomes on a view. All others are `request(message)`, see `messages`: `Hello` (starts the
worker early), `Estimate`, `Train`, `Evaluate` (files), `Batch`, `ListModels`, `AddModel`,
`RemoveModel`, `ExportModel`, `DownloadModel`.

Events. `on_event(job, event)` hears `Queued`, `Started`, `Progress` (`fraction` of a `stage`,
`eta`), `Log`, `Preview` (finished tiles), `Metric` (training), `FileStatus` (batch), and last
exactly one of `Done`, `Failed`, `Cancelled` and `Lost`; after `job.cancel()` only that one. They
come in order, but from background threads: a program with a window gives `deliver`, which hands a
function to the window's thread. With Qt:

    class Courier(QObject):  # to be made in the window's thread
        sent = Signal(object)

        def call(self, function):
            function()

    courier = Courier()
    courier.sent.connect(courier.call, Qt.QueuedConnection)
    engine = Engine(deliver=courier.sent.emit)
"""

from __future__ import annotations

import atexit
import contextlib
import math
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tttunet.engine import exchange, messages
from tttunet.engine.job import Job, OnEvent, Preview
from tttunet.engine.messages import Cancelled, Done, Failed, Lost, Queued, Started
from tttunet.engine.process import WorkerDied, WorkerError, WorkerProcess
from tttunet.measuring import Grid, ObjectTable

__all__ = ["Engine", "Job", "Preview"]

#: Seconds that a running job has to end by itself after a cancel.
GRACE = 1.0
#: The same for what should not be ended in the middle: a training ends its step and saves a
#: checkpoint, others write files.
GRACES = {"train": 60.0, "finetune": 60.0, "batch": 10.0} | dict.fromkeys(
    ("add_model", "remove_model", "export_model", "download_model"), 10.0
)
#: The same for measuring: sums over millions of objects take some seconds at their end.
MEASURING_GRACE = 10.0
#: The same for any job when the engine is closed.
CLOSING_GRACE = 3.0
#: How often a running worker is asked whether it lives, in seconds: appose may miss its death.
_HEARTBEAT = 1.0
_TABLE = "table.npz"


class Engine:
    """One worker process and the jobs for it.

    The process starts with the first job, stays with its models loaded, is started again if it
    dies, and ends with this object or with the client's process.

    Args:
        python: interpreter of the worker; None: see `process.PYTHON_VARIABLE`.
        grace: seconds that a cancelled job has before its process is ended.
        deliver: calls the function it is given, in the thread that is to hear events, without
            waiting for it; None: they are heard in background threads.
        environment: variables that the worker sees otherwise than the client; None: not at all.
    """

    def __init__(
        self,
        python: str | Path | None = None,
        grace: float = GRACE,
        deliver: Callable[[Callable[[], None]], object] | None = None,
        environment: Mapping[str, str | None] | None = None,
    ) -> None:
        self.grace = grace
        self.deliver = deliver
        self._worker = WorkerProcess(python, environment)
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._running: Job | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="tttunet-engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def about(self) -> dict[str, Any]:
        """What the worker said of itself: versions, devices, memory; empty before it started."""
        return self._worker.about

    @property
    def worker_output(self) -> list[str]:
        """The last lines that the worker, or what it uses, has printed: for reports of defects."""
        return list(self._worker.output)

    @property
    def worker_pid(self) -> int | None:
        return self._worker.pid

    def submit(self, job: Job) -> Job:
        """Queue a job.

        Raises:
            RuntimeError: the engine is closed.
        """
        if self._closed:
            raise RuntimeError("The engine is closed.")
        job.engine = self
        job._emit(Queued(len(self._jobs) + (self._running is not None)))
        with self._changed:
            closed = self._closed
            if not closed:
                self._jobs.append(job)
                self._changed.notify_all()
        if closed:
            job._emit(Cancelled())
        return job

    def request(self, request: messages.Message, on_event: OnEvent | None = None) -> Job:
        """Queue a request that carries no arrays; `messages.Hello` starts the worker early."""
        job = Job(request.kind, lambda folder, cancelled: request, None, on_event)
        job.grace = GRACES.get(request.kind)
        return self.submit(job)

    def segment(
        self,
        array: Any,
        *,
        axes: str,
        model: str,
        on_event: OnEvent | None = None,
        image: Mapping[str, Any] | None = None,
        maps: bool = False,
        preview: bool = False,
        **options: Any,
    ) -> Job:
        """Segment an array; `Done.result["labels"]` holds the labels.

        Args:
            array: numpy, dask or zarr array; copied chunk by chunk in the engine's thread.
            axes: one letter per axis, from TCZYX; the labels have these without C.
            model: name or folder.
            image: further fields of `messages.ImageRef`.
            maps: also return the network's maps, as `result["maps"]`.
            preview: send a `Preview` for every finished tile.
            options: further fields of `messages.Segment`.
        """
        pixels = int(np.prod(array.shape, dtype=np.int64))
        # Labels, preview, and maps of an instance model.
        expected = pixels * (np.dtype(array.dtype).itemsize + 4 + preview + 16 * maps)

        def prepare(folder: Path, cancelled: Callable[[], bool]) -> messages.Message:
            exchange.write_array(folder / "image.npy", array, cancelled)
            given = {**(image or {}), "array": str(folder / "image.npy"), "axes": axes}
            return messages.Segment(
                messages.ImageRef(**given),
                messages.model_reference(model),
                str(folder / "labels.npy"),
                maps=str(folder / "maps.npy") if maps else "",
                preview=str(folder / "preview.npy") if preview else "",
                **options,
            )

        name = str((image or {}).get("name", "image"))
        return self.submit(Job(name, prepare, _collect_arrays, on_event, expected))

    def decode(
        self,
        decoding: Mapping[str, Any],
        maps_id: str = "",
        on_event: OnEvent | None = None,
    ) -> Job:
        """Decode the last segmentation again with other thresholds, without the network."""

        def prepare(folder: Path, cancelled: Callable[[], bool]) -> messages.Message:
            return messages.Decode(str(folder / "labels.npy"), dict(decoding), maps_id)

        return self.submit(Job("decode", prepare, _collect_arrays, on_event))

    def review(self, labels: Any, maps_id: str = "", on_event: OnEvent | None = None) -> Job:
        """Rank the places of labels of the last segmentation, perhaps corrected since.

        `Done.result["places"]` has the most doubtful first: `kind`, `label`, `doubt`, and `centre`
        and `bounds` in pixels of the labels.
        """

        def prepare(folder: Path, cancelled: Callable[[], bool]) -> messages.Message:
            exchange.write_array(folder / "labels.npy", labels, cancelled)
            return messages.Review(str(folder / "labels.npy"), maps_id)

        size = math.prod(labels.shape) * np.dtype(labels.dtype).itemsize
        return self.submit(Job("review", prepare, None, on_event, size))

    def evaluate(
        self,
        pred: np.ndarray,
        truth: np.ndarray,
        task: str,
        on_event: OnEvent | None = None,
        painted: bool = False,
        **options: Any,
    ) -> Job:
        """Compare two label arrays of the same shape; see `jobs.evaluate_arrays`.

        `painted`: also return where they agree, as `result["painted"]`; see
        `tttunet.measuring.agreement`.
        """

        def prepare(folder: Path, cancelled: Callable[[], bool]) -> messages.Message:
            paths = folder / "pred.npy", folder / "truth.npy"
            for path, array in zip(paths, (pred, truth), strict=True):
                exchange.write_array(path, array, cancelled)
            image = str(folder / "painted.npy") if painted else ""
            return messages.Evaluate(str(paths[0]), str(paths[1]), task, options, image)

        size = int(pred.nbytes + truth.nbytes + painted * math.prod(pred.shape))
        return self.submit(Job("evaluate", prepare, _collect_arrays, on_event, size))

    def measure(
        self,
        labels: Any,
        grid: Grid,
        channels: Sequence[tuple[str, Any]] = (),
        *,
        known: str | None = None,
        on_event: OnEvent | None = None,
    ) -> Job:
        """Measure the objects of a label array; `Done.result["table"]` is an `ObjectTable`.

        Args:
            labels: integers; numpy, dask, zarr or what slices like them, copied chunk by chunk in
                the engine's thread.
            grid: of the labels.
            channels: names and arrays of the labels' shape; their brightness is measured.
            known: `Done.result["checksum"]` of an earlier measurement: if the labels are the same,
                there is no table. "": none is known; None: checksums are not wanted.
        """
        arrays = [labels, *(array for _, array in channels)]

        def prepare(folder: Path, cancelled: Callable[[], bool]) -> messages.Message:
            paths = [str(folder / f"measured_{i}.npy") for i in range(len(arrays))]
            for path, array in zip(paths, arrays, strict=True):
                exchange.write_array(Path(path), array, cancelled)
            named = zip((name for name, _ in channels), paths[1:], strict=True)
            return messages.Measure(
                paths[0],
                str(folder / _TABLE),
                grid.axes,
                grid.shape_axes,
                tuple(map(tuple, grid.matrix.tolist())),
                grid.unit,
                tuple(named),
                known,
            )

        sizes = (math.prod(one.shape) * np.dtype(one.dtype).itemsize for one in arrays)
        job = Job("measure", prepare, _collect_table, on_event, sum(sizes), MEASURING_GRACE)
        return self.submit(job)

    def finetune(
        self,
        model: str,
        data: str | Path,
        output: str | Path,
        *,
        view: Any = None,
        axes: str = "",
        image: Mapping[str, Any] | None = None,
        channel: str = "",
        control: str | Path = "",
        on_event: OnEvent | None = None,
        **options: Any,
    ) -> Job:
        """Fit a model to corrections; `Done.result` has the scores before and after.

        Args:
            model: name or folder of the model to start from; empty: a new one.
            data: folder of a project or a data set.
            output: working folder.
            view: array that is segmented every few seconds, for a `Preview` with all its labels.
            axes: of the view.
            image: further fields of `messages.ImageRef` for the view.
            channel: of the view.
            control: a text file that you write `pause`, `stop` or nothing to.
            options: further arguments of `tttunet.finetune`.
        """

        def prepare(folder: Path, cancelled: Callable[[], bool]) -> messages.Message:
            reference = None
            if view is not None:
                exchange.write_array(folder / "view.npy", view, cancelled)
                given = {**(image or {}), "array": str(folder / "view.npy"), "axes": axes}
                reference = messages.ImageRef(**given)
            return messages.Finetune(
                messages.model_reference(model) if model else "",
                str(Path(data).expanduser().absolute()),
                str(Path(output).expanduser().absolute()),
                options,
                reference,
                str(folder / "preview.npy") if reference else "",
                channel,
                str(Path(control).absolute()) if control else "",
            )

        size = 0 if view is None else int(np.prod(view.shape, dtype=np.int64)) * 16
        job = Job("finetune", prepare, None, on_event, size)
        job.grace = GRACES["finetune"]
        return self.submit(job)

    def close(self) -> None:
        """Cancel what waits or runs, and end the worker."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            jobs = [*self._jobs, *([self._running] if self._running else [])]
            self._changed.notify_all()
        for job in jobs:
            job.grace = min(CLOSING_GRACE, job.grace or self.grace)
            job.cancel()
        if threading.current_thread() is not self._thread:
            self._thread.join(max(CLOSING_GRACE, self.grace) + 2)
        self._worker.close()
        atexit.unregister(self.close)

    # The engine's thread

    def _wake(self, job: Job) -> None:
        with self._changed:
            waiting = job in self._jobs
            if waiting:
                self._jobs.remove(job)
            self._changed.notify_all()
        if waiting:
            job._emit(Cancelled())

    def _loop(self) -> None:
        with contextlib.suppress(OSError):
            exchange.remove_orphans()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if not self._jobs:
                    return
                job = self._running = self._jobs.popleft()
            outcome: Any
            try:
                outcome = self._run(job)
            except Exception as error:  # the queue must go on whatever an array or file does
                outcome = Failed("defect", f"Unexpected {type(error).__name__}: {error}")
            with self._changed:
                self._running = None
            job._emit(outcome)

    def _run(self, job: Job) -> Any:
        with job._lock:
            if job.state == "waiting":
                job.state = "running"
        folder = exchange.make_folder(job.expected_bytes)
        try:
            if job._cancelled.is_set():
                return Cancelled()
            job._emit(Started(not self._worker.ready))
            assert job.prepare is not None
            request = job.prepare(folder, job._cancelled.is_set)
            job.prepare = None  # it may hold a large array
            outcome = self._ask(job, request)
            if isinstance(outcome, Done) and job.collect is not None:
                return job.collect(folder, outcome)
            return outcome
        except WorkerDied as error:
            return _lost(str(error))
        except WorkerError as error:
            return Failed("worker", str(error), error.hint)
        except OSError as error:
            reason = error.strerror or error
            return Failed(
                "disk", f"The image or its labels cannot be handed over: {reason}.", "Free space."
            )
        finally:
            exchange.remove_folder(folder)

    def _ask(self, job: Job, request: messages.Message) -> Any:
        def update(event: dict[str, Any]) -> None:
            message = messages.from_dict(event)
            if isinstance(message, messages.Partial):
                message = _preview(message)
            job._emit(message)

        for _ in range(2):
            if not self._worker.start(job._cancelled.is_set) or job._cancelled.is_set():
                return Cancelled()
            try:
                task = self._worker.run(request.to_dict(), self._notify, update)
            except OSError:
                self._worker.kill()
                continue
            if not self._wait(task, job._cancelled.is_set):
                with contextlib.suppress(OSError, ValueError):
                    task.cancel()
                if not self._wait(task, timeout=job.grace or self.grace):
                    self._replace_worker()
                return Cancelled()
            if task.launched or not self._worker_died(task):
                return self._outcome(task)
            # It had died while it was idle, which nobody needs to know.
        raise WorkerError("The worker process cannot be reached.", "Try again.")

    def _replace_worker(self) -> None:
        """End the worker; a new one starts meanwhile, so that the next job need not wait."""
        self._worker.kill()
        if not self._closed:
            with contextlib.suppress(WorkerError):  # the next job will say it
                self._worker.start(lambda: True)

    def _worker_died(self, task: Any) -> bool:
        return not task.outputs and task.status.value not in ("CANCELED", "FAILED")

    def _wait(
        self, task: Any, until: Callable[[], bool] = lambda: False, timeout: float | None = None
    ) -> bool:
        """Wait for the end of a task or of the worker; False if `until` or `timeout` came first."""
        left = float("inf") if timeout is None else timeout
        while not task.over and self._worker.alive:
            if until() or left <= 0:
                return False
            with self._changed:
                self._changed.wait_for(lambda: task.over or until(), min(_HEARTBEAT, left))
            left -= _HEARTBEAT
        if not task.over:
            self._worker.drain()
        return True

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _outcome(self, task: Any) -> Any:
        for kind in ("done", "failed"):
            if kind in task.outputs:
                return messages.from_dict({"kind": kind, **task.outputs[kind]})
        if self._worker_died(task):
            return _lost(self._worker.cause_of_death())
        if task.status.value == "CANCELED":
            return Cancelled()
        return Failed("defect", "The worker failed.", details=task.error or "")


def _lost(cause: str) -> Lost:
    return Lost(
        f"The worker process ended unexpectedly: {cause}.",
        "Nothing was changed; the next job starts a new one.",
    )


def _preview(message: messages.Partial) -> Preview:
    part = tuple(slice(start, stop) for start, stop in message.bounds)
    return Preview(message.bounds, np.array(exchange.open_array(message.file)[part]))


def _collect_table(folder: Path, done: Done) -> Done:
    """Read the table of a measurement, if the labels had changed."""
    path = folder / _TABLE
    table = ObjectTable.load(path) if path.exists() else None
    return replace(done, result={**done.result, "table": table})


def _collect_arrays(folder: Path, done: Done) -> Done:
    """Read the arrays of a job into memory: their files go with the job's folder."""
    names = [name for name in ("labels", "maps", "painted") if (folder / f"{name}.npy").exists()]
    arrays = {name: exchange.read_array(folder / f"{name}.npy") for name in names}
    return replace(done, result={**done.result, **arrays})
