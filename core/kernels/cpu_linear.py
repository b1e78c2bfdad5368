"""TTT-Linear on CPUs, forward and hand-written backward, in PyTorch operations on any device.

Notation and layout: `cpu_common.py`; the equations: `dual.py`. States are transposed and have the
bias as a last input channel: z = S k, S' = S - c_last G k^T.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from tttunet.kernels import cpu_passes
from tttunet.kernels.contract import ForwardResult, Settings
from tttunet.kernels.cpu_common import (
    Curvature,
    NormGradient,
    ReadOut,
    Scratch,
    Streams,
    curvature_step,
    gradient_step,
    normalise,
    update_gradient,
)
from tttunet.kernels.cpu_tokens import Problem, Span, one_thread


class _Segment:
    """Forward passes over the mini-batches of a span; see `cpu_passes.Segment`."""

    keep = False

    def __init__(
        self, problem: Problem, gamma: Tensor, beta: Tensor, coefficient: Tensor, span: Span
    ) -> None:
        self.span, self.eps = span, problem.settings.eps
        self.streams = streams = Streams(problem, span, gamma, beta, coefficient)
        self.z, self.G = streams.empty(2)
        steps, rows, d, n = streams.shape
        self.inverse = torch.empty_like(streams.rate)
        self.states: tuple[Tensor, ...] = (streams.k.new_empty(steps + 1, rows, d, d + 1),)
        self.moved = streams.k.new_empty(rows, d, d + 1)
        self.scratch = Scratch(rows, d, n, self.eps, gamma)
        self.read_out = ReadOut(streams, d, keep=self.keep)
        given = (x.unbind(0) for x in (streams.k, streams.offset, streams.scale))
        made = (x.unbind(0) for x in (self.z, self.inverse, self.G, self.states[0][1:]))
        self.steps = list(zip(*given, *made, strict=True))

    def scan(self, to_the_end: bool = True) -> None:
        with one_thread(self.z[0]):
            self._scan(len(self.steps) if to_the_end else len(self.steps) - 1)

    def _scan(self, updates: int) -> None:
        centre, rate, state = self.streams.centre, -self.streams.last, self.states[0][0]
        for index, step in enumerate(self.steps):
            key, offset, scale, z, inverse, G, following = step
            torch.bmm(state, key, out=z)
            gradient_step(z, offset, scale, inverse, self.scratch, G)
            if index < updates:
                torch.baddbmm(state, G, key.mT, alpha=rate, out=self.moved)
                state = torch.bmm(centre, self.moved, out=following)

    def losses(self) -> Tensor:
        return self.streams.losses(self.z)

    def output(self) -> Tensor:
        return self.streams.output(self.read(self.streams.rate))

    def read(self, inverse: Tensor) -> Tensor:
        """z' of the read-out, [steps, lanes * rows, d, n]; `inverse` receives its s."""
        streams = self.streams
        starts = self.states[0][:-1]
        z = self.read_out.read(starts, self.G, streams.k, streams.q, streams.offset)
        normalise(z, self.eps, streams.staging, inverse)
        return z


class _DifferentiableSegment(_Segment):
    """See `cpu_passes.DifferentiableSegment`."""

    keep = True

    def __init__(
        self, problem: Problem, gamma: Tensor, beta: Tensor, coefficient: Tensor, span: Span
    ) -> None:
        super().__init__(problem, gamma, beta, coefficient, span)
        streams = self.streams
        _, _, d, n = streams.shape
        self.grad_output, self.grad_G = streams.empty(2)
        self.grad_residual = self.grad_G
        both = torch.empty_like(streams.q_and_k)
        self.grad_q, self.grad_k = both.unbind(0)
        rotated = both[:, :, :, :d]
        self.unrotation = streams.rotate(rotated, streams.arriving, sign=-1)
        self.grad_q_and_k = rotated if self.unrotation is None else streams.arriving
        self.read_inverse = torch.empty_like(streams.rate)
        self.curvature = curvature = Curvature(streams)
        # Gradients in the states: by the read-out; and in total, in the state after a mini-batch.
        self.grad_read, self.grad_after = (torch.empty_like(self.states[0][:-1]) for _ in range(2))
        self.row_scratch = Scratch(problem.rows, d, n, self.eps, gamma)
        self.row_centre = streams.centre[: problem.rows]
        self.row_moved = self.moved[: problem.rows]
        parts: tuple[Tensor, ...] = (
            streams.k,
            self.z,
            self.grad_G,
            self.grad_read,
            self.grad_after,
        )
        parts += (curvature.x, curvature.P, curvature.Q, curvature.R)
        self.back_steps = list(zip(*(streams.backwards(x) for x in parts), strict=True))

    def differentiate(
        self, grad_states: Sequence[Tensor], grad_coefficient: Tensor, norm: NormGradient
    ) -> tuple[list[Tensor], Tensor]:
        streams, curvature, (states,) = self.streams, self.curvature, self.states
        self._differentiate_read(grad_coefficient, norm)
        curvature.prepare(self.z, self.inverse, self.G)
        with one_thread(self.row_scratch.gradient):
            grad_state = self._scan_back(grad_states[0])
        grad_z = curvature.P.flatten(0, 1)
        rates = curvature.finish(self.grad_G, self.inverse, norm)
        self.grad_k.flatten(0, 1).baddbmm_(states[:-1].flatten(0, 1).mT, grad_z)
        step = update_gradient(self.grad_after, self.G, streams.k, grad_coefficient, streams.q)
        self.grad_k.add_(step, alpha=-streams.last)
        streams.q[:, :, -1] = 1  # the buffer was borrowed
        self.grad_k[:, :, :-1].add_(self.grad_residual)
        if self.unrotation is not None:
            self.unrotation.run()
        return [grad_state], rates

    def _differentiate_read(self, grad_coefficient: Tensor, norm: NormGradient) -> None:
        """Gradients by the read-out in q, k, G and the states."""
        streams = self.streams
        z = self.read(self.read_inverse)
        grad_z = self.curvature.P
        norm.differentiate(self.grad_output, z, self.read_inverse, streams, grad_z)
        self.read_out.differentiate(
            grad_z,
            self.states[0][:-1],
            self.G,
            streams.k,
            streams.q,
            grad_coefficient,
            (self.grad_read, self.grad_G, self.grad_k, self.grad_q),
        )
        self.grad_q[:, :, :-1].add_(self.grad_output)

    def _scan_back(self, grad_state: Tensor) -> Tensor:
        """Gradient in the first state of all, from that in the last one."""
        rate, scratch = -self.streams.last, self.row_scratch
        first = torch.empty_like(grad_state)
        earlier = [step[4] for step in self.back_steps[1:]] + [first]
        self.back_steps[0][4].copy_(grad_state)
        for step, before in zip(self.back_steps, earlier, strict=True):
            k, z, grad_G, grad_read, grad_after, x, P, Q, R = step
            torch.baddbmm(grad_G, grad_after, k, alpha=rate, out=scratch.gradient)
            curvature_step(scratch.gradient, z, (x, P, Q, R), scratch, grad_G, P)
            torch.baddbmm(grad_read, P, k.mT, out=self.row_moved)
            torch.baddbmm(grad_after, self.row_centre, self.row_moved, out=before)
        return first


@torch.no_grad()
def linear_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    coefficient: Tensor,
    W: Tensor,
    b: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    settings: Settings,
    save: int,
) -> ForwardResult:
    """TTT-Linear.

    Memory beside the results: one segment, which does not grow with the number of tokens. The
    saved states take R * batch * heads * ceil(M / save) * d * (d + 1) elements, where M =
    ceil(tokens / K).

    Args:
        q, k, v: [batch, heads, tokens, d], any strides, not rotated; fp32 or fp64, as all others.
        lr: [batch, heads, tokens], see `Settings.base_lr`.
        coefficient: [K].
        W, b: initial state, [S, heads, d, d] and [S, heads, d] with S = batch, or 1 for all.
        norm_weight, norm_bias: [heads, d].
        settings: rates, rotation, directions.
        save: save every n-th mini-batch's first state for `linear_backward`; 0: none.
    """
    problem = Problem.of(q, coefficient, settings)
    make = partial(_Segment, problem, norm_weight, norm_bias, coefficient)
    limit = problem.limit(11 * problem.d, 0, q.element_size())
    output, final, losses, saved = cpu_passes.forward(
        problem, limit, make, (q, k, v, lr), (W, b), save
    )
    return ForwardResult(output, tuple(final), losses, tuple(saved))


@torch.no_grad()
def linear_backward(
    grad_output: Tensor,
    grad_W: Tensor,
    grad_b: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    coefficient: Tensor,
    W: Tensor,
    b: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    saved_W: Tensor,
    saved_b: Tensor,
    settings: Settings,
    save: int,
) -> tuple[Tensor, ...]:
    """Gradients of `linear_forward` in q, k, v, lr, coefficient, W, b, norm_weight, norm_bias.

    Memory beside the results: one segment of at least `save` mini-batches.

    Args:
        grad_output: [R, batch, heads, tokens, d].
        grad_W, grad_b: of the final state.
        saved_W, saved_b, save: of the forward pass; `save` >= 1.
    """
    problem = Problem.of(q, coefficient, settings)
    arguments = (problem, norm_weight, norm_bias, coefficient)
    return cpu_passes.backward(
        problem,
        problem.limit(20 * problem.d, 1, q.element_size()),
        partial(_Segment, *arguments),
        partial(_DifferentiableSegment, *arguments),
        grad_output,
        (grad_W, grad_b),
        (q, k, v, lr),
        coefficient,
        (W, b),
        norm_weight,
        (saved_W, saved_b),
        save,
    )
