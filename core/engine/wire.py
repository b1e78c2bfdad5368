"""Typed messages as plain data: what all of them have in common.

Only the standard library: 3D Slicer's Python reads this file too.
"""

from __future__ import annotations

import types
import typing
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, ClassVar

_KINDS: dict[str, type] = {}


class ProtocolError(ValueError):
    """A message that this side does not understand."""


@dataclass(frozen=True)
class Message:
    """Base of all messages; `kind` tells them apart on the wire."""

    kind: ClassVar[str]

    def __init_subclass__(cls, kind: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        if kind:
            cls.kind = kind
            _KINDS[kind] = cls

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}


def from_dict(data: dict[str, Any]) -> Any:
    """The message that `to_dict` wrote.

    Raises:
        ProtocolError: unknown kind, or missing or unknown fields.
    """
    values = dict(data)
    kind = values.pop("kind", None)
    if kind not in _KINDS:
        raise ProtocolError(f"There is no message of the kind '{kind}'.")
    return _build(_KINDS[kind], values, str(kind))


def _build(cls: type, values: dict[str, Any], where: str) -> Any:
    known = {f.name for f in fields(cls)}
    if values.keys() - known:
        raise ProtocolError(f"Message '{where}' has unknown fields: {values.keys() - known}.")
    hints = typing.get_type_hints(cls)
    try:
        return cls(**{name: _value(hints[name], value) for name, value in values.items()})
    except TypeError as error:
        raise ProtocolError(f"Message '{where}' is incomplete: {error}.") from error


def _value(hint: Any, value: Any) -> Any:
    """JSON knows lists and objects only: back to tuples and dataclasses."""
    if isinstance(value, list) and typing.get_origin(hint) is not list:
        return tuple(tuple(x) if isinstance(x, list) else x for x in value)
    if isinstance(value, dict):
        parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        for part in parts:
            if isinstance(part, type) and is_dataclass(part):
                return _build(part, value, part.__name__)
    return value
