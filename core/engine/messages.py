"""What the client and the worker say to each other: typed, versioned, plain data.

Only the standard library: 3D Slicer's Python reads this file too. Arrays never travel in a
message; they lie in files of the job's folder (`exchange`), which a message names.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tttunet.engine.wire import Message
from tttunet.engine.wire import ProtocolError as ProtocolError
from tttunet.engine.wire import from_dict as from_dict

#: Raised whenever a message changes its meaning.
PROTOCOL = 1

# What both speak about


@dataclass(frozen=True)
class ImageRef:
    """An image by its array file, or by the path of an image file.

    Attributes:
        array: an .npy file in the job's folder; empty: `path` is read.
        path: where the image comes from.
        axes: one letter per axis, from TCZYX; empty: as the file says.
        spacing, origin: per spatial axis, in `unit`.
        direction: rows of the direction matrix, array axis order; empty: identity.
        unit: `micrometer`, `millimeter` or None for pixels.
        rgb: the channels are colours.
        name: for messages.
    """

    array: str = ""
    path: str = ""
    axes: str = ""
    spacing: tuple[float, ...] = ()
    origin: tuple[float, ...] = ()
    direction: tuple[tuple[float, ...], ...] = ()
    unit: str | None = None
    channel_names: tuple[str, ...] = ()
    rgb: bool = False
    name: str = "image"


def package_version() -> str:
    """The version of this side's package."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("napari-tttunet")
    except PackageNotFoundError:
        return "0+unknown"  # a source tree that is not installed


def model_reference(name_or_path: str) -> str:
    """A model's name as it is, its path made absolute: the worker runs in another folder."""
    is_path = "/" in name_or_path or os.sep in name_or_path or name_or_path.startswith((".", "~"))
    return str(Path(name_or_path).expanduser().absolute()) if is_path else name_or_path


# Requests


@dataclass(frozen=True)
class Hello(Message, kind="hello"):
    """The first request to a new worker; a `light` one says nothing of devices."""

    protocol: int = PROTOCOL
    light: bool = False


@dataclass(frozen=True)
class Segment(Message, kind="segment"):
    """Segment an image.

    Attributes:
        image: what.
        model: name or folder.
        output: the .npy file that receives the labels.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        tile: tile size; empty: automatic.
        overlap: share of a tile that neighbours share.
        mirror: average over flips.
        decoding: changed thresholds of the instance decoding.
        maps: the .npy file that receives the network's maps, [K, *labels]; empty: not wanted.
        preview: the .npy file that receives finished tiles, which `Partial` tells of: foreground
            or classes; empty: not wanted.
        channel: name or number of the one channel to segment; empty: all.
        adaptation: how TTT layers adapt, see `tttunet.layers.adaptation.Mode`.
        adaptation_map: the .npy file that receives where they had to adapt, [2, *labels] float32,
            their loss before and after; empty: not wanted.
    """

    image: ImageRef
    model: str
    output: str
    device: str = "auto"
    tile: tuple[int, ...] = ()
    overlap: float = 0.25
    mirror: bool = False
    decoding: dict[str, Any] = field(default_factory=dict)
    maps: str = ""
    preview: str = ""
    channel: str = ""
    adaptation: str = "tile"
    adaptation_map: str = ""


@dataclass(frozen=True)
class Decode(Message, kind="decode"):
    """Decode the maps of the last `Segment` again, with other thresholds.

    Attributes:
        output: the .npy file that receives the labels.
        decoding: changed thresholds; the others are the model's.
        maps_id: of the segmentation that is meant, from its result; empty: the last one.
    """

    output: str
    decoding: dict[str, Any] = field(default_factory=dict)
    maps_id: str = ""


@dataclass(frozen=True)
class Review(Message, kind="review"):
    """Where to look first in labels made by the last `Segment`; see `tttunet.inference.review`.

    Attributes:
        labels: the .npy file of the labels, with the axes of that result.
        maps_id: as for `Decode`.
        count: at most so many places are returned.
    """

    labels: str
    maps_id: str = ""
    count: int = 500


@dataclass(frozen=True)
class ReviewImage(Message, kind="review_image"):
    """Where to look first in an image of a project, which is segmented for that.

    Attributes:
        project: its folder.
        image: id of the image.
        model: name or folder.
        device: as for `Segment`.
        count: at most so many places are returned.
    """

    project: str
    image: str
    model: str
    device: str = "auto"
    count: int = 500


@dataclass(frozen=True)
class ReadImage(Message, kind="read_image"):
    """Read an image of a project and its corrections, for a face that must not wait for files.

    Attributes:
        project: its folder, open to write for the client.
        image: id of the image.
        output: the .npy file that receives the image; it has the project's geometry.
        labels: the .npy file that receives its labels.
    """

    project: str
    image: str
    output: str
    labels: str


@dataclass(frozen=True)
class Estimate(Message, kind="estimate"):
    """What a `Segment` would need; nothing is computed.

    Attributes:
        spacing, unit, direction: of the image, as in `ImageRef`; without them, models that work
            on voxels of a fixed size are taken to find the image's own.
    """

    shape: tuple[int, ...]
    axes: str
    model: str
    dtype: str = "uint8"
    device: str = "auto"
    tile: tuple[int, ...] = ()
    overlap: float = 0.25
    mirror: bool = False
    spacing: tuple[float, ...] = ()
    unit: str | None = None
    direction: tuple[tuple[float, ...], ...] = ()
    adaptation: str = "tile"
    adaptation_map: bool = False


@dataclass(frozen=True)
class Train(Message, kind="train"):
    """Train a model; the arguments are those of `tttunet.train`."""

    dataset: str
    output: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Finetune(Message, kind="finetune"):
    """Fit a model to corrections; see `tttunet.finetune`.

    Attributes:
        model: name or folder of the one to start from; empty: a new one.
        data: folder of a project or a data set.
        output: working folder.
        options: further arguments of `tttunet.finetune`.
        view: an image, of which a part is segmented every few seconds; None: nothing.
        part: what the user looks at, [start, stop) per axis of the view but S; empty: all of it.
            Intensities are normalised as those of the whole view.
        preview: the .npy file that receives the labels of the part, which `Partial` tells of.
        channel: name or number of the view's one channel; empty: all.
        control: a text file that is read at every step: `pause` waits, `stop` ends the training
            with the best model so far, anything else goes on. It need not exist.
    """

    model: str
    data: str
    output: str
    options: dict[str, Any] = field(default_factory=dict)
    view: ImageRef | None = None
    preview: str = ""
    channel: str = ""
    control: str = ""
    part: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class PlanFinetune(Message, kind="plan_finetune"):
    """How long a `Finetune` with the same fields would take; nothing is trained."""

    model: str
    data: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluate(Message, kind="evaluate"):
    """Compare label files, or arrays by their .npy files; see `tttunet.evaluate`.

    Attributes:
        painted: of arrays, the .npy file that receives where they agree, see
            `tttunet.measuring.agreement`; empty: not wanted.
    """

    pred: str
    truth: str
    task: str
    options: dict[str, Any] = field(default_factory=dict)
    painted: str = ""


@dataclass(frozen=True)
class Measure(Message, kind="measure"):
    """Measure the objects of a label array; see `tttunet.measuring`.

    Attributes:
        labels: their .npy file.
        output: the .npz file that receives the `ObjectTable`.
        axes, shape_axes, matrix, unit: see `tttunet.measuring.Grid`.
        channels: name and .npy file of each image whose brightness is measured.
        known: `checksum` of an earlier result; labels with the same are not measured again.
            None: checksums are not wanted.
    """

    labels: str
    output: str
    axes: str
    shape_axes: str
    matrix: tuple[tuple[float, ...], ...]
    unit: str = "px"
    channels: tuple[tuple[str, str], ...] = ()
    known: str | None = None


@dataclass(frozen=True)
class Batch(Message, kind="batch"):
    """Segment files; `plan` is the content of a batch file, see `tttunet.engine.batch`."""

    plan: dict[str, Any]


@dataclass(frozen=True)
class ListModels(Message, kind="list_models"):
    """The models that are known by name, with their cards."""


@dataclass(frozen=True)
class AddModel(Message, kind="add_model"):
    """Check a model and copy it into the user's library.

    Attributes:
        source: a model's folder or archive (.zip), or with `convert` a checkpoint of the authors'
            code.
        name: in the library; empty: the model's own.
        overwrite: replace the user's model of that name.
        options: of the conversion, see `tttunet.models.convert_checkpoint`.
    """

    source: str
    name: str = ""
    overwrite: bool = False
    convert: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RemoveModel(Message, kind="remove_model"):
    """Delete a model from the user's library."""

    name: str


@dataclass(frozen=True)
class ExportModel(Message, kind="export_model"):
    """Write a model to a folder or archive that `AddModel` takes elsewhere.

    Attributes:
        name: in the library.
        output: the archive to write if it ends in .zip, else the folder to make.
        overwrite: replace what is there.
    """

    name: str
    output: str
    overwrite: bool = False


@dataclass(frozen=True)
class DownloadModel(Message, kind="download_model"):
    """Fetch an archive with a model and add it to the user's library.

    Attributes:
        url: https, or http on this computer.
        sha256: of the archive, if the user knows it.
        name: in the library; empty: the model's own.
        overwrite: replace the user's model of that name.
        limit: the largest archive that is accepted, in bytes.
    """

    url: str
    sha256: str = ""
    name: str = ""
    overwrite: bool = False
    limit: int = 2 * 2**30


# Events


@dataclass(frozen=True)
class Queued(Message, kind="queued"):
    """`ahead` jobs are before this one."""

    ahead: int = 0


@dataclass(frozen=True)
class Started(Message, kind="started"):
    """The worker has begun; `cold` if it had to be started for this job."""

    cold: bool = False


@dataclass(frozen=True)
class Progress(Message, kind="progress"):
    """fraction in [0, 1] of `stage`; `eta`: seconds to go, None if unknown."""

    fraction: float
    stage: str
    eta: float | None = None


@dataclass(frozen=True)
class Log(Message, kind="log"):
    level: str
    message: str


@dataclass(frozen=True)
class Partial(Message, kind="partial"):
    """A finished part of the output: slices [start, stop) per axis of the label array."""

    bounds: tuple[tuple[int, int], ...]
    file: str


@dataclass(frozen=True)
class FileStatus(Message, kind="file"):
    """Where file `index` of the `total` of a batch is.

    Attributes:
        state: `running`, `done`, `skipped` or `failed`.
        source, labels: the files.
        text: `3 objects`, or why it failed.
        seconds: of a file that is done.
    """

    index: int
    total: int
    state: str
    source: str
    labels: str
    text: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Metric(Message, kind="metric"):
    """A point of the training curve."""

    step: int
    values: dict[str, float]


@dataclass(frozen=True)
class Done(Message, kind="done"):
    """The job's result; arrays lie in the files that the request named."""

    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failed(Message, kind="failed"):
    """The job could not be done.

    Attributes:
        problem: `input`, `memory`, `disk`, `version`, `worker` (it does not start), `busy` (hours
            may pass before it) or `defect`.
        message: what is wrong, in one sentence.
        hint: what to do about it.
        details: the traceback of a defect.
    """

    problem: str
    message: str
    hint: str = ""
    details: str = ""


@dataclass(frozen=True)
class Cancelled(Message, kind="cancelled"):
    """The user stopped the job."""


@dataclass(frozen=True)
class Lost(Message, kind="lost"):
    """The worker died; the next job starts a new one."""

    message: str
    hint: str = ""


Event = (
    Queued
    | Started
    | Progress
    | Log
    | Partial
    | FileStatus
    | Metric
    | Done
    | Failed
    | Cancelled
    | Lost
)
TERMINAL = (Done, Failed, Cancelled, Lost)
