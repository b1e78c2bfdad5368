"""From image files to label files: what is read and written, and the way between them.

Which files these are is decided and checked before any work, without a model.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tttunet.errors import ImageError, OutputError
from tttunet.files import check_output
from tttunet.imaging.frames import VIDEO_SUFFIXES, is_video
from tttunet.imaging.itk import is_dicom
from tttunet.imaging.readers import SUFFIXES, image_stem, image_suffix
from tttunet.imaging.writers import LABEL_SUFFIXES

if TYPE_CHECKING:
    from tttunet.imaging import Image
    from tttunet.inference.frames import FramesResult
    from tttunet.inference.segment import Result
    from tttunet.models.config import ModelConfig
    from tttunet.models.model import Model

#: Labels of these formats keep the format and with it the geometry; all others become OME-TIFF.
_GEOMETRY_SUFFIXES = {
    ".nii": ".nii",
    ".nii.gz": ".nii.gz",
    ".nrrd": ".nrrd",
    ".nhdr": ".nrrd",
    ".mha": ".mha",
    ".mhd": ".mha",
}
_LABEL_SUFFIX = ".ome.tif"
OFFERED_SUFFIXES = (_LABEL_SUFFIX, ".nii.gz", ".nrrd", ".mha")
#: A DICOM series is a folder; of these formats this one has its coordinates.
_DICOM_LABEL_SUFFIX = ".nrrd"
#: What the name of a label file ends in.
LABELS_ENDING = "_labels"
_OVERLAY_ENDING = "_overlay"
_ADAPTATION_ENDING = "_adaptation"

_OUR_ENDINGS = (LABELS_ENDING, _OVERLAY_ENDING, _ADAPTATION_ENDING)

#: What to do with results that exist: refuse, write again, or leave them if they are complete.
Existing = Literal["error", "overwrite", "skip"]


@dataclass(frozen=True)
class FileJob:
    """One image and the files to make from it; None are not wanted.

    With `frames` it is a video, a stack or a folder of pictures, of which one is in memory at a
    time.
    """

    source: Path
    labels: Path
    overlay: Path | None = None
    table: Path | None = None
    adaptation: Path | None = None
    frames: bool = False

    @property
    def outputs(self) -> list[Path]:
        paths = (self.labels, self.overlay, self.table, self.adaptation)
        return [path for path in paths if path is not None]

    @property
    def complete(self) -> bool:
        """Whether all files are there; none of them is ever there in part."""
        return all(path.exists() for path in self.outputs)


def expand_inputs(
    patterns: Sequence[str], ending: str = LABELS_ENDING, frames: bool = False
) -> list[Path]:
    """Image files from names of files, folders and globs, each file once.

    Of folders (without their subfolders) and globs, files of other types, hidden files and what
    was written there by us (`*_labels.*`, `*_overlay.png`, `*_adaptation.ome.tif`) are passed over.
    A folder with DICOM slices in it is one image, whether it is named, lies in a named folder, or
    matches a glob.

    Args:
        patterns: the names.
        ending: what the names of label files end in.
        frames: a folder is one sequence of frames rather than many images.

    Raises:
        ImageError: a file does not exist or is of a type that cannot be read, or a folder or glob
            has no image.
    """
    found: dict[Path, Path] = {}
    for pattern in patterns:
        for path in _expand(pattern, ending, frames):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _expand(pattern: str, ending: str, frames: bool) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_dir() and frames and any(image_suffix(file) for file in path.iterdir()):
        return [path]
    if path.is_dir():
        images = _images(path.iterdir(), ending)
        images += [path] if _is_series(path) else []
        if not images:
            raise ImageError(f"There is no image in the folder '{path}'.", _known_types())
        return images
    if path.exists() or not glob.has_magic(pattern):
        if not path.exists():
            raise ImageError(f"'{path}' does not exist.", "Check the name and the folder.")
        if not _is_image(path):
            raise ImageError(f"'{path}' is of a type that cannot be read.", _known_types())
        return [path]
    images = _images(map(Path, glob.glob(str(path), recursive=True)), ending)
    if not images:
        raise ImageError(f"No image matches '{pattern}'.", _known_types())
    return images


def _images(paths: Iterator[Path], ending: str) -> list[Path]:
    return sorted(
        path
        for path in paths
        if not path.name.startswith(".")
        and (_is_series(path) or (_is_image(path) and path.is_file()))
        and not image_stem(path).endswith((ending, *_OUR_ENDINGS))
    )


def _is_image(path: Path) -> bool:
    return bool(image_suffix(path)) or is_video(path)


def _is_series(path: Path) -> bool:
    return path.is_dir() and os.access(path, os.R_OK | os.X_OK) and is_dicom(path)


def _known_types() -> str:
    known = ", ".join(sorted((*SUFFIXES, *VIDEO_SUFFIXES)))
    return f"Known types: {known}, and folders of DICOM slices."


def plan_jobs(
    sources: Sequence[Path],
    output: str,
    *,
    overlay: bool = False,
    table: bool = False,
    adaptation: bool = False,
    existing: Existing = "error",
    ending: str = LABELS_ENDING,
    suffix: str = "",
    frames: bool = False,
) -> list[FileJob]:
    """Name the outputs and make sure that all of them can be written.

    Args:
        sources: from `expand_inputs`.
        output: a folder; or for a single image the label file.
        overlay, table, adaptation: whether these are wanted; of frames there are only labels.
        existing: what to do with results that are there already.
        frames: stacks and folders are frames over time, as videos always are.
        ending: what the names of label files end in.
        suffix: format of the label files; empty: that of the image where it keeps the geometry,
            NRRD for DICOM, else OME-TIFF.

    Raises:
        OutputError: two images would write the same file, an image would be overwritten by its
            own result, a file exists or cannot be written, or `output` is of no known type.
    """
    target = Path(output).expanduser()
    as_file = _is_label_file(target, output, len(sources))
    jobs = []
    for source in sources:
        film = frames or is_video(source)
        if as_file:
            labels, base = target, target.with_name(_base_name(target))
        else:
            # The dots in the name of a folder (1.2.840) begin no suffix.
            series = source.is_dir()
            base = target / (source.resolve().name if series else image_stem(source))
            own = _GEOMETRY_SUFFIXES.get(image_suffix(source), _LABEL_SUFFIX)
            own = _LABEL_SUFFIX if film else _DICOM_LABEL_SUFFIX if series else own
            own = own if film else suffix or own
            labels = base.with_name(f"{base.name}{ending}{own}")
        if film:
            jobs.append(FileJob(source, labels, frames=True))
            continue
        jobs.append(
            FileJob(
                source,
                labels,
                base.with_name(f"{base.name}{_OVERLAY_ENDING}.png") if overlay else None,
                base.with_name(f"{base.name}_objects.csv") if table else None,
                base.with_name(f"{base.name}{_ADAPTATION_ENDING}.ome.tif") if adaptation else None,
            )
        )
    _check_films(jobs, overlay or table or adaptation)
    _check_distinct(jobs)
    for job in jobs:
        for path in job.outputs:
            check_output(path, overwrite=existing != "error")
    return jobs


def _check_films(jobs: Sequence[FileJob], extras: bool) -> None:
    """Raises `OutputError` if more is wanted than labels, and there are only films."""
    if extras and jobs and all(job.frames for job in jobs):
        raise OutputError(
            f"'{jobs[0].source}' is segmented frame by frame, and of that there are only labels.",
            "Leave --overlay, --table and --adaptation-map away.",
        )


def _is_label_file(target: Path, output: str, sources: int) -> bool:
    if target.is_dir() or output.endswith(("/", os.sep)):
        return False
    if not target.suffix and not target.exists():
        return False
    if sources > 1:
        raise OutputError(
            f"'{target}' cannot take the results of {sources} images.", "Give a folder as --output."
        )
    if image_suffix(target) not in LABEL_SUFFIXES:
        raise OutputError(
            f"'{target}' is of a type that labels cannot be written to.",
            f"Give a folder (ending in /), or a file ending in {', '.join(OFFERED_SUFFIXES)}.",
        )
    return True


def _base_name(labels: Path) -> str:
    stem = image_stem(labels)
    return stem.removesuffix(LABELS_ENDING) or stem


def _check_distinct(jobs: Sequence[FileJob]) -> None:
    sources = {job.source.resolve() for job in jobs}
    owners: dict[str, Path] = {}
    for job in jobs:
        for path in job.outputs:
            if path.resolve() in sources:
                raise OutputError(
                    f"'{path}' is an input and would be replaced by a result.",
                    "Choose another --output.",
                )
            owner = owners.setdefault(os.path.normcase(path), job.source)
            if owner != job.source:
                raise OutputError(
                    f"'{owner}' and '{job.source}' would both write '{path}'.",
                    "Segment them into different folders, or rename one of them.",
                )


def load_input(
    path: Path,
    config: ModelConfig,
    *,
    axes: str | None = None,
    channel: str | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Image:
    """Read an image, or one channel of it.

    Args:
        path: the file, or the folder of a DICOM series. For a model of several channels the file
            `case_0000.*` stands for all of `case_0000.*`, `case_0001.*`, ... (nnU-Net's names).
        config: of the model that it is for.
        axes: as for `load_image`.
        channel: name or number.
        note: told what the user may not expect.
    """
    from tttunet.imaging import load_image
    from tttunet.imaging.readers import load_channels

    files = _channel_files(path, config)
    image = load_channels(files) if len(files) > 1 else load_image(path, axes)
    for text in image.notes:
        note(text)
    if channel is not None:
        return image.select_channel(channel)
    if config.plan.channels == "rgb" and image.channels == 3 and not image.rgb:
        note(
            f"{path}: its three channels are taken as red, green and blue; "
            "--channel chooses one of them."
        )
    return image


def _channel_files(path: Path, config: ModelConfig) -> list[Path]:
    """`case_0000.nii.gz` and the further channels beside it, if the model takes so many."""
    count, first = config.network.input_channels, "_0000"
    stem, suffix = image_stem(path), path.name[len(image_stem(path)) :]
    if count == 1 or config.plan.channels != "as_is" or not stem.endswith(first) or path.is_dir():
        return [path]
    base = stem.removesuffix(first)
    files = [path.with_name(f"{base}_{number:04d}{suffix}") for number in range(count)]
    return files if all(file.is_file() for file in files) else [path]


def without_further_channels(jobs: list[FileJob], config: ModelConfig) -> list[FileJob]:
    """Jobs without the files that belong to other jobs' images, for models of several channels."""
    first = set(first_channels([job.source for job in jobs], config))
    return [job for job in jobs if job.source in first]


def first_channels(sources: Sequence[Path], config: ModelConfig) -> list[Path]:
    """Files without those that belong to others' images, for models of several channels."""
    further = {path for source in sources for path in _channel_files(source, config)[1:]}
    return [source for source in sources if source not in further]


def segment_file(
    job: FileJob,
    model: Model,
    *,
    axes: str | None = None,
    channel: str | None = None,
    overwrite: bool = False,
    note: Callable[[str], None] = lambda text: None,
    compute: Callable[..., Result] | None = None,
    smoothing: int = 1,
    **options: Any,
) -> Result | FramesResult:
    """Segment one file and write all its results, or none.

    Args:
        job: from `plan_jobs`.
        axes, channel, note: as for `load_input`.
        overwrite: replace existing files; those that were replaced stay if a later one fails.
        compute: in place of `segment`.
        smoothing: of frames, see `inference.frames.segment_frames`; images ignore it.
        options: those of `segment`.
    """
    from tttunet.inference.segment import segment

    if job.frames:
        from tttunet.inference.frames import segment_frames_file

        return segment_frames_file(
            job.source,
            job.labels,
            model,
            axes=axes,
            channel=channel,
            overwrite=overwrite,
            note=note,
            compute=compute or segment,
            smoothing=smoothing,
            **options,
        )
    image = load_input(job.source, model.config, axes=axes, channel=channel, note=note)
    if job.adaptation is not None:
        options["adaptation_map"] = True
    result = (compute or segment)(image, model, **options)
    written: list[Path] = []
    try:
        for path in _write(job, result, model.config, overwrite):
            written.append(path)
    except BaseException:
        for path in [] if overwrite else written:
            path.unlink(missing_ok=True)
        raise
    return result


def _write(job: FileJob, result: Result, config: ModelConfig, overwrite: bool) -> Iterator[Path]:
    """Write one output after the other; gives each path when it is complete."""
    from tttunet.imaging import save_labels, save_maps, save_overlay, save_table
    from tttunet.inference.objects import object_columns, object_table

    image, semantic = result.image, config.task == "semantic"
    yield save_labels(job.labels, result.labels, image, overwrite=overwrite)
    if job.overlay is not None:
        colors = {label.value: label.color for label in config.labels if label.color and semantic}
        yield save_overlay(job.overlay, image, result.labels, colors=colors, overwrite=overwrite)
    if job.table is not None:
        classes = {label.value: label.name for label in config.labels} if semantic else None
        rows = object_table(result.labels, image, classes)
        columns = object_columns(image, semantic)
        yield save_table(job.table, rows, columns=columns, overwrite=overwrite)
    if job.adaptation is not None and result.adaptation_map is not None:
        yield save_maps(job.adaptation, result.adaptation_map, image, overwrite=overwrite)


def describe_result(result: Result | FramesResult, config: ModelConfig) -> str:
    """`3 objects`, or of frames `120 frames, 2 classes`."""
    frames = getattr(result, "frames", 0)
    text = describe_count(result.count, config)
    return f"{frames} frame{'s' * (frames != 1)}, {text}" if frames else text


def describe_count(count: int, config: ModelConfig) -> str:
    """`3 objects`, `1 class`."""
    if config.task == "instance":
        return f"{count} object{'s' * (count != 1)}"
    return f"{count} class{'es' * (count != 1)}"
