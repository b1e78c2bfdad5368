"""What to do when memory runs out: ways to compute that need less and less of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from tttunet.engine.memory import is_out_of_memory, release, round_up

if TYPE_CHECKING:
    from tttunet.models.config import ModelConfig
    from tttunet.models.model import Model

T = TypeVar("T")

#: How often a tile is halved, and the smallest share of the training patch.
HALVINGS = 2
SMALLEST_SHARE = 0.5


@dataclass(frozen=True)
class Rung:
    """A way to compute; `text` tells it to the user."""

    device: str
    tile: tuple[int, ...]
    stitch_on_cpu: bool
    text: str


def rungs(config: ModelConfig, device: str, tile: Sequence[int]) -> list[Rung]:
    """Ways to compute that need less and less of the device's memory.

    Args:
        config: of the model.
        device: `cpu`, `cuda:0`, ...
        tile: the first tile size.
    """
    tiles = list(_tiles(config, tuple(tile)))
    found = []
    for place in dict.fromkeys((device, "cpu")):
        gpu = place != "cpu"
        where = "on the CPU" if place != device else ""
        found.append(Rung(place, tiles[0], False, f"computing {where}".strip()))
        if gpu:
            found.append(Rung(place, tiles[0], True, "putting the tiles together on the CPU"))
        found += [
            Rung(place, smaller, gpu, f"tiles of {' x '.join(map(str, smaller))} {where}".strip())
            for smaller in tiles[1:]
        ]
    return found


def _tiles(config: ModelConfig, tile: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    yield tile
    least = [
        round_up(max(2 * stride, int(SMALLEST_SHARE * patch)), stride)
        for patch, stride in zip(config.plan.patch_size, config.network.total_stride, strict=True)
    ]
    for _ in range(HALVINGS):
        smaller = tuple(max(n // 2, min(n, low)) for n, low in zip(tile, least, strict=True))
        if smaller == tile:
            return
        tile = smaller
        yield tile


def climb_down(
    compute: Callable[[Rung], T],
    ways: Sequence[Rung],
    *,
    model: Model,
    log: Callable[[str], None],
    fits: Callable[[Rung], bool] = lambda rung: True,
) -> T:
    """Compute in the first way for which the memory suffices.

    Args:
        compute: does it; may run out of memory.
        ways: from `rungs`.
        model: leaves the GPU between two attempts.
        log: told before every further attempt.
        fits: whether memory is thought to suffice; the others are passed over, but not the last.

    Raises:
        MemoryError, torch.OutOfMemoryError, RuntimeError: memory ran out in every way.
    """
    for number, way in enumerate(ways):
        last = number == len(ways) - 1
        if not last and not fits(way):
            log(f"Memory would not suffice; trying {ways[number + 1].text}.")
            continue
        try:
            return compute(way)
        except Exception as error:
            if last or not is_out_of_memory(error):
                raise
        # Outside of the handler, so that the error does not hold on to the tensors.
        release(model)
        log(f"Memory ran out; trying {ways[number + 1].text}.")
    raise AssertionError("there is always a last way")
