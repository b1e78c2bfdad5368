"""What the docks remember between sessions: a JSON file in the user's configuration folder.

    settings = Settings()
    device = settings.get("segment.device", "auto")
    settings.set("segment.device", "cpu")
    settings.save_soon()

A lost or damaged file costs the remembered choices, never an error: a dock always opens.
"""

from __future__ import annotations

import atexit
import json
import os
import threading
import time
import warnings
from pathlib import Path
from typing import Any, TypeVar

import platformdirs

from tttunet.errors import OutputError
from tttunet.files import atomic_write

#: Raised when a setting changes its meaning; a file of a later version is left alone.
SCHEMA = 1
#: Names another file, for tests and for several profiles.
FILE_VARIABLE = "TTTUNET_SETTINGS"
_DELAY = 0.5
#: What is set and not on the disk yet, by file: a dock that is opened meanwhile begins with it.
_unsaved: dict[Path, dict[str, Any]] = {}
_guard = threading.Lock()

Value = TypeVar("Value")


def settings_file() -> Path:
    """Where the settings are kept."""
    named = os.environ.get(FILE_VARIABLE)
    if named:
        return Path(named)
    # Beside the models on Windows, where a folder per author would come between otherwise.
    return Path(platformdirs.user_config_dir("tttunet", appauthor=False)) / "napari.json"


class Settings:
    """Named values that survive the session; changes of other napari windows are kept.

    Args:
        file: None: `settings_file()`.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = file or settings_file()
        self._lock, self._writing = threading.RLock(), threading.Lock()
        self._changed: dict[str, Any] = {}
        self._timer: threading.Timer | None = None
        self._foreign = False
        self._values = self._read()
        with _guard:
            self._values.update(_unsaved.get(self.file, {}))

    def get(self, name: str, default: Value) -> Value:
        """The remembered value, or `default` if there is none of the default's type.

        Args:
            name: "dock.setting".
            default: decides the type: of a number, text, list or dictionary.
        """
        with self._lock:
            value = self._values.get(name, default)
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        same = default is None or type(value) is type(default)
        return value if same else default

    def set(self, name: str, value: Any) -> None:
        """Remember a value, in memory until it is saved.

        Args:
            name: "dock.setting".
            value: what JSON can hold: None, bool, int, float, str, lists and dictionaries.

        Raises:
            TypeError: JSON cannot hold it.
        """
        value = json.loads(json.dumps(value))
        with self._lock:
            if name not in self._values or self._values[name] != value:
                self._values[name] = self._changed[name] = value
                with _guard:
                    _unsaved.setdefault(self.file, {})[name] = value

    def save(self) -> None:
        """Write what changed; a failure is a warning. Waits for the disk: see `save_soon`."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
                atexit.unregister(self.save)
            changed, self._changed = self._changed, {}
        # Not under the lock: nobody shall wait for the disk in `get` or `set`.
        with self._writing:
            stored = self._read() if changed and not self._foreign else {}
            if not changed or self._foreign:
                return
            content = {"schema": SCHEMA, "values": {**stored, **changed}}
            text = json.dumps(content, indent=1, sort_keys=True) + "\n"
            try:
                with atomic_write(self.file, overwrite=True) as temporary:
                    temporary.write_text(text, encoding="utf-8")
            except OutputError as error:
                warnings.warn(f"The settings are not remembered: {error}", stacklevel=2)
                return
        with _guard:
            waiting = _unsaved.get(self.file, {})
            for name in [name for name, value in changed.items() if waiting.get(name) is value]:
                del waiting[name]

    def save_soon(self) -> None:
        """Write what changed from another thread, half a second later or when Python ends."""
        with self._lock:
            if self._timer is None:
                self._timer = threading.Timer(_DELAY, self.save)
                self._timer.daemon = True
                self._timer.start()
                atexit.register(self.save)

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.file.read_text(encoding="utf-8"))
            schema, values = content["schema"], content["values"]
            if not (isinstance(schema, int) and isinstance(values, dict)):
                raise ValueError("not the settings")
        except FileNotFoundError:
            return {}
        except OSError as error:
            warnings.warn(f"'{self.file}' cannot be read: {error.strerror}.", stacklevel=3)
            return {}
        except (ValueError, KeyError, TypeError):
            self._set_aside()
            return {}
        if schema > SCHEMA:
            self._foreign = True
            warnings.warn(
                f"'{self.file}' is of a later version of napari-tttunet and is left as it is; "
                "changes of this session are not remembered.",
                stacklevel=3,
            )
            return {}
        return values

    def _set_aside(self) -> None:
        """Keep a damaged file under another name, so that nothing in it is lost."""
        kept = self.file.with_name(f"{self.file.stem}-damaged-{time.time_ns()}{self.file.suffix}")
        try:
            os.replace(self.file, kept)
            place = f"was set aside as '{kept.name}'"
        except OSError:
            place = "cannot be moved"
        warnings.warn(
            f"'{self.file}' is damaged and {place}; the default settings are used.", stacklevel=4
        )
