"""TTT-MLP on CPUs, forward and hand-written backward, in PyTorch operations on any device.

Notation and layout: `cpu_common.py`; the equations: `dual.py`. States are transposed and have the
bias as a last input channel; `hidden` is a = gelu(z1) with a last channel of ones:

    z1 = S1 k,  z2 = S2 a,  G1 = (S2^T G2) * gelu'(z1)
    S1' = S1 - c_last G1 k^T,  S2' = S2 - c_last G2 a^T
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
from tttunet.kernels.reference import GELU_CUBIC, SQRT_2_OVER_PI

_gelu = torch.ops.aten.gelu.out
_gelu_backward = torch.ops.aten.gelu_backward.grad_input


class _Segment:
    """Forward passes over the mini-batches of a span; see `cpu_passes.Segment`."""

    keep = False

    def __init__(
        self, problem: Problem, m: int, norm: tuple[Tensor, Tensor], coefficient: Tensor, span: Span
    ) -> None:
        self.span, self.eps, self.m = span, problem.settings.eps, m
        self.streams = streams = Streams(problem, span, *norm, coefficient)
        steps, rows, d, n = streams.shape
        self.z2, self.G2 = streams.empty(2)
        # U: gradient in the hidden units, before the gelu.
        self.z1, self.G1, self.U = (self.empty(m) for _ in range(3))
        self.hidden, self.read_hidden = (self.empty(m + 1).fill_(1) for _ in range(2))
        self.read_z1 = self.U  # which only the backward still needs
        self.inverse = torch.empty_like(streams.rate)
        shapes = ((m, d + 1), (d, m + 1))
        self.states: tuple[Tensor, ...] = tuple(
            self.z1.new_empty(steps + 1, rows, *shape) for shape in shapes
        )
        self.moved = self.z1.new_empty(rows, d, m + 1)
        self.scratch = Scratch(rows, d, n, self.eps, streams.k)
        self.read1 = ReadOut(streams, m, keep=self.keep)
        self.read2 = ReadOut(streams, d, keep=self.keep)
        given = (streams.k, streams.offset, streams.scale)
        made = (self.z1, self.hidden, self.z2, self.inverse, self.G2, self.U, self.G1)
        following = (x[1:] for x in self.states)
        self.steps = list(zip(*(x.unbind(0) for x in (*given, *made, *following)), strict=True))

    def empty(self, channels: int) -> Tensor:
        steps, rows, _, n = self.streams.shape
        return self.streams.k.new_empty(steps, rows, channels, n)

    def scan(self, to_the_end: bool = True) -> None:
        with one_thread(self.z1[0]):
            self._scan(len(self.steps) if to_the_end else len(self.steps) - 1)

    def _scan(self, updates: int) -> None:
        m, centre, rate = self.m, self.streams.centre, -self.streams.last
        S1, S2 = (x[0] for x in self.states)
        for index, step in enumerate(self.steps):
            key, offset, scale, z1, hidden, z2, inverse, G2, U, G1, next1, next2 = step
            torch.bmm(S1, key, out=z1)
            _gelu(z1, approximate="tanh", out=hidden[:, :m])
            torch.bmm(S2, hidden, out=z2)
            gradient_step(z2, offset, scale, inverse, self.scratch, G2)
            torch.bmm(S2[:, :, :m].mT, G2, out=U)
            _gelu_backward(U, z1, approximate="tanh", grad_input=G1)
            if index < updates:
                torch.baddbmm(S2, G2, hidden.mT, alpha=rate, out=self.moved)
                S1 = torch.baddbmm(S1, G1, key.mT, alpha=rate, out=next1)
                S2 = torch.bmm(centre, self.moved, out=next2)

    def losses(self) -> Tensor:
        return self.streams.losses(self.z2)

    def output(self) -> Tensor:
        return self.streams.output(self.read(self.streams.rate))

    def read(self, inverse: Tensor) -> Tensor:
        """z' of the read-out, [steps, lanes * rows, d, n]; `inverse` receives its s."""
        streams, (S1, S2) = self.streams, (x[:-1] for x in self.states)
        self.read1.read(S1, self.G1, streams.k, streams.q, self.read_z1)
        _gelu(self.read_z1, approximate="tanh", out=self.read_hidden[:, :, : self.m])
        z = self.read2.read(S2, self.G2, self.hidden, self.read_hidden, streams.offset)
        normalise(z, self.eps, streams.staging, inverse)
        return z


class _DifferentiableSegment(_Segment):
    """See `cpu_passes.DifferentiableSegment`."""

    keep = True

    def __init__(
        self, problem: Problem, m: int, norm: tuple[Tensor, Tensor], coefficient: Tensor, span: Span
    ) -> None:
        super().__init__(problem, m, norm, coefficient, span)
        streams = self.streams
        _, _, d, n = streams.shape
        self.read_z1 = torch.empty_like(self.z1)
        self.grad_output, self.grad_G2 = streams.empty(2)
        self.grad_residual = self.grad_G2
        both = torch.empty_like(streams.q_and_k)
        self.grad_q, self.grad_k = both.unbind(0)
        rotated = both[:, :, :, :d]
        self.unrotation = streams.rotate(rotated, streams.arriving, sign=-1)
        self.grad_q_and_k = rotated if self.unrotation is None else streams.arriving
        self.grad_G1, self.slope = torch.empty_like(self.z1), torch.empty_like(self.z1)
        self.grad_hidden, self.grad_read_hidden = (self.empty(m + 1) for _ in range(2))
        self.read_inverse = torch.empty_like(streams.rate)
        self.curvature = curvature = Curvature(streams)
        # Gradients in the states: by the read-out; and in total, in those after a mini-batch.
        self.grad_read = [torch.empty_like(x[:-1]) for x in self.states]
        self.grad_after = [torch.empty_like(x[:-1]) for x in self.states]
        self.row_scratch = Scratch(problem.rows, d, n, self.eps, streams.k)
        self.row_hidden = self.z1.new_empty(3, problem.rows, m, n).unbind(0)
        self.row_moved = self.z1.new_empty(problem.rows, d, m + 1)
        parts: tuple[Tensor, ...] = (streams.k, self.hidden, self.z2, self.G2, self.states[1][:-1])
        parts += (self.grad_G1, self.grad_G2, self.grad_hidden, *self.grad_read)
        parts += (*self.grad_after, self.slope, self.U)
        parts += (curvature.x, curvature.P, curvature.Q, curvature.R)
        self.back_steps = list(zip(*(streams.backwards(x) for x in parts), strict=True))

    def differentiate(
        self, grad_states: Sequence[Tensor], grad_coefficient: Tensor, norm: NormGradient
    ) -> tuple[list[Tensor], Tensor]:
        streams, curvature = self.streams, self.curvature
        self._differentiate_read(grad_coefficient, norm)
        curvature.prepare(self.z2, self.inverse, self.G2)
        _gelu_derivatives(self.z1, self.slope, self.U, self.read_z1)
        with one_thread(self.row_hidden[0]):
            first = self._scan_back(*grad_states)
        grad_z1 = self.U.flatten(0, 1)
        rates = curvature.finish(self.grad_G2, self.inverse, norm)
        self.grad_k.flatten(0, 1).baddbmm_(self.states[0][:-1].flatten(0, 1).mT, grad_z1)
        after1, after2 = self.grad_after
        update_gradient(after2, self.G2, self.hidden, grad_coefficient, self.grad_hidden)
        step = update_gradient(after1, self.G1, streams.k, grad_coefficient, streams.q)
        self.grad_k.add_(step, alpha=-streams.last)
        streams.q[:, :, -1] = 1  # the buffer was borrowed
        self.grad_k[:, :, :-1].add_(self.grad_residual)
        if self.unrotation is not None:
            self.unrotation.run()
        return first, rates

    def _differentiate_read(self, grad_coefficient: Tensor, norm: NormGradient) -> None:
        """Gradients by the read-out in q, k, hidden, G1, G2 and the states."""
        streams, (S1, S2) = self.streams, (x[:-1] for x in self.states)
        z = self.read(self.read_inverse)
        grad_z2, grad_z1 = self.curvature.P, self.slope
        norm.differentiate(self.grad_output, z, self.read_inverse, streams, grad_z2)
        out2 = (self.grad_read[1], self.grad_G2, self.grad_hidden, self.grad_read_hidden)
        self.read2.differentiate(
            grad_z2, S2, self.G2, self.hidden, self.read_hidden, grad_coefficient, out2
        )
        grad_hidden = self.grad_read_hidden[:, :, : self.m]
        _gelu_backward(grad_hidden, self.read_z1, approximate="tanh", grad_input=grad_z1)
        out1 = (self.grad_read[0], self.grad_G1, self.grad_k, self.grad_q)
        self.read1.differentiate(grad_z1, S1, self.G1, streams.k, streams.q, grad_coefficient, out1)
        self.grad_q[:, :, :-1].add_(self.grad_output)

    def _scan_back(self, grad1: Tensor, grad2: Tensor) -> list[Tensor]:
        """Gradients in the first states of all, from those in the last ones."""
        m, rate, scratch, moved = self.m, -self.streams.last, self.row_scratch, self.row_moved
        centre = self.streams.centre[: len(moved)]
        grad_G1, grad_U, grad_hidden = self.row_hidden
        for step in self.back_steps:
            k, a, z, G2, S2, read_G1, read_G2, read_a, read1, read2, *rest = step
            after1, after2, slope, bend, x, P, Q, R = rest
            after1.copy_(grad1)
            after2.copy_(grad2)
            torch.baddbmm(read_G1, after1, k, alpha=rate, out=grad_G1)
            torch.mul(grad_G1, slope, out=grad_U)
            torch.baddbmm(read_G2, after2, a, alpha=rate, out=scratch.gradient)
            scratch.gradient.baddbmm_(S2[:, :, :m], grad_U)
            curvature_step(scratch.gradient, z, (x, P, Q, R), scratch, read_G2, P)
            torch.baddbmm(read_a[:, :m], after2[:, :, :m].mT, G2, alpha=rate, out=grad_hidden)
            grad_hidden.baddbmm_(S2[:, :, :m].mT, P).mul_(slope)
            grad_z1 = torch.addcmul(grad_hidden, grad_G1, bend, out=bend)
            grad1 = torch.baddbmm(read1, grad_z1, k.mT).add_(after1)
            torch.baddbmm(read2, P, a.mT, out=moved)
            moved[:, :, :m].baddbmm_(G2, grad_U.mT)
            grad2 = torch.baddbmm(after2, centre, moved)
        return [grad1, grad2]


def _gelu_derivatives(x: Tensor, first: Tensor, second: Tensor, scratch: Tensor) -> None:
    """Derivatives of the tanh approximation of GELU.

    Args:
        x: argument; is overwritten.
        first: receives the first derivative.
        second: is multiplied by the second one.
        scratch: of the same shape.
    """
    square = torch.mul(x, x, out=scratch)
    # gelu(x) = x (1 + t) / 2 with t = tanh(r)
    t = torch.add(square * GELU_CUBIC, 1, out=first).mul_(x).mul_(SQRT_2_OVER_PI).tanh_()
    r_slope = square.mul_(3 * GELU_CUBIC).add_(1).mul_(SQRT_2_OVER_PI)
    t_slope = (1 - t * t) * r_slope
    # second derivative: t' (1 - t r' x) + (1 - t^2) x r'' / 2 with r'' = 6 GELU_CUBIC sqrt(2/pi) x
    bend = (1 - t * r_slope * x) * t_slope
    bend.addcmul_((1 - t * t) * x, x, value=3 * GELU_CUBIC * SQRT_2_OVER_PI)
    second.mul_(bend)
    first.add_(1).addcmul_(x, t_slope).mul_(0.5)


@torch.no_grad()
def mlp_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    coefficient: Tensor,
    W1: Tensor,
    b1: Tensor,
    W2: Tensor,
    b2: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    settings: Settings,
    save: int,
) -> ForwardResult:
    """TTT-MLP.

    Memory beside the results: one segment, which does not grow with the number of tokens. The
    saved states take R * batch * heads * ceil(M / save) * (m (d + 1) + d (m + 1)) elements,
    where M = ceil(tokens / K).

    Args:
        W1, b1, W2, b2: initial state, [S, heads, d, m], [S, heads, m], [S, heads, m, d] and
            [S, heads, d] with S = batch, or 1 for all. The others: see `linear_forward`.
    """
    problem = Problem.of(q, coefficient, settings)
    m = W1.shape[-1]
    make = partial(_Segment, problem, m, (norm_weight, norm_bias), coefficient)
    limit = problem.limit(11 * problem.d + 6 * m, 0, q.element_size())
    output, final, losses, saved = cpu_passes.forward(
        problem, limit, make, (q, k, v, lr), (W1, b1, W2, b2), save
    )
    return ForwardResult(output, tuple(final), losses, tuple(saved))


@torch.no_grad()
def mlp_backward(
    grad_output: Tensor,
    grad_W1: Tensor,
    grad_b1: Tensor,
    grad_W2: Tensor,
    grad_b2: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    coefficient: Tensor,
    W1: Tensor,
    b1: Tensor,
    W2: Tensor,
    b2: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    saved_W1: Tensor,
    saved_b1: Tensor,
    saved_W2: Tensor,
    saved_b2: Tensor,
    settings: Settings,
    save: int,
) -> tuple[Tensor, ...]:
    """Gradients of `mlp_forward` in q, k, v, lr, coefficient, the state, norm_weight, norm_bias.

    Memory beside the results: one segment of at least `save` mini-batches.

    Args:
        grad_output: [R, batch, heads, tokens, d].
        grad_W1, grad_b1, grad_W2, grad_b2: of the final state.
        saved_W1, saved_b1, saved_W2, saved_b2, save: of the forward pass; `save` >= 1.
    """
    problem = Problem.of(q, coefficient, settings)
    m = W1.shape[-1]
    arguments = (problem, m, (norm_weight, norm_bias), coefficient)
    return cpu_passes.backward(
        problem,
        problem.limit(20 * problem.d + 16 * m, 2, q.element_size()),
        partial(_Segment, *arguments),
        partial(_DifferentiableSegment, *arguments),
        grad_output,
        (grad_W1, grad_b1, grad_W2, grad_b2),
        (q, k, v, lr),
        coefficient,
        (W1, b1, W2, b2),
        norm_weight,
        (saved_W1, saved_b1, saved_W2, saved_b2),
        save,
    )
