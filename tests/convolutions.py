"""Convolutions that the tests of the CPU's kernels share."""

from __future__ import annotations

import torch
import torch.nn.functional as F

CONVOLUTION = {4: F.conv2d, 5: F.conv3d}
#: Shape of the input, outputs, kernel, stride, padding. Odd sizes, less than a tile of Winograd's,
#: batches, one column, one slice; in 3D one and three taps.
SAME = [
    ((2, 5, 8, 12), 3, (3, 3), (1, 1), (1, 1)),
    ((1, 4, 13, 7), 6, (3, 3), (1, 1), (1, 1)),
    ((1, 3, 1, 2), 2, (3, 3), (1, 1), (1, 1)),
    ((3, 2, 6, 1), 2, (3, 3), (1, 1), (1, 1)),
    ((1, 4, 26, 8), 6, (3, 3), (1, 1), (1, 1)),
    ((2, 4, 5, 10, 7), 3, (3, 3, 3), (1, 1, 1), (1, 1, 1)),
    ((1, 4, 5, 8, 8), 3, (1, 3, 3), (1, 1, 1), (0, 1, 1)),
    ((1, 4, 1, 6, 9), 3, (3, 3, 3), (1, 1, 1), (1, 1, 1)),
]
#: Strides; even kernels; more padding than they need, and less.
OTHERS = [
    ((1, 3, 9, 7), 2, (3, 3), (1, 1), (0, 2)),
    ((2, 5, 8, 12), 3, (3, 3), (2, 2), (1, 1)),
    ((1, 4, 13, 7), 6, (3, 3), (2, 1), (1, 1)),
    ((1, 4, 9, 8), 6, (2, 2), (1, 1), (1, 1)),
    ((2, 4, 5, 10, 7), 3, (3, 3, 3), (2, 2, 2), (1, 1, 1)),
    ((1, 4, 6, 10, 7), 3, (3, 3, 3), (1, 2, 2), (1, 1, 1)),
    ((1, 4, 3, 5, 4), 3, (2, 2, 2), (1, 1, 1), (1, 1, 1)),
    ((1, 4, 3, 5, 4), 3, (1, 2, 2), (1, 1, 1), (0, 1, 1)),
]


def make(shape, outputs, kernel, dtype=torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=dtype)
    weight = torch.randn(outputs, shape[1], *kernel, generator=generator, dtype=dtype)
    bias = torch.randn(outputs, generator=generator, dtype=dtype)
    x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    return [t.requires_grad_() for t in (x, weight / weight[0].numel() ** 0.5, bias)]
