"""Device functions of TTT-MLP's backward pass: of the read-out, and of the scan.

Built like, and with the notation of, `triton_mlp_blocks.py`. `dx` is the gradient of x. Of a
mini-batch that starts from the state (W1, b1, W2, b2), with tiles k, q, G2 = l dloss/dz2 and c:

    hidden = gelu(k W1 + b1)      G1 = (G2 W2^T) * gelu'(k W1 + b1)
    A = tril(q k^T + 1)           read = gelu(q W1 + b1 - c * (A G1))
    B = tril(read hidden^T + 1)   z = read W2 + b2 - c * (B G2)        y = q + LN(z)

`read_backward` goes from dy to what does not depend on other mini-batches; `scan_backward` adds
what comes through the next state W' = W - c_last * (k^T G1, sum G1, hidden^T G2, sum G2).
"""

from __future__ import annotations

import triton
import triton.language as tl

from tttunet.kernels.triton_common import (
    inner_gradient_backward,
    load_channels,
    load_tokens,
    program_tokens,
    rotary_angles,
    rotate,
    standardise,
    standardise_backward,
    store_tokens,
    token_rate,
    token_rate_backward,
)
from tttunet.kernels.triton_mlp_blocks import (
    column_sums,
    gelu_curvature,
    keep_causal,
    layer_product,
    load_coefficients,
    load_matrix,
    load_vector,
    matmul,
    read_hidden,
    read_output,
    record_parts,
    store_matrix,
    store_rotated,
    store_vector,
    zero_vector,
    zeros,
)


@triton.jit
def store_rotated_back(
    to, x, token, valid, position, rope_step, S: tl.constexpr, ROTARY: tl.constexpr
):
    """Store the gradient of queries or keys before the rotary embedding from x, that after it."""
    if ROTARY:
        cos, sin = rotary_angles(position, rope_step, S.D, S.d)
        x = rotate(x, cos, -sin, S.ROWS, S.D)
    store_tokens(to, x, token, valid, S.d, S.D, S.d)


@triton.jit
def output_backward(
    outputs, grad_output, coefficient, dz, scaled, norm_part, norm_weight, eps,
    scan, tokens, sequences, index, S: tl.constexpr,
):  # fmt: skip
    """From dy to dz through the LayerNorm.

    Args:
        outputs: the tile z; dz, scaled: tiles to be filled with dz and -c * dz.
        norm_part: to be filled with the gradients of gamma and beta, [2, D].
    """
    dgamma, dbeta = zero_vector(S.D), zero_vector(S.D)
    for row in tl.range(0, S.N, S.ROWS, disable_licm=True):
        position = row + tl.arange(0, S.ROWS)
        token, valid = program_tokens(scan, tokens, sequences, index, position, S.K)
        z = load_matrix(outputs + row * S.D, S.ROWS, S.D)
        normalised, inverse = standardise(z, eps, S.D, S.d)
        dy = load_tokens(grad_output, token, valid, S.d, S.D, S.d)
        dgamma += tl.sum(dy * normalised, 0)
        dbeta += tl.sum(dy, 0)
        gamma = load_channels(norm_weight, S.D, S.d)
        grad = standardise_backward(gamma[None, :] * dy, normalised, inverse, S.D, S.d)
        store_matrix(dz + row * S.D, grad, S.ROWS, S.D)
        c = tl.load(coefficient + position, position < S.K, 0.0)
        store_matrix(scaled + row * S.D, -c[:, None] * grad, S.ROWS, S.D)
    store_vector(norm_part, dgamma, S.D)
    store_vector(norm_part + S.D, dbeta, S.D)


@triton.jit
def scores_backward(products, scores, coefficient, to, S: tl.constexpr):
    """Backward of -c * (scores other), [N, ...], in the scores and in c.

    Args:
        products: d(result) other^T, [N, N]; scores: [N, N], 0 where masked.
        to: to be filled with the gradient of the scores.

    Returns:
        gradient of c, [N].
    """
    products = keep_causal(products, S.N)
    store_matrix(to, -load_coefficients(coefficient, S) * products, S.N, S.N)
    return -tl.sum(scores * products, 1)


@triton.jit
def read_backward(
    q, q_token, grad_output, grad_q, coefficient, coefficient_part, norm_part, norm_weight, eps,
    state, exchange, scratch, scan, tokens, sequences, index, rope_step,
    S: tl.constexpr, ROTARY: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Backward of the read-out of a mini-batch: dq, and its parts of the other gradients.

    Args:
        exchange: in: the tiles k and G2. Out: the tiles dG2 and dk, the layers dhidden and dG1 and
            the record of the state's gradient, each as far as the read-out goes.
        scratch: in: the layers hidden, (any) and G1. Three more layers, four tiles and four
            matrices of scores to work in.
    """
    keys, steps = exchange, exchange + S.tile
    dsteps, dkeys = exchange + 3 * S.tile, exchange + 4 * S.tile
    dhidden = exchange + 5 * S.tile
    dsteps1 = dhidden + S.layer
    dW1, db1, dW2, db2 = record_parts(dsteps1 + S.layer, S)
    hidden, steps1 = scratch, scratch + 2 * S.layer
    read, slope, dread = steps1 + S.layer, steps1 + 2 * S.layer, steps1 + 3 * S.layer
    queries = dread + S.layer
    outputs, dz, scaled = queries + S.tile, queries + 2 * S.tile, queries + 3 * S.tile
    scores = scaled + S.tile
    hidden_scores, dhidden_scores = scores + S.scores, scores + 2 * S.scores
    dscores = scores + 3 * S.scores
    W1, _, W2, _ = record_parts(state, S)

    store_rotated(q, q_token, queries, scan, tokens, sequences, index, rope_step, S, ROTARY)
    tl.debug_barrier()
    read_hidden(queries, keys, steps1, scores, coefficient, state, read, slope, S, True, PRECISION)
    tl.debug_barrier()
    z = read_output(read, hidden, steps, hidden_scores, coefficient, state, S, PRECISION)
    store_matrix(outputs, z, S.N, S.D)
    tl.debug_barrier()
    output_backward(
        outputs, grad_output, coefficient, dz, scaled, norm_part, norm_weight, eps,
        scan, tokens, sequences, index, S,
    )  # fmt: skip
    tl.debug_barrier()
    x = matmul(zeros(S.N, S.N), dz, False, steps, True, S.N, S.D, S.N, S.STEP, PRECISION)
    dc = scores_backward(x, load_matrix(hidden_scores, S.N, S.N), coefficient, dhidden_scores, S)
    store_vector(db2, column_sums(dz, S.N, S.D), S.D)
    x = zeros(S.N, S.D)
    x = matmul(x, hidden_scores, True, scaled, False, S.N, S.N, S.D, S.STEP, PRECISION)
    store_matrix(dsteps, x, S.N, S.D)
    tl.debug_barrier()
    for start in tl.range(0, S.M, S.BLOCK, disable_licm=True):
        at = start * S.N
        x = zeros(S.N, S.BLOCK)
        x = matmul(x, dz, False, W2 + start * S.D, True, S.N, S.D, S.BLOCK, S.STEP, PRECISION)
        x = matmul(
            x, dhidden_scores, False, hidden + at, False,
            S.N, S.N, S.BLOCK, S.STEP, PRECISION,
        )  # fmt: skip
        x *= load_matrix(slope + at, S.N, S.BLOCK)
        store_matrix(dread + at, x, S.N, S.BLOCK)
        store_vector(db1 + start, tl.sum(x, 0), S.BLOCK)
        x = zeros(S.N, S.BLOCK)
        x = matmul(x, dhidden_scores, True, read + at, False, S.N, S.N, S.BLOCK, S.STEP, PRECISION)
        store_matrix(dhidden + at, x, S.N, S.BLOCK)
        x = zeros(S.BLOCK, S.D)
        x = matmul(x, read + at, True, dz, False, S.BLOCK, S.N, S.D, S.STEP, PRECISION)
        store_matrix(dW2 + start * S.D, x, S.BLOCK, S.D)
    tl.debug_barrier()
    for start in tl.range(0, S.M, S.BLOCK, disable_licm=True):
        at = start * S.N
        x = zeros(S.N, S.BLOCK)
        x = matmul(x, scores, True, dread + at, False, S.N, S.N, S.BLOCK, S.STEP, PRECISION)
        store_matrix(dsteps1 + at, x, S.N, S.BLOCK)
        x = zeros(S.D, S.BLOCK)
        x = matmul(x, queries, True, dread + at, False, S.D, S.N, S.BLOCK, S.STEP, PRECISION)
        store_matrix(dW1 + start * S.D, x, S.D, S.BLOCK)
    # `scores` holds -c * A; dc needs A itself, and c may be 0. `hidden_scores` is free now.
    x = matmul(zeros(S.N, S.N), queries, False, keys, True, S.N, S.D, S.N, S.STEP, PRECISION)
    store_matrix(hidden_scores, keep_causal(x + 1.0, S.N), S.N, S.N)
    tl.debug_barrier()
    x = layer_product(zeros(S.N, S.N), dread, steps1, True, S.N, S, PRECISION)
    dc += scores_backward(x, load_matrix(hidden_scores, S.N, S.N), coefficient, dscores, S)
    store_vector(coefficient_part, dc, S.N)
    tl.debug_barrier()
    x = matmul(zeros(S.N, S.D), dscores, True, queries, False, S.N, S.N, S.D, S.STEP, PRECISION)
    store_matrix(dkeys, x, S.N, S.D)
    x = matmul(zeros(S.N, S.D), dscores, False, keys, False, S.N, S.N, S.D, S.STEP, PRECISION)
    x = layer_product(x, dread, W1, True, S.D, S, PRECISION)
    store_matrix(outputs, x, S.N, S.D)
    tl.debug_barrier()
    for row in tl.range(0, S.N, S.ROWS, disable_licm=True):
        position = row + tl.arange(0, S.ROWS)
        token, valid = program_tokens(scan, tokens, sequences, index, position, S.K)
        dquery = load_matrix(outputs + row * S.D, S.ROWS, S.D)
        dquery += load_tokens(grad_output, token, valid, S.d, S.D, S.d)
        store_rotated_back(grad_q, dquery, token, valid, position, rope_step, S, ROTARY)


@triton.jit
def steps_backward(
    v, v_token, lr, keys, outputs, dsteps, dz, dtarget, grad_v, grad_lr, norm_part,
    norm_weight, norm_bias, eps, scale, scan, tokens, sequences, index,
    S: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """Backward of G2 = l dloss/dz2 of a mini-batch: dv, dlr, and the tiles dz2 and dtarget.

    Args:
        outputs, dsteps: the tiles z2 and dG2; norm_part: as in `output_backward`.
    """
    dgamma, dbeta = zero_vector(S.D), zero_vector(S.D)
    for row in tl.range(0, S.N, S.ROWS, disable_licm=True):
        position = row + tl.arange(0, S.ROWS)
        token, valid = program_tokens(scan, tokens, sequences, index, position, S.K)
        value = load_tokens(v, token, valid, v_token, S.D, S.d)
        target = value - load_matrix(keys + row * S.D, S.ROWS, S.D)
        z2 = load_matrix(outputs + row * S.D, S.ROWS, S.D)
        grad = load_matrix(dsteps + row * S.D, S.ROWS, S.D)
        logit = tl.load(lr + token, valid, 0.0)
        rate = token_rate(logit, valid, scale, GATED)
        dz2, from_target, from_gamma, from_beta, gradient = inner_gradient_backward(
            rate[:, None] * grad, z2, target,
            load_channels(norm_weight, S.D, S.d), load_channels(norm_bias, S.D, S.d),
            eps, S.D, S.d,
        )  # fmt: skip
        dgamma += tl.sum(from_gamma, 0)
        dbeta += tl.sum(from_beta, 0)
        store_matrix(dz + row * S.D, dz2, S.ROWS, S.D)
        store_matrix(dtarget + row * S.D, from_target, S.ROWS, S.D)
        store_tokens(grad_v, from_target, token, valid, S.d, S.D, S.d)
        drate = token_rate_backward(tl.sum(grad * gradient, 1), logit, scale, GATED)
        tl.store(grad_lr + token, drate, valid)
    store_vector(norm_part, dgamma, S.D)
    store_vector(norm_part + S.D, dbeta, S.D)


@triton.jit
def scan_backward(
    v, v_token, lr, grad_k, grad_v, grad_lr, coefficient, coefficient_part, norm_part,
    norm_weight, norm_bias, eps, scale, state, after, before, exchange, scratch,
    scan, tokens, sequences, index, rope_step,
    S: tl.constexpr, GATED: tl.constexpr, ROTARY: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Backward of the state's step at a mini-batch, on top of what `read_backward` left.

    Args:
        after, before: records of the gradients of the next state and, to be filled, of this one.
        exchange: the tiles k, G2, z2 and those that `read_backward` fills.
        scratch: seven layers and three tiles to work in.
    """
    keys, steps, inner = exchange, exchange + S.tile, exchange + 2 * S.tile
    dsteps, dkeys = exchange + 3 * S.tile, exchange + 4 * S.tile
    dhidden = exchange + 5 * S.tile
    dsteps1 = dhidden + S.layer
    part_W1, part_b1, part_W2, part_b2 = record_parts(dsteps1 + S.layer, S)
    W1, b1, W2, _ = record_parts(state, S)
    next_W1, next_b1, next_W2, next_b2 = record_parts(after, S)
    to_W1, to_b1, to_W2, to_b2 = record_parts(before, S)
    hidden, slope, steps1 = scratch, scratch + S.layer, scratch + 2 * S.layer
    curve, turn, pull = steps1 + S.layer, steps1 + 2 * S.layer, steps1 + 3 * S.layer
    bend = pull + S.layer
    total, dz2, dtarget = bend + S.layer, bend + S.layer + S.tile, bend + S.layer + 2 * S.tile
    count = tl.minimum(S.K, tokens - index * S.K)
    last = tl.load(coefficient + count - 1)

    for start in tl.range(0, S.M, S.BLOCK, disable_licm=True):
        at = start * S.N
        x = zeros(S.N, S.BLOCK)
        x = matmul(x, keys, False, W1 + start * S.D, False, S.N, S.D, S.BLOCK, S.STEP, PRECISION)
        x, derivative, curvature = gelu_curvature(x + load_vector(b1 + start, S.BLOCK)[None, :])
        store_matrix(hidden + at, x, S.N, S.BLOCK)
        store_matrix(slope + at, derivative, S.N, S.BLOCK)
        store_matrix(curve + at, curvature, S.N, S.BLOCK)
    tl.debug_barrier()
    for start in tl.range(0, S.M, S.BLOCK, disable_licm=True):
        at = start * S.N
        x = zeros(S.N, S.BLOCK)
        x = matmul(x, steps, False, W2 + start * S.D, True, S.N, S.D, S.BLOCK, S.STEP, PRECISION)
        store_matrix(turn + at, x * load_matrix(curve + at, S.N, S.BLOCK), S.N, S.BLOCK)
        store_matrix(steps1 + at, x * load_matrix(slope + at, S.N, S.BLOCK), S.N, S.BLOCK)
    tl.debug_barrier()
    # dG1 = dsteps1 - last (k dW1' + db1') times what z1 does to G1: by W2 and by its own bend.
    dlast = zero_vector(S.N)
    for start in tl.range(0, S.M, S.BLOCK, disable_licm=True):
        at = start * S.N
        x = zeros(S.N, S.BLOCK)
        x = matmul(
            x, keys, False, next_W1 + start * S.D, False, S.N, S.D, S.BLOCK, S.STEP, PRECISION
        )
        x += load_vector(next_b1 + start, S.BLOCK)[None, :]
        dlast -= tl.sum(load_matrix(steps1 + at, S.N, S.BLOCK) * x, 1)
        x = load_matrix(dsteps1 + at, S.N, S.BLOCK) - last * x
        store_matrix(pull + at, x * load_matrix(slope + at, S.N, S.BLOCK), S.N, S.BLOCK)
        store_matrix(bend + at, x * load_matrix(turn + at, S.N, S.BLOCK), S.N, S.BLOCK)
    tl.debug_barrier()
    x = layer_product(zeros(S.N, S.D), hidden, next_W2, False, S.D, S, PRECISION)
    x += load_vector(next_b2, S.D)[None, :]
    dlast -= tl.sum(load_matrix(steps, S.N, S.D) * x, 1)
    x = load_matrix(dsteps, S.N, S.D) - last * x
    x = layer_product(x, pull, W2, False, S.D, S, PRECISION)
    store_matrix(total, x, S.N, S.D)
    at_last = tl.arange(0, S.N) == count - 1
    store_vector(coefficient_part, tl.where(at_last, tl.sum(dlast, 0), 0.0), S.N)
    tl.debug_barrier()
    steps_backward(
        v, v_token, lr, keys, inner, total, dz2, dtarget, grad_v, grad_lr, norm_part,
        norm_weight, norm_bias, eps, scale, scan, tokens, sequences, index, S, GATED,
    )  # fmt: skip
    tl.debug_barrier()
    # `curve` is free: it takes dz1.
    for start in tl.range(0, S.M, S.BLOCK, disable_licm=True):
        at = start * S.N
        x = zeros(S.N, S.BLOCK)
        x = matmul(
            x, steps, False, next_W2 + start * S.D, True, S.N, S.D, S.BLOCK, S.STEP, PRECISION
        )
        x = load_matrix(dhidden + at, S.N, S.BLOCK) - last * x
        x = matmul(x, dz2, False, W2 + start * S.D, True, S.N, S.D, S.BLOCK, S.STEP, PRECISION)
        x = x * load_matrix(slope + at, S.N, S.BLOCK) + load_matrix(bend + at, S.N, S.BLOCK)
        store_matrix(curve + at, x, S.N, S.BLOCK)
        bias = load_vector(next_b1 + start, S.BLOCK) + load_vector(part_b1 + start, S.BLOCK)
        store_vector(to_b1 + start, bias + tl.sum(x, 0), S.BLOCK)
    bias = load_vector(next_b2, S.D) + load_vector(part_b2, S.D)
    store_vector(to_b2, bias + column_sums(dz2, S.N, S.D), S.D)
    tl.debug_barrier()
    for start in tl.range(0, S.M, S.BLOCK, disable_licm=True):
        at, of = start * S.N, start * S.D
        x = load_matrix(next_W1 + of, S.D, S.BLOCK) + load_matrix(part_W1 + of, S.D, S.BLOCK)
        x = matmul(x, keys, True, curve + at, False, S.D, S.N, S.BLOCK, S.STEP, PRECISION)
        store_matrix(to_W1 + of, x, S.D, S.BLOCK)
        x = load_matrix(next_W2 + of, S.BLOCK, S.D) + load_matrix(part_W2 + of, S.BLOCK, S.D)
        x = matmul(x, pull + at, True, steps, False, S.BLOCK, S.N, S.D, S.STEP, PRECISION)
        x = matmul(x, hidden + at, True, dz2, False, S.BLOCK, S.N, S.D, S.STEP, PRECISION)
        store_matrix(to_W2 + of, x, S.BLOCK, S.D)
    x = layer_product(zeros(S.N, S.D), steps1, next_W1, True, S.D, S, PRECISION)
    x = load_matrix(dkeys, S.N, S.D) - load_matrix(dtarget, S.N, S.D) - last * x
    x = layer_product(x, curve, W1, True, S.D, S, PRECISION)
    store_matrix(total, x, S.N, S.D)
    tl.debug_barrier()
    for row in tl.range(0, S.N, S.ROWS, disable_licm=True):
        position = row + tl.arange(0, S.ROWS)
        token, valid = program_tokens(scan, tokens, sequences, index, position, S.K)
        dkey = load_matrix(total + row * S.D, S.ROWS, S.D)
        store_rotated_back(grad_k, dkey, token, valid, position, rope_step, S, ROTARY)
