"""Time and peak memory against the number of tokens, and against the size of the image."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tttunet.bench.inference import check_inference, make_image
from tttunet.bench.kernels import Inner, check_backends, choose_backends, make_problem
from tttunet.bench.machine import peak_memory, synchronise, use_threads
from tttunet.bench.paired import Progress, Spread, run_paired, short
from tttunet.bench.report import Report, megabytes, milliseconds
from tttunet.inference.segment import segment
from tttunet.models.model import Model

#: Heads and channels of a head of the operator: TTT-UNet_Enc's finest stage.
HEADS, HEAD_DIM = 8, 8
TOKENS = (1024, 4096, 16384, 65536, 262144)
SIZES = (256, 512, 1024)
_STREAMS = 3  # q, k and v
_BYTES = 4


@dataclass(frozen=True)
class Line:
    """value = offset + slope * amount, fitted to relative errors.

    Attributes:
        exponent: of the best power law; 1 is linear.
        largest_deviation: of a point from the line, as a share of the point.
    """

    offset: float
    slope: float
    exponent: float
    largest_deviation: float

    @classmethod
    def fit(cls, amounts: Sequence[float], values: Sequence[float]) -> Line | None:
        """None for fewer than two points, or where a value is 0 (memory too small to see)."""
        x, y = np.array(amounts, float), np.array(values, float)
        if len(x) < 2 or y.min() <= 0:
            return None
        design = np.stack((np.ones_like(x), x), axis=1) / y[:, None]
        (offset, slope), *_ = np.linalg.lstsq(design, np.ones_like(y), rcond=None)
        deviation = np.abs((offset + slope * x) / y - 1).max()
        exponent = np.polyfit(np.log(x), np.log(y), 1)[0]
        return cls(*(float(v) for v in (offset, slope, exponent, deviation)))

    def at(self, amount: float) -> float:
        return self.offset + self.slope * amount


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        name: in the legend.
        unit: of the amounts, `tokens` or `pixels`.
        amounts: how many, ascending.
        seconds: time for each amount.
        memory: peak bytes for each amount; empty where it cannot be measured.
    """

    name: str
    unit: str
    amounts: list[int]
    seconds: list[Spread]
    memory: list[int]

    @property
    def time_line(self) -> Line | None:
        return Line.fit(self.amounts, [s.median for s in self.seconds])

    @property
    def memory_line(self) -> Line | None:
        return Line.fit(self.amounts, self.memory) if self.memory else None


@dataclass(frozen=True)
class Scaling:
    """The curves and the report on them."""

    series: list[Series]
    report: Report


def measure_scaling(
    tokens: Sequence[int] = TOKENS,
    backends: Sequence[str] = (),
    *,
    inner: Inner = "linear",
    model: Model | None = None,
    sizes: Sequence[int] = SIZES,
    tile: Sequence[int] | None = None,
    rounds: int = 3,
    threads: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Scaling:
    """Measure the TTT operator's forward pass at several lengths, and inference at several sizes.

    Args:
        tokens: lengths; empty: no operator.
        backends: what to measure; empty: the fastest.
        inner: the inner model of the operator.
        model: for inference; None: none.
        sizes: sides of the square images or cubic volumes to segment.
        tile: tile size of inference; None: the model's.
        rounds: measured rounds at every length or size.
        threads: of PyTorch; None: as they are.
        device: where to compute.
        progress: called with (work done, work in all), in tokens or pixels of a kind.

    Raises:
        GateFailed: a backend or the model computes something wrong.
        TTTUNetError: an unknown backend.
    """
    chosen = choose_backends(backends, device)
    chosen = chosen if backends else chosen[:1]
    gate: dict[str, Any] = {}
    series: list[Series] = []
    lengths, sides = sorted(set(tokens)), sorted(set(sizes)) if model is not None else []
    steps = (rounds + 2) * (len(lengths) * len(chosen) + len(sides))
    done = 0

    def tick(_done: int = 0, _total: int = 0) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(min(done, steps), steps)

    with use_threads(threads):
        if lengths:
            gate["operator"] = check_backends(chosen, inner, HEADS, HEAD_DIM, device)
            series += _operator_series(lengths, chosen, inner, rounds, device, tick)
        if model is not None and sides:
            dim = model.config.network.dim
            first = make_image(model, (sides[0],) * dim)
            gate["inference"] = check_inference(model, first, device)
            series.append(_inference_series(model, sides, tile, rounds, device, tick))
        rows = [row for one in series for row in _rows(one)]
        settings = {
            "tokens": lengths,
            "heads": HEADS,
            "head_dim": HEAD_DIM,
            "inner": inner,
            "backends": list(chosen),
            "model": None if model is None else f"{model.config.name} {model.config.version}",
            "sizes": sides,
            "rounds": rounds,
            "device": device,
            "lines": {one.name: _lines(one) for one in series},
        }
        report = Report(
            "scaling",
            "Time and peak memory against size",
            ("what", "size", "ms", "ns per token or pixel", "peak MB", "x the size of q, k, v"),
            [_cells(row) for row in rows],
            rows,
            settings,
            gate,
            tuple(_sentence(one) for one in series),
        )
    return Scaling(series, report)


def _operator_series(
    lengths: Sequence[int],
    backends: Sequence[str],
    inner: Inner,
    rounds: int,
    device: str,
    tick: Callable[[int, int], None],
) -> list[Series]:
    seconds: dict[str, list[Spread]] = {backend: [] for backend in backends}
    memory: dict[str, list[int]] = {backend: [] for backend in backends}
    for length in lengths:
        problem = make_problem(length, HEADS, HEAD_DIM, inner, device)
        candidates = {b: functools.partial(problem.forward, b) for b in backends}
        times = run_paired(
            candidates, rounds, synchronise=lambda: synchronise(device), progress=tick
        )
        for backend, candidate in candidates.items():
            seconds[backend].append(times.spread(backend))
            memory[backend] += _known(peak_memory(candidate, device))
            tick(0, 0)
    return [
        Series(f"TTT-{inner}, {b}", "tokens", list(lengths), seconds[b], memory[b])
        for b in backends
    ]


def _inference_series(
    model: Model,
    sides: Sequence[int],
    tile: Sequence[int] | None,
    rounds: int,
    device: str,
    tick: Callable[[int, int], None],
) -> Series:
    dim = model.config.network.dim
    seconds: list[Spread] = []
    memory: list[int] = []
    for side in sides:
        image = make_image(model, (side,) * dim)
        run = functools.partial(segment, image, model, device=device, tile=tile)
        memory += _known(peak_memory(run, device))  # is the warm-up, too
        tick(0, 0)
        times = run_paired({"segment": run}, rounds, warmups=1, progress=tick)
        seconds.append(times.spread("segment"))
    return Series(
        f"segment, {model.config.name}", "pixels", [s**dim for s in sides], seconds, memory
    )


def _known(memory: int | None) -> list[int]:
    return [] if memory is None else [memory]


def _rows(series: Series) -> list[dict[str, Any]]:
    rows = []
    for index, (amount, seconds) in enumerate(zip(series.amounts, series.seconds, strict=True)):
        memory = series.memory[index] if series.memory else None
        row = {
            "series": series.name,
            series.unit: amount,
            "seconds": seconds,
            "nanoseconds_each": seconds.median / amount * 1e9,
            "peak_memory_bytes": memory,
        }
        if series.unit == "tokens" and memory is not None:
            size = _STREAMS * _BYTES * amount * HEADS * HEAD_DIM
            row["peak_memory_over_qkv"] = memory / size
        rows.append(row)
    return rows


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    amount = row.get("tokens") or row["pixels"]
    over = row.get("peak_memory_over_qkv")
    return (
        row["series"],
        f"{amount:,} {'tokens' if 'tokens' in row else 'pixels'}",
        milliseconds(row["seconds"]),
        short(row["nanoseconds_each"]),
        megabytes(row["peak_memory_bytes"]),
        "" if over is None else f"{over:.2f}",
    )


def _lines(series: Series) -> dict[str, Any]:
    lines = {"seconds": series.time_line, "bytes": series.memory_line}
    return {
        name: {
            "offset": line.offset,
            "slope": line.slope,
            "exponent": line.exponent,
            "largest_deviation": line.largest_deviation,
        }
        for name, line in lines.items()
        if line is not None
    }


def _sentence(series: Series) -> str:
    time, memory, unit = series.time_line, series.memory_line, series.unit.removesuffix("s")
    if time is None:
        return f"{series.name}: a single size shows no line."
    text = (
        f"{series.name}: {short(time.offset * 1e3)} ms + {short(time.slope * 1e9)} ns per {unit} "
        f"(exponent {time.exponent:.2f}, largest deviation {time.largest_deviation:.0%})"
    )
    if memory is None or not math.isfinite(memory.slope):
        return f"{text}."
    return f"{text}; {short(memory.slope)} bytes per {unit}."
