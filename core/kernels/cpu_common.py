"""What the CPU backends of TTT-Linear and TTT-MLP share.

Three things make them fast. Work is cut into segments whose temporaries stay in the cache and are
allocated once. Only what must be sequential is: a handful of small in-place operations per
mini-batch, over directions, samples and heads at once; everything else runs over all mini-batches
of a segment. And two algebraic shortcuts remove operations:

- The bias is a further input channel that is always one (`pack_state`), so it needs no operation
  of its own, neither in the inner model nor as the `+ 1` of the masked scores (see `dual.py`).
- The inner LayerNorm does not see the mean of z over the channels, and the inner gradient has
  none. So the last map of the inner model is kept centred over its outputs, and a LayerNorm is a
  division by the root mean square. The mean that was taken off is added to what is returned.

Layout: channels in front of tokens, [mini-batches, rows, channels, n], where rows = directions *
batch * heads: sums over channels are then additions of contiguous vectors, and what a LayerNorm
knows of a token is one vector for many channels. States are [rows, outputs, inputs + 1].

With s = 1 / sqrt(sum z^2 + d eps) and z' = s z (so sqrt(d) z' is the normalised z), u = gamma
sqrt(d) z' + beta - (v - k) and e = gamma u, the inner gradient (in its own rate l) is

    G = l sqrt(d) s (e - mean(e) - z' <z', e>)

and its derivative in z, which is symmetric, is applied in `curvature_step`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tttunet.kernels.cpu_tokens import Problem, Span, Tokens

#: Bytes of masked scores that are computed at a time.
SCORES_BYTES = 1 << 18


def per_row(parameter: Tensor, problem: Problem, lanes: int) -> Tensor:
    """[heads, d] as [lanes * rows, d, 1]."""
    copies = lanes * problem.directions * problem.batch
    return parameter.repeat(copies, 1)[..., None]


def rotary_tables(problem: Problem, size: int, like: Tensor) -> tuple[Tensor, Tensor] | None:
    """Cosine and sine of every pair and position, [pairs, n]; as in `rope.py`."""
    theta = problem.settings.rope_theta
    if theta is None:
        return None
    pairs = torch.arange(problem.d // 2, dtype=torch.float32, device=like.device)
    position = torch.arange(size, dtype=torch.float32, device=like.device)
    angle = (1.0 / theta ** (pairs * 2 / problem.d))[:, None] * position
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


class Rotation:
    """Rotary embedding of one buffer into another, [..., d, n]; `sign` -1: its inverse."""

    def __init__(
        self, tables: tuple[Tensor, Tensor], x: Tensor, out: Tensor, sign: int = 1
    ) -> None:
        self.cos, self.sin = tables
        self.sign = sign
        end = 2 * len(self.cos)
        self.even, self.odd, self.rest = x[..., 0:end:2, :], x[..., 1:end:2, :], x[..., end:, :]
        self.out_even, self.out_odd = out[..., 0:end:2, :], out[..., 1:end:2, :]
        self.out_rest = out[..., end:, :]

    def run(self) -> None:
        even, odd, cos, sin = self.even, self.odd, self.cos, self.sin
        torch.mul(even, cos, out=self.out_even).addcmul_(odd, sin, value=-self.sign)
        torch.mul(odd, cos, out=self.out_odd).addcmul_(even, sin, value=self.sign)
        if self.rest.numel():
            self.out_rest.copy_(self.rest)


class Streams:
    """What a segment reads: its tokens, and what the inner gradient needs to know of them.

    Attributes:
        k, q: rotated, [steps, rows, d + 1, n] with a last channel of ones.
        residual: beta - (v - k), [steps, rows, d, n].
        rate: l, [steps, rows, 1, n].
        scale, offset: e in `gradient_step` is offset + scale * z'.
        gamma, beta: of the inner LayerNorm, [rows, d, 1]; root: sqrt(d) gamma.
    """

    def __init__(
        self, problem: Problem, span: Span, gamma: Tensor, beta: Tensor, coefficient: Tensor
    ) -> None:
        self.problem, self.span = problem, span
        d, n = problem.d, span.size
        rows = span.lanes * problem.rows
        self.shape = (span.steps, rows, d, n)
        self.q_and_k = gamma.new_ones(2, span.steps, rows, d + 1, n)
        self.q, self.k = self.q_and_k.unbind(0)
        buffers = gamma.new_empty(4, *self.shape)
        self.staging, self.offset, self.scale, self.residual = buffers.unbind(0)
        self.rate = gamma.new_empty(span.steps, rows, 1, n)
        self.gamma, self.beta = (per_row(x, problem, span.lanes) for x in (gamma, beta))
        self.root = self.gamma * math.sqrt(d)
        self.tables = rotary_tables(problem, n, gamma)
        unrotated = buffers[:2]
        self.rotation = self.rotate(unrotated, self.q_and_k[:, :, :, :d])
        #: Where q and k arrive, and where their gradients leave.
        self.arriving = self.q_and_k[:, :, :, :d] if self.rotation is None else unrotated
        self.minus_coefficient = -coefficient[:n]
        self.last = float(coefficient[n - 1])
        self.mask = gamma.new_ones(n, n).triu()
        centre = torch.eye(d, dtype=gamma.dtype, device=gamma.device) - 1 / d
        self.centre = centre.expand(rows, d, d).contiguous()

    def rotate(self, x: Tensor, out: Tensor, sign: int = 1) -> Rotation | None:
        return None if self.tables is None else Rotation(self.tables, x, out, sign)

    def empty(self, count: int) -> list[Tensor]:
        return [self.k.new_empty(self.shape) for _ in range(count)]

    def load(self, q: Tokens, k: Tokens, v: Tokens, lr: Tokens, span: Span) -> None:
        d, settings = self.problem.d, self.problem.settings
        q.load(span, self.arriving[0])
        k.load(span, self.arriving[1])
        if self.rotation is not None:
            self.rotation.run()
        v.load(span, self.staging)
        torch.sub(self.k[:, :, :d], self.staging, out=self.residual).add_(self.beta)
        lr.load(span, self.rate)
        if settings.base_lr is not None:
            self.rate.sigmoid_().mul_(settings.base_lr / d)
        torch.mul(self.root, self.rate, out=self.scale)
        torch.mul(self.residual, self.scale, out=self.offset)
        self.scale.mul_(self.root)

    def losses(self, z: Tensor) -> Tensor:
        """Inner losses, [steps, rows, 1, n], from z'."""
        error = torch.addcmul(self.residual, z, self.root, out=self.staging)
        return error.mul_(error).sum(2, keepdim=True).mul_(0.5)

    def output(self, z: Tensor) -> Tensor:
        """q + LN(z), from z' of the read-out."""
        torch.addcmul(self.q[:, :, :-1], z, self.root, out=self.staging)
        return self.staging.add_(self.beta)

    def backwards(self, x: Tensor) -> list[Tensor]:
        """[steps, lanes * rows, ...] as mini-batches [rows, ...], the last one first."""
        lanes = x.unflatten(1, (self.span.lanes, -1)).unbind(1)
        return [part for lane in reversed(lanes) for part in reversed(lane.unbind(0))]


class Scratch:
    """Temporaries of one mini-batch's inner gradient."""

    def __init__(self, rows: int, d: int, n: int, eps: float, like: Tensor) -> None:
        # The last channel adds d eps to the sum of squares.
        self.padded = like.new_full((rows, d + 1, n), d * eps)
        self.product = self.padded[:, :d]
        self.error, self.gradient = (like.new_empty(rows, d, n) for _ in range(2))
        self.sums = like.new_empty(2, rows, 1, n).unbind(0)


def gradient_step(
    z: Tensor, offset: Tensor, scale: Tensor, inverse: Tensor, scratch: Scratch, out: Tensor
) -> None:
    """Inner gradient of a mini-batch times the token rates, up to its mean over the channels.

    Args:
        z: output of the inner model, centred, [rows, d, n]; becomes z'.
        offset, scale: see `Streams`.
        inverse: receives s, [rows, 1, n].
        out: receives G, not centred.
    """
    product, error, projection = scratch.product, scratch.error, scratch.sums[0]
    torch.mul(z, z, out=product)
    torch.sum(scratch.padded, 1, keepdim=True, out=inverse)
    inverse.rsqrt_()
    z.mul_(inverse)
    torch.addcmul(offset, scale, z, out=error)
    torch.mul(error, z, out=product)
    torch.sum(product, 1, keepdim=True, out=projection)
    error.addcmul_(z, projection, value=-1)
    torch.mul(error, inverse, out=out)


class Curvature:
    """Derivative of the inner gradient in z, for all mini-batches of a segment.

    dz = P D - Q <D, x> - R <dG, z'> with D = dG - z' <dG, z'>, up to the mean over the channels.
    """

    def __init__(self, streams: Streams) -> None:
        self.streams = streams
        self.P, self.Q, self.R, self.x, self.slope = streams.empty(5)
        self.error = streams.scale  # has been used by then
        self.sum = streams.rate.new_empty(streams.rate.shape)

    def prepare(self, z: Tensor, inverse: Tensor, G: Tensor) -> None:
        """z: normalised (z'); inverse: s; G: the inner gradients times the rates."""
        streams = self.streams
        root_d = math.sqrt(streams.problem.d)
        # The derivative of e in gamma: 2 gamma sqrt(d) z' + beta - (v - k).
        torch.addcmul(streams.residual, z, streams.root, value=2, out=self.slope)
        torch.mul(self.slope, streams.gamma, out=self.x)
        torch.addcmul(self.x, z, streams.root * streams.gamma, value=-1, out=self.error)
        torch.mul(self.error, z, out=self.P)
        torch.sum(self.P, 2, keepdim=True, out=self.sum)
        torch.sub(streams.root.square(), self.sum, alpha=root_d, out=self.P)
        torch.mul(streams.rate, inverse, out=self.sum).mul_(inverse)
        self.P.mul_(self.sum)
        torch.mul(z, self.sum.mul_(root_d), out=self.Q)
        torch.mul(G, inverse, out=self.R)

    def finish(self, D: Tensor, inverse: Tensor, norm: NormGradient) -> Tensor:
        """Gradients in the rates (returned) and in v - k (minus D), from all mini-batches' D."""
        streams = self.streams
        torch.mul(D, self.error, out=self.x)
        inverse.mul_(math.sqrt(streams.problem.d))
        rates = torch.sum(self.x, 2, keepdim=True, out=self.sum).mul_(inverse)
        D.mul_(inverse.mul_(streams.rate))
        norm.add_weight(self.slope.mul_(D))
        norm.add_bias(D.mul_(streams.gamma))
        base_lr = streams.problem.settings.base_lr
        if base_lr is not None:
            rates.mul_(streams.rate)
            rates.addcmul_(rates, streams.rate, value=-streams.problem.d / base_lr)
        return rates


class NormGradient:
    """Sums the gradients of the inner LayerNorm's weight and bias, [heads, d]."""

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.bias = torch.zeros_like(weight), torch.zeros_like(weight)

    def differentiate(
        self, dy: Tensor, z: Tensor, inverse: Tensor, streams: Streams, out: Tensor
    ) -> None:
        """out = gradient in z of the read-out's LayerNorm; z (z') and its s from `normalise`."""
        root_d, product = math.sqrt(streams.problem.d), streams.staging
        self.add_bias(dy)
        self.add_weight(torch.mul(dy, z, out=product), root_d)
        torch.mul(dy, streams.gamma, out=out)
        out.sub_(out.mean(2, keepdim=True))
        torch.mul(out, z, out=product)
        out.addcmul_(z, product.sum(2, keepdim=True), value=-1)
        out.mul_(inverse.mul_(root_d))

    def add_weight(self, x: Tensor, scale: float = 1.0) -> None:
        """x: [steps, rows, d, n]."""
        self.weight.add_(x.sum((0, 3)).unflatten(0, (-1, len(self.weight))).sum(0), alpha=scale)

    def add_bias(self, x: Tensor) -> None:
        self.bias.add_(x.sum((0, 3)).unflatten(0, (-1, len(self.bias))).sum(0))


def curvature_step(
    dG: Tensor, z: Tensor, parts: tuple[Tensor, ...], scratch: Scratch, D: Tensor, out: Tensor
) -> None:
    """One mini-batch of `Curvature`: gradient in G -> gradient in z.

    Args:
        dG: centred, [rows, d, n].
        parts: x, P, Q, R of the mini-batch.
        D: receives D.
        out: receives dz, not centred.
    """
    x, P, Q, R = parts
    product, (along, across) = scratch.product, scratch.sums
    torch.mul(dG, z, out=product)
    torch.sum(product, 1, keepdim=True, out=along)
    torch.addcmul(dG, z, along, value=-1, out=D)
    torch.mul(D, x, out=product)
    torch.sum(product, 1, keepdim=True, out=across)
    torch.mul(P, D, out=out)
    out.addcmul_(Q, across, value=-1)
    out.addcmul_(R, along, value=-1)


class ReadOut:
    """The read-out of one layer, forward and backward, over all mini-batches of a segment.

    z = S x - c (G A), A = tril(<k_j, x_i>), x and k with their channel of ones.
    """

    def __init__(self, streams: Streams, outputs: int, keep: bool) -> None:
        """`keep`: what `differentiate` needs."""
        steps, rows, _, n = streams.shape
        self.streams = streams
        self.past = streams.k.new_empty(steps * rows, outputs, n)
        # Masked scores are large and soon done with: a few at a time stay in the cache.
        self.chunk = max(1, SCORES_BYTES // (n * n * self.past.element_size()))
        few = self.past.new_empty(min(self.chunk, steps * rows), n, n)
        kept = self.past.new_empty(steps * rows, n, n) if keep else None
        starts = range(0, steps * rows, self.chunk)
        self.few = [few[: steps * rows - start] for start in starts]
        self.scores = self.few if kept is None else kept.split(self.chunk)

    def read(self, states: Tensor, G: Tensor, keys: Tensor, x: Tensor, out: Tensor) -> Tensor:
        """out = z; G A and, if kept, the masked scores stay for the backward.

        Args:
            states: [steps, rows, outputs, inputs + 1].
            G, out: [steps, rows, outputs, n].
            keys, x: [steps, rows, inputs + 1, n].
        """
        states, G, keys, x = (tensor.flatten(0, 1) for tensor in (states, G, keys, x))
        z = out.flatten(0, 1)
        pieces = (tensor.split(self.chunk) for tensor in (keys.mT, x, G, self.past))
        for scores, k, q, g, past in zip(self.scores, *pieces, strict=True):
            torch.bmm(k, q, out=scores).mul_(self.streams.mask)
            torch.bmm(g, scores, out=past)
        torch.bmm(states, x, out=z).addcmul_(self.past, self.streams.minus_coefficient)
        return out

    def differentiate(
        self,
        dz: Tensor,
        states: Tensor,
        G: Tensor,
        keys: Tensor,
        x: Tensor,
        grad_coefficient: Tensor,
        out: tuple[Tensor, Tensor, Tensor, Tensor],
    ) -> None:
        """Gradients of `read`, after it.

        Args:
            dz: gradient in z.
            grad_coefficient: [n], is added to.
            out: receives the gradients in states, G, keys and x.
        """
        dz, states, G, keys, x = (tensor.flatten(0, 1) for tensor in (dz, states, G, keys, x))
        dstates, dG, dkeys, dx = (tensor.flatten(0, 1) for tensor in out)
        torch.bmm(dz, x.mT, out=dstates)
        torch.bmm(states.mT, dz, out=dx)
        grad_coefficient.sub_(self.past.mul_(dz).sum((0, 1)))
        dpast = torch.mul(dz, self.streams.minus_coefficient, out=self.past)
        tensors = (dpast, G.mT, keys, x, dG, dkeys, dx)
        pieces = (tensor.split(self.chunk) for tensor in tensors)
        for scores, few, dp, g, k, q, dg, dk, dq in zip(
            self.scores, self.few, *pieces, strict=True
        ):
            torch.bmm(dp, scores.mT, out=dg)
            dscores = torch.bmm(g, dp, out=few).mul_(self.streams.mask)
            dq.baddbmm_(k, dscores)
            torch.bmm(q, dscores.mT, out=dk)


def update_gradient(
    grad_after: Tensor, G: Tensor, keys: Tensor, grad_coefficient: Tensor, out: Tensor
) -> Tensor:
    """Gradients of all updates S' = S - c_last G k^T in c_last, and, divided by -c_last, in k.

    Args:
        grad_after: in S', [steps, rows, outputs, inputs + 1].
        G: [steps, rows, outputs, n].
        keys: [steps, rows, inputs + 1, n].
        grad_coefficient: [n], its last element is added to.
        out: receives the gradient in the keys.
    """
    torch.bmm(grad_after.flatten(0, 1).mT, G.flatten(0, 1), out=out.flatten(0, 1))
    grad_coefficient[-1] -= torch.dot(out.flatten(), keys.flatten())
    return out


def normalise(z: Tensor, eps: float, product: Tensor, inverse: Tensor) -> None:
    """z, [steps, rows, d, n], becomes z'; `inverse` receives s; `product` is scratch."""
    torch.mean(z, 2, keepdim=True, out=inverse)
    z.sub_(inverse)
    torch.mul(z, z, out=product)
    torch.sum(product, 2, keepdim=True, out=inverse)
    inverse.add_(z.shape[2] * eps).rsqrt_()
    z.mul_(inverse)
