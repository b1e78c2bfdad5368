"""Convolution of [nearest-neighbour upsampled map, skip] without forming either.

After upsampling by two a kernel of three taps reads two different values per axis: an output at an
even place sees w0 of the value before and w1 + w2 of its own, one at an odd place w0 + w1 of its
own and w2 of the next. So each of the 4 (in 3D 8) phases of the output is a convolution of the
small map with 2 x 2 (x 2) taps: 4/9 (8/27) of the multiplications, and neither the upsampled map
nor the concatenation is written.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tttunet.kernels import cpu_convolution, cpu_pointwise

_CONVOLVE = {4: F.conv2d, 5: F.conv3d}
#: Channels, by spatial axes, from which on Winograd's saving on the whole is larger.
WINOGRAD_CHANNELS = {2: 128, 3: 64}
#: Weights of the taps on the small map, [phase][tap][tap of the kernel].
_FOLD = (((1, 0, 0), (0, 1, 1)), ((1, 1, 0), (0, 0, 1)))


def pays(low: Tensor, skip: Tensor | None, factors: tuple[int, ...], weight: Tensor) -> bool:
    """Whether `convolve_upsampled` is possible and faster than upsampling and concatenating.

    Args:
        low: [batch, C, *spatial], before upsampling.
        skip: [batch, C2, *spatial * factors].
        factors: of the upsampling, per axis.
        weight: [outputs, C + C2, *kernel].
    """
    return (
        cpu_convolution.takes(low, weight)
        and (skip is None or cpu_convolution.takes(skip, weight))
        and all(f == 1 or (f, k) == (2, 3) for f, k in zip(factors, weight.shape[2:], strict=True))
        and min(weight.shape[:2]) < WINOGRAD_CHANNELS[weight.ndim - 2]
    )


def convolve_upsampled(
    low: Tensor, skip: Tensor | None, factors: tuple[int, ...], weight: Tensor
) -> Tensor:
    """conv(cat(upsample(low), skip)) with zero padding that keeps the size, without bias.

    Args:
        low, skip, factors, weight: as `pays` allows.

    Returns:
        [batch, outputs, *spatial * factors], channels-last.
    """
    kernel = weight.shape[2:]
    own = low.shape[1]
    folded = _fold(weight[:, :own], factors)
    padding = [1 if f == 2 else k // 2 for f, k in zip(factors, kernel, strict=True)]
    parts = _convolve(low, folded, padding)
    if skip is None:
        return _interleave(parts, low.shape[2:], factors, None)
    y = _convolve(skip, weight[:, own:], [k // 2 for k in kernel])
    return _interleave(parts, low.shape[2:], factors, y)


def _convolve(x: Tensor, weight: Tensor, padding: list[int]) -> Tensor:
    arguments = [1] * len(padding), padding
    if cpu_convolution.pays(x, weight, *arguments):
        return cpu_convolution.convolution(x, weight, None, *arguments)
    return _CONVOLVE[x.ndim](x, weight, None, *arguments)


def project_upsampled(
    low: Tensor, skip: Tensor | None, factors: tuple[int, ...], weight: Tensor
) -> Tensor:
    """The same for a 1x1 convolution."""
    own, ones = low.shape[1], [1] * len(factors)
    small = cpu_pointwise.convolution(low, weight[:, :own], None, ones).movedim(1, -1)
    spread = _Spread.apply(small, factors)
    if skip is None:
        y = spread
    else:
        y = cpu_pointwise.convolution(skip, weight[:, own:], None, ones).movedim(1, -1)
        y = _split(y, factors).add_(spread)
    shape = [n * f for n, f in zip(small.shape[1:-1], factors, strict=True)]
    return y.reshape(len(low), *shape, small.shape[-1]).contiguous().movedim(-1, 1)


class _Spread(torch.autograd.Function):
    """[batch, H, W, C] -> [batch, H, f, W, f, C], a view: every value at all places it covers.

    PyTorch's own gradient, a sum over the axes of length two, takes eight times as long.
    """

    @staticmethod
    def forward(ctx: Any, small: Tensor, factors: tuple[int, ...]) -> Tensor:
        ctx.factors, size = factors, []
        for axis, factor in enumerate(factors):
            size += [small.shape[1 + 2 * axis], factor]
            small = small.unsqueeze(2 + 2 * axis)
        return small.expand(len(small), *size, small.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        for axis, factor in enumerate(ctx.factors):
            places = grad.unbind(2 + axis)
            grad = places[0] if factor == 1 else places[0] + places[1]
        return grad, None


def _fold(weight: Tensor, factors: tuple[int, ...]) -> Tensor:
    """[outputs, C, *kernel] -> [phases * outputs, C, *taps]."""
    # Leading axis: phases so far.
    folded = weight[None]
    for axis, factor in enumerate(factors):
        if factor == 1:
            continue
        fold = weight.new_tensor(_FOLD)
        moved = folded.movedim(3 + axis, -1)
        moved = torch.einsum("pak,n...k->np...a", fold, moved)
        folded = moved.flatten(0, 1).movedim(-1, 3 + axis)
    return folded.flatten(0, 1)


def _split(rows: Tensor, factors: tuple[int, ...]) -> Tensor:
    """[batch, H, W, C] -> [batch, H / f, f, W / f, f, C], a view."""
    for axis in range(len(factors) - 1, -1, -1):
        rows = rows.unflatten(1 + axis, (-1, factors[axis]))
    return rows


def _interleave(
    parts: Tensor, low_size: torch.Size, factors: tuple[int, ...], y: Tensor | None
) -> Tensor:
    """Put (or add, if y is given) every phase to its places; y may be overwritten."""
    return _Interleave.apply(parts, low_size, factors, y)


class _Interleave(torch.autograd.Function):
    """Gradients of the phases are read off in one pass each."""

    @staticmethod
    def forward(
        ctx: Any, parts: Tensor, low_size: torch.Size, factors: tuple[int, ...], y: Tensor | None
    ) -> Tensor:
        rows = parts.movedim(1, -1)
        outputs = rows.shape[-1] // 2 ** factors.count(2)
        if y is None:
            size = [n * f for n, f in zip(low_size, factors, strict=True)]
            target = rows.new_empty(len(rows), *size, outputs)
        else:
            ctx.mark_dirty(y)
            target = y.movedim(1, -1)
        for part, places in _phases(rows, target, low_size, factors):
            if y is None:
                places.copy_(part)
            else:
                places.add_(part)
        ctx.rows, ctx.low_size, ctx.factors, ctx.has_y = (
            rows.shape,
            low_size,
            factors,
            y is not None,
        )
        return target.movedim(-1, 1) if y is None else y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # The margins that no output reads have no gradient.
        rows = grad.new_zeros(ctx.rows)
        for part, places in _phases(rows, grad.movedim(1, -1), ctx.low_size, ctx.factors):
            part.copy_(places)
        return rows.movedim(-1, 1), None, None, grad if ctx.has_y else None


def _phases(
    rows: Tensor, target: Tensor, low_size: torch.Size, factors: tuple[int, ...]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of every phase in the parts and in the interleaved map.

    Args:
        rows: [batch, *positions of the parts, phases * outputs].
        target: [batch, *low_size * factors, outputs].
    """
    outputs, split = target.shape[-1], _split(target, factors)
    for number, phase in enumerate(itertools.product(*(range(f) for f in factors))):
        part = rows[..., number * outputs : (number + 1) * outputs]
        places = split
        for axis, (p, n) in enumerate(zip(phase, low_size, strict=True)):
            part = part.narrow(1 + axis, p, n)
            # Each select removes the axis of the phase behind the axis of the small map.
            places = places.select(2 + axis, p)
        yield part, places
