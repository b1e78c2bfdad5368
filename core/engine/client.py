"""The engine's client: a queue of jobs, done one after the other by a worker process.

Measuring and comparing labels and reading images have a queue and a small process of their own:
they wait for no training.

    with Engine() as engine:
        job = engine.segment(array, axes="YX", model="nuclei", on_event=print)
        labels = job.wait().result["labels"]

Only the standard library, numpy and appose are needed here, so that 3D Slicer's Python can use
it. Nothing here waits for the worker but `Job.wait` and, for some seconds, `Engine.close`.

Jobs. `segment`, `evaluate` and `measure` take arrays, `decode` changes the thresholds of the last
segmentation without the network, `review` says where its labels are doubtful, `review_image` where
those of a project's image would be, `read_image` reads one with its corrections, `finetune` shows
what the model becomes on a view. All others are `request(message)`, see `messages`: `Hello` (starts
the worker early), `Estimate`, `Train`, `Evaluate` (files), `Batch`, `ListModels`, `AddModel`,
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

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tttunet.engine import exchange, messages
from tttunet.engine.job import Job, OnEvent, Preview
from tttunet.engine.lane import GRACE, Lane
from tttunet.engine.messages import Done, Failed, Queued
from tttunet.measuring import Grid, ObjectTable

if TYPE_CHECKING:
    from tttunet.projects import ImageReference

__all__ = ["Engine", "Job", "Preview"]

#: `GRACE` for what should not be ended in the middle: a training ends its step and saves a
#: checkpoint, others write files, and with its process the maps would go that a review is about.
GRACES = {"train": 60.0, "finetune": 60.0, "batch": 10.0, "review": 60.0} | dict.fromkeys(
    ("add_model", "remove_model", "export_model", "download_model"), 10.0
)
#: The same for measuring: sums over millions of objects take some seconds at their end.
MEASURING_GRACE = 10.0
_TRAININGS = {"train", "finetune"}
_TABLE = "table.npz"
_IMAGE = "image.npy"
#: Bytes of a voxel of which nothing is known.
_WIDEST = 8
_LOSSES = "adaptation_map"


class Engine(Lane):
    """The worker process that computes, with its jobs, and a second one for short jobs.

    The first has the models loaded. The second starts with the first short job, never
    loads torch, and waits for no training.

    Args:
        python: interpreter of the workers; None: see `process.PYTHON_VARIABLE`.
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
        super().__init__(python, grace, deliver, environment)
        self._python, self._environment = python, environment
        self._light: Lane | None = None
        self._making = threading.Lock()

    @property
    def short_worker_pid(self) -> int | None:
        """Of the second worker, as `worker_pid` is of the first."""
        return None if self._light is None else self._light.worker_pid

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit_short(self, job: Job) -> Job:
        """Queue a job for the second worker.

        Raises:
            RuntimeError: the engine is closed.
        """
        with self._making:
            if self._light is None and not self._closed:
                self._light = Lane(
                    self._python, self.grace, self.deliver, self._environment, light=True
                )
        return (self._light or self).submit(job)

    def _submit_for_maps(self, job: Job) -> Job:
        """Queue a job about the maps that the worker has kept, unless hours may pass before it.

        A training has the maps dropped.
        """
        why = (
            "The network's output for this image is not in memory any more: the training that "
            "runs needs the room."
        )
        return self._submit_soon(job, Failed("busy", why, "Segment it again afterwards."))

    def _submit_soon(self, job: Job, training: Failed) -> Job:
        """Queue a job, unless hours may pass before it; `training` says that one runs."""
        job.grace = GRACES.get(job.name)
        with self._changed:
            ahead = {one.name for one in (self._running, *self._jobs) if one is not None}
        if ahead & _TRAININGS:
            failed = training
        elif "batch" in ahead:
            failed = Failed("busy", "The engine works on a batch.", "Try again when it is done.")
        else:
            return self.submit(job)
        job.engine = self
        job._emit(Queued())
        job._emit(failed)
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
        adaptation_map: bool = False,
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
            adaptation_map: also return where the TTT layers had to adapt, as
                `result["adaptation_map"]`, [2, *labels]: their loss before and after.
            options: further fields of `messages.Segment`.
        """
        pixels = int(np.prod(array.shape, dtype=np.int64))
        # Labels, preview, maps of up to 16 classes, and losses.
        extra = 4 + preview + 64 * maps + 8 * adaptation_map
        expected = pixels * (np.dtype(array.dtype).itemsize + extra)

        def prepare(folder: Path, cancelled: Callable[[], bool]) -> messages.Message:
            exchange.write_array(folder / _IMAGE, array, cancelled)
            given = {**(image or {}), "array": str(folder / _IMAGE), "axes": axes}
            return messages.Segment(
                messages.ImageRef(**given),
                messages.model_reference(model),
                str(folder / "labels.npy"),
                maps=str(folder / "maps.npy") if maps else "",
                preview=str(folder / "preview.npy") if preview else "",
                adaptation_map=str(folder / f"{_LOSSES}.npy") if adaptation_map else "",
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

        return self._submit_for_maps(Job("decode", prepare, _collect_arrays, on_event))

    def review(self, labels: Any, maps_id: str = "", on_event: OnEvent | None = None) -> Job:
        """Rank the places of labels of the last segmentation, perhaps corrected since.

        `Done.result["places"]` has the most doubtful first: `kind`, `label`, `doubt`, and `centre`
        and `bounds` in pixels of the labels.
        """

        def prepare(folder: Path, cancelled: Callable[[], bool]) -> messages.Message:
            exchange.write_array(folder / "labels.npy", labels, cancelled)
            return messages.Review(str(folder / "labels.npy"), maps_id)

        size = math.prod(labels.shape) * np.dtype(labels.dtype).itemsize
        return self._submit_for_maps(Job("review", prepare, None, on_event, size))

    def review_image(
        self, project: str | Path, image: str, model: str, on_event: OnEvent | None = None
    ) -> Job:
        """Segment an image of a project, and rank its places.

        `Done.result["places"]` is that of `review`, in pixels of the project's labels. While a
        training or a batch runs, nothing is queued: the job fails with the problem `busy`.

        Args:
            project: its folder.
            image: id of the image.
            model: name or folder.
        """
        request = messages.ReviewImage(
            str(Path(project).expanduser().absolute()), image, messages.model_reference(model)
        )
        job = Job("review_image", lambda folder, cancelled: request, None, on_event)
        why = "A training runs: images are looked through when it is done."
        return self._submit_soon(job, Failed("busy", why))

    def read_image(
        self, project: str | Path, image: ImageReference, on_event: OnEvent | None = None
    ) -> Job:
        """Read an image of a project; waits for no training.

        `Done.result` has the voxels as `image`, with the shape of the reference, the `labels`,
        the `path` of the file, empty for a copy, and the `problems` that the project tells.

        Args:
            project: its folder.
            image: one of the project's.
        """

        def prepare(folder: Path, cancelled: Callable[[], bool]) -> messages.Message:
            return messages.ReadImage(
                str(Path(project).expanduser().absolute()),
                image.id,
                str(folder / _IMAGE),
                str(folder / "labels.npy"),
            )

        def collect(folder: Path, done: Done) -> Done:
            found = _collect_arrays(folder, done)
            voxels = exchange.read_array(folder / _IMAGE)
            return replace(found, result={**found.result, "image": voxels})

        size = math.prod(image.shape) * (_WIDEST + 4)
        return self._submit_short(Job("read_image", prepare, collect, on_event, size))

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
        return self._submit_short(Job("evaluate", prepare, _collect_arrays, on_event, size))

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
        return self._submit_short(job)

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
        part: Sequence[tuple[int, int]] = (),
        control: str | Path = "",
        on_event: OnEvent | None = None,
        **options: Any,
    ) -> Job:
        """Fit a model to corrections; `Done.result` has the scores before and after.

        Args:
            model: name or folder of the model to start from; empty: a new one.
            data: folder of a project or a data set.
            output: working folder.
            view: array of which `part` is segmented every few seconds, for a `Preview` with all
                labels of the part.
            axes: of the view.
            image: further fields of `messages.ImageRef` for the view.
            channel: of the view.
            part: [start, stop) per axis of the view but S, normalised as the whole view is; empty:
                all of it.
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
                tuple((start, stop) for start, stop in part),
            )

        size = 0 if view is None else int(np.prod(view.shape, dtype=np.int64)) * 16
        job = Job("finetune", prepare, None, on_event, size)
        job.grace = GRACES["finetune"]
        return self.submit(job)

    def close(self) -> None:
        """Cancel what waits or runs, and end the workers."""
        super().close()
        with self._making:
            light = self._light
        if light is not None:
            light.close()


def _collect_table(folder: Path, done: Done) -> Done:
    """Read the table of a measurement, if the labels had changed."""
    path = folder / _TABLE
    table = ObjectTable.load(path) if path.exists() else None
    return replace(done, result={**done.result, "table": table})


def _collect_arrays(folder: Path, done: Done) -> Done:
    """Read the arrays of a job into memory: their files go with the job's folder."""
    known = ("labels", "maps", "painted", _LOSSES)
    names = [name for name in known if (folder / f"{name}.npy").exists()]
    arrays = {name: exchange.read_array(folder / f"{name}.npy") for name in names}
    return replace(done, result={**done.result, **arrays})
