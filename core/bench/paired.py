"""Paired timing: candidates take turns, A B A B, so that a busy machine disturbs all of them alike.

What is compared are the quotients of neighbours in time, one per round, and their median. Nothing
is timed before it has passed a gate that shows that it computes the right thing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from tttunet.errors import TTTUNetError

#: progress(done, total), in calls of a candidate.
Progress = Callable[[int, int], None]
Candidate = Callable[[], object]


class GateFailed(TTTUNetError):
    """A candidate computes something else than it should; nothing was timed."""


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeated measurements."""

    median: float
    lower: float
    upper: float
    best: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """`best` is the smallest value."""
        lower, median, upper = (float(q) for q in np.percentile(values, (25, 50, 75)))
        return cls(median, lower, upper, float(min(values)), len(values))

    def scaled(self, factor: float) -> Spread:
        """The same in another unit."""
        values = (self.median, self.lower, self.upper, self.best)
        median, lower, upper, best = (factor * value for value in values)
        return Spread(median, lower, upper, best, self.rounds)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{short(self.median)} ({short(self.lower)}-{short(self.upper)})"


@dataclass(frozen=True)
class PairedTimes:
    """Seconds of every candidate in every round.

    Attributes:
        seconds: candidate -> one entry per round; entry i of all candidates is from round i.
    """

    seconds: dict[str, list[float]]

    def spread(self, name: str) -> Spread:
        """Of a candidate's seconds."""
        return Spread.of(self.seconds[name])

    def ratio(self, slow: str, fast: str) -> Spread:
        """How many times faster `fast` is than `slow`, round by round."""
        pairs = zip(self.seconds[slow], self.seconds[fast], strict=True)
        return Spread.of([a / b for a, b in pairs])


def run_paired(
    candidates: Mapping[str, Candidate],
    rounds: int,
    *,
    gate: Callable[[], None] | None = None,
    warmups: int = 1,
    synchronise: Callable[[], None] | None = None,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> PairedTimes:
    """Time candidates in turns.

    Args:
        candidates: what to call, by name.
        rounds: measured calls of every candidate.
        gate: raises `GateFailed` unless the candidates are right; called first.
        warmups: calls of every candidate before, not measured.
        synchronise: called before the clock is read: waits for a GPU.
        progress: called after every call.
        clock: seconds.

    Raises:
        GateFailed: what `gate` raised.
    """
    if gate is not None:
        gate()
    wait = synchronise or (lambda: None)
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    done, total = 0, (warmups + rounds) * len(candidates)
    for turn in range(warmups + rounds):
        for name, candidate in candidates.items():
            wait()
            start = clock()
            candidate()
            wait()
            if turn >= warmups:
                seconds[name].append(clock() - start)
            done += 1
            if progress is not None:
                progress(done, total)
    return PairedTimes(seconds)


def check_agreement(
    name: str, found: torch.Tensor, expected: torch.Tensor, tolerance: float
) -> float:
    """The largest difference, as a share of the largest expected value.

    Args:
        name: of what is compared, for the message.
        found, expected: of the same shape, on any devices, in any dtypes.
        tolerance: largest share.

    Raises:
        GateFailed: the shapes differ, a value is not finite, or the difference is larger.
    """
    if found.shape != expected.shape:
        raise GateFailed(
            f"{name} has the shape {list(found.shape)} instead of {list(expected.shape)}; nothing "
            "was timed."
        )
    a, b = found.detach().double().cpu(), expected.detach().double().cpu()
    error = float((a - b).abs().max() / b.abs().max().clamp_min(torch.finfo(torch.float32).tiny))
    if not error <= tolerance:  # NaN is no agreement
        raise GateFailed(
            f"{name} differs from the expected result by {error:.1e} of its largest value, more "
            f"than {tolerance:.0e}; nothing was timed."
        )
    return error


def within(progress: Progress | None, offset: int, total: int) -> Progress | None:
    """Progress over everything, from the progress of a part that begins after `offset` calls."""
    return None if progress is None else lambda done, _: progress(offset + done, total)


def short(value: float) -> str:
    """Three significant digits, without an exponent for large numbers."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
