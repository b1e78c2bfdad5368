"""What a fine-tuning learns from: images with labels of some of their pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from tttunet.errors import DatasetError
from tttunet.imaging.image import Image
from tttunet.imaging.normalise import prepare_channels
from tttunet.imaging.preprocess import Prepared, preprocess
from tttunet.models.config import DataSource, ModelConfig, Plan
from tttunet.training.dataset import Case, Dataset, Split, Task, open_dataset
from tttunet.training.prepare import (
    FOREGROUND,
    IGNORE,
    PreparedCase,
    find_locations,
    read_pair,
)

Bounds = tuple[tuple[int, int], ...]

#: Pixels around the labels that the network sees too, per number of dimensions.
MARGIN = {2: 64, 3: 16}
_PROJECT = "project.json"
#: Fields of a plan that leave the image on its own grid.
_OWN_GRID: dict[str, Any] = {
    "spacing": None,
    "frame": None,
    "orientation": None,
    "transpose": None,
    "crop": "none",
}


@dataclass(frozen=True, eq=False)
class Sample:
    """Labels of a part of an image, or of all of it.

    Attributes:
        name: of the image.
        image: intensities as they are, an `Image` or an array [C, *spatial]; the whole image, so
            that it is normalised as when it is segmented.
        labels: [*spatial of the part] int32: `IGNORE` where nobody looked, 0 background, objects
            or classes above 0, `FOREGROUND` for some object.
        bounds: the part, (start, stop) per axis of the image but C; None: all of it. Labels with
            fewer axes than the image belong to one frame or slice.
        group: samples of one group are held out together.
        modality: for the record.
    """

    name: str
    image: Image | np.ndarray
    labels: np.ndarray
    bounds: Bounds | None = None
    group: str | None = None
    modality: str | None = None

    @property
    def origin(self) -> str:
        """What is never split where there are enough images: the group, or the image."""
        return self.group or self.name


@dataclass(frozen=True)
class Material:
    """The samples of one fine-tuning with what their labels mean.

    Attributes:
        samples: to train on and to hold out from.
        val: samples that the data set itself holds out; empty: `holdout` chooses.
        classes: number to name, foreground only.
        sources: for the card of the model.
    """

    samples: list[Sample]
    task: Task
    dim: int
    classes: dict[int, str]
    name: str
    val: list[Sample]
    sources: tuple[DataSource, ...] = ()


def read_material(
    data: str | Path | Iterable[Sample] | Any,
    *,
    task: Task | None = None,
    classes: dict[int, str] | None = None,
    pixels: bool = True,
) -> Material:
    """Samples from wherever they are.

    Args:
        data: samples; a folder with a `dataset.json`; or a project or its folder.
        task: of samples that do not say it; for a data set or a project it must be theirs, but
            a mask of one class may stand for instances (see `sparse.objects_from_mask`).
        classes: of samples that do not say it.
        pixels: whether the images of a project are read; without, they have their shape only.

    Raises:
        DatasetError: there are none, or they make no sense.
    """
    if is_project(data):
        if isinstance(data, str | Path):
            data = import_module("tttunet.projects").Project.open(data, read_only=True)
        return _of_project(data, task, pixels)
    if isinstance(data, str | Path):
        return _of_dataset(open_dataset(Path(data)), task)
    samples = list(data)
    found = task or "instance"
    return _checked(
        Material(
            samples,
            found,
            samples[0].labels.ndim if samples else 2,
            classes or _classes_of(samples, found),
            "samples",
            [],
        )
    )


def is_project(data: Any) -> bool:
    """Whether this is a `tttunet.projects.Project` or the folder of one."""
    if isinstance(data, str | Path):
        return (Path(data) / _PROJECT).is_file()
    return hasattr(data, "corrections")


def samples_of(project: Any, pixels: bool = True) -> list[Sample]:
    """The vouched parts of a project's images.

    Args:
        project: a `tttunet.projects.Project`.
        pixels: see `read_material`.
    """
    return [
        Sample(
            found.name,
            project.load(found.image) if pixels else _blank(found.image),
            found.labels,
            found.bounds,
            found.image.id,
        )
        for found in import_module("tttunet.projects").samples(project)
    ]


def _blank(image: Any) -> np.ndarray:
    """The shape of a project's image, [C, *spatial], which takes no memory."""
    sizes = dict(zip(image.axes, image.shape, strict=True))
    channels = sizes.pop("C", 1) if image.channel is None else 1
    spatial = (sizes[axis] for axis in "ZYX" if axis in sizes)
    return np.broadcast_to(np.float32(0), (channels, *spatial))


def read_split(folder: str | Path, split: Split = "train") -> tuple[list[Sample], DataSource]:
    """All images of one split of a data set, and where they are from."""
    data = open_dataset(folder)
    source = DataSource(title=data.title, source=data.source, licence=data.licence)
    return [_of_case(case, data) for case in data.cases[split]], source


def keeps_grid(plan: Plan) -> bool:
    """Whether a model sees images on their own grid."""
    return all(getattr(plan, name) == value for name, value in _OWN_GRID.items())


def to_cases(samples: Sequence[Sample], config: ModelConfig) -> list[PreparedCase]:
    """Samples in the form that training and validation read.

    A case is the labelled part with `MARGIN` pixels around it, as far as the image goes.

    Raises:
        DatasetError: labels and image do not fit each other, or the model.
        ImageError: an image has other channels than the model takes.
    """
    return list(_cases(samples, config))


def _cases(samples: Sequence[Sample], config: ModelConfig) -> Iterator[PreparedCase]:
    if not keeps_grid(config.plan):
        yield from _resampled_cases(samples, config)
        return
    source, frame, array = None, None, None
    for sample in samples:
        # Of a film only the frames with labels, and one at a time.
        wanted = _frame_number(sample, config)
        if array is None or sample.image is not source or wanted != frame:
            source, frame, array = sample.image, wanted, normalised(sample, config)[1]
        yield _case(sample, array, config)


def _resampled_cases(samples: Sequence[Sample], config: ModelConfig) -> Iterator[PreparedCase]:
    source, prepared = None, None
    for sample in samples:
        if prepared is None or sample.image is not source:
            source, prepared = sample.image, _on_network_grid(sample, config)
        yield _case(_moved(sample, prepared), prepared.array, config)


def _case(sample: Sample, array: np.ndarray, config: ModelConfig) -> PreparedCase:
    pixels = plane(array, sample, config)
    dim = config.network.dim
    bounds = (sample.bounds or tuple((0, n) for n in pixels.shape[1:]))[-dim:]
    if sample.labels.ndim != dim or sample.labels.shape != tuple(b - a for a, b in bounds):
        raise DatasetError(
            f"The labels of '{sample.name}' have the shape {sample.labels.shape}, their part of "
            f"the image {tuple(b - a for a, b in bounds)}; the model is {dim}D."
        )
    known = np.nonzero(sample.labels != IGNORE)
    if not known[0].size:
        raise DatasetError(
            f"'{sample.name}' has no labelled pixel.", "Mark objects as checked, or a region."
        )
    first = [int(axis.min()) for axis in known]
    last = [int(axis.max()) + 1 for axis in known]
    labels = sample.labels[tuple(map(slice, first, last))]
    start = [a + low for (a, _), low in zip(bounds, first, strict=True)]
    before = [min(MARGIN[dim], low) for low in start]
    after = [
        min(MARGIN[dim], size - low - n)
        for size, low, n in zip(pixels.shape[1:], start, labels.shape, strict=True)
    ]
    place = tuple(
        slice(low - b, low + n + a)
        for low, n, b, a in zip(start, labels.shape, before, after, strict=True)
    )
    labels = np.pad(labels, list(zip(before, after, strict=True)), constant_values=IGNORE)
    labels = labels.astype(np.int32)
    return PreparedCase(
        sample.name,
        np.ascontiguousarray(pixels[(slice(None), *place)], np.float16),
        labels,
        find_locations(labels, config.task),
        sample.group,
        sample.modality,
    )


def normalised(sample: Sample, config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """The image of a sample as the model takes it, but for what `plane` leaves.

    Returns:
        Intensities as they are, and float32 normalised over the whole time point; both
        [C, *spatial] of the time point that the sample's labels belong to.

    Raises:
        DatasetError: it is not said which time point that is.
        ImageError: the image has other channels than the model takes.
    """
    plan, channels = config.plan, config.network.input_channels
    image, number = _image_of(sample), _frame_number(sample, config)
    if number is not None:
        image = image.with_array(image.array[number], image.axes.replace("T", ""))
    pixels = prepare_channels(image, plan.channels, channels)
    return pixels, preprocess(image, plan.model_copy(update=_OWN_GRID), channels).array


def _frame_number(sample: Sample, config: ModelConfig) -> int | None:
    """The time point that a sample's labels belong to; None for an image without time."""
    image = _image_of(sample)
    if "T" not in image.axes:
        return None
    times = image.array.shape[0]
    index = _index(sample, image.ndim_spatial, config)
    if times > 1 and len(index) != image.ndim_spatial - config.network.dim + 1:
        raise _unsaid(sample)
    return index[0] if times > 1 else 0


def _index(sample: Sample, spatial: int, config: ModelConfig) -> list[int]:
    """Where a sample's bounds begin along the axes that the model does not see."""
    dim = config.network.dim
    if spatial < dim:
        raise DatasetError(f"'{sample.name}' is {spatial}D, the model {dim}D.")
    return [start for start, _ in (sample.bounds or ())][:-dim]


def _unsaid(sample: Sample) -> DatasetError:
    return DatasetError(f"It is not said which slice of '{sample.name}' is labelled.")


def _image_of(sample: Sample) -> Image:
    image = sample.image
    if isinstance(image, Image):
        return image
    return Image.from_array(image, "CZYX" if image.ndim == 4 else "CYX", name=sample.name)


def _on_network_grid(sample: Sample, config: ModelConfig) -> Prepared:
    """The image of a sample turned, cropped, resampled and normalised as the model wants it.

    Raises:
        DatasetError: the image has other axes than the network.
    """
    image = _image_of(sample)
    if image.ndim_spatial != config.network.dim or "T" in image.axes:
        raise DatasetError(
            f"'{config.name}' works on a grid of its own and takes {config.network.dim}D images, "
            f"but '{sample.name}' has the axes {image.axes}.",
            "Save what is labelled as an image of its own.",
        )
    return preprocess(image, config.plan, config.network.input_channels)


def _moved(sample: Sample, prepared: Prepared) -> Sample:
    """A sample on the network's grid.

    A labelled slice that is thinner than the network's voxels would be outvoted by its neighbours
    that nobody labelled: there, every labelled voxel counts for the one it lies in.

    Raises:
        DatasetError: the labels have another shape than their part of the image.
    """
    place = prepared.place
    bounds = sample.bounds or tuple((0, n) for n in place.shape)
    labels = np.full(place.shape, IGNORE, np.int32)
    part = labels[tuple(slice(*pair) for pair in bounds)]
    if part.shape != sample.labels.shape:
        raise DatasetError(
            f"The labels of '{sample.name}' have the shape {sample.labels.shape}, their part of "
            f"the image {part.shape}."
        )
    part[...] = sample.labels
    moved = place.to_network_labels(labels)
    turned = place.turned(labels)
    known = np.nonzero(turned != IGNORE)
    there = tuple(
        (along * 2 + 1) * after // (2 * before)
        for along, after, before in zip(known, place.grid, place.cropped, strict=True)
    )
    moved[there] = np.where(moved[there] == IGNORE, turned[known], moved[there])
    return replace(sample, image=prepared.array, labels=moved, bounds=None)


def plane(array: np.ndarray, sample: Sample, config: ModelConfig) -> np.ndarray:
    """What a sample's labels lie on: [C, *spatial], with as many axes as the model sees.

    Args:
        array: [C, *spatial] from `normalised`.
        sample: with bounds that are one index thick in the other axes.
    """
    spatial = array.ndim - 1
    index = _index(sample, spatial, config)
    unseen = spatial - config.network.dim
    if len(index) < unseen:
        raise _unsaid(sample)
    for start in index[len(index) - unseen :]:
        array = array[:, start]
    return array


def _of_dataset(data: Dataset, task: Task | None) -> Material:
    train = [_of_case(case, data) for case in data.cases["train"]]
    val = [_of_case(case, data) for case in data.cases["val"]]
    if len(train) + len(val) < 4:
        train, val = train + val, []
    source = DataSource(title=data.title, source=data.source, licence=data.licence)
    material = Material(train, data.task, data.dim, data.classes, data.name, val, (source,))
    return _as_task(_checked(material), task)


def _of_case(case: Case, data: Dataset) -> Sample:
    return Sample(case.name, *read_pair(case, data), None, case.group, case.modality)


def _of_project(project: Any, task: Task | None, pixels: bool) -> Material:
    classes = {int(value): str(name) for value, name in dict(project.classes).items()}
    samples = samples_of(project, pixels)
    material = Material(samples, project.task, project.dim, classes, project.name, [])
    return _as_task(_checked(material), task)


def _as_task(material: Material, task: Task | None) -> Material:
    if task is None or task == material.task:
        return material
    if task == "semantic" or len(material.classes) != 1:
        raise DatasetError(
            f"'{material.name}' is labelled for the task {material.task}, not {task}.",
            "Only a mask of one class can stand for instances.",
        )
    from tttunet.training.sparse import objects_from_mask

    def change(samples: Sequence[Sample]) -> list[Sample]:
        return [replace(sample, labels=objects_from_mask(sample.labels)) for sample in samples]

    return replace(material, samples=change(material.samples), val=change(material.val), task=task)


def _checked(material: Material) -> Material:
    """Refuse what nothing can be learnt from."""
    labels = [sample.labels for sample in (*material.samples, *material.val)]
    if not any((array != IGNORE).any() for array in labels):
        raise DatasetError(
            "There are no labelled pixels to learn from.",
            "Mark objects as checked, or a region as complete.",
        )
    if not any(((array > 0) | (array == FOREGROUND)).any() for array in labels):
        raise DatasetError(
            "Only background is labelled, so there is nothing to learn from.",
            "Mark some objects as checked too.",
        )
    if material.task == "semantic":
        known = {0, IGNORE, FOREGROUND, *material.classes}
        for sample in (*material.samples, *material.val):
            unknown = set(np.unique(sample.labels).tolist()) - known
            if unknown:
                raise DatasetError(
                    f"The labels of '{sample.name}' have values without a class: "
                    f"{sorted(unknown)[:5]}.",
                    f"The classes are {sorted(material.classes)}.",
                )
    return material


def _classes_of(samples: Sequence[Sample], task: Task) -> dict[int, str]:
    if task == "instance":
        return {1: "object"}
    values = {int(v) for sample in samples for v in np.unique(sample.labels) if v > 0}
    return {value: f"class {value}" for value in sorted(values)}
