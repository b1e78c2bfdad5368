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
    FENCE_STEP,
    anew,
    column_sums,
    fence,
    gelu_curvature,
    keep_causal,
    layer_product,
    load_coefficients,
    load_matrix,
    load_vector,
    matmul,
    query_scores,
    read_hidden,
    read_output,
    read_scores,
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
def scores_backward(
    products, scores, coefficient, to, coefficient_part, at, ADD: tl.constexpr, S: tl.constexpr
):
    """Backward of -c * (scores other), [N, ...], in the scores and in c.

    Args:
        products: d(result) other^T, [N, N]; scores: pointer of [N, N], 0 where masked.
        to: to be filled with the gradient of the scores.
        coefficient_part: the gradient of c [N] is stored or, if ADD, added here.
    """
    products = keep_causal(products, at, S.N)
    store_matrix(to, -load_coefficients(coefficient, S) * products, S.N, S.N)
    dc = -tl.sum(load_matrix(scores, S.N, S.N) * products, 1)
    if ADD:
        dc += load_vector(coefficient_part, S.N)
    store_vector(coefficient_part, dc, S.N)


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
        scratch: of the program; in: the layers hidden, (any) and G1.
    """
    keys, steps = exchange, exchange + S.tile
    dsteps, dkeys = exchange + 3 * S.tile, exchange + 4 * S.tile
    dhidden = exchange + 5 * S.tile
    dsteps1 = dhidden + S.layer
    dW1, db1, dW2, db2 = record_parts(dsteps1 + S.layer, S)
    hidden = scratch + FENCE_STEP
    steps1 = hidden + 2 * S.layer
    read, slope, dread = steps1 + S.layer, steps1 + 2 * S.layer, steps1 + 3 * S.layer
    queries = hidden + 7 * S.layer
    outputs, dz, scaled = queries + S.tile, queries + 2 * S.tile, queries + 3 * S.tile
    scores = scaled + S.tile
    hidden_scores, dhidden_scores = scores + S.scores, scores + 2 * S.scores
    dscores = scores + 3 * S.scores
    W1, _, W2, _ = record_parts(state, S)

    store_rotated(q, q_token, queries, scan, tokens, sequences, index, rope_step, S, ROTARY)
    at = fence(scratch)
    query_scores(queries + at, keys + at, scores + at, coefficient, at, S, PRECISION)
    at = fence(scratch)
    read_hidden(
        queries + at, scores + at, steps1 + at, state + at, read + at, slope + at,
        S, True, PRECISION,
    )  # fmt: skip
    at = fence(scratch)
    read_scores(read + at, hidden + at, hidden_scores + at, at, S, PRECISION)
    at = fence(scratch)
    read_output(
        read + at, hidden_scores + at, steps + at, coefficient, state + at, outputs + at,
        S, PRECISION,
    )  # fmt: skip
    at = fence(scratch)
    output_backward(
        outputs + at, grad_output, coefficient, dz + at, scaled + at, norm_part, norm_weight, eps,
        scan, tokens, sequences, index, S,
    )  # fmt: skip
    at = fence(scratch)
    x = zeros(S.N, S.N)
    x = matmul(x, dz + at, False, steps + at, True, S.N, S.D, S.N, S.STEP, PRECISION)
    scores_backward(
        x, hidden_scores + at, coefficient, dhidden_scores + at, coefficient_part, at, False, S
    )
    store_vector(db2 + at, column_sums(dz + at, S.N, S.D), S.D)
    x = zeros(S.N, S.D)
    x = matmul(x, hidden_scores + at, True, scaled + at, False, S.N, S.N, S.D, S.STEP, PRECISION)
    store_matrix(dsteps + at, x, S.N, S.D)
    at = fence(scratch)
    for start in tl.range(0, S.M, S.BLOCK, disable_licm=True):
        block, part = at + start * S.N, at + start * S.D
        h = zeros(S.N, S.BLOCK)
        h = matmul(h, dz + at, False, W2 + part, True, S.N, S.D, S.BLOCK, S.STEP, PRECISION)
        h = matmul(
            h, dhidden_scores + at, False, hidden + block, False,
            S.N, S.N, S.BLOCK, S.STEP, PRECISION,
        )  # fmt: skip
        h *= load_matrix(slope + block, S.N, S.BLOCK)
        store_matrix(dread + block, h, S.N, S.BLOCK)
        store_vector(db1 + at + start, tl.sum(h, 0), S.BLOCK)
    at = fence(scratch)
    for start in tl.range(0, S.M, S.BLOCK, disable_licm=True):
        block, part = at + start * S.N, at + start * S.D
        h = zeros(S.N, S.BLOCK)
        h = matmul(
            h, dhidden_scores + at, True, read + block, False,
            S.N, S.N, S.BLOCK, S.STEP, PRECISION,
        )  # fmt: skip
        store_matrix(dhidden + block, h, S.N, S.BLOCK)
        w = zeros(S.BLOCK, S.D)
        w = matmul(w, read + block, True, dz + at, False, S.BLOCK, S.N, S.D, S.STEP, PRECISION)
        store_matrix(dW2 + part, w, S.BLOCK, S.D)
    at = fence(scratch)
    for start in tl.range(0, S.M, S.BLOCK, disable_licm=True):
        block, part = at + start * S.N, at + start * S.D
        h = zeros(S.N, S.BLOCK)
        h = matmul(h, scores + at, True, dread + block, False, S.N, S.N, S.BLOCK, S.STEP, PRECISION)
        store_matrix(dsteps1 + block, h, S.N, S.BLOCK)
        w = zeros(S.D, S.BLOCK)
        w = matmul(
            w, queries + at, True, dread + block, False, S.D, S.N, S.BLOCK, S.STEP, PRECISION
        )
        store_matrix(dW1 + part, w, S.D, S.BLOCK)
    at = fence(scratch)
    # `scores` held -c * A; dc needs A itself, and c may be 0.
    x = zeros(S.N, S.N)
    x = matmul(x, queries + at, False, keys + at, True, S.N, S.D, S.N, S.STEP, PRECISION)
    store_matrix(scores + at, keep_causal(x + 1.0, at, S.N), S.N, S.N)
    at = fence(scratch)
    x = layer_product(zeros(S.N, S.N), dread + at, steps1 + at, True, S.N, S, PRECISION)
    scores_backward(x, scores + at, coefficient, dscores + at, coefficient_part, at, True, S)
    at = fence(scratch)
    x = zeros(S.N, S.D)
    x = matmul(x, dscores + at, True, queries + at, False, S.N, S.N, S.D, S.STEP, PRECISION)
    store_matrix(dkeys + at, x, S.N, S.D)
    x = zeros(S.N, S.D)
    x = matmul(x, dscores + at, False, keys + at, False, S.N, S.N, S.D, S.STEP, PRECISION)
    x = layer_product(x, dread + at, W1 + at, True, S.D, S, PRECISION)
    store_matrix(outputs + at, x, S.N, S.D)
    at = fence(scratch)
    for row in tl.range(0, S.N, S.ROWS, disable_licm=True):
        position = row + tl.arange(0, S.ROWS)
        token, valid = program_tokens(scan, tokens, sequences, index, position, S.K)
        dquery = load_matrix(outputs + at + row * S.D, S.ROWS, S.D)
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
        scratch: of the program.
    """
    at = fence(scratch)
    state, after, before = anew(state, at, True), anew(after, at, True), anew(before, at, True)
    exchange, scratch = anew(exchange, at, True), anew(scratch, at, True)
    keys, steps, inner = exchange, exchange + S.tile, exchange + 2 * S.tile
    dsteps, dkeys = exchange + 3 * S.tile, exchange + 4 * S.tile
    dhidden = exchange + 5 * S.tile
    dsteps1 = dhidden + S.layer
    part_W1, part_b1, part_W2, part_b2 = record_parts(dsteps1 + S.layer, S)
    W1, b1, W2, _ = record_parts(state, S)
    next_W1, next_b1, next_W2, next_b2 = record_parts(after, S)
    to_W1, to_b1, to_W2, to_b2 = record_parts(before, S)
    hidden = scratch + FENCE_STEP
    slope, steps1, curve = hidden + S.layer, hidden + 2 * S.layer, hidden + 3 * S.layer
    turn, pull, bend = hidden + 4 * S.layer, hidden + 5 * S.layer, hidden + 6 * S.layer
    total = hidden + 7 * S.layer
    dz2, dtarget = total + S.tile, total + 2 * S.tile
    count = tl.minimum(S.K, tokens - index * S.K)
    last = tl.load(coefficient + count - 1)

    for start in tl.range(0, S.M, S.BLOCK, disable_licm=True):
        block, part = at + start * S.N, at + start * S.D
        h = zeros(S.N, S.BLOCK)
        h = matmul(h, keys + at, False, W1 + part, False, S.N, S.D, S.BLOCK, S.STEP, PRECISION)
        h += load_vector(b1 + at + start, S.BLOCK)[None, :]
        store_matrix(turn + block, h, S.N, S.BLOCK)
    at = fence(scratch)
    # As a matrix of one row of BLOCK units for each token and block.
    for row in tl.range(0, S.layer // S.BLOCK, S.ROWS, disable_licm=True):
        rows = at + row * S.BLOCK
        value, derivative, curvature = gelu_curvature(load_matrix(turn + rows, S.ROWS, S.BLOCK))
        store_matrix(hidden + rows, value, S.ROWS, S.BLOCK)
        store_matrix(slope + rows, derivative, S.ROWS, S.BLOCK)
        store_matrix(curve + rows, curvature, S.ROWS, S.BLOCK)
    at = fence(scratch)
    for start in tl.range(0, S.M, S.BLOCK, disable_licm=True):
        block, part = at + start * S.N, at + start * S.D
        h = zeros(S.N, S.BLOCK)
        h = matmul(h, steps + at, False, W2 + part, True, S.N, S.D, S.BLOCK, S.STEP, PRECISION)
        store_matrix(turn + block, h * load_matrix(curve + block, S.N, S.BLOCK), S.N, S.BLOCK)
        store_matrix(steps1 + block, h * load_matrix(slope + block, S.N, S.BLOCK), S.N, S.BLOCK)
    at = fence(scratch)
    # dG1 = dsteps1 - last (k dW1' + db1') times what z1 does to G1: by W2 and by its own bend.
    dlast = zero_vector(S.N)
    for start in tl.range(0, S.M, S.BLOCK, disable_licm=True):
        block, part = at + start * S.N, at + start * S.D
        h = zeros(S.N, S.BLOCK)
        h = matmul(h, keys + at, False, next_W1 + part, False, S.N, S.D, S.BLOCK, S.STEP, PRECISION)
        h += load_vector(next_b1 + at + start, S.BLOCK)[None, :]
        dlast -= tl.sum(load_matrix(steps1 + block, S.N, S.BLOCK) * h, 1)
        h = load_matrix(dsteps1 + block, S.N, S.BLOCK) - last * h
        store_matrix(pull + block, h * load_matrix(slope + block, S.N, S.BLOCK), S.N, S.BLOCK)
        store_matrix(bend + block, h * load_matrix(turn + block, S.N, S.BLOCK), S.N, S.BLOCK)
    at_last = tl.arange(0, S.N) == count - 1
    store_vector(coefficient_part, tl.where(at_last, tl.sum(dlast, 0), 0.0), S.N)
    at = fence(scratch)
    x = layer_product(zeros(S.N, S.D), hidden + at, next_W2 + at, False, S.D, S, PRECISION)
    x += load_vector(next_b2 + at, S.D)[None, :]
    dlast = -tl.sum(tl.sum(load_matrix(steps + at, S.N, S.D) * x, 1), 0)
    dlast = load_vector(coefficient_part, S.N) + tl.where(at_last, dlast, 0.0)
    x = load_matrix(dsteps + at, S.N, S.D) - last * x
    store_vector(coefficient_part, dlast, S.N)
    x = layer_product(x, pull + at, W2 + at, False, S.D, S, PRECISION)
    store_matrix(total + at, x, S.N, S.D)
    at = fence(scratch)
    steps_backward(
        v, v_token, lr, keys + at, inner + at, total + at, dz2 + at, dtarget + at,
        grad_v, grad_lr, norm_part, norm_weight, norm_bias, eps, scale,
        scan, tokens, sequences, index, S, GATED,
    )  # fmt: skip
    at = fence(scratch)
    # `curve` is free: it takes dz1.
    for start in tl.range(0, S.M, S.BLOCK, disable_licm=True):
        block, part = at + start * S.N, at + start * S.D
        h = zeros(S.N, S.BLOCK)
        h = matmul(h, steps + at, False, next_W2 + part, True, S.N, S.D, S.BLOCK, S.STEP, PRECISION)
        h = load_matrix(dhidden + block, S.N, S.BLOCK) - last * h
        h = matmul(h, dz2 + at, False, W2 + part, True, S.N, S.D, S.BLOCK, S.STEP, PRECISION)
        h = h * load_matrix(slope + block, S.N, S.BLOCK) + load_matrix(bend + block, S.N, S.BLOCK)
        store_matrix(curve + block, h, S.N, S.BLOCK)
        bias = load_vector(next_b1 + at + start, S.BLOCK)
        bias += load_vector(part_b1 + at + start, S.BLOCK)
        store_vector(to_b1 + at + start, bias + tl.sum(h, 0), S.BLOCK)
    bias = load_vector(next_b2 + at, S.D) + load_vector(part_b2 + at, S.D)
    store_vector(to_b2 + at, bias + column_sums(dz2 + at, S.N, S.D), S.D)
    at = fence(scratch)
    for start in tl.range(0, S.M, S.BLOCK, disable_licm=True):
        block, part = at + start * S.N, at + start * S.D
        w = load_matrix(next_W1 + part, S.D, S.BLOCK) + load_matrix(part_W1 + part, S.D, S.BLOCK)
        w = matmul(w, keys + at, True, curve + block, False, S.D, S.N, S.BLOCK, S.STEP, PRECISION)
        store_matrix(to_W1 + part, w, S.D, S.BLOCK)
    at = fence(scratch)
    for start in tl.range(0, S.M, S.BLOCK, disable_licm=True):
        block, part = at + start * S.N, at + start * S.D
        w = load_matrix(next_W2 + part, S.BLOCK, S.D) + load_matrix(part_W2 + part, S.BLOCK, S.D)
        w = matmul(w, pull + block, True, steps + at, False, S.BLOCK, S.N, S.D, S.STEP, PRECISION)
        w = matmul(w, hidden + block, True, dz2 + at, False, S.BLOCK, S.N, S.D, S.STEP, PRECISION)
        store_matrix(to_W2 + part, w, S.BLOCK, S.D)
    at = fence(scratch)
    x = layer_product(zeros(S.N, S.D), steps1 + at, next_W1 + at, True, S.D, S, PRECISION)
    x = load_matrix(dkeys + at, S.N, S.D) - load_matrix(dtarget + at, S.N, S.D) - last * x
    x = layer_product(x, curve + at, W1 + at, True, S.D, S, PRECISION)
    store_matrix(total + at, x, S.N, S.D)
    at = fence(scratch)
    for row in tl.range(0, S.N, S.ROWS, disable_licm=True):
        position = row + tl.arange(0, S.ROWS)
        token, valid = program_tokens(scan, tokens, sequences, index, position, S.K)
        dkey = load_matrix(total + at + row * S.D, S.ROWS, S.D)
        store_rotated_back(grad_k, dkey, token, valid, position, rope_step, S, ROTARY)
