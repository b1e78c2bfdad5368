"""Gradient of a convolution's weights on the CPU, the way that training takes, beside PyTorch's.

Channels-last maps of the sizes in the network of `nuclei` (batch 4 of 3x256x256) and in
TTT-UNet_Bot in 3D. On CPUs with AVX-512 most of these are PyTorch's own, with a ratio of 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from paired import Peer, ratio, run_in_turns
from record import write_result

from tttunet.kernels.cpu_convolution import weight_gradient

#: Largest difference, relative to the norm.
TOLERANCE = 1e-4
#: Batch, input channels, spatial size, output channels; kernels have three taps per axis.
SHAPES = (
    (4, 24, (256, 256), 24),
    (4, 48, (256, 256), 24),
    (4, 96, (128, 128), 48),
    (4, 96, (64, 64), 96),
    (1, 32, (32, 64, 64), 32),
)


def _problem(batch: int, channels: int, size: tuple[int, ...], outputs: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    maps = (torch.randn(batch, *size, c, generator=generator) for c in (channels, outputs))
    return [m.movedim(-1, 1) for m in maps]


def ours(*shape: Any) -> Callable[[], np.ndarray]:
    x, grad = _problem(*shape)
    ones = [1] * (x.ndim - 2)
    weight = torch.empty(shape[3], shape[1], *(3 * one for one in ones))
    return lambda: weight_gradient(x, grad, weight, ones, ones).numpy().reshape(shape[3], -1)


def plain(*shape: Any) -> Callable[[], np.ndarray]:
    x, grad = _problem(*shape)
    axes = x.ndim - 2
    ones, zeros = [1] * axes, [0] * axes
    weight = torch.empty(shape[3], shape[1], *[3] * axes)

    def gradient() -> np.ndarray:
        result = torch.ops.aten.convolution_backward(
            grad, x, weight, None, ones, ones, ones, False, zeros, 1, [False, True, False]
        )
        return result[1].contiguous().numpy().reshape(shape[3], -1)

    return gradient


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    cases = []
    for shape in SHAPES:
        peers = [Peer(setup, *shape, threads=options.threads) for setup in (ours, plain)]
        mine, theirs = peers
        error = np.linalg.norm(mine.result - theirs.result) / np.linalg.norm(theirs.result)
        if error > TOLERANCE:
            raise SystemExit(f"{shape}: ours differs by {error:.1e}")
        run_in_turns(peers, options.rounds)
        for peer in peers:
            peer.close()
        batch, channels, size, outputs = shape
        cases.append(
            {
                "batch": batch,
                "channels": channels,
                "size": size,
                "outputs": outputs,
                "gflop": 2e-9 * batch * channels * outputs * float(np.prod(size)) * 3 ** len(size),
                "ours": mine.times.summary(),
                "plain": theirs.times.summary(),
                "ratio": ratio(theirs.times, mine.times),
                "error": float(error),
            }
        )
        print(shape, *(f"{value:.2f}" for value in cases[-1]["ratio"]))
    capability = torch.backends.cpu.get_cpu_capability()
    settings = {"threads": options.threads, "rounds": options.rounds, "capability": capability}
    write_result("weight_gradient", {**settings, "cases": cases})


if __name__ == "__main__":
    main()
