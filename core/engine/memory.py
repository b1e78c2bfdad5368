"""Memory: what there is, and what a segmentation needs."""

from __future__ import annotations

import contextlib
import errno
import gc
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tttunet.imaging.preprocess import Place
    from tttunet.models.config import ModelConfig
    from tttunet.models.model import Model

#: Maps of the first stage's width that are in memory at once in the last decoder stage, those
#: that the heap keeps counted; bytes per pixel that finding objects takes beside the maps; and
#: what libraries take, OpenVINO's compiled networks among them. Measured:
#: tests/engine/test_memory_peaks.py.
ACTIVATION_MAPS = 9.0
DECODE_BYTES = 90
OVERHEAD = 128 * 2**20
_CGROUP = Path("/sys/fs/cgroup")
_OWN_GROUP, _STATM = Path("/proc/self/cgroup"), Path("/proc/self/statm")
_MESSAGES = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate",
    "bad_alloc",
    "can't start new thread",
)
#: oneDNN does not say why; of what it cannot do, it says "could not create a primitive descriptor".
_ONEDNN = re.compile(r"could not create a (primitive|memory)( object)?\.?$")


class NotEnoughMemory(MemoryError):
    """What is asked for takes more memory than the computer has, however it is computed.

    Args:
        needed, total: in bytes.
    """

    def __init__(self, needed: int, total: int) -> None:
        least, there = f"{needed / 1e9:,.1f} GB", f"{total / 1e9:,.1f} GB"
        super().__init__(f"This takes at least {least}, and the computer has {there}.")


def shortage(error: BaseException) -> str:
    """An error that `is_out_of_memory` in words for the user."""
    known = f" {error}" if isinstance(error, NotEnoughMemory) else ""
    return f"There is not enough memory.{known}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, NumPy, PyTorch or the system says that memory ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    told = any(words in text for words in _MESSAGES) or _ONEDNN.search(text.strip()) is not None
    return isinstance(error, RuntimeError) and told


def host_memory() -> tuple[int | None, int | None]:
    """Bytes of memory in all and available; None where the system does not say."""
    total = available = None
    with contextlib.suppress(ValueError, OSError, AttributeError):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    for limit, free in (*_group_limits(), *_address_space()):
        total = limit if total is None else min(total, limit)
        available = free if available is None else min(available, free)
    return total, available


def swap_memory() -> int:
    """Bytes on the disk that the system can use as memory, slowly."""
    found = re.search(r"^SwapFree:\s+(\d+)", _text(Path("/proc/meminfo")), re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


def _group_limits() -> Iterator[tuple[int, int]]:
    """Limit and what is left of it, of the control groups (version 2) this process is in."""
    named = re.search("^0::/(.*)$", _text(_OWN_GROUP), re.MULTILINE)
    own = Path(named[1] if named else "")
    for group in (_CGROUP / part for part in (own, *own.parents)):
        with contextlib.suppress(ValueError):  # there is no limit
            limit, used = (int(_text(group / name)) for name in ("memory.max", "memory.current"))
            # Files that were read count as used, and make room when it is needed.
            found = re.search(r"^inactive_file (\d+)$", _text(group / "memory.stat"), re.MULTILINE)
            yield limit, limit - used + (int(found[1]) if found else 0)


def _address_space() -> Iterator[tuple[int, int]]:
    """The same of this process's address space (`ulimit -v`), if that is limited."""
    with contextlib.suppress(ImportError, OSError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            pages = int(_STATM.read_text().split()[0])
            yield limit, max(0, limit - pages * resource.getpagesize())


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""


def device_memory(device: str) -> tuple[int | None, int | None]:
    """Bytes of memory of a device, in all and available."""
    if device.startswith("cuda"):
        import torch

        available, total = torch.cuda.mem_get_info(torch.device(device))
        return total, available
    return host_memory()


@dataclass(frozen=True)
class Estimate:
    """What a segmentation needs, without the program itself.

    Attributes:
        tile: the tile size.
        tiles: tiles in all planes.
        work: pixels that the network computes, flips counted.
        host, device: bytes in the computer's and in the GPU's memory; `device` is 0 on the CPU.
        mapped: bytes of `host` in files that are mapped; where memory is short they stay on disk.
    """

    tile: tuple[int, ...]
    tiles: int
    work: int
    host: int
    device: int
    mapped: int = 0


def estimate(
    config: ModelConfig,
    spatial: Sequence[int],
    planes: int = 1,
    *,
    tile: Sequence[int],
    overlap: float = 0.25,
    mirror: bool = False,
    itemsize: int = 1,
    on_gpu: bool = False,
    place: Place | None = None,
    keep_maps: bool = False,
    adaptation_map: bool = False,
) -> Estimate:
    """Predict memory and work.

    Args:
        config: of the model.
        spatial: size of what the network takes at once: a plane in 2D, a volume in 3D.
        planes: how many of these.
        tile: tile size.
        overlap, mirror: as for `segment`.
        itemsize: bytes per value of the image.
        on_gpu: the network runs there.
        place: of one time point on the network's grid, see `imaging.preprocess.place_of`; None:
            that of the image.
        keep_maps: the maps are wanted on the image's grid.
        adaptation_map: as for `segment`.
    """
    if place is not None and not place.unchanged:
        return _estimate_elsewhere(
            config, planes, place, keep_maps, tile, overlap, mirror, itemsize, on_gpu,
            adaptation_map,
        )  # fmt: skip
    from tttunet.imaging.tiles import tile_grid
    from tttunet.inference.tiled import BATCH_PIXELS, BATCH_TILES, padded_shape

    network, task = config.network, config.task
    padded = padded_shape(spatial, network.total_stride)
    size = tuple(
        min(round_up(t, s), n) for t, s, n in zip(tile, network.total_stride, padded, strict=True)
    )
    tiles = len(list(tile_grid(padded, size, overlap)))
    pixels, tile_pixels = math.prod(spatial), math.prod(size)
    batch = min(tiles, max(1, min(BATCH_TILES, BATCH_PIXELS // tile_pixels)))
    losses = 2 if adaptation_map else 0
    inputs, outputs = network.input_channels, config.maps + losses

    computing = int(4 * batch * tile_pixels * _maps_at_once(config)) + _weight_bytes(config)
    if tiles == 1:
        maps, stitching = 4 * outputs * pixels, 4 * inputs * tile_pixels
    else:
        maps = 4 * (outputs + 1) * pixels
        stitching = 4 * (2 * (inputs + outputs) * batch + 1) * tile_pixels
    # The likeliest class is sought in a copy of the maps.
    decoding = pixels * (DECODE_BYTES if task == "instance" else 4 * outputs + 8)
    label_bytes = 4 if task == "instance" else 1
    # The image and the labels lie in the folder that both processes share, the labels also here.
    files = pixels * planes * (inputs * itemsize + 2 * (label_bytes + 4 * losses))
    frame = 4 * inputs * pixels
    running = stitching + (0 if on_gpu else computing)
    host = OVERHEAD + files + frame + maps + max(running, decoding)
    flips = 2 ** len(config.plan.mirror_axes) if mirror else 1
    return Estimate(
        tile=size,
        tiles=tiles * planes,
        work=tiles * planes * tile_pixels * flips,
        host=host,
        device=computing + stitching if on_gpu else 0,
        mapped=pixels * planes * (inputs * itemsize + label_bytes + 4 * losses),
    )


def _estimate_elsewhere(
    config: ModelConfig,
    planes: int,
    place: Place,
    keep_maps: bool,
    tile: Sequence[int],
    overlap: float,
    mirror: bool,
    itemsize: int,
    on_gpu: bool,
    adaptation_map: bool,
) -> Estimate:
    """`estimate` where the network's grid is not the image's.

    For N voxels in a time point of the image and n on the network's grid, beside what the network
    needs for n: 4 ((C + 1) N + (C + 2) n) bytes while the image is normalised and resampled, and
    afterwards 2 bytes per label and a slab, or two copies of the maps, 8 K N, if these are wanted.
    """
    from tttunet.imaging.resample import SLAB

    dim, outputs = config.network.dim, config.maps
    voxels, lead = math.prod(place.shape), len(place.shape) - dim
    times = max(1, planes // math.prod(place.shape[:lead]))
    there = estimate(
        config,
        place.grid[lead:],
        times * math.prod(place.grid[:lead]),
        tile=tile,
        overlap=overlap,
        mirror=mirror,
        on_gpu=on_gpu,
        itemsize=0,
        adaptation_map=adaptation_map,
    )
    inputs, grid = config.network.input_channels, math.prod(place.grid)
    label_bytes = 4 if config.task == "instance" else 1
    preparing = 4 * ((inputs + 1) * voxels + (inputs + 2) * grid)
    if keep_maps or config.task == "instance":
        back = 8 * outputs * voxels + DECODE_BYTES * math.prod(place.shape[lead:])
    else:
        back = 2 * label_bytes * voxels + 16 * min(SLAB, voxels)
    loss_bytes = 8 if adaptation_map else 0
    files = times * voxels * (inputs * itemsize + 2 * (label_bytes + loss_bytes))
    # The maps of the network's grid wait while they are brought back.
    waiting = 4 * (inputs * grid + outputs * math.prod(place.grid[lead:]))
    host = max(there.host + 4 * inputs * grid, OVERHEAD + max(preparing, waiting + back)) + files
    mapped = there.mapped + times * voxels * (inputs * itemsize + label_bytes + loss_bytes)
    return Estimate(there.tile, there.tiles, there.work, host, there.device, mapped)


def _maps_at_once(config: ModelConfig) -> float:
    """Values per pixel of a tile that the network holds at its peak, in the last decoder stage.

    There are some maps of the first stage, the skip connections of the others, and the output.
    """
    network = config.network
    skips, scale = 0.0, 1.0
    for features, stride in zip(network.features, network.strides, strict=True):
        scale /= math.prod(stride)
        skips += features * scale
    return ACTIVATION_MAPS * network.features[0] + skips + 2 * config.maps


def _weight_bytes(config: ModelConfig) -> int:
    if config.weights is not None:
        return config.weights.bytes
    import torch

    from tttunet.networks import build_network

    with torch.device("meta"):  # never saved
        network = build_network(config.network)
    return 4 * sum(parameter.numel() for parameter in network.parameters())


def round_up(length: int, step: int) -> int:
    return -(-length // step) * step


def release(model: Model | None = None) -> None:
    """Give the memory of GPUs back."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return
    if model is not None:
        model.network.to("cpu")
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
