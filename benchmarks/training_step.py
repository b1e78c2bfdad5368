"""A training step on the CPU: our network beside the plain one, in fp32 and under bf16 autocast.

A step is the forward pass at every resolution, the deep supervision loss, the backward pass, the
clipping of the gradient and AdamW: what the trainer does, on a fixed random batch. Ours takes the
fused AdamW, as the trainer does; the plain step PyTorch's default.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from network_cpu import FEATURES
from paired import Peer, ratio, run_in_turns
from record import write_result

from tttunet.models.model import load_model
from tttunet.networks import NetworkConfig, build_network, released_config
from tttunet.training.loss import deep_supervision_loss
from tttunet.training.targets import batch_targets

#: Our gradients may be so far from those in fp64, relative to their norm, and further only where
#: plain PyTorch is at least half as far itself.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.2}
TITLES = {
    "nuclei": "the shipped model nuclei, batch 4 of 3x256x256",
    "bot2d": "TTT-UNet_Bot, 5 stages, batch 2 of 3x256x256",
    "bot3d": "TTT-UNet_Bot, 3D, 5 stages, batch 1 of 1x32x64x64",
}


def _case(case: str) -> tuple[NetworkConfig, tuple[int, ...], str]:
    """Configuration, shape of the input, task."""
    if case == "nuclei":
        return load_model("nuclei").config.network, (4, 3, 256, 256), "instance"
    dim: Any = 3 if case == "bot3d" else 2
    shape = (1, 1, 32, 64, 64) if dim == 3 else (2, 3, 256, 256)
    config = released_config(
        dim=dim,
        input_channels=shape[1],
        output_channels=3,
        features=FEATURES,
        kernel_sizes=((3,) * dim,) * 5,
        strides=((1,) * dim,) + ((2,) * dim,) * 4,
    )
    return config, shape, "semantic"


def ours(case: str, precision: str) -> Callable[[], np.ndarray]:
    from tttunet.inference.allocator import tune_allocator

    tune_allocator()
    return _step(case, precision, fused=True)


def plain(case: str, precision: str) -> Callable[[], np.ndarray]:
    from plain_network import use_plain_operators

    use_plain_operators()
    return _step(case, precision)


def exact(case: str, precision: str) -> Callable[[], np.ndarray]:
    from plain_network import use_plain_operators

    use_plain_operators()
    return _step(case, "fp64")


def _step(case: str, precision: str, fused: bool = False) -> Callable[[], np.ndarray]:
    """A function that makes a step; it returns the gradients of the convolutions before it."""
    config, shape, task = _case(case)
    torch.manual_seed(0)
    network = build_network(config).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=fused)
    image = torch.randn(shape)
    if precision == "fp64":
        network, image = network.double(), image.double()
    labels = (torch.rand(shape[0], *shape[2:]) > 0.9).to(torch.int32)
    targets = batch_targets(labels, task)
    watched = [p for name, p in network.named_parameters() if "conv" in name and p.ndim > 3]

    def step() -> np.ndarray:
        autocast = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
        with autocast:
            outputs = network.forward_all(image)
        loss = deep_supervision_loss(outputs, targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12.0)
        gradients = torch.cat([p.grad.flatten()[::101] for p in watched if p.grad is not None])
        optimizer.step()
        return gradients.numpy()

    return step


def measure(case: str, precision: str, rounds: int, threads: int) -> dict[str, Any]:
    """Correctness of the first step's gradients (against fp64), then times."""
    truth = Peer(exact, case, precision, threads=threads)
    truth.close()
    mine = Peer(ours, case, precision, threads=threads)
    eager = Peer(plain, case, precision, threads=threads)
    size = np.linalg.norm(truth.result)
    error, other = (float(np.linalg.norm(p.result - truth.result) / size) for p in (mine, eager))
    if error > max(TOLERANCE[precision], 2 * other):
        raise SystemExit(
            f"{case}, {precision}: our gradients are wrong by {error:.1e}, the plain ones by "
            f"{other:.1e}."
        )
    run_in_turns((mine, eager), rounds)
    mine.close()
    eager.close()
    return {
        "case": TITLES[case],
        "precision": precision,
        "gradient_error": error,
        "plain_gradient_error": other,
        "ours": mine.times.summary(),
        "plain": eager.times.summary(),
        "ratio": ratio(eager.times, mine.times),
    }


def table(results: list[dict[str, Any]]) -> str:
    """Markdown; ratios are medians over the rounds of plain / ours, in brackets the extremes."""
    lines = [
        "| step | precision | ours, ms | plain, ms | CPU ms | ratio | error of the gradients |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        wall, cpu = (
            [1e3 * result[who][what] for who in ("ours", "plain")]
            for what in ("wall_median", "cpu_median")
        )
        middle, least, most = result["ratio"]
        lines.append(
            f"| {result['case']} | {result['precision']} | {wall[0]:.0f} | {wall[1]:.0f} | "
            f"{cpu[0]:.0f} and {cpu[1]:.0f} | {middle:.2f} ({least:.2f} to {most:.2f}) | "
            f"{result['gradient_error']:.0e} and {result['plain_gradient_error']:.0e} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=list(TITLES), default=list(TITLES))
    parser.add_argument("--precisions", nargs="+", choices=list(TOLERANCE), default=["fp32"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = []
    for case in options.cases:
        for precision in options.precisions:
            results.append(measure(case, precision, options.rounds, options.threads))
            print(table(results[-1:]), flush=True)
    if not options.no_record:
        result = {"threads": options.threads, "rounds": options.rounds, "cases": results}
        path = write_result("training_step", result)
        path.with_suffix(".md").write_text(table(results) + "\n")


if __name__ == "__main__":
    main()
