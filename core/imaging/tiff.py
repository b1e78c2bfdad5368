"""TIFF, OME-TIFF and ImageJ TIFF: pixels, axes and pixel size."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tttunet.errors import ImageError
from tttunet.imaging.axes import check_array, check_axes, resolve_axes, spatial_axes
from tttunet.imaging.image import Image

if TYPE_CHECKING:
    import tifffile

SUFFIXES = (".tif", ".tiff", ".ome.tif", ".ome.tiff", ".btf", ".tf8")
#: Held while tifffile's log is listened to: its switches are shared by all threads.
_LISTENING = threading.Lock()

_MICROMETERS = {
    "m": 1e6,
    "cm": 1e4,
    "mm": 1e3,
    "millimeter": 1e3,
    "millimetre": 1e3,
    "um": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "micrometre": 1.0,
    "nm": 1e-3,
    "nanometer": 1e-3,
    "å": 1e-4,
    "pm": 1e-6,
    "in": 25400.0,
    "inch": 25400.0,
}
#: A pixel larger than this (micrometers), known from plain resolution tags only, is the dots
#: per inch of a printer or screen (72, 96, 300, 600) rather than the size of anything imaged.
_LARGEST_PIXEL = 20.0
_DAMAGE = re.compile(
    r"invalid (page offset|value offset|offset to)|corrupted (file|tag list)"
    r"|failed to (read|reshape)"
)


class PixelSize(NamedTuple):
    """Distances per axis letter, in `unit`; letters without a known distance are absent."""

    spacing: dict[str, float]
    unit: str | None
    channel_names: tuple[str, ...] = ()


def read_tiff(path: Path, axes: str | None, name: str) -> Image:
    """Reads the first series of a TIFF file at full resolution.

    Samples of a palette are left as stored: microscopes write intensities with a display colour
    map, and label images their numbers.

    Args:
        path: an existing file.
        axes: overrides the axes found in the file, one letter per dimension; None: from OME-XML,
            ImageJ's description or tifffile's.
        name: name of the image.

    Raises:
        ImageError: the axes are ambiguous or do not fit, the colour space is not supported, or
            the file is incomplete. Other errors of tifffile pass through.
    """
    import tifffile

    with damage_noticed(path), tifffile.TiffFile(path) as tif:
        series = tif.series[0]
        several = len(tif.series)
        check_colour_space(series.keyframe, path)
        array, found = series.asarray(), named_samples(series)
        size = pixel_size(tif)
    check_array(array, f"'{path}'")
    if axes is None:
        array, axes = resolve_axes(array, found, f"'{path}'")
    else:
        if len(axes.strip()) < array.ndim:
            array = array.squeeze() if array.squeeze().ndim == len(axes.strip()) else array
        axes = check_axes(axes, array.shape, f"'{path}'")
    image = Image.from_array(
        array,
        axes,
        spacing=[distance_along(size, letter) for letter in spatial_axes(axes)],
        unit=size.unit,
        channel_names=size.channel_names,
        name=name,
        path=path,
    )
    note = f"'{path}' holds {several} images; the first was read."
    return replace(image, notes=(note,)) if several > 1 else image


@contextlib.contextmanager
def damage_noticed(path: Path) -> Iterator[None]:
    """Turns damage that tifffile only logs (a stack that ends early) into an error.

    It must be heard even where logging was turned off, which nothing else may hear then.
    """
    records: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record.getMessage())

    collector, logger = Collector(logging.WARNING), logging.getLogger("tifffile")
    with _LISTENING:
        off, level = logging.root.manager.disable, logger.level
        disabled, propagate = logger.disabled, logger.propagate
        if disabled or not logger.isEnabledFor(logging.WARNING):
            logging.disable(logging.NOTSET)
            logger.setLevel(logging.WARNING)
            logger.disabled = logger.propagate = False
        logger.addHandler(collector)
        try:
            yield
        finally:
            logger.removeHandler(collector)
            logging.disable(off)
            logger.setLevel(level)
            logger.disabled, logger.propagate = disabled, propagate
    for message in records:
        if _DAMAGE.search(message):
            raise ImageError(
                f"'{path}' is incomplete or damaged: a part of the image is missing.",
                "Copy or export it again.",
            )


def check_colour_space(page: tifffile.TiffPage, path: Path) -> None:
    known = {"MINISWHITE", "MINISBLACK", "RGB", "PALETTE", "MASK", "YCBCR"}
    colours = getattr(page.photometric, "name", str(page.photometric))
    # JPEG and JPEG 2000 codecs return RGB; other codecs leave YCbCr as it is.
    coded = getattr(page.compression, "name", "")
    if colours not in known or (colours == "YCBCR" and not re.search("JPEG|JP2|APERIO", coded)):
        raise ImageError(
            f"'{path}' has {colours} colours, which are not supported.", "Convert it to RGB."
        )


def named_samples(series: tifffile.TiffPageSeries) -> str:
    """The axes of the series, where samples that are no colours are channels."""
    page = series.keyframe
    colour = getattr(page.photometric, "name", "") in ("RGB", "YCBCR")
    # TIFF 6.0, ExtraSamples: 1 is associated, 2 unassociated alpha.
    alpha = bool(page.extrasamples) and 0 not in page.extrasamples
    few = page.samplesperpixel <= 4 if colour else page.samplesperpixel == 2 and alpha
    return series.axes if few or "C" in series.axes else series.axes.replace("S", "C")


def _ome_size(tif: tifffile.TiffFile) -> PixelSize | None:
    try:
        root = ElementTree.fromstring(tif.ome_metadata or "")
    except ElementTree.ParseError:
        return None
    pixels = root.find("{*}Image/{*}Pixels")
    if pixels is None:
        return None
    found = {letter: _positive(pixels.get(f"PhysicalSize{letter}")) for letter in "ZYX"}
    sizes = {letter: size for letter, size in found.items() if size}
    units = {letter: pixels.get(f"PhysicalSize{letter}Unit", "µm") for letter in sizes}
    names = tuple(channel.get("Name", "") for channel in pixels.findall("{*}Channel"))
    size = _convert(sizes, units) if sizes else _tag_size(tif.series[0].keyframe)
    return size._replace(channel_names=names if all(names) else ())


def _imagej_size(tif: tifffile.TiffFile) -> PixelSize | None:
    metadata = tif.imagej_metadata
    if not metadata:
        return None
    unit = str(metadata.get("unit", "pixel"))
    sizes = {}
    for letter in "YX":
        per_unit = _resolution(tif.series[0].keyframe, letter)
        if per_unit:
            sizes[letter] = 1 / per_unit
    # ImageJ leaves out the distance between slices where it is 1.
    sizes["Z"] = _positive(metadata.get("spacing")) or 1.0
    return _convert(sizes, dict.fromkeys(sizes, unit))


def _tag_size(page: tifffile.TiffPage) -> PixelSize:
    tag = page.tags.get("ResolutionUnit")
    micrometers = {2: 25400.0, 3: 1e4}.get(tag.value if tag else 2)
    sizes = {}
    for letter in "YX":
        per_unit = _resolution(page, letter)
        if micrometers and per_unit and micrometers / per_unit <= _LARGEST_PIXEL:
            sizes[letter] = micrometers / per_unit
    return PixelSize(sizes, "micrometer") if len(sizes) == 2 else PixelSize({}, None)


def _resolution(page: tifffile.TiffPage, letter: str) -> float:
    """Pixels per unit, or 0 where it is not known."""
    tag = page.tags.get(f"{letter}Resolution")
    try:
        return _positive(tag.value[0] / tag.value[1]) if tag else 0.0
    except (TypeError, IndexError, ZeroDivisionError):
        return 0.0


def _convert(sizes: dict[str, float], units: dict[str, str]) -> PixelSize:
    """All distances in millimeters if all were given so, else in micrometers, else in pixels."""
    plain = {
        letter: unit.replace("\\u00B5", "u").lower().replace("µ", "u").replace("μ", "u").strip()
        for letter, unit in units.items()
    }
    if set(plain.values()) <= {"mm", "millimeter", "millimetre"}:
        return PixelSize(sizes, "millimeter")
    if all(unit in _MICROMETERS for unit in plain.values()):
        return PixelSize({k: v * _MICROMETERS[plain[k]] for k, v in sizes.items()}, "micrometer")
    return PixelSize(sizes, None)


def pixel_size(tif: tifffile.TiffFile) -> PixelSize:
    """What the first series of a file says of the size of its pixels."""
    return _ome_size(tif) or _imagej_size(tif) or _tag_size(tif.series[0].keyframe)


def distance_along(size: PixelSize, letter: str) -> float:
    """The distance along an axis; without one, it is that within the plane."""
    for known in {"X": "XY", "Y": "YX", "Z": "ZYX"}[letter]:
        if known in size.spacing:
            return size.spacing[known]
    return 1.0


def _positive(value: object) -> float:
    """`value` as a float, or 0 if it is no positive, finite number."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return 0.0
    return number if math.isfinite(number) and number > 0 else 0.0
