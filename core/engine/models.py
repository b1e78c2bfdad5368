"""Models that stay loaded in the worker."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tttunet.engine.memory import release

if TYPE_CHECKING:
    from tttunet.models.model import Model

Folders = tuple[Path, ...]
RateKey = tuple[Folders, str, str, bool]

#: Models that stay loaded; the one not used for the longest time goes first.
KEPT = 3


class LoadedModels:
    """Models by their folder, read again when a file of theirs changes.

    Attributes:
        rates: seconds per pixel of the network's last run, by folders (several are averaged),
            device, mode of adaptation and whether its map was made.
        warm: those of them that are not of a first run, which is slow.
    """

    def __init__(self) -> None:
        self._models: OrderedDict[Folders, tuple[tuple[Any, ...], Model]] = OrderedDict()
        self.rates: dict[RateKey, float] = {}
        self.warm: set[RateKey] = set()

    def get(self, *references: str) -> tuple[Folders, Model]:
        """The folders of a model, or of several as one, and the model, on the CPU.

        Raises:
            ModelError: as for `load_ensemble`.
        """
        from tttunet.inference.ensemble import load_ensemble, members
        from tttunet.models.library import resolve

        folders = tuple(resolve(one).resolve() for name in references for one in members(name))
        stamp = tuple(map(_stamp, folders))
        known = self._models.get(folders)
        if known is None or known[0] != stamp:
            self._models.pop(folders, None)
            self._models[folders] = known = (stamp, load_ensemble(folders))
        self._models.move_to_end(folders)
        while len(self._models) > KEPT:
            self._models.popitem(last=False)
        return folders, known[1]

    def rest(self) -> None:
        """Free the GPUs until the next job."""
        for _, model in self._models.values():
            model.network.to("cpu")
        release()


def _stamp(folder: Path) -> tuple[Any, ...]:
    from tttunet.models.config import CARD_NAME, WEIGHTS_NAME

    found = [path.stat() for path in (folder / CARD_NAME, folder / WEIGHTS_NAME) if path.exists()]
    return tuple((status.st_mtime_ns, status.st_size, status.st_ino) for status in found)
