"""Peers timed in turns, A B A B, each in a process of its own.

A process of its own gives every peer its own allocator, threads and caches, as a user would have
them; only one computes at a time.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

#: Called in the new process: returns the function to time, whose result is compared.
Setup = Callable[[], Callable[[], Any]]


@dataclass
class Times:
    """Of every timed run: seconds of wall time and of CPU time, minor page faults."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    faults: list[int] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        low, _, high = statistics.quantiles(self.wall, n=4) if len(self.wall) > 1 else self.wall * 3
        return {
            "wall_median": round(statistics.median(self.wall), 4),
            "wall_quartiles": [round(low, 4), round(high, 4)],
            "wall_best": round(min(self.wall), 4),
            "cpu_median": round(statistics.median(self.cpu), 4),
            "cpu_best": round(min(self.cpu), 4),
            "minor_faults_median": int(statistics.median(self.faults)),
        }


class Peer:
    """A function in a process of its own.

    Args:
        setup: importable, with its arguments; see `Setup`.
        threads: of PyTorch, and by environment variables of everything else.
    """

    def __init__(self, setup: Callable[..., Callable[[], Any]], *arguments: Any, threads: int):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        before = {name: os.environ.get(name) for name in names}
        os.environ.update(dict.fromkeys(names, str(threads)))
        self._process = context.Process(
            target=_serve, args=(theirs, setup, arguments, threads), daemon=True
        )
        self._process.start()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        self.times = Times()
        #: What the function returns, from its first run.
        self.result = self._receive()

    def run(self) -> None:
        """Run once more and note the times."""
        self._connection.send("run")
        wall, cpu, faults = self._receive()
        self.times.wall.append(wall)
        self.times.cpu.append(cpu)
        self.times.faults.append(faults)

    def close(self) -> None:
        self._connection.close()
        self._process.join()

    def _receive(self) -> Any:
        ok, value = self._connection.recv()
        if not ok:
            raise RuntimeError(value)
        return value


def run_in_turns(peers: Iterable[Peer], rounds: int) -> None:
    """`rounds` times every peer, one after the other."""
    peers = list(peers)
    for _ in range(rounds):
        for peer in peers:
            peer.run()


def ratio(slow: Times, fast: Times) -> tuple[float, float, float]:
    """Median, smallest and largest of the rounds' ratios of wall times."""
    ratios = [a / b for a, b in zip(slow.wall, fast.wall, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def rounds_slower(slow: Times, fast: Times) -> int:
    """In how many rounds `slow` took longer."""
    return sum(a > b for a, b in zip(slow.wall, fast.wall, strict=True))


def _serve(
    connection: Connection, setup: Callable[..., Callable[[], Any]], arguments: Any, threads: int
) -> None:
    try:
        import torch

        torch.set_num_threads(threads)
        function = setup(*arguments)
        connection.send((True, function()))
    except Exception:
        connection.send((False, traceback.format_exc(limit=3)))
        return
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        before = resource.getrusage(resource.RUSAGE_SELF)
        start = time.perf_counter()
        function()
        wall = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        connection.send((True, (wall, cpu, after.ru_minflt - before.ru_minflt)))
