"""Models that stay loaded in the worker."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tttunet.engine.memory import release

if TYPE_CHECKING:
    from tttunet.models.model import Model

#: Models that stay loaded; the one not used for the longest time goes first.
KEPT = 3


class LoadedModels:
    """Models by their folder, read again when a file of theirs changes.

    Attributes:
        rates: seconds per pixel of the network's last run, by folder, device, mode of adaptation
            and whether its map was made.
        warm: those of them that are not of a first run, which is slow.
    """

    def __init__(self) -> None:
        self._models: OrderedDict[Path, tuple[tuple[Any, ...], Model]] = OrderedDict()
        self.rates: dict[tuple[Path, str, str, bool], float] = {}
        self.warm: set[tuple[Path, str, str, bool]] = set()

    def get(self, name_or_path: str) -> tuple[Path, Model]:
        """The folder and the model, on the CPU.

        Raises:
            ModelError: as for `load_model`.
        """
        from tttunet.models.library import resolve
        from tttunet.models.model import load_model

        folder = resolve(name_or_path).resolve()
        stamp = _stamp(folder)
        known = self._models.get(folder)
        if known is None or known[0] != stamp:
            self._models.pop(folder, None)
            self._models[folder] = known = (stamp, load_model(folder))
        self._models.move_to_end(folder)
        while len(self._models) > KEPT:
            self._models.popitem(last=False)
        return folder, known[1]

    def rest(self) -> None:
        """Free the GPUs until the next job."""
        for _, model in self._models.values():
            model.network.to("cpu")
        release()


def _stamp(folder: Path) -> tuple[Any, ...]:
    from tttunet.models.config import CARD_NAME, WEIGHTS_NAME

    found = [path.stat() for path in (folder / CARD_NAME, folder / WEIGHTS_NAME) if path.exists()]
    return tuple((status.st_mtime_ns, status.st_size, status.st_ino) for status in found)
