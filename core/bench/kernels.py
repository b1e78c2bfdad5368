"""Time of the TTT operators' backends, forward and forward + backward."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tttunet import kernels
from tttunet.bench.machine import synchronise, use_threads
from tttunet.bench.paired import (
    Candidate,
    PairedTimes,
    Progress,
    check_agreement,
    run_paired,
    within,
)
from tttunet.bench.report import Report, milliseconds
from tttunet.errors import TTTUNetError

Inner = Literal["linear", "mlp"]
Pass = Literal["forward", "forward + backward"]

PASSES: tuple[Pass, ...] = ("forward", "forward + backward")
MINI_BATCH = 64
ROPE_THETA = 10000.0
BASE_LR = 1.0
MLP_EXPANSION = 4
INIT_STD = 0.02
#: The gate compares on two whole mini-batches and a tail, with the definition in fp64.
GATE_TOKENS = 2 * MINI_BATCH + 17
#: Largest error of the output and of every gradient, as a share of the largest value.
GATE_TOLERANCE = 1e-4
#: The definition goes token by token: it is no candidate unless it is asked for.
TOO_SLOW = "reference"


@dataclass(frozen=True)
class Case:
    """A TTT layer of the authors' networks.

    Attributes:
        where: the layer.
        tokens, width, heads: its size.
    """

    where: str
    tokens: int
    width: int
    heads: int

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def shape(self) -> str:
        return f"{self.tokens} x {self.width}, {self.heads} heads"


CASES = {
    "bot": Case("bottleneck of TTT-UNet_Bot, 5 stages, 512 x 512", 1024, 320, 16),
    "enc-coarse": Case("stage 3 of TTT-UNet_Enc, 512 x 512", 4096, 256, 8),
    "enc-fine": Case("stage 1 of TTT-UNet_Enc, 512 x 512", 65536, 64, 8),
}
#: Without a wish; `enc-fine` takes minutes where only `dual` is there to compare with.
QUICK_CASES = ("bot", "enc-coarse")


@dataclass(frozen=True)
class Problem:
    """Arguments of an operator, as the layer hands them over.

    Attributes:
        inner: `linear` or `mlp`.
        arguments: q, k, v, lr, coefficient, the parts of the state, norm_weight, norm_bias.
    """

    inner: Inner
    arguments: tuple[Tensor, ...]

    def run(self, backend: str) -> Tensor:
        """[1, heads, tokens, d]."""
        *tokens, coefficient = self.arguments[:5]
        state, norm = self.arguments[5:-2], self.arguments[-2:]
        operator: Callable[..., Tensor] = (
            kernels.ttt_linear if self.inner == "linear" else kernels.ttt_mlp
        )
        return operator(
            *tokens,
            coefficient,
            state,
            *norm,
            base_lr=BASE_LR,
            rope_theta=ROPE_THETA,
            backend=backend,
        )

    def forward(self, backend: str) -> None:
        """Without a graph."""
        with torch.inference_mode():
            self.run(backend)

    def both(self, backend: str) -> list[Tensor]:
        """The output and the gradients of its mean square with respect to all arguments."""
        leaves = tuple(x.detach().requires_grad_() for x in self.arguments)
        output = Problem(self.inner, leaves).run(backend)
        return [output, *torch.autograd.grad(output.square().mean(), leaves)]

    def double(self) -> Problem:
        """The same numbers in fp64."""
        return Problem(self.inner, tuple(x.double() for x in self.arguments))


def make_problem(
    tokens: int,
    heads: int,
    head_dim: int,
    inner: Inner = "linear",
    device: torch.device | str = "cpu",
) -> Problem:
    """Random arguments in fp32, always the same for the same size.

    Tokens are stored as the projections leave them, [1, tokens, heads, d], and seen transposed.
    """
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0))
    streams = [draw(1, tokens, heads, head_dim).transpose(1, 2) for _ in range(3)]
    rate = draw(1, tokens, heads).transpose(1, 2)
    coefficient = 1 / torch.arange(1, MINI_BATCH + 1, dtype=torch.float32)
    sizes = [head_dim, head_dim]
    if inner == "mlp":
        sizes.insert(1, MLP_EXPANSION * head_dim)
    state: list[Tensor] = []
    for rows, columns in itertools.pairwise(sizes):
        state += [INIT_STD * draw(heads, rows, columns), torch.zeros(heads, columns)]
    norm = (torch.ones(heads, head_dim), torch.zeros(heads, head_dim))
    arguments = (*streams, rate, coefficient, *state, *norm)
    return Problem(inner, tuple(x.to(device) for x in arguments))


def choose_backends(wanted: Sequence[str], device: torch.device | str) -> tuple[str, ...]:
    """The backends to measure; without wishes all that are not the token-by-token definition.

    Raises:
        TTTUNetError: a backend is unknown or cannot run on the device.
    """
    available = kernels.available_backends(device)
    for name in wanted:
        if name not in available:
            raise TTTUNetError(
                f"The backend '{name}' cannot run on '{device}'.",
                f"There is: {', '.join(available)}.",
            )
    return tuple(dict.fromkeys(wanted)) or tuple(b for b in available if b != TOO_SLOW)


def check_backends(
    backends: Sequence[str], inner: Inner, heads: int, head_dim: int, device: torch.device | str
) -> dict[str, float]:
    """Compare output and gradients of backends with the definition in fp64 on a few tokens.

    Returns:
        Largest error of every backend, as a share of the largest value.

    Raises:
        GateFailed: a backend is wrong.
    """
    problem = make_problem(GATE_TOKENS, heads, head_dim, inner, device)
    expected = problem.double().both("reference")
    names = ("output", *(f"gradient {i}" for i in range(len(problem.arguments))))
    errors = {}
    for backend in backends:
        found = problem.both(backend)
        # A gradient that is zero but for rounding has no scale of its own.
        scale = max(float(x.abs().max()) for x in expected[1:])
        errors[backend] = 0.0
        for name, a, b in zip(names, found, expected, strict=True):
            if name != "output" and float(b.abs().max()) < 1e-6 * scale:
                continue
            error = check_agreement(f"{name} of backend '{backend}'", a, b, GATE_TOLERANCE)
            errors[backend] = max(errors[backend], error)
    return errors


def measure_kernels(
    cases: Sequence[str] = QUICK_CASES,
    backends: Sequence[str] = (),
    *,
    inner: Inner = "linear",
    rounds: int = 5,
    threads: int | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Report:
    """Time the backends against each other on layers of the authors' networks.

    Args:
        cases: keys of `CASES`.
        backends: what to compare; empty: all that are there, see `choose_backends`.
        inner: the inner model.
        rounds: measured rounds of every case and pass.
        threads: of PyTorch; None: as they are.
        device: where to compute.
        progress: called with (calls done, calls in all).

    Raises:
        GateFailed: a backend disagrees with the definition.
        TTTUNetError: an unknown case or backend.
    """
    for name in cases:
        if name not in CASES:
            raise TTTUNetError(f"There is no case '{name}'.", f"There is: {', '.join(CASES)}.")
    chosen = choose_backends(backends, device)
    rows: list[dict[str, Any]] = []
    errors: dict[str, dict[str, float]] = {}
    per_case = len(chosen) * (rounds + 1)
    with use_threads(threads):
        for case in (CASES[name] for name in cases):
            key = f"{case.heads} heads of {case.head_dim}"
            errors[key] = check_backends(chosen, inner, case.heads, case.head_dim, device)
        for index, (name, pass_) in enumerate((c, p) for c in cases for p in PASSES):
            case = CASES[name]
            problem = make_problem(case.tokens, case.heads, case.head_dim, inner, device)
            times = run_paired(
                _candidates(problem, pass_, chosen),
                rounds,
                synchronise=lambda: synchronise(device),
                progress=within(progress, index * per_case, len(cases) * 2 * per_case),
            )
            rows += _rows(name, case, pass_, times, chosen)
        return Report(
            "kernels",
            f"TTT-{'MLP' if inner == 'mlp' else 'Linear'}: milliseconds, median (quartiles)",
            ("layer", "tokens x width", "pass", "backend", "ms", f"times faster than {chosen[-1]}"),
            [_cells(row) for row in rows],
            rows,
            {
                "cases": list(cases),
                "backends": list(chosen),
                "inner": inner,
                "mini_batch": MINI_BATCH,
                "rounds": rounds,
                "device": str(device),
            },
            {"compared_with": "reference in fp64", "tokens": GATE_TOKENS, "largest_error": errors},
            tuple(f"`{name}`: {CASES[name].where}." for name in cases),
        )


def _candidates(problem: Problem, pass_: Pass, backends: Sequence[str]) -> dict[str, Candidate]:
    run = problem.forward if pass_ == "forward" else problem.both
    return {backend: functools.partial(run, backend) for backend in backends}


def _rows(
    name: str, case: Case, pass_: Pass, times: PairedTimes, backends: Sequence[str]
) -> list[dict[str, Any]]:
    base = backends[-1]
    return [
        {
            "case": name,
            "shape": case.shape,
            "pass": pass_,
            "backend": backend,
            "seconds": times.spread(backend),
            "faster_than": base,
            "times_faster": times.ratio(base, backend),
        }
        for backend in backends
    ]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    ratio = "1" if row["backend"] == row["faster_than"] else str(row["times_faster"])
    layer, shape, pass_, backend = (row[key] for key in ("case", "shape", "pass", "backend"))
    return (layer, shape, pass_, backend, milliseconds(row["seconds"]), ratio)
