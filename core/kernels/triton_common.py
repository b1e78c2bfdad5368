"""Device functions that the Triton kernels of TTT-Linear and TTT-MLP share, and their derivatives.

Notation of `reference.py`. A tile of tokens is [N, D] in fp32: N tokens of a mini-batch in reading
order, D >= 16 a power of two, of which the first d channels are real. Every function keeps padded
channels at 0, given tiles whose padded channels are 0; padded tokens are harmless because their
rate is 0 (see `token_rate`) and their rows are not stored.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

#: Smallest extent of every side of a `tl.dot`.
MIN_TILE = 16


def padded(extent: int) -> int:
    """The power of two >= 16 that an axis of a tile is padded to."""
    return max(MIN_TILE, triton.next_power_of_2(extent))


def runs_on_hip() -> bool:
    """Whether this PyTorch launches kernels on AMD GPUs."""
    return torch.version.hip is not None


def dot_precision(dtype: torch.dtype) -> str:
    """`input_precision` of every `tl.dot` of a kernel whose q, k and v have this dtype.

    fp32 arguments: three tf32 products on NVIDIA ("tf32x3", about fp32 accuracy); AMD has fp32
    matrix instructions ("ieee"). Half precision arguments: one tf32 product, whose 10 bits of
    mantissa are those of fp16.
    """
    if dtype != torch.float32:
        return "tf32"
    return "ieee" if runs_on_hip() else "tf32x3"


def rotary_step(theta: float | None, d: int) -> float:
    """log2 of the ratio of the frequencies of neighbouring pairs, for `rotary_angles`."""
    return 0.0 if theta is None else -2.0 / d * math.log2(theta)


@triton.jit
def keep_channels(x, D: tl.constexpr, d: tl.constexpr):
    """x [N, D] with 0 in the padded channels."""
    if d != D:
        x = tl.where((tl.arange(0, D) < d)[None, :], x, 0.0)
    return x


@triton.jit
def load_tokens(pointer, token, valid, stride, D: tl.constexpr, d: tl.constexpr):
    """Tile [N, D] in fp32, 0 where padded.

    Args:
        pointer: channel 0 of token 0; the stride of the channels is 1.
        token: [N] int32, which tokens; valid: [N] bool; stride: between tokens, in elements.
    """
    channel = tl.arange(0, D)
    mask = valid[:, None] & (channel < d)[None, :]
    address = pointer + token.to(tl.int64)[:, None] * stride + channel[None, :]
    # Converted at once: the interpreter does not compute in bf16.
    return tl.load(address, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_tokens(pointer, x, token, valid, stride, D: tl.constexpr, d: tl.constexpr):
    """Store the tile x [N, D] in the dtype of the pointer. Arguments as of `load_tokens`."""
    channel = tl.arange(0, D)
    mask = valid[:, None] & (channel < d)[None, :]
    address = pointer + token.to(tl.int64)[:, None] * stride + channel[None, :]
    tl.store(address, x.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def load_channels(pointer, D: tl.constexpr, d: tl.constexpr):
    """[D] in fp32 from contiguous memory, 0 in the padded channels."""
    channel = tl.arange(0, D)
    return tl.load(pointer + channel, mask=channel < d, other=0.0)


@triton.jit
def store_channels(pointer, x, D: tl.constexpr, d: tl.constexpr):
    """Store the real channels of x [D] contiguously."""
    channel = tl.arange(0, D)
    tl.store(pointer + channel, x, mask=channel < d)


@triton.jit
def load_matrix(pointer, ROWS: tl.constexpr, D: tl.constexpr, rows: tl.constexpr, d: tl.constexpr):
    """[ROWS, D] in fp32 from a contiguous [rows, d] matrix, 0 where padded."""
    row, channel = tl.arange(0, ROWS), tl.arange(0, D)
    mask = (row < rows)[:, None] & (channel < d)[None, :]
    return tl.load(pointer + row[:, None] * d + channel[None, :], mask=mask, other=0.0)


@triton.jit
def store_matrix(
    pointer, x, ROWS: tl.constexpr, D: tl.constexpr, rows: tl.constexpr, d: tl.constexpr
):
    """Store the real part of x [ROWS, D] to a contiguous [rows, d] matrix."""
    row, channel = tl.arange(0, ROWS), tl.arange(0, D)
    mask = (row < rows)[:, None] & (channel < d)[None, :]
    tl.store(pointer + row[:, None] * d + channel[None, :], x, mask=mask)


@triton.jit
def kept_or_loaded(pointer, kept, D: tl.constexpr, d: tl.constexpr, REREAD: tl.constexpr):
    """A [D, D] operand of a product: `kept`, or read again, if it is too big to be kept."""
    if REREAD:
        kept = load_matrix(pointer, D, D, d, d)
    return kept


@triton.jit
def token_rate(lr, valid, scale, GATED: tl.constexpr):
    """Inner learning rate l [N] of every token, 0 for padded ones.

    Args:
        lr: [N], as given to the operator; scale: base_lr / d, used if GATED.
    """
    rate = lr
    if GATED:
        rate = scale * tl.sigmoid(lr)
    return tl.where(valid, rate, 0.0)


@triton.jit
def token_rate_backward(grad_rate, lr, scale, GATED: tl.constexpr):
    """Gradient of lr [N] from that of the rate."""
    if GATED:
        gate = tl.sigmoid(lr)
        grad_rate = grad_rate * scale * gate * (1 - gate)
    return grad_rate


@triton.jit
def _cos_sin(x):
    """cos and sin of 0 <= x < 2^12 by reduction to |r| <= pi/4 and the Taylor series there.

    Within 1e-7 of the exact values. `tl.sin` takes a stack for its exact reduction of huge angles.
    """
    quarters = tl.floor(x * 0.6366197723675814 + 0.5)
    # pi/2 in three parts; the first two have so few bits that their products here are exact.
    r = x - quarters * 1.5703125
    r = r - quarters * 0.000483751296997070312
    r = r - quarters * 7.549789948768648e-08
    s = r * r
    sine = r + r * s * (-1 / 6 + s * (1 / 120 + s * (-1 / 5040 + s * (1 / 362880))))
    cosine = 1 + s * (-1 / 2 + s * (1 / 24 + s * (-1 / 720 + s * (1 / 40320))))
    cosine += s * s * s * s * s * (-1 / 3628800)
    quadrant = quarters.to(tl.int32) & 3
    odd = (quadrant & 1) == 1
    cos_x = tl.where(odd, sine, cosine)
    sin_x = tl.where(odd, cosine, sine)
    cos_x = tl.where((quadrant == 1) | (quadrant == 2), -cos_x, cos_x)
    sin_x = tl.where(quadrant >= 2, -sin_x, sin_x)
    return cos_x, sin_x


@triton.jit
def rotary_angles(position, step, D: tl.constexpr, d: tl.constexpr):
    """cos and sin, [N, D // 2] each, of the angles by which `rope.py` turns the channel pairs.

    Args:
        position: [N] int32, in the mini-batch; step: from `rotary_step`.
    """
    pair = tl.arange(0, D // 2)
    frequency = tl.where(pair < d // 2, tl.exp2(pair.to(tl.float32) * step), 0.0)
    return _cos_sin(position.to(tl.float32)[:, None] * frequency[None, :])


@triton.jit
def rotate(x, cos, sin, N: tl.constexpr, D: tl.constexpr):
    """The channel pairs (2i, 2i + 1) of x [N, D] turned; with -sin: turned back (the gradient)."""
    even, odd = tl.split(tl.reshape(x, (N, D // 2, 2)))
    return tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (N, D))


@triton.jit
def program_tokens(program, tokens, sequences, mini_batch, position, K: tl.constexpr):
    """Where the tokens at these positions of a mini-batch lie.

    Args:
        program: index of direction, sample and head, sequences = samples * heads of a direction.
        position: [N], in the mini-batch.

    Returns:
        token [N], its index in memory (direction 1 reads the tokens backwards); valid [N].
    """
    place = mini_batch * K + position
    valid = (position < K) & (place < tokens)
    token = tl.where(program >= sequences, tokens - 1 - place, place)
    return tl.where(valid, token, 0), valid


@triton.jit
def load_rotated(
    pointer, token, valid, position, stride, step,
    N: tl.constexpr, D: tl.constexpr, d: tl.constexpr, ROTARY: tl.constexpr,
):  # fmt: skip
    """Queries or keys [N, D] after the rotary embedding, if there is one."""
    x = load_tokens(pointer, token, valid, stride, D, d)
    if ROTARY:
        cos, sin = rotary_angles(position, step, D, d)
        # Not rotate() alone: a tl.dot right after its reshape does not compile for sm_100.
        x = tl.where(valid[:, None], rotate(x, cos, sin, N, D), 0.0)
    return x


@triton.jit
def standardise(z, eps, D: tl.constexpr, d: tl.constexpr):
    """(z - mean) / sqrt(variance + eps) [N, D] over the channels, and the factor [N]."""
    mean = tl.sum(z, 1) / d
    centred = keep_channels(z - mean[:, None], D, d)
    inverse = tl.math.rsqrt(tl.sum(centred * centred, 1) / d + eps)
    return centred * inverse[:, None], inverse


@triton.jit
def standardise_backward(grad, normalised, inverse, D: tl.constexpr, d: tl.constexpr):
    """Gradient of z from that of normalised; `standardise` returned the other two."""
    mean = tl.sum(grad, 1) / d
    projection = tl.sum(grad * normalised, 1) / d
    centred = keep_channels(grad - mean[:, None], D, d)
    return (centred - normalised * projection[:, None]) * inverse[:, None]


@triton.jit
def inner_gradient(z, target, gamma, beta, eps, D: tl.constexpr, d: tl.constexpr):
    """d/dz of 1/2 || LN(z) - target ||^2, and the error LN(z) - target.

    Args:
        z, target: [N, D]; gamma, beta: [D].

    Returns:
        gradient [N, D], error [N, D]; the loss of a token is half the sum of its error^2.
    """
    normalised, inverse = standardise(z, eps, D, d)
    error = gamma[None, :] * normalised + beta[None, :] - target
    return standardise_backward(gamma[None, :] * error, normalised, inverse, D, d), error


@triton.jit
def inner_gradient_backward(grad, z, target, gamma, beta, eps, D: tl.constexpr, d: tl.constexpr):
    """Backward of `inner_gradient` (of its first result).

    With h = grad / s, s the standard deviation, P the projection off (1, normalised) and
    e = gamma * error, g = P(e) / s, so that e gets P(h) and, from the explicit uses of
    normalised in P, normalised gets -mean(e normalised) h - mean(h normalised) e; from s comes
    the term mean(grad g).

    Args:
        grad: of the inner gradient, [N, D]; the others as for `inner_gradient`.

    Returns:
        gradients of z and target [N, D]; those of gamma and beta before the sum over tokens,
        [N, D]; and the inner gradient itself, recomputed.
    """
    normalised, inverse = standardise(z, eps, D, d)
    error = gamma[None, :] * normalised + beta[None, :] - target
    pull = gamma[None, :] * error
    gradient = standardise_backward(pull, normalised, inverse, D, d)
    grad_pull = standardise_backward(grad, normalised, inverse, D, d)
    grad_error = gamma[None, :] * grad_pull
    grad_gamma = grad_pull * error + grad_error * normalised
    scaled = grad * inverse[:, None]
    along_pull = tl.sum(pull * normalised, 1) / d
    along_grad = tl.sum(scaled * normalised, 1) / d
    grad_normalised = (
        gamma[None, :] * grad_error - along_pull[:, None] * scaled - along_grad[:, None] * pull
    )
    grad_z = standardise_backward(grad_normalised, normalised, inverse, D, d)
    scale = tl.sum(grad * gradient, 1) / d * inverse
    return grad_z - normalised * scale[:, None], -grad_error, grad_gamma, grad_error, gradient
