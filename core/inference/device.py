"""Choice of the device."""

from __future__ import annotations

import torch

from tttunet.errors import TTTUNetError

DEVICES = ("auto", "cpu", "cuda", "mps")


def pick_device(name: str = "auto") -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU.

    Args:
        name: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises:
        TTTUNetError: no such device on this machine.
    """
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if available[kind]))
    kind = name.split(":", 1)[0]
    if kind not in available:
        raise TTTUNetError(f"Unknown device '{name}'.", f"Choose one of {', '.join(DEVICES)}.")
    if not available[kind]:
        present = ", ".join(key for key, there in available.items() if there)
        raise TTTUNetError(f"Device '{name}' is not available here.", f"There is: {present}.")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise TTTUNetError(f"Device '{name}' cannot be used: {error}") from error
