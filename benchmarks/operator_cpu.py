"""The TTT-Linear operator on the CPU beside a loop over mini-batches that autograd goes through.

The loop is the dual form as published code writes it: per mini-batch the K x K matrices of scores
and of learning rates, their products, the read-out and the new state, all as PyTorch operations.
Same arguments, same threads, every peer in a process of its own; output and gradients are compared
first. `backward` is forward and backward together, less the forward pass of the same peer.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from paired import Peer, ratio, run_in_turns
from record import write_result
from torch import Tensor

from tttunet.bench.kernels import CASES, Problem, make_problem
from tttunet.kernels import unfused
from tttunet.kernels.contract import TTTResult
from tttunet.kernels.reference import inner_gradient, layer_norm

#: Largest difference of outputs and gradients, relative to the largest value.
TOLERANCE = 1e-3


class loop:  # noqa: N801 (it takes the place of a module)
    """Takes the place of the module `tttunet.kernels.dual`."""

    @staticmethod
    def ttt_linear(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lr: Tensor,
        coefficient: Tensor,
        state: tuple[Tensor, ...],
        norm_weight: Tensor,
        norm_bias: Tensor,
        eps: float,
    ) -> TTTResult:
        """Arguments as in `tttunet.kernels.dual`."""
        W, b = state[0], state[1][:, :, None]
        gamma, beta = norm_weight[:, None], norm_bias[:, None]
        outputs = []
        for start in range(0, q.shape[2], len(coefficient)):
            part = slice(start, start + len(coefficient))
            query, key, value = q[:, :, part], k[:, :, part], v[:, :, part]
            eta = coefficient[: key.shape[2], None] * lr[:, :, None, part]
            gradient = inner_gradient(key @ W + b, value - key, gamma, beta, eps)
            scores = (query @ key.transpose(-1, -2)).tril()
            bias = b - eta.tril() @ gradient
            z = query @ W - (eta * scores) @ gradient + bias
            outputs.append(query + layer_norm(z, gamma, beta, eps))
            last = eta[:, :, -1, :, None]
            W = W - (last * key).transpose(-1, -2) @ gradient
            b = b - (last * gradient).sum(-2, keepdim=True)
        output = torch.cat(outputs, dim=2)
        return TTTResult(output, (W, b.squeeze(2)), output.new_zeros(output.shape[:-1]))


def forward(case: str, backend: str) -> Callable[[], np.ndarray]:
    """A function that runs the operator without a graph."""
    problem, backend = _problem(case, backend)

    def run() -> np.ndarray:
        with torch.inference_mode():
            return problem.run(backend).numpy()

    return run


def both(case: str, backend: str) -> Callable[[], np.ndarray]:
    """A function that runs the operator forward and backward; it returns some of the gradients."""
    problem, backend = _problem(case, backend)

    def run() -> np.ndarray:
        results = problem.both(backend)
        return torch.cat([x.flatten()[:100_000] / x.abs().max() for x in results]).detach().numpy()

    return run


def _problem(case: str, backend: str) -> tuple[Problem, str]:
    """Arguments, and the name under which the package knows the backend in this process."""
    from tttunet.inference.allocator import tune_allocator

    if backend == "loop":
        unfused.BACKENDS["dual"] = loop  # type: ignore[assignment]
        backend = "dual"
    else:
        tune_allocator()
    size = CASES[case]
    return make_problem(size.tokens, size.heads, size.head_dim), backend


def measure(case: str, rounds: int, threads: int) -> dict[str, Any]:
    """Times of one layer, seconds."""
    peers = {
        (pass_.__name__, backend): Peer(pass_, case, backend, threads=threads)
        for pass_ in (forward, both)
        for backend in ("cpu", "loop")
    }
    errors = {}
    for pass_ in ("forward", "both"):
        ours, theirs = (peers[pass_, backend].result for backend in ("cpu", "loop"))
        errors[pass_] = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        if not errors[pass_] <= TOLERANCE:
            raise SystemExit(f"{case}, {pass_}: the results differ by {errors[pass_]:.1e}.")
    run_in_turns(peers.values(), rounds)
    for peer in peers.values():
        peer.close()
    times = {key: peer.times for key, peer in peers.items()}
    median = {key: statistics.median(value.wall) for key, value in times.items()}
    backward = {b: median["both", b] - median["forward", b] for b in ("cpu", "loop")}
    return {
        "layer": CASES[case].where,
        "size": CASES[case].shape,
        "error": errors,
        "times": {f"{pass_}, {backend}": t.summary() for (pass_, backend), t in times.items()},
        "forward_ratio": ratio(times["forward", "loop"], times["forward", "cpu"]),
        "both_ratio": ratio(times["both", "loop"], times["both", "cpu"]),
        "backward": backward,
        "backward_ratio": backward["loop"] / backward["cpu"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    run = functools.partial(measure, rounds=options.rounds, threads=options.threads)
    results = {case: run(case) for case in options.cases}
    for found in results.values():
        print(f"{found['layer']} ({found['size']}):")
        for name, times in found["times"].items():
            print(f"  {name}: {1e3 * times['wall_median']:.0f} ms")
        print(f"  faster, forward: {found['forward_ratio'][0]:.2f}")
        print(f"  faster, backward: {found['backward_ratio']:.2f}")
    write_result("operator_cpu", {"threads": options.threads, "cases": results})


if __name__ == "__main__":
    main()
