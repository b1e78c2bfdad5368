"""What SimpleITK leaves out for NIfTI: noticing cut-off files, and geometry bit for bit.

ITK reads a truncated NIfTI file without complaint (the missing voxels are whatever was in
memory), does not notice a full disk, and recomputes the orientation when it writes, which moves
it by about 1e-7.
"""

from __future__ import annotations

import gzip
import math
import shutil
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tttunet.errors import ImageError

_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK = 1 << 20
#: Offset and struct format of the fields that place a NIfTI-1 grid in the world.
_UNITS = (123, "B")
_PLACEMENT = ((76, "4f"), (252, "2h"), (256, "6f"), (280, "12f"))
_TIME_STEP = (92, "f")


class Header(NamedTuple):
    """The fields of a NIfTI header that this module needs."""

    version: int
    order: str
    shape: tuple[int, ...]
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
    return Header(version, order, shape, start + math.prod(shape) * bits // 8, raw)


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
