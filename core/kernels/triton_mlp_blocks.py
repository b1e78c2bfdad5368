"""Device functions of the Triton kernels of TTT-MLP: products of matrices in scratch memory.

The state of TTT-MLP and the hidden layer of a mini-batch are too large for registers. They live,
like every other matrix of these kernels, in global scratch memory that a program uses alone (in
the L1 and L2 caches); a product passes slices of its operands through registers and only its result
stays there, until it is stored. So the registers needed do not grow with d, m or the number of
products. All matrices are contiguous, so that few address patterns are alive, and padded, so that
nothing is masked: padded channels and hidden units are 0 in the state, padded tokens have a step
of 0. A kernel is a sequence of phases. What a program reads after its own threads have written it
lies behind a `fence`, and nothing is overwritten in the phase in which it is read.

Notation of `reference.py` and `triton_common.py`; the sizes S are explained at `Sizes`. A tile is a
matrix [N, D]. A layer is [N, M] in blocks of hidden units, [M / BLOCK, N, BLOCK]. A record holds a
padded state: W1 in blocks [M / BLOCK, D, BLOCK], b1 [M], W2 [M, D] and b2 [D].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from tttunet.kernels.triton_common import (
    inner_gradient,
    load_channels,
    load_rotated,
    load_tokens,
    padded,
    program_tokens,
    standardise,
    store_tokens,
    token_rate,
)


@dataclass(frozen=True)
class Sizes:
    """Extents of a mini-batch and its padding, for the compiler.

    Attributes:
        K, N: tokens, and padded.
        d, D: channels, and padded.
        m, M: hidden units, and padded to whole blocks.
        BLOCK: hidden units of a block.
        ROWS: tokens worked on at a time by a LayerNorm or the rotary embedding.
        STEP: terms of a product added at a time.
    """

    K: int
    N: int
    d: int
    D: int
    m: int
    M: int
    BLOCK: int
    ROWS: int
    STEP: int

    @classmethod
    def of(cls, mini_batch: int, d: int, m: int, dtype: torch.dtype) -> Sizes:
        N, D = padded(mini_batch), padded(d)
        rows = min(N, max(16, 1024 // D))
        # By trial: nothing spills with these. The three tf32 products that make one of fp32 want
        # twice the registers for operands, and products of few different shapes fewer addresses.
        full = dtype == torch.float32
        # Two blocks of 32 at least: what is smaller, Triton 3.7 does not compile for sm_100.
        block = 32 if D == 32 or m <= 64 else 64
        step = min(32 if D == 64 and not full else 16, N)
        return cls(mini_batch, N, d, D, m, max(2, -(-m // block)) * block, block, rows, step)

    @property
    def tile(self) -> int:
        return self.N * self.D

    @property
    def layer(self) -> int:
        return self.N * self.M

    @property
    def scores(self) -> int:
        return self.N * self.N

    @property
    def record(self) -> int:
        return (2 * self.D + 1) * self.M + self.D


# GELU's tanh approximation is x sigmoid(u), u = x (GELU_LINEAR + GELU_CUBIC x^2). In the
# interpreter a constant must stand to the right of a tensor.
GELU_LINEAR = tl.constexpr(2 * 0.7978845608028654)
GELU_CUBIC = tl.constexpr(2 * 0.7978845608028654 * 0.044715)

# Pointers stay divisible by this many elements; so many are kept for the 0 of `fence`.
FENCE_STEP = tl.constexpr(16)


@triton.jit
def gelu_slope(x):
    """GELU and its first derivative."""
    cubic = x * x * GELU_CUBIC
    gate = tl.sigmoid(x * (cubic + GELU_LINEAR))
    return x * gate, gate + x * gate * (1.0 - gate) * (cubic * 3.0 + GELU_LINEAR)


@triton.jit
def gelu_curvature(x):
    """GELU, its first and its second derivative."""
    cubic = x * x * GELU_CUBIC
    gate = tl.sigmoid(x * (cubic + GELU_LINEAR))
    width, rise = gate * (1.0 - gate), cubic * 3.0 + GELU_LINEAR
    curvature = width * (2.0 * rise + cubic * 6.0 + x * (1.0 - 2.0 * gate) * rise * rise)
    return x * gate, gate + x * width * rise, curvature


@triton.jit
def open_scratch(scratch):
    """Write the 0 that `fence` reads to the first element of a program's scratch."""
    tl.store(scratch, 0.0)


@triton.jit
def fence(scratch):
    """Wait until the whole program has come here and sees what it has written.

    Returns:
        0, but the compiler does not know: pointers that it is added to are not those of earlier
        phases, so that a thread computes its addresses anew instead of keeping them all in
        registers that the products need.
    """
    tl.debug_barrier()
    return tl.load(scratch).to(tl.int32) * FENCE_STEP


@triton.jit
def anew(pointer, at, ALIGNED: tl.constexpr):
    """A pointer as it is, but even its sum with a thread's offset has to be formed anew.

    That is more than `pointer + at` does, whose terms the compiler may sum in another order.

    Args:
        pointer: of fp32; at: from `fence`.
        ALIGNED: it is divisible by 16 bytes, as scratch is.
    """
    pointer = (pointer.to(tl.int64) ^ at.to(tl.int64)).to(tl.pointer_type(tl.float32))
    return tl.multiple_of(pointer, 16) if ALIGNED else pointer


@triton.jit
def load_matrix(pointer, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """[ROWS, COLUMNS] from scratch."""
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    return tl.load(pointer + (row[:, None] * COLUMNS + column[None, :]))


@triton.jit
def store_matrix(pointer, x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    tl.store(pointer + (row[:, None] * COLUMNS + column[None, :]), x)


@triton.jit
def zeros(ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    return tl.zeros((ROWS, COLUMNS), tl.float32)


@triton.jit
def load_vector(pointer, LENGTH: tl.constexpr):
    return tl.load(pointer + tl.arange(0, LENGTH))


@triton.jit
def store_vector(pointer, x, LENGTH: tl.constexpr):
    tl.store(pointer + tl.arange(0, LENGTH), x)


@triton.jit
def zero_vector(LENGTH: tl.constexpr):
    return tl.zeros((LENGTH,), tl.float32)


@triton.jit
def column_sums(pointer, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    return tl.sum(load_matrix(pointer, ROWS, COLUMNS), 0)


@triton.jit
def matmul(
    total, a, A_TRANSPOSED: tl.constexpr, b, B_TRANSPOSED: tl.constexpr,
    ROWS: tl.constexpr, TERMS: tl.constexpr, COLUMNS: tl.constexpr,
    STEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """total + a b, [ROWS, COLUMNS].

    Args:
        total: [ROWS, COLUMNS], in registers.
        a: pointer of [ROWS, TERMS], or of its transpose.
        b: pointer of [TERMS, COLUMNS], or of its transpose.
        STEP, PRECISION: as in `Sizes`, and of `tl.dot`.
    """
    row, column, term = tl.arange(0, ROWS), tl.arange(0, COLUMNS), tl.arange(0, STEP)
    if A_TRANSPOSED:
        a_tile = a + (term[None, :] * ROWS + row[:, None])
    else:
        a_tile = a + (row[:, None] * TERMS + term[None, :])
    if B_TRANSPOSED:
        b_tile = b + (column[None, :] * TERMS + term[:, None])
    else:
        b_tile = b + (term[:, None] * COLUMNS + column[None, :])
    for _ in range(0, TERMS, STEP):
        total = tl.dot(tl.load(a_tile), tl.load(b_tile), total, input_precision=PRECISION)
        a_tile += STEP * ROWS if A_TRANSPOSED else STEP
        b_tile += STEP if B_TRANSPOSED else STEP * COLUMNS
    return total


@triton.jit
def layer_product(
    total, layer, b, B_TRANSPOSED: tl.constexpr, COLUMNS: tl.constexpr,
    S: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """total + layer b, [N, COLUMNS].

    Args:
        b: pointer of [M, COLUMNS]; if B_TRANSPOSED, of M / BLOCK blocks [COLUMNS, BLOCK].
    """
    for _ in tl.range(0, S.M, S.BLOCK, disable_licm=True):
        total = matmul(
            total, layer, False, b, B_TRANSPOSED, S.N, S.BLOCK, COLUMNS, S.STEP, PRECISION
        )
        layer += S.N * S.BLOCK
        b += S.BLOCK * COLUMNS
    return total


@triton.jit
def keep_causal(x, at, N: tl.constexpr):
    """x [N, N] (query, key) with 0 where the key comes after the query; at: from `fence`."""
    query, key = tl.arange(0, N) + at, tl.arange(0, N) + at
    return tl.where(query[:, None] >= key[None, :], x, 0.0)


@triton.jit
def load_coefficients(coefficient, S: tl.constexpr):
    """[N, 1], 0 where padded."""
    position = tl.arange(0, S.N)
    return tl.load(coefficient + position, position < S.K, 0.0)[:, None]


@triton.jit
def locate_scan(scan, batch, heads):
    """Sample and head (int64) of a scan; scans are counted as [R, B, H] flattened."""
    return tl.cast(scan // heads % batch, tl.int64), tl.cast(scan % heads, tl.int64)


@triton.jit
def record_parts(record, S: tl.constexpr):
    """Pointers of W1, b1, W2 and b2 in a record."""
    W2 = record + (S.D + 1) * S.M
    return record, record + S.D * S.M, W2, W2 + S.D * S.M


@triton.jit
def pack_matrix(
    given, start, to, rows: tl.constexpr, columns: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PACK: tl.constexpr,
):  # fmt: skip
    """Copy the columns from `start` of [rows, columns] to scratch [ROWS, COLUMNS], padded with 0.

    If not PACK, copy them back.
    """
    column = tl.arange(0, COLUMNS)
    for first in tl.range(0, ROWS, 16, disable_licm=True):
        row = first + tl.arange(0, 16)
        mask = (row < rows)[:, None] & (start + column < columns)[None, :]
        outside = given + (row[:, None] * columns + (start + column)[None, :])
        inside = to + (row[:, None] * COLUMNS + column[None, :])
        if PACK:
            tl.store(inside, tl.load(outside, mask, 0.0))
        else:
            tl.store(outside, tl.load(inside), mask)


@triton.jit
def pack_vector(given, start, to, length: tl.constexpr, LENGTH: tl.constexpr, PACK: tl.constexpr):
    """As `pack_matrix`, for the elements from `start` of a vector."""
    place = tl.arange(0, LENGTH)
    mask = start + place < length
    if PACK:
        tl.store(to + place, tl.load(given + start + place, mask, 0.0))
    else:
        tl.store(given + start + place, tl.load(to + place), mask)


@triton.jit
def pack_state(W1, b1, W2, b2, index, record, at, S: tl.constexpr, PACK: tl.constexpr):
    """Write state number `index` of contiguous arrays to a record; if not PACK, the reverse.

    at: from the `fence` before.
    """
    to_W1, to_b1, to_W2, to_b2 = record_parts(anew(record, at, True), S)
    W1 = anew(W1, at, False) + index * (S.d * S.m)
    b1 = anew(b1, at, False) + index * S.m
    W2 = anew(W2, at, False) + index * (S.d * S.m)
    b2 = anew(b2, at, False) + index * S.d
    for start in tl.range(0, S.M, S.BLOCK, disable_licm=True):
        pack_matrix(W1, start, to_W1 + start * S.D, S.d, S.m, S.D, S.BLOCK, PACK)
        pack_vector(b1, start, to_b1 + start, S.m, S.BLOCK, PACK)
    pack_matrix(W2, 0, to_W2, S.m, S.d, S.M, S.D, PACK)
    pack_vector(b2, 0, to_b2, S.d, S.D, PACK)


@triton.jit
def store_rotated(
    x, x_token, tile, scan, tokens, sequences, index, rope_step,
    S: tl.constexpr, ROTARY: tl.constexpr,
):  # fmt: skip
    """Write the queries or keys of mini-batch `index` to a tile, after the rotary embedding."""
    for row in tl.range(0, S.N, S.ROWS, disable_licm=True):
        position = row + tl.arange(0, S.ROWS)
        token, valid = program_tokens(scan, tokens, sequences, index, position, S.K)
        rotated = load_rotated(
            x, token, valid, position, x_token, rope_step, S.ROWS, S.D, S.d, ROTARY
        )
        store_matrix(tile + row * S.D, rotated, S.ROWS, S.D)


@triton.jit
def hidden_layer(keys, state, hidden, slope, S: tl.constexpr, PRECISION: tl.constexpr):
    """Write gelu(k W1 + b1) and the derivative of gelu there to two layers."""
    W1, b1, _, _ = record_parts(state, S)
    for start in tl.range(0, S.M, S.BLOCK, disable_licm=True):
        z1 = matmul(
            zeros(S.N, S.BLOCK), keys, False, W1 + start * S.D, False,
            S.N, S.D, S.BLOCK, S.STEP, PRECISION,
        )  # fmt: skip
        value, derivative = gelu_slope(z1 + load_vector(b1 + start, S.BLOCK)[None, :])
        store_matrix(hidden + start * S.N, value, S.N, S.BLOCK)
        store_matrix(slope + start * S.N, derivative, S.N, S.BLOCK)


@triton.jit
def hidden_output(hidden, state, total, S: tl.constexpr, PRECISION: tl.constexpr):
    """total + hidden W2 + b2, [N, D]."""
    _, _, W2, b2 = record_parts(state, S)
    total = layer_product(total, hidden, W2, False, S.D, S, PRECISION)
    return total + load_vector(b2, S.D)[None, :]


@triton.jit
def inner_steps(
    v, v_token, lr, keys, outputs, steps, losses, norm_weight, norm_bias, eps, scale,
    scan, tokens, sequences, index, S: tl.constexpr, GATED: tl.constexpr, LOSSES: tl.constexpr,
):  # fmt: skip
    """Write l dloss/dz2 of a mini-batch to a tile, and its losses; outputs: the tile z2."""
    for row in tl.range(0, S.N, S.ROWS, disable_licm=True):
        position = row + tl.arange(0, S.ROWS)
        token, valid = program_tokens(scan, tokens, sequences, index, position, S.K)
        value = load_tokens(v, token, valid, v_token, S.D, S.d)
        target = value - load_matrix(keys + row * S.D, S.ROWS, S.D)
        gamma = load_channels(norm_weight, S.D, S.d)
        beta = load_channels(norm_bias, S.D, S.d)
        z2 = load_matrix(outputs + row * S.D, S.ROWS, S.D)
        gradient, error = inner_gradient(z2, target, gamma, beta, eps, S.D, S.d)
        rate = token_rate(tl.load(lr + token, valid, 0.0), valid, scale, GATED)
        store_matrix(steps + row * S.D, rate[:, None] * gradient, S.ROWS, S.D)
        if LOSSES:
            tl.store(losses + token, 0.5 * tl.sum(error * error, 1), valid)


@triton.jit
def hidden_steps(steps, state, slope, steps1, S: tl.constexpr, PRECISION: tl.constexpr):
    """Write l dloss/dz1 to the layer steps1."""
    _, _, W2, _ = record_parts(state, S)
    for start in tl.range(0, S.M, S.BLOCK, disable_licm=True):
        pulled = matmul(
            zeros(S.N, S.BLOCK), steps, False, W2 + start * S.D, True,
            S.N, S.D, S.BLOCK, S.STEP, PRECISION,
        )  # fmt: skip
        pulled *= load_matrix(slope + start * S.N, S.N, S.BLOCK)
        store_matrix(steps1 + start * S.N, pulled, S.N, S.BLOCK)


@triton.jit
def advance_state(
    keys, steps, hidden, steps1, last, state, to, S: tl.constexpr, PRECISION: tl.constexpr
):
    """Write the state after a mini-batch to another record; last: coefficient of its last token."""
    W1, b1, W2, b2 = record_parts(state, S)
    to_W1, to_b1, to_W2, to_b2 = record_parts(to, S)
    for start in tl.range(0, S.M, S.BLOCK, disable_licm=True):
        change = matmul(
            zeros(S.D, S.BLOCK), keys, True, steps1 + start * S.N, False,
            S.D, S.N, S.BLOCK, S.STEP, PRECISION,
        )  # fmt: skip
        change = load_matrix(W1 + start * S.D, S.D, S.BLOCK) - last * change
        store_matrix(to_W1 + start * S.D, change, S.D, S.BLOCK)
        change = matmul(
            zeros(S.BLOCK, S.D), hidden + start * S.N, True, steps, False,
            S.BLOCK, S.N, S.D, S.STEP, PRECISION,
        )  # fmt: skip
        change = load_matrix(W2 + start * S.D, S.BLOCK, S.D) - last * change
        store_matrix(to_W2 + start * S.D, change, S.BLOCK, S.D)
        total = column_sums(steps1 + start * S.N, S.N, S.BLOCK)
        bias = load_vector(b1 + start, S.BLOCK) - last * total
        store_vector(to_b1 + start, bias, S.BLOCK)
    bias = load_vector(b2, S.D) - last * column_sums(steps, S.N, S.D)
    store_vector(to_b2, bias, S.D)


@triton.jit
def query_scores(queries, keys, scores, coefficient, at, S: tl.constexpr, PRECISION: tl.constexpr):
    """Write -c_i (<q_i, k_j> + 1) for j <= i to scores [N, N], else 0; at: from `fence`."""
    products = matmul(zeros(S.N, S.N), queries, False, keys, True, S.N, S.D, S.N, S.STEP, PRECISION)
    products = -load_coefficients(coefficient, S) * (products + 1.0)
    store_matrix(scores, keep_causal(products, at, S.N), S.N, S.N)


@triton.jit
def read_hidden(
    queries, scores, steps1, state, read, slope,
    S: tl.constexpr, SLOPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the hidden layer that the queries see, and with SLOPE the derivative of gelu there.

    Args:
        queries: tile; scores: from `query_scores`; steps1: layer l dloss/dz1.
    """
    W1, b1, _, _ = record_parts(state, S)
    for start in tl.range(0, S.M, S.BLOCK, disable_licm=True):
        z1 = matmul(
            zeros(S.N, S.BLOCK), queries, False, W1 + start * S.D, False,
            S.N, S.D, S.BLOCK, S.STEP, PRECISION,
        )  # fmt: skip
        z1 = matmul(
            z1, scores, False, steps1 + start * S.N, False,
            S.N, S.N, S.BLOCK, S.STEP, PRECISION,
        )  # fmt: skip
        value, derivative = gelu_slope(z1 + load_vector(b1 + start, S.BLOCK)[None, :])
        store_matrix(read + start * S.N, value, S.N, S.BLOCK)
        if SLOPE:
            store_matrix(slope + start * S.N, derivative, S.N, S.BLOCK)


@triton.jit
def read_scores(read, hidden, scores, at, S: tl.constexpr, PRECISION: tl.constexpr):
    """Write <hidden of q_i, hidden of k_j> + 1 for j <= i to scores [N, N], else 0."""
    products = layer_product(zeros(S.N, S.N), read, hidden, True, S.N, S, PRECISION)
    store_matrix(scores, keep_causal(products + 1.0, at, S.N), S.N, S.N)


@triton.jit
def read_output(
    read, scores, steps, coefficient, state, outputs, S: tl.constexpr, PRECISION: tl.constexpr
):
    """Write f(q_i; S_i) of every query to the tile outputs.

    Args:
        read: layer of the queries; scores: from `read_scores`; steps: tile l dloss/dz2.
    """
    z = matmul(zeros(S.N, S.D), scores, False, steps, False, S.N, S.N, S.D, S.STEP, PRECISION)
    z = hidden_output(read, state, -load_coefficients(coefficient, S) * z, S, PRECISION)
    store_matrix(outputs, z, S.N, S.D)


@triton.jit
def store_output(
    outputs, queries, output, norm_weight, norm_bias, eps, scan, tokens, sequences, index,
    S: tl.constexpr,
):  # fmt: skip
    """Store q + LN(z) of a mini-batch from the tiles z and q."""
    for row in tl.range(0, S.N, S.ROWS, disable_licm=True):
        position = row + tl.arange(0, S.ROWS)
        token, valid = program_tokens(scan, tokens, sequences, index, position, S.K)
        z = load_matrix(outputs + row * S.D, S.ROWS, S.D)
        normalised, _ = standardise(z, eps, S.D, S.d)
        gamma = load_channels(norm_weight, S.D, S.d)
        beta = load_channels(norm_bias, S.D, S.d)
        query = load_matrix(queries + row * S.D, S.ROWS, S.D)
        y = query + gamma[None, :] * normalised + beta[None, :]
        store_tokens(output, y, token, valid, S.d, S.D, S.d)
