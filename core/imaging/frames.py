"""Frames one after the other: videos, TIFF stacks and folders of pictures, never all in memory."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tttunet.errors import ImageError
from tttunet.imaging import tiff
from tttunet.imaging.axes import LETTERS, check_axes, spatial_axes
from tttunet.imaging.image import Image
from tttunet.imaging.readers import errors_told, image_stem, image_suffix, load_image

if TYPE_CHECKING:
    import tifffile

VIDEO_SUFFIXES = (
    *(".avi", ".m4v", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".ogv", ".webm", ".wmv"),
)
_HINT = "Give a video, a TIFF stack with a time axis (--axes TYX), or a folder of pictures."
_SECONDS = {"s": 1.0, "ms": 1e-3, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Frames:
    """Images of one size, to be gone through from the first to the last, again and again.

    Attributes:
        path: the file or the folder.
        name: without folder and suffixes.
        first: the first frame.
        count: how many there are; of some videos only about.
        interval: seconds from one to the next; None: not known.
        notes: what a person should know, one sentence each.
        files: the pictures of a folder, one per frame.
    """

    path: Path
    name: str
    first: Image
    count: int
    interval: float | None = None
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    _read: Callable[[], Iterator[Image]] = field(default=lambda: iter(()), repr=False)

    def __iter__(self) -> Iterator[Image]:
        """The frames, without a T axis; one of them is in memory at a time.

        Raises:
            ImageError: a frame cannot be read, or has another size than the first.
        """
        expected = self.first.array.shape, self.first.axes
        for number, image in enumerate(self._read()):
            if (image.array.shape, image.axes) != expected:
                raise ImageError(
                    f"Frame {number} of '{self.path}' has the shape {image.array.shape}, the "
                    f"first one {expected[0]}.",
                    "Frames of other sizes belong into files of their own.",
                )
            yield image


def is_video(path: str | Path) -> bool:
    """Whether a file is a video, by its name."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def open_frames(path: str | Path, axes: str | None = None) -> Frames:
    """A video, a TIFF stack or a folder of pictures as frames; only the first one is read.

    The names of the pictures of a folder are taken in their natural order (2 before 10). Of a
    video the first picture stream counts, turned as its file says it shall be shown.

    Args:
        path: the file or the folder.
        axes: of a TIFF stack with its T, or of every picture of a folder, if the files do not say
            them; an unknown first axis of a stack is time.

    Raises:
        ImageError: there are no frames, they cannot be read, or PyAV is missing for a video.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path, axes)
    if not path.is_file():
        raise ImageError(f"'{path}' does not exist.", "Check the name and the folder.")
    if is_video(path):
        return _video(path)
    if image_suffix(path) in tiff.SUFFIXES:
        with errors_told(path, image_suffix(path)):
            return _stack(path, axes)
    raise ImageError(f"'{path}' has no frames.", _HINT)


def _opened(frames: Frames, read: Callable[[], Iterator[Image]]) -> Frames:
    """With its first frame, which shows whether anything can be read at all."""
    reading = read()
    first = next(reading, None)
    if isinstance(reading, Generator):
        reading.close()
    if first is None:
        raise ImageError(f"'{frames.path}' has no frames.", _HINT)
    return replace(frames, first=first, _read=read)


_NOTHING = Image(np.zeros((1, 1), np.uint8), "YX", (1.0, 1.0), (0.0, 0.0), np.eye(2))


# Folders


def natural_order(name: str) -> list[tuple[int, str]]:
    """A key that sorts `frame2` before `frame10`."""
    return [
        (int(part), "") if part.isdigit() else (0, part.lower())
        for part in re.split(r"(\d+)", name)
        if part
    ]


def _folder(folder: Path, axes: str | None) -> Frames:
    files = [
        path for path in folder.iterdir() if image_suffix(path) and not path.name.startswith(".")
    ]
    files.sort(key=lambda path: natural_order(path.name))

    def read() -> Iterator[Image]:
        for file in files:
            image = load_image(file, axes)
            if "T" in image.axes:
                raise ImageError(
                    f"'{file}' holds several frames itself.", "Give this file rather than a folder."
                )
            yield image

    name = folder.resolve().name
    return _opened(Frames(folder, name, _NOTHING, len(files), files=tuple(files)), read)


# TIFF stacks


def _stack(path: Path, axes: str | None) -> Frames:
    import tifffile

    with tiff.damage_noticed(path), tifffile.TiffFile(path) as tif:
        series = tif.series[0]
        tiff.check_colour_space(series.keyframe, path)
        found = _stack_axes(series, axes, path)
        count = series.shape[found.index("T")]
        interval = _interval(tif)

    def read() -> Iterator[Image]:
        with errors_told(path, image_suffix(path)), tifffile.TiffFile(path) as tif:
            series, size = tif.series[0], tiff.pixel_size(tif)
            rest = found.replace("T", "")
            for number in range(count):
                yield Image.from_array(
                    _frame_of_stack(tif, series, found, number, path),
                    rest,
                    spacing=[tiff.distance_along(size, letter) for letter in spatial_axes(rest)],
                    unit=size.unit,
                    channel_names=size.channel_names,
                    name=image_stem(path),
                    path=path,
                )

    return _opened(Frames(path, image_stem(path), _NOTHING, count, interval), read)


def _stack_axes(series: tifffile.TiffPageSeries, axes: str | None, path: Path) -> str:
    """One letter per dimension of the series, T among them."""
    if axes is not None:
        found = check_axes(axes, series.shape, f"'{path}'")
    else:
        found = tiff.named_samples(series)
        if "T" not in found and found[0] not in LETTERS:
            found = "T" + found[1:]
        if set(found) - set(LETTERS):
            raise ImageError(
                f"'{path}' has shape {series.shape} and nothing says what each axis is.",
                "Say it with --axes (axes= in Python), for example TYX.",
            )
    if "T" not in found:
        raise ImageError(
            f"'{path}' has the axes {found} and no time, so it has no frames.",
            "If its planes are frames, say so: --axes TYX.",
        )
    return found


def _frame_of_stack(
    tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, axes: str, number: int, path: Path
) -> np.ndarray:
    """One time point of the series, its other axes in the order of `axes`."""
    inner = series.keyframe.shape
    lead, place = series.shape[: series.ndim - len(inner)], axes.index("T")
    if place < len(lead) and len(series.pages) == math.prod(lead):
        pages = np.arange(math.prod(lead)).reshape(lead).take(number, place)
        array = tif.asarray(key=pages.ravel().tolist(), series=0)
        return array.reshape(pages.shape + inner)
    if place == 0 and series.dataoffset is not None:  # one page for a whole stack, as of ImageJ
        dtype = series.dtype.newbyteorder(tif.byteorder)
        size = math.prod(series.shape[1:])
        tif.filehandle.seek(series.dataoffset + number * size * dtype.itemsize)
        values = np.frombuffer(tif.filehandle.read(size * dtype.itemsize), dtype)
        if values.size < size:
            raise ImageError(f"'{path}' is incomplete: it ends within frame {number}.")
        return values.reshape(series.shape[1:])
    raise ImageError(
        f"The frames of '{path}' cannot be read one by one.",
        "Save it with time as its first axis, a plane per page.",
    )


def _interval(tif: tifffile.TiffFile) -> float | None:
    """Seconds between two frames, as OME or ImageJ have them."""
    found: Any = None
    if tif.is_ome and tif.ome_metadata:
        step = re.search(r'TimeIncrement="([^"]+)"', tif.ome_metadata)
        unit = re.search(r'TimeIncrementUnit="([^"]+)"', tif.ome_metadata)
        scale = _SECONDS.get(unit[1] if unit else "s")
        found = float(step[1]) * scale if step and scale else None
    elif tif.imagej_metadata:
        found = tif.imagej_metadata.get("finterval")
    return float(found) if isinstance(found, int | float) and found > 0 else None


# Videos


def _video(path: Path) -> Frames:
    name = image_stem(path)

    def read() -> Iterator[Image]:
        with video_errors(path) as av, av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                yield Image.from_array(*picture_of(frame), name=name, path=path)

    with video_errors(path) as av, av.open(str(path)) as container:
        if not container.streams.video:
            raise ImageError(f"'{path}' holds no pictures, only sound.", _HINT)
        stream = container.streams.video[0]
        rate = float(stream.average_rate or 0)
        seconds = float(container.duration or 0) / 1e6
        count = stream.frames or max(round(seconds * rate), 1)
    return _opened(Frames(path, name, _NOTHING, count, 1 / rate if rate else None), read)


def picture_of(frame: Any) -> tuple[np.ndarray, str]:
    """A frame of PyAV as it shall be shown, and its axes."""
    grey = frame.format.name.startswith("gray")
    deep = grey and frame.format.name != "gray"
    array = frame.to_ndarray(format="gray16le" if deep else "gray" if grey else "rgb24")
    quarters = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(array, quarters)), "YX" if grey else "YXS"


@contextlib.contextmanager
def video_errors(path: Path) -> Iterator[Any]:
    """Gives PyAV, and turns what FFmpeg says into one sentence that names the file.

    Raises:
        ImageError: PyAV is not installed, or the file cannot be read.
    """
    try:
        import av
    except ImportError as error:
        raise ImageError(
            f"'{path}' is a video, and PyAV, which reads videos, is not installed.",
            "pip install 'napari-tttunet[video]'",
        ) from error
    try:
        yield av
    except av.FFmpegError as error:
        raise ImageError(
            f"'{path}' cannot be read: it is damaged, incomplete or no video.",
            "Play it to its end in a video player; export it again.",
        ) from error
