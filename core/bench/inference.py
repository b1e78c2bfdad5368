"""Time to segment an image, where it goes, and the memory it takes."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import numpy as np
import torch
from torch import nn

from tttunet.bench.machine import peak_memory, synchronise, use_threads
from tttunet.bench.paired import GateFailed, Progress, Spread, check_agreement, run_paired
from tttunet.bench.report import Report, megabytes, part_cells, part_rows
from tttunet.errors import TTTUNetError
from tttunet.imaging import Image, load_image
from tttunet.inference.accelerate import SETTLED, accelerated
from tttunet.inference.segment import predict_maps, segment
from tttunet.models.model import Model

#: Of the network's maps between one thread and all, as a share of the largest value.
GATE_TOLERANCE = 1e-4
_SAMPLES = {2: "fluorescence_crowded.png", 3: "hippocampus.nii.gz"}

#: In the order in which they happen.
PARTS = ("preparation", "network", "tiles", "decoding")


@dataclass
class Phases:
    """Seconds of the parts of one segmentation, from what its callbacks tell.

    Attributes:
        network: inside of the network.
        first: clock when the first tile entered it.
        last: clock when the last tile was reported.
    """

    device: torch.device | str
    network: float = 0.0
    first: float = math.nan
    last: float = math.nan
    _entered: float = field(default=math.nan, repr=False)

    def enter(self, *_: Any) -> None:
        """Hook before the network."""
        synchronise(self.device)
        self._entered = time.perf_counter()
        if math.isnan(self.first):
            self.first = self._entered

    def leave(self, *_: Any) -> None:
        """Hook after the network."""
        synchronise(self.device)
        self.network += time.perf_counter() - self._entered

    def tile(self, _done: int, _total: int) -> None:
        """Progress callback."""
        self.last = time.perf_counter()

    def parts(self, start: float, end: float) -> dict[str, float]:
        """Seconds of `PARTS`; `tiles` is what reading, activation and stitching add."""
        tiles = self.last - self.first - self.network
        return dict(
            zip(PARTS, (self.first - start, self.network, tiles, end - self.last), strict=True)
        )


@contextlib.contextmanager
def watch(network: nn.Module, phases: Phases) -> Iterator[None]:
    """Let `phases` know when the network works."""
    hooks = [
        network.register_forward_pre_hook(phases.enter),
        network.register_forward_hook(phases.leave),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def make_image(model: Model, size: Sequence[int]) -> Image:
    """An image of any size that the model takes.

    A mosaic of a shipped sample, always the same: nuclei in 2D, a brain's MRI in 3D.

    Args:
        size: spatial, as many numbers as the model has axes.

    Raises:
        TTTUNetError: the number of axes is wrong, or an axis is too short.
    """
    network = model.config.network
    size = tuple(size)
    if len(size) != network.dim or min(size) < 2:
        raise TTTUNetError(
            f"'{model.config.name}' is a {network.dim}D model and cannot segment an image of "
            f"{' x '.join(map(str, size))}.",
            f"Give {network.dim} sizes of at least 2.",
        )
    channels = 1 if model.config.plan.channels == "rgb" else network.input_channels
    sample = resources.files("tttunet.resources") / "samples" / _SAMPLES[network.dim]
    with resources.as_file(sample) as path:
        grey = load_image(path).array
    grey = grey[0] if grey.ndim > network.dim else grey
    repeats = [-(-n // have) for n, have in zip(size, grey.shape, strict=True)]
    array = np.tile(grey, repeats)[tuple(map(slice, size))]
    if channels == 1:
        return Image.from_array(array.copy(), axes="ZYX"[-network.dim :])
    return Image.from_array(np.stack([array] * channels), axes="C" + "ZYX"[-network.dim :])


def check_inference(model: Model, image: Image, device: torch.device | str) -> dict[str, Any]:
    """The network's maps are finite and do not depend on the number of threads.

    Looks at one training patch of random numbers.

    Raises:
        GateFailed: they do.
    """
    config = model.config
    shape = (config.network.input_channels, *config.plan.patch_size)
    patch = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = torch.from_numpy(predict_maps(model, patch, device=device))
    with use_threads(1):
        expected = torch.from_numpy(predict_maps(model, patch, device=device))
    error = check_agreement("The network with one thread", found, expected, GATE_TOLERANCE)
    return {"threads": [1, torch.get_num_threads()], "largest_error": error}


def measure_inference(
    model: Model,
    size: Sequence[int],
    *,
    tile: Sequence[int] | None = None,
    overlap: float = 0.25,
    rounds: int = 5,
    threads: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Report:
    """Segment an image again and again.

    Args:
        model: from `load_model`.
        size: of the image, see `make_image`.
        tile, overlap: as for `segment`.
        rounds: measured segmentations, after some that are not and one whose memory is.
        threads: of PyTorch; None: as they are.
        device: where to compute.
        progress: called with (segmentations done, segmentations in all).

    Raises:
        GateFailed: see `check_inference`; or two segmentations give different labels.
    """
    image = make_image(model, size)
    network = accelerated(model.network.to(device).eval())
    parts: list[dict[str, float]] = []
    labels: list[np.ndarray] = []

    def run() -> None:
        phases = Phases(device)
        with watch(network, phases):
            start = time.perf_counter()
            result = segment(
                image, model, device=device, tile=tile, overlap=overlap, progress=phases.tile
            )
            parts.append(phases.parts(start, time.perf_counter()))
        labels[:] = [*labels[-1:], result.labels]

    with use_threads(threads):
        gate = check_inference(model, image, device)
        for _ in range(SETTLED):
            # OpenVINO and PyTorch may label a pixel differently.
            if getattr(network, "trying", False):
                run()
        labels.clear()
        run()
        memory = peak_memory(run, device)
        if not np.array_equal(labels[0], labels[1]):
            raise GateFailed("Two segmentations of an image differ; nothing was timed.")
        parts.clear()
        times = run_paired({"segment": run}, rounds, warmups=0, progress=progress)
        whole = times.spread("segment")
        spreads = {name: Spread.of([p[name] for p in parts]) for name in PARTS}
        rows = part_rows(spreads, whole)
        shape = " x ".join(map(str, size))
        return Report(
            "inference",
            f"{model.config.name} {model.config.version} on an image of {shape}",
            ("part", "ms", "share"),
            part_cells(rows),
            rows,
            {
                "model": f"{model.config.name} {model.config.version}",
                "size": list(size),
                "tile": None if tile is None else list(tile),
                "overlap": overlap,
                "rounds": rounds,
                "device": device,
                "peak_memory_bytes": memory,
                "megapixels_per_second": math.prod(size) / 1e6 / whole.median,
            },
            {**gate, "repeated": "equal labels"},
            (
                f"Peak memory {megabytes(memory)} MB beside the model; "
                f"{math.prod(size) / 1e6 / whole.median:.3g} megapixels per second.",
                "`tiles` is what reading, activation and stitching add to the network's time.",
            ),
        )
