"""Which files a command reads and which it writes, decided and checked before any work."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tttunet.errors import ImageError, OutputError
from tttunet.files import check_output
from tttunet.imaging.readers import SUFFIXES, image_stem, image_suffix
from tttunet.imaging.writers import LABEL_SUFFIXES

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
_OFFERED_SUFFIXES = (_LABEL_SUFFIX, ".nii.gz", ".nrrd", ".mha")
_PRODUCT = re.compile(r"_(labels|overlay)$")


@dataclass(frozen=True)
class Job:
    """One image and the files to make from it; `overlay` and `table` are None if not wanted."""

    source: Path
    labels: Path
    overlay: Path | None = None
    table: Path | None = None

    @property
    def outputs(self) -> list[Path]:
        return [path for path in (self.labels, self.overlay, self.table) if path is not None]


def expand_inputs(patterns: Sequence[str]) -> list[Path]:
    """Image files from names of files, folders and globs, each file once.

    Of folders (without their subfolders) and globs, files of other types, hidden files and what
    `tttunet segment` itself has written there (`*_labels.*`, `*_overlay.png`) are passed over.

    Raises:
        ImageError: a file does not exist or is of a type that cannot be read, or a folder or glob
            has no image.
    """
    found: dict[Path, Path] = {}
    for pattern in patterns:
        for path in _expand(pattern):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _expand(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        images = _images(path.iterdir())
        if not images:
            raise ImageError(f"There is no image in the folder '{path}'.", _known_types())
        return images
    if path.exists() or not glob.has_magic(pattern):
        if not path.exists():
            raise ImageError(f"'{path}' does not exist.", "Check the name and the folder.")
        if not image_suffix(path):
            raise ImageError(f"'{path}' is of a type that cannot be read.", _known_types())
        return [path]
    images = _images(Path(match) for match in glob.glob(str(path), recursive=True))
    if not images:
        raise ImageError(f"No image matches '{pattern}'.", _known_types())
    return images


def _images(paths: Iterator[Path]) -> list[Path]:
    return sorted(
        path
        for path in paths
        if image_suffix(path)
        and path.is_file()
        and not path.name.startswith(".")
        and not _PRODUCT.search(image_stem(path))
    )


def _known_types() -> str:
    return f"Known types: {', '.join(sorted(SUFFIXES))}."


def plan_jobs(
    sources: Sequence[Path],
    output: str,
    *,
    overlay: bool = False,
    table: bool = False,
    overwrite: bool = False,
) -> list[Job]:
    """Name the outputs and make sure that all of them can be written.

    Args:
        sources: from `expand_inputs`.
        output: a folder; or for a single image the label file.
        overlay, table: whether these are wanted.
        overwrite: replace existing files.

    Raises:
        OutputError: two images would write the same file, an image would be overwritten by its
            own result, a file exists or cannot be written, or `output` is of no known type.
    """
    target = Path(output).expanduser()
    as_file = _is_label_file(target, output, len(sources))
    jobs = []
    for source in sources:
        if as_file:
            labels, base = target, target.with_name(_base_name(target))
        else:
            base = target / image_stem(source)
            suffix = _GEOMETRY_SUFFIXES.get(image_suffix(source), _LABEL_SUFFIX)
            labels = base.with_name(f"{base.name}_labels{suffix}")
        jobs.append(
            Job(
                source,
                labels,
                base.with_name(f"{base.name}_overlay.png") if overlay else None,
                base.with_name(f"{base.name}_objects.csv") if table else None,
            )
        )
    _check_distinct(jobs)
    for job in jobs:
        for path in job.outputs:
            check_output(path, overwrite=overwrite)
    return jobs


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
            f"Give a folder (ending in /), or a file ending in {', '.join(_OFFERED_SUFFIXES)}.",
        )
    return True


def _base_name(labels: Path) -> str:
    stem = image_stem(labels)
    return stem.removesuffix("_labels") or stem


def _check_distinct(jobs: Sequence[Job]) -> None:
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
