"""napari opens NIfTI, NRRD, MetaImage, DICOM and, without decoding them whole, videos through this.

TIFF and OME-Zarr stay with napari's own readers and other plugins. What place a volume gets in
napari's world is told in `convert`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from napari_tttunet.convert import LayerData, image_layers

if TYPE_CHECKING:
    from tttunet.imaging.image import Image

Paths = str | Sequence[str]

#: Files that this plugin opens; folders and files of DICOM are known by their content.
SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
#: Whole numbers in a file of such a name are labels: case1_seg.nii.gz, labels-3.nrrd.
_LABEL_NAME = re.compile(r"(^|[^a-z])(label|seg|segmentation|mask|labelmap)s?([^a-z]|$)")
#: Folders of labels in data sets.
_LABEL_FOLDERS = re.compile(r"labels?(tr|ts)?|masks?|segmentations?", re.IGNORECASE)


def get_reader(path: Paths) -> Callable[[Paths], list[LayerData]] | None:
    """The reader for a path or several, or None: npe2's interface."""
    from importlib.util import find_spec

    from tttunet.imaging.frames import is_video
    from tttunet.imaging.itk import is_dicom

    paths = [path] if isinstance(path, str | Path) else list(path)
    if paths and all(map(is_video, paths)):
        return read_videos if find_spec("av") else None
    known = (str(p).lower().endswith(SUFFIXES) or is_dicom(Path(p)) for p in paths)
    return read if paths and all(known) else None


def read(path: Paths) -> list[LayerData]:
    """The layers of a file, of a folder with DICOM series, or of several of these.

    A series whose files are named one by one is read as one volume. What is odd about a file is
    shown as a warning of napari.

    Raises:
        ImageError: see `tttunet.imaging.load_image`.
    """
    from napari.utils.notifications import show_warning

    from tttunet.imaging import load_image
    from tttunet.imaging.readers import load_dicom

    paths = [Path(path)] if isinstance(path, str | Path) else [Path(p) for p in path]
    volumes = [p for p in paths if str(p).lower().endswith(SUFFIXES)]
    slices = [p for p in paths if p not in volumes]
    images = [load_image(p) for p in volumes]
    if len(slices) > 1 and not any(p.is_dir() for p in slices):
        images.extend(_chosen_series(slices))
    else:
        images.extend(image for p in slices for image in load_dicom(p))
    for image in images:
        for note in image.notes:
            show_warning(note)
    return [layer for image in images for layer in image_layers(image, _kind(image))]


def read_videos(path: Paths) -> list[LayerData]:
    """A layer per video, whose frames are decoded when they are shown or segmented.

    Raises:
        ImageError: a video cannot be read.
    """
    from tttunet.imaging.video_array import VideoArray

    layers: list[LayerData] = []
    for one in [path] if isinstance(path, str | Path) else path:
        video = VideoArray(one)
        arguments = {
            "name": video.path.stem,
            "rgb": video.ndim == 4,
            "axis_labels": ("t", "y", "x"),
            "metadata": {"tttunet": {"axes": "TYX"}},
        }
        if video.ndim == 3:
            arguments["contrast_limits"] = (0, np.iinfo(video.dtype).max)
        layers.append((video, arguments, "image"))
    return layers


def _chosen_series(files: Sequence[Path]) -> list[Image]:
    """The chosen files of each series, in the order of their slices."""
    from tttunet.imaging import itk

    images = []
    for folder in sorted({file.parent for file in files}):
        for series in itk.dicom_series(folder):
            chosen = [file for file in series if file in files]
            if chosen:
                images.append(itk.read_dicom(chosen, None, folder.name, folder))
    return images


def _kind(image: Image) -> str:
    """Whether an image is shown as labels, judged by its name: files do not say it."""
    whole = image.array.dtype.kind in "bui" and "C" not in image.axes
    folder = image.path.parent.name if image.path else ""
    named = _LABEL_NAME.search(image.name.lower()) or _LABEL_FOLDERS.fullmatch(folder)
    return "labels" if whole and named and image.array.min() >= 0 else "image"
