"""What SimpleITK leaves out for NRRD: geometry bit for bit.

ITK splits each space direction into a length and a unit vector and multiplies them again when it
writes, which may change the last digit of an oblique volume.
"""

from __future__ import annotations

import re
from pathlib import Path

_FIELDS = (b"space", b"space directions", b"space origin")
_LONGEST_HEADER = 1 << 16


def copy_placement(source: Path, target: Path) -> bool:
    """Gives a NRRD file exactly the placement fields of another file.

    Args:
        source: where space, directions and origin come from (.nrrd or .nhdr).
        target: changed in place.

    Returns:
        False if the files have different sizes or no such fields; the target is unchanged then.
    """
    with source.open("rb") as file:
        old = _fields(_split(file.read(_LONGEST_HEADER))[0])
    header, data = _split(target.read_bytes())
    new = _fields(header)
    if old.get(b"sizes") != new.get(b"sizes") or not all(k in old and k in new for k in _FIELDS):
        return False
    for name in _FIELDS:
        header = header.replace(name + b": " + new[name], name + b": " + old[name])
    target.write_bytes(header + data)
    return True


def _split(content: bytes) -> tuple[bytes, bytes]:
    """Header and the rest; the header ends with an empty line or the file."""
    end = re.search(rb"\r?\n\r?\n", content)
    return (content[: end.start()], content[end.start() :]) if end else (content, b"")


def _fields(header: bytes) -> dict[bytes, bytes]:
    lines = (line.partition(b": ") for line in header.splitlines())
    return {name: value.strip() for name, separator, value in lines if separator}
