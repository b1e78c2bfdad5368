"""Training state on disk: weights and their average, optimiser, scale, random state, progress."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tttunet.errors import DatasetError
from tttunet.files import atomic_write

CHECKPOINT_NAME = "checkpoint.pt"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write `checkpoint.pt`; the previous one stays until the new one is complete.

    Args:
        state: nested dictionaries and lists of tensors, numbers and strings only.
    """
    with atomic_write(folder / CHECKPOINT_NAME, overwrite=True) as temporary:
        torch.save({**state, "torch_rng": torch.get_rng_state()}, temporary)


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """Read `checkpoint.pt` and restore torch's random state.

    Raises:
        DatasetError: there is none, or it is damaged.
    """
    path = folder / CHECKPOINT_NAME
    if not path.exists():
        raise DatasetError(f"There is no {CHECKPOINT_NAME} in {folder}.", "Start without --resume.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DatasetError(
            f"{path} is damaged and training cannot be resumed from it ({error}).",
            "Start without --resume; the models saved so far are not affected.",
        ) from error
    torch.set_rng_state(state.pop("torch_rng"))
    return state
