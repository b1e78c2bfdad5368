"""What SimpleITK leaves out for NIfTI: noticing cut-off files, and geometry bit for bit.

ITK reads a truncated NIfTI file without complaint (the missing voxels are whatever was in
memory), does not notice a full disk, and recomputes the orientation when it writes, which moves
it by about 1e-7.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from tttunet.errors import ImageError

_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK = 1 << 20
#: Offset and struct format of the fields that place a NIfTI-1 grid in the world.
_UNITS = (123, "B")
_PLACEMENT = ((76, "4f"), (252, "2h"), (256, "6f"), (280, "12f"))
_TIME_STEP = (92, "f")
_CODES, _QUATERNION, _MATRIX = (252, "2h"), (256, "6f"), (280, "12f")
#: Two descriptions of a grid agree if no corner of it moves by more voxels than this.
_AGREE = 0.1
#: The sform's code for the coordinates of the scanner; others are those of a template or another
#: image.
_SCANNER = 1
#: ITK takes a grid for bent from about here on.
_BENT = 1e-3
#: A grid may be bent straight if no corner moves by more voxels than this.
_STRAIGHTEN = 0.5


class Header(NamedTuple):
    """The fields of a NIfTI header that this module needs."""

    version: int
    order: str
    shape: tuple[int, ...]
    data_start: int
    data_end: int
    raw: bytes


def read_header(path: Path) -> Header:
    """Reads the header of a NIfTI-1 or NIfTI-2 file, compressed or not.

    Raises:
        ImageError: the file is no NIfTI file or ends within the header.
    """
    try:
        with _open(path) as file:
            raw = file.read(540)
        for version, size in ((1, 348), (2, 540)):
            for order in "<>":
                if len(raw) >= size and struct.unpack_from(order + "i", raw)[0] == size:
                    return _parse(version, order, raw)
    except (EOFError, zlib.error, gzip.BadGzipFile, struct.error):
        pass
    raise ImageError(f"'{path}' is not a NIfTI file, or it is damaged.")


def check_complete(path: Path) -> None:
    """Raises `ImageError` if the file has fewer voxels than its header promises."""
    header = read_header(path)
    with path.open("rb") as file:
        compressed = file.read(2) == _GZIP_MAGIC
        end = file.seek(0, 2)
        if compressed:
            file.seek(end - 4)
            length = struct.unpack("<I", file.read(4))[0]
    if compressed:
        # The last four bytes of a gzip file are the length of its content modulo 2**32.
        complete = length == header.data_end % 2**32 or _has_content(path, header.data_end)
    else:
        complete = end >= header.data_end
    if not complete:
        raise ImageError(
            f"'{path}' is incomplete: it ends before the last voxel.",
            "Copy or download it again.",
        )


class Placement(NamedTuple):
    """The two descriptions of where a NIfTI-1 grid lies; [3, 4] from voxels (x, y, z) to RAS.

    None where the file does not give one (its code is 0) or it has no volume.
    """

    qform: np.ndarray | None
    sform: np.ndarray | None


def placement(header: Header) -> Placement:
    """Both descriptions of a NIfTI-1 header; none of a NIfTI-2 one, which is left to ITK."""
    if header.version != 1:
        return Placement(None, None)
    qcode, scode = _field(header, _CODES)
    pixdim = np.array(_field(header, (76, "4f")))
    quaternion, matrix = np.array(_field(header, _QUATERNION)), np.array(_field(header, _MATRIX))
    q, s = None, matrix.reshape(3, 4)
    if qcode > 0 and np.isfinite([*quaternion, *pixdim]).all():
        b, c, d = quaternion[:3]
        a = math.sqrt(max(0.0, 1 - b * b - c * c - d * d))
        turn = np.array(
            [
                [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
                [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
                [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
            ]
        )
        size = np.abs(pixdim[1:]) * [1, 1, -1 if pixdim[0] < 0 else 1]
        q = np.column_stack([turn * size, quaternion[3:]])
    usable = scode > 0 and np.isfinite(s).all() and abs(np.linalg.det(s[:, :3])) > 0
    return Placement(q, s if usable else None)


def check_placement(path: Path) -> tuple[str, ...]:
    """What is odd about where a volume lies, and what is done about it, in sentences.

    As in ITK, the sform counts where its code says that it is the scanner's and its axes are at
    right angles, else the qform, if there is one. A sform alone is straightened if need be (see
    `straightened`). Mirrored grids (a negative determinant) are no oddity: they stay mirrored.
    """
    header = read_header(path)
    if len(header.shape) < 3 or header.version != 1:
        return ()
    q, s = placement(header)
    if q is None and s is None:
        return (f"'{path}' does not say how it is oriented; its axes are taken for LPS.",)
    bent = s is not None and _moved(s, _straight(s), header) > _BENT
    if q is not None and s is not None and _moved(s, q, header) > _AGREE:
        scanner = _field(header, _CODES)[1] == _SCANNER
        reason = (
            "the axes of the sform are not at right angles"
            if bent
            else "the sform is not the scanner's"
        )
        used = "sform" if scanner and not bent else f"qform, because {reason}"
        millimeters = _moved(s, q, header, in_voxels=False)
        return (
            f"'{path}' says twice where it lies, and the two (sform and qform) are up to "
            f"{millimeters:.3g} mm apart; what counts is the {used}.",
        )
    return ()


@contextlib.contextmanager
def straightened(path: Path, *, header_only: bool = False) -> Iterator[tuple[Path, str]]:
    """A copy of a file that ITK refuses, with axes at right angles.

    Args:
        path: a NIfTI file.
        header_only: leave the voxels out of the copy.

    Yields:
        The path of the copy, which lives as long as the context, and a sentence about it.

    Raises:
        ImageError: a corner would move by more than half a voxel.
    """
    header = read_header(path)
    _, s = placement(header)
    moved = math.inf if s is None else _moved(s, _straight(s), header)
    if s is None or moved > _STRAIGHTEN:
        raise ImageError(
            f"'{path}' has axes that are not at right angles.",
            "Resample it to a regular grid, e.g. in 3D Slicer.",
        )
    raw = bytearray(header.raw[:348])
    struct.pack_into(header.order + _MATRIX[1], raw, _MATRIX[0], *_straight(s).ravel())
    with tempfile.TemporaryDirectory(prefix="tttunet-") as folder:
        copy = Path(folder) / "straight.nii"
        with _open(path) as source, copy.open("wb") as target:
            target.write(raw)
            source.seek(348)
            if header_only:
                target.write(source.read(header.data_start - 348))
            else:
                shutil.copyfileobj(source, target, _CHUNK)
        yield (
            copy,
            f"'{path}' has axes that are not quite at right angles; they were straightened, which "
            f"moves no corner by more than {moved:.2g} voxels.",
        )


def _straight(affine: np.ndarray) -> np.ndarray:
    """The nearest grid with axes at right angles and the same spacing around the same centre."""
    size = np.linalg.norm(affine[:, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:, :3] / size)
    return np.column_stack([left @ right * size, affine[:, 3]])


def _moved(one: np.ndarray, other: np.ndarray, header: Header, in_voxels: bool = True) -> float:
    """How far apart the corners of the grid are at most, in voxels or millimetres."""
    shape = _grid(header)
    corners = np.array([*np.ndindex(2, 2, 2)]) * (np.array(shape) - 1)
    apart = (one[:, :3] - other[:, :3]) @ corners.T + (one[:, 3] - other[:, 3])[:, None]
    size = np.linalg.norm(one[:, :3], axis=0).min() if in_voxels else 1.0
    return float(np.linalg.norm(apart, axis=0).max() / size)


def _field(header: Header, field: tuple[int, str]) -> tuple[float, ...]:
    return struct.unpack_from(header.order + field[1], header.raw, field[0])


def copy_placement(source: Path, target: Path) -> bool:
    """Gives an uncompressed NIfTI-1 file exactly the placement fields of another file.

    Args:
        source: where the spacing, units, qform and sform come from.
        target: changed in place.

    Returns:
        False if the files are of different kinds or grids; the target is unchanged then.
    """
    old, new = read_header(source), read_header(target)
    if old.version != 1 or new.version != 1 or _grid(old) != _grid(new):
        return False
    fields = [*_PLACEMENT, _UNITS]
    if len(old.shape) > 3 and len(new.shape) > 3:
        fields.append(_TIME_STEP)
    raw = bytearray(new.raw[:348])
    for offset, form in fields:
        values = struct.unpack_from(old.order + form, old.raw, offset)
        struct.pack_into(new.order + form, raw, offset, *values)
    with target.open("r+b") as file:
        file.write(raw)
    return True


def compress(source: Path, target: Path) -> None:
    """Writes `source` gzipped to `target`; equal content gives equal bytes."""
    with (
        source.open("rb") as plain,
        target.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0) as packed,
    ):
        shutil.copyfileobj(plain, packed, _CHUNK)


def _open(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        compressed = file.read(2) == _GZIP_MAGIC
    return gzip.open(path, "rb") if compressed else path.open("rb")  # type: ignore[return-value]


def _parse(version: int, order: str, raw: bytes) -> Header:
    if version == 1:
        dims = struct.unpack_from(order + "8h", raw, 40)
        (bits,) = struct.unpack_from(order + "h", raw, 72)
        (start,) = struct.unpack_from(order + "f", raw, 108)
    else:
        dims = struct.unpack_from(order + "8q", raw, 16)
        (bits,) = struct.unpack_from(order + "h", raw, 14)
        (start,) = struct.unpack_from(order + "q", raw, 168)
    if not 1 <= dims[0] <= 7 or not math.isfinite(start):
        raise struct.error("no valid dimensions")
    shape = tuple(max(1, size) for size in dims[1 : 1 + dims[0]])
    # Data begin after the header and four bytes of extension flags at the earliest.
    start = max(int(start), 352 if version == 1 else 544)
    return Header(version, order, shape, start, start + math.prod(shape) * bits // 8, raw)


def _grid(header: Header) -> tuple[int, ...]:
    return (*header.shape[:3], 1, 1, 1)[:3]


def _has_content(path: Path, length: int) -> bool:
    """Whether a gzip file of several members, or with a tail, unpacks to `length` bytes."""
    seen = 0
    try:
        with gzip.open(path, "rb") as file:
            while seen < length and (chunk := file.read(_CHUNK)):
                seen += len(chunk)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        pass
    return seen >= length
