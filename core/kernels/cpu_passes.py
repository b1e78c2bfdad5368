"""The forward and the backward pass over all segments, for both inner models.

A segment (`cpu_linear.py`, `cpu_mlp.py`) computes some mini-batches; here they are strung together:
tokens are cut into spans, states carried along and saved, gradients carried back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tttunet.kernels.cpu_common import NormGradient, Streams
from tttunet.kernels.cpu_tokens import (
    Problem,
    Span,
    Tokens,
    pack_state,
    reduce_state_gradient,
    unpack_state,
)


class Segment(Protocol):
    """Mini-batches of a span.

    Attributes:
        states: of every layer, [steps + 1, lanes * rows, outputs, inputs + 1]; those of the last
            layer are centred over the outputs.
    """

    span: Span
    streams: Streams
    states: tuple[Tensor, ...]

    def scan(self, to_the_end: bool = True) -> None:
        """Compute everything sequential, from the first states on.

        Args:
            to_the_end: also the last states.
        """

    def losses(self) -> Tensor:
        """After `scan`, [steps, lanes * rows, 1, n]."""

    def output(self) -> Tensor:
        """After `losses`, [steps, lanes * rows, d, n]."""


class DifferentiableSegment(Segment, Protocol):
    """A segment with the buffers of a backward pass.

    Attributes:
        grad_output: [steps, lanes * rows, d, n].
        grad_q_and_k: [2, steps, lanes * rows, d, n].
        grad_residual: that of beta - (v - k), [steps, lanes * rows, d, n].
    """

    grad_output: Tensor
    grad_q_and_k: Tensor
    grad_residual: Tensor

    def differentiate(
        self, grad_states: Sequence[Tensor], grad_coefficient: Tensor, norm: NormGradient
    ) -> tuple[list[Tensor], Tensor]:
        """After `scan`: gradients in the first states and in the rates, [steps, ..., 1, n].

        Args:
            grad_states: in the states after the last mini-batch, [rows, ...] each.
            grad_coefficient: [n], is added to.
            norm: is added to.
        """


Make = Callable[[Span], Segment]
MakeDifferentiable = Callable[[Span], DifferentiableSegment]
Arguments = tuple[Tensor, Tensor, Tensor, Tensor]
TokensIn = tuple[Tokens, Tokens, Tokens, Tokens]


def forward(
    problem: Problem,
    limit: int,
    make: Make,
    arguments: Arguments,
    state: Sequence[Tensor],
    save: int,
) -> tuple[Tensor, list[Tensor], Tensor, list[Tensor]]:
    """Output, final state, losses and saved states.

    Args:
        limit: mini-batches per segment.
        make: builds a segment of the span's shape.
        arguments: q, k, v, lr.
        state: W, b (of every layer in turn).
        save: mini-batches between saved states; 0: none are.
    """
    q, leading, tokens = arguments[0], problem.leading, problem.tokens
    output, losses = q.new_empty(*leading, tokens, problem.d), q.new_empty(*leading, tokens)
    tokens_in = _tokens(arguments, problem)
    tokens_out = Tokens(output, problem), Tokens(losses[..., None], problem)
    states, mean = _packed(state, problem)
    count = -(-problem.mini_batches // save) if save else 0
    saved = [q.new_empty(*leading, count, *x.shape[2:]) if save else q.new_empty(0) for x in state]
    segment = None
    for span in problem.forward_spans(limit):
        if segment is None or segment.span[1:] != span[1:]:
            segment = None  # never two at a time
            segment = make(span)
        segment.streams.load(*tokens_in, span)
        for own, start in zip(segment.states, states, strict=True):
            own[0].copy_(start)
        segment.scan()
        tokens_out[1].store(segment.losses(), span)
        tokens_out[0].store(segment.output(), span)
        if save:
            first = -(span.start // problem.size) % save
            index = (span.start // problem.size + first) // save
            due = [own[first : span.steps : save] for own in segment.states]
            _save(due, index, mean, saved, leading)
        states = [own[-1] for own in segment.states]
    final = [x.contiguous() for x in _unpacked(states, mean, leading)]
    return output, final, losses, saved


def backward(
    problem: Problem,
    limit: int,
    make: Make,
    make_differentiable: MakeDifferentiable,
    grad_output: Tensor,
    grad_state: Sequence[Tensor],
    arguments: Arguments,
    coefficient: Tensor,
    state: Sequence[Tensor],
    norm_weight: Tensor,
    saved: Sequence[Tensor],
    save: int,
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, lr, coefficient, the parts of the state, norm_weight, norm_bias."""
    # Two directions are added up.
    new = torch.zeros if problem.directions == 2 else torch.empty
    grads = [new(x.shape, dtype=x.dtype, device=x.device) for x in arguments]
    tokens_in, cotangent = _tokens(arguments, problem), Tokens(grad_output, problem)
    grad_q, grad_k, grad_v, grad_lr = _tokens(grads, problem)
    grad_coefficient = torch.zeros_like(coefficient)
    norm = NormGradient(norm_weight)
    grad_states, mean = _packed(grad_state, problem)
    states = _SavedStates(problem, tokens_in, saved, save, _packed(state, problem)[1], make)
    spans = problem.backward_spans(limit, save)
    segment = None
    for index in reversed(range(len(spans))):
        span = spans[index]
        if segment is None or segment.span[1:] != span[1:]:
            segment = None
            segment = make_differentiable(span)
        segment.streams.load(*tokens_in, span)
        states.load(spans[: index + 1], segment)
        segment.scan(to_the_end=False)
        cotangent.load(span, segment.grad_output)
        grad_states, rates = segment.differentiate(grad_states, grad_coefficient[: span.size], norm)
        grad_lr.store(rates, span)
        grad_v.store(segment.grad_residual.neg_(), span)
        grad_q.store(segment.grad_q_and_k[0], span)
        grad_k.store(segment.grad_q_and_k[1], span)
    # The mean over the outputs of the last layer, which no mini-batch changes, comes through.
    grad_states[-1] = grad_states[-1] + mean
    parts: list[Tensor] = []
    for packed, W in zip(grad_states, state[::2], strict=True):
        parts += reduce_state_gradient(packed, W, problem)
    return (*grads, grad_coefficient, *parts, norm.weight, norm.bias)


@dataclass(frozen=True)
class _SavedStates:
    """Where the spans of the backward pass start from.

    Attributes:
        saved: parts of the states at the start of every `save`-th mini-batch.
        mean: what is taken off the last layer's states to centre them, [rows, 1, inputs + 1].
        make: builds a segment without buffers for a backward pass.
    """

    problem: Problem
    tokens_in: TokensIn
    saved: Sequence[Tensor]
    save: int
    mean: Tensor
    make: Make

    def load(self, spans: Sequence[Span], segment: Segment) -> None:
        """First states of the lanes of the last of `spans`."""
        span = spans[-1]
        index, beyond = divmod(span.start // self.problem.size, self.save)
        if beyond:
            # A tail behind an incomplete interval.
            earlier = self.make(spans[-2])
            earlier.streams.load(*self.tokens_in, spans[-2])
            self.load(spans[:-1], earlier)
            earlier.scan()
            for own, state in zip(segment.states, earlier.states, strict=True):
                own[0].copy_(state[-1])
            return
        lanes = slice(index, index + span.lanes)
        for own, (W, b) in zip(segment.states, _pairs(self.saved), strict=True):
            own_W, own_b = unpack_state(own[0].unflatten(0, (span.lanes, *self.problem.leading)))
            own_W.copy_(W[:, :, :, lanes].movedim(3, 0))
            own_b.copy_(b[:, :, :, lanes].movedim(3, 0))
        segment.states[-1][0].unflatten(0, (span.lanes, -1)).sub_(self.mean)


def _tokens(arguments: Sequence[Tensor], problem: Problem) -> TokensIn:
    """Of q, k, v and lr, or their gradients."""
    q, k, v, lr = arguments
    return tuple(Tokens(x, problem) for x in (q, k, v, lr[..., None]))  # type: ignore[return-value]


def _pairs(parts: Sequence[Tensor]) -> zip[tuple[Tensor, Tensor]]:
    return zip(parts[::2], parts[1::2], strict=True)


def _packed(state: Sequence[Tensor], problem: Problem) -> tuple[list[Tensor], Tensor]:
    """States [S, heads, ...] of all rows, the last layer's centred, and what was taken off it."""
    states = []
    for W, b in _pairs(state):
        packed = pack_state(W, b)
        states.append(packed.expand(*problem.leading, *packed.shape[-2:]).flatten(0, 2))
    mean = states[-1].mean(1, keepdim=True)
    states[-1] = states[-1] - mean
    return states, mean


def _unpacked(
    states: Sequence[Tensor], mean: Tensor, leading: tuple[int, int, int]
) -> list[Tensor]:
    """Inverse of `_packed` for states [..., rows, outputs, inputs + 1], as views."""
    states = [*states[:-1], states[-1] + mean]
    return [part for x in states for part in unpack_state(x.unflatten(-3, leading))]


def _save(
    due: Sequence[Tensor],
    index: int,
    mean: Tensor,
    saved: Sequence[Tensor],
    leading: tuple[int, int, int],
) -> None:
    for part, out in zip(_unpacked(due, mean, leading), saved, strict=True):
        out[:, :, :, index : index + len(part)].copy_(part.movedim(0, 3))
