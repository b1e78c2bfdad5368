"""Films for tests: bright discs that wander over a dark ground, and videos of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest


def frame(number: int, shape: tuple[int, int] = (48, 64)) -> np.ndarray:
    """RGB, uint8: a disc that goes to the right, one pixel per frame."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    inside = (rows - shape[0] / 2) ** 2 + (columns - 12 - number % (shape[1] - 24)) ** 2 < 64
    grey = np.random.default_rng(number).integers(10, 40, shape) + 180 * inside
    return np.stack([grey, grey // 2, 255 - grey], -1).astype(np.uint8)


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    *,
    codec: str = "mpeg4",
    pixels: str = "yuv420p",
    rate: int = 10,
    turned: int = 0,
) -> Path:
    """A video of RGB frames [H, W, 3]; skips the test where PyAV is missing."""
    av = pytest.importorskip("av", reason="PyAV is not installed: pip install av")
    with av.open(str(path), "w") as container:
        stream = None
        for picture in frames:
            if stream is None:
                stream = container.add_stream(codec, rate=rate)
                stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], pixels
                stream.bit_rate = 4_000_000
                if turned:
                    stream.set_display_rotation(turned)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path
