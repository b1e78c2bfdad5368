"""Tokens in and out of the CPU backends: which mini-batches are computed together, and copies.

Layout of a segment: [steps, lanes * rows, channels, n], where rows = directions * batch * heads;
see `cpu_common.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tttunet.kernels.contract import Settings

#: Elements below which an operation is not worth a second thread; PyTorch's own threshold.
GRAIN = 1 << 15
#: Bytes of a segment's temporaries (about what stays in the cache), and mini-batches at most.
SEGMENT_BYTES = 6 << 20
SEGMENT_MINI_BATCHES = 64


@contextmanager
def one_thread(example: Tensor) -> Iterator[None]:
    """Small operations run faster without a team of threads, above all on a busy machine.

    PyTorch leaves small products to a library that would share each of them out. The setting is
    the calling thread's; only a thread that is new to PyTorch would take it over meanwhile.

    Args:
        example: result of a typical operation; from `GRAIN` elements on nothing happens.
    """
    threads = torch.get_num_threads()
    if example.device.type != "cpu" or example.numel() >= GRAIN or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Span(NamedTuple):
    """Consecutive mini-batches, as `lanes` runs of `steps` mini-batches of `size` tokens.

    The lanes of a span start from known states and advance together.
    """

    start: int
    lanes: int
    steps: int
    size: int

    @property
    def stop(self) -> int:
        return self.start + self.lanes * self.steps * self.size


@dataclass(frozen=True)
class Problem:
    """Sizes of an operator's arguments. Token indices are in reading order."""

    directions: int
    batch: int
    heads: int
    tokens: int
    d: int
    size: int
    settings: Settings

    @classmethod
    def of(cls, q: Tensor, coefficient: Tensor, settings: Settings) -> Problem:
        batch, heads, tokens, d = q.shape
        directions = 2 if settings.bidirectional else 1
        return cls(directions, batch, heads, tokens, d, coefficient.shape[0], settings)

    @property
    def rows(self) -> int:
        return self.directions * self.batch * self.heads

    @property
    def mini_batches(self) -> int:
        return -(-self.tokens // self.size)

    @property
    def leading(self) -> tuple[int, int, int]:
        return self.directions, self.batch, self.heads

    def limit(self, channels: int, scores: int, itemsize: int) -> int:
        """Mini-batches per segment; their temporaries are at most half again q, k and v.

        Args:
            channels: of all temporaries together.
            scores: matrices of masked scores.
            itemsize: bytes per element.
        """
        temporaries = self.rows * self.size * (channels + scores * self.size) * itemsize
        streams = 3 * self.batch * self.heads * self.tokens * self.d * itemsize
        budget = min(SEGMENT_BYTES, streams * 3 // 2)
        return min(max(1, budget // temporaries), SEGMENT_MINI_BATCHES)

    def forward_spans(self, limit: int) -> Iterator[Span]:
        """Spans of one lane that cover all tokens in order."""
        whole = self.tokens // self.size
        for first in range(0, whole, limit):
            yield Span(first * self.size, 1, min(limit, whole - first), self.size)
        if tail := self.tokens % self.size:
            yield Span(whole * self.size, 1, 1, tail)

    def backward_spans(self, limit: int, save: int) -> list[Span]:
        """Spans that cover all tokens in order; a lane starts where a state was saved.

        Only the tail may start elsewhere: behind a span of fewer than `save` mini-batches.
        """
        whole = self.tokens // self.size
        lanes, intervals = max(1, limit // save), whole // save
        stride = save * self.size
        spans = [
            Span(first * stride, min(lanes, intervals - first), save, self.size)
            for first in range(0, intervals, lanes)
        ]
        if rest := whole % save:
            spans.append(Span(intervals * stride, 1, rest, self.size))
        if tail := self.tokens % self.size:
            spans.append(Span(whole * self.size, 1, 1, tail))
        return spans


class Tokens:
    """A tensor over tokens as mini-batches, in the reading order of every direction.

    Args:
        x: [batch, heads, tokens, channels], any strides, or [directions, batch, ...].
        problem: sizes.
    """

    def __init__(self, x: Tensor, problem: Problem) -> None:
        self.size, self.rows = problem.size, (problem.batch, problem.heads)
        whole = problem.tokens - problem.tokens % problem.size
        self.add_up = x.ndim == 4 and problem.directions == 2
        #: Of every direction, whole mini-batches and the tail, [count, batch, heads, channels, n].
        self.parts = []
        for direction in range(problem.directions):
            own = x[direction] if x.ndim == 5 else x
            cut = problem.tokens - whole if direction else whole
            first, second = own[:, :, :cut], own[:, :, cut:]
            main, tail = (second, first) if direction else (first, second)
            main = main.unflatten(2, (whole // problem.size, problem.size)).permute(2, 0, 1, 4, 3)
            self.parts.append((main, tail.permute(0, 1, 3, 2)[None]))

    def load(self, span: Span, out: Tensor) -> None:
        """Copy a span to [steps, lanes * rows, channels, n]."""
        out = out.unflatten(1, (span.lanes, -1, *self.rows))
        for direction, piece in enumerate(self._pieces(span)):
            piece = piece.flip(0, -1) if direction else piece
            out[:, :, direction].copy_(_as_lanes(piece, span))

    def store(self, x: Tensor, span: Span) -> None:
        """Inverse of `load`.

        Two directions are added up where the tensor has no axis for them; it must be zero then.
        """
        x = x.unflatten(1, (span.lanes, -1, *self.rows))
        for direction, piece in enumerate(self._pieces(span)):
            part = x[:, :, direction]
            part = part.flip(0, 1, -1) if direction else part
            piece = _as_lanes(piece, span)
            piece.add_(part) if self.add_up else piece.copy_(part)

    def _pieces(self, span: Span) -> Iterator[Tensor]:
        first, count = span.start // self.size, span.lanes * span.steps
        for direction, (main, tail) in enumerate(self.parts):
            if span.size < self.size:
                yield tail
            elif direction:
                yield main[len(main) - first - count : len(main) - first]
            else:
                yield main[first : first + count]


def _as_lanes(piece: Tensor, span: Span) -> Tensor:
    """[mini-batches, ...] as [steps, lanes, ...]."""
    return piece.unflatten(0, (span.lanes, span.steps)).transpose(0, 1)


def pack_state(W: Tensor, b: Tensor) -> Tensor:
    """[..., inputs, outputs] and [..., outputs] as [..., outputs, inputs + 1]."""
    return torch.cat((W.mT, b[..., None]), dim=-1)


def unpack_state(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Views [..., inputs, outputs] and [..., outputs] of [..., outputs, inputs + 1]."""
    return packed[..., :-1].mT, packed[..., -1]


def reduce_state_gradient(packed: Tensor, W: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """[rows, outputs, inputs + 1] as gradients of the initial state, of whose parts W is one."""
    packed = packed.unflatten(0, problem.leading).sum(0)
    if W.shape[0] == 1:
        packed = packed.sum(0, keepdim=True)
    grad_W, grad_b = unpack_state(packed)
    return grad_W.contiguous(), grad_b.contiguous()
