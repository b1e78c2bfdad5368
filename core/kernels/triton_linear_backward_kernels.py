"""The kernels of the TTT-Linear backward pass in Triton, launched by `triton_linear_backward.py`.

Both go through a mini-batch in several loops over blocks of tokens and pass tiles from one loop to
the next through memory (the cache, in effect): one loop would keep too many of them in registers.
`tl.debug_barrier` makes what one thread stored visible to the others of the program. For products
in branches of their own see `triton_linear_kernels.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tttunet.kernels.triton_common import (
    inner_gradient_backward,
    kept_or_loaded,
    load_channels,
    load_matrix,
    load_rotated,
    load_tokens,
    program_tokens,
    rotary_angles,
    rotate,
    standardise,
    standardise_backward,
    store_channels,
    store_matrix,
    store_tokens,
    token_rate,
    token_rate_backward,
)
from tttunet.kernels.triton_linear_kernels import key_step, state_step


@triton.jit
def _store_rotated_back(
    pointer, x, token, valid, position, stride, step,
    N: tl.constexpr, D: tl.constexpr, d: tl.constexpr, ROTARY: tl.constexpr,
):  # fmt: skip
    """Store the gradient of queries or keys [N, D] as that of those before the rotation."""
    if ROTARY:
        cos, sin = rotary_angles(position, step, D, d)
        x = rotate(x, cos, -sin, N, D)
    store_tokens(pointer, x, token, valid, stride, D, d)


@triton.jit
def _causal(x, query, key):
    """x [N, N] where the query does not come before the key, else 0."""
    return tl.where(query[:, None] >= key[None, :], x, 0.0)


@triton.jit
def read_backward_kernel(
    grad_output, q, k, v, lr, coefficient, saved_W, saved_b, states_W, states_b,
    norm_weight, norm_bias,
    grad_q, inner, grad_update, grad_key, grad_W, grad_b, rows_weight, rows_bias, rows_coefficient,
    heads, sequences, tokens, mini_batches,
    stride_gr, stride_gb, stride_gh, stride_gt, stride_qb, stride_qh, stride_qt,
    stride_kb, stride_kh, stride_kt, stride_vb, stride_vh, stride_vt,
    eps, scale, step,
    K: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr, d: tl.constexpr,
    GATED: tl.constexpr, ROTARY: tl.constexpr, PRECISION: tl.constexpr, INTERVAL: tl.constexpr,
    REREAD: tl.constexpr,
):  # fmt: skip
    """One program: the mini-batches from one saved state to the next, each on its own.

    Stores the gradient of the queries, what the read-out adds to the gradients of the updates
    l g, of the rotated keys and of the state that the mini-batch starts from, and the mini-batch's
    rows of the gradients of gamma, beta and coefficient. `grad_update` and `grad_key` hold the
    updates and the gradient of zbar on the way.
    """
    intervals = tl.cdiv(mini_batches, INTERVAL)
    interval = tl.program_id(0) % intervals
    program = (tl.program_id(0) // intervals).to(tl.int64)
    sample, head = program % sequences // heads, program % heads
    grad_output += program // sequences * stride_gr + sample * stride_gb + head * stride_gh
    q += sample * stride_qb + head * stride_qh
    k += sample * stride_kb + head * stride_kh
    v += sample * stride_vb + head * stride_vh
    lr += program % sequences * tokens
    grad_q += program * tokens * d
    inner += program * tokens * d
    grad_update += program * tokens * d
    grad_key += program * tokens * d
    gamma = load_channels(norm_weight + head * d, D, d)
    beta = load_channels(norm_bias + head * d, D, d)
    start = interval * INTERVAL
    stop = tl.minimum(start + INTERVAL, mini_batches)
    if INTERVAL > 1:
        slot = program * intervals + interval
        W_m = load_matrix(saved_W + slot * d * d, D, D, d, d)
        b_m = load_channels(saved_b + slot * d, D, d)
        for m in range(start, stop):
            index = program * mini_batches + m
            store_matrix(states_W + index * d * d, W_m, D, D, d, d)
            store_channels(states_b + index * d, b_m, D, d)
            W_m, b_m = state_step(
                k, v, lr, coefficient, W_m, b_m, gamma, beta, program, sequences, tokens, m,
                stride_kt, stride_vt, eps, scale, step, K, BLOCK, D, d, GATED, ROTARY, PRECISION,
            )  # fmt: skip
        tl.debug_barrier()

    for m in range(start, stop):
        index = program * mini_batches + m
        at_W = states_W + index * d * d
        W_m = load_matrix(at_W, D, D, d, d)
        b_m = load_channels(states_b + index * d, D, d)
        for first in range(0, K, BLOCK):
            position = first + tl.arange(0, BLOCK)
            token, valid = program_tokens(program, tokens, sequences, m, position, K)
            _, update, z, _ = key_step(
                k, v, lr, token, valid, position, stride_kt, stride_vt, W_m, b_m, gamma, beta, eps,
                scale, step, BLOCK, D, d, GATED, ROTARY, PRECISION,
            )  # fmt: skip
            store_tokens(inner, z, token, valid, d, D, d)
            store_tokens(grad_update, update, token, valid, d, D, d)
        tl.debug_barrier()

        sum_weight = tl.zeros((D,), tl.float32)
        sum_bias = tl.zeros((D,), tl.float32)
        sum_b = tl.zeros((D,), tl.float32)
        for first in range(0, K, BLOCK):
            place = first + tl.arange(0, BLOCK)
            reader, reads = program_tokens(program, tokens, sequences, m, place, K)
            query = load_rotated(q, reader, reads, place, stride_qt, step, BLOCK, D, d, ROTARY)
            factor = tl.load(coefficient + place, mask=reads, other=0.0)
            steps = tl.zeros((BLOCK, D), tl.float32)
            for before in range(0, first + 1, BLOCK):
                position = before + tl.arange(0, BLOCK)
                token, valid = program_tokens(program, tokens, sequences, m, position, K)
                key = load_rotated(k, token, valid, position, stride_kt, step, BLOCK, D, d, ROTARY)
                update = load_tokens(grad_update, token, valid, d, D, d)
                scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) + 1.0
                scores = _causal(scores, place, position)
                if m * K + before < tokens:
                    steps = tl.dot(scores, update, acc=steps, input_precision=PRECISION)
            read = tl.dot(query, kept_or_loaded(at_W, W_m, D, d, REREAD), input_precision=PRECISION)
            read += b_m[None, :]
            normalised, inverse = standardise(read - factor[:, None] * steps, eps, D, d)
            grad_y = load_tokens(grad_output, reader, reads, stride_gt, D, d)
            sum_weight += tl.sum(grad_y * normalised, 0)
            sum_bias += tl.sum(grad_y, 0)
            grad_read = standardise_backward(gamma[None, :] * grad_y, normalised, inverse, D, d)
            sum_b += tl.sum(grad_read, 0)
            store_tokens(grad_key, grad_read, reader, reads, d, D, d)
            tl.store(
                rows_coefficient + index * K + place,
                -tl.sum(grad_read * steps, 1),
                mask=place < K,
            )
            weighted = factor[:, None] * grad_read
            grad_query = tl.zeros((BLOCK, D), tl.float32)
            if m * K + first < tokens:
                W_q = kept_or_loaded(at_W, W_m, D, d, REREAD)
                grad_query = tl.dot(grad_read, tl.trans(W_q), input_precision=PRECISION)
            for before in range(0, first + 1, BLOCK):
                position = before + tl.arange(0, BLOCK)
                token, valid = program_tokens(program, tokens, sequences, m, position, K)
                key = load_rotated(k, token, valid, position, stride_kt, step, BLOCK, D, d, ROTARY)
                update = load_tokens(grad_update, token, valid, d, D, d)
                grad_scores = tl.dot(weighted, tl.trans(update), input_precision=PRECISION)
                grad_scores = _causal(-grad_scores, place, position)
                if m * K + before < tokens:
                    grad_query = tl.dot(grad_scores, key, acc=grad_query, input_precision=PRECISION)
            grad_query += grad_y
            _store_rotated_back(
                grad_q, grad_query, reader, reads, place, d, step, BLOCK, D, d, ROTARY
            )
        row = program * (mini_batches + 1) + m
        store_channels(rows_weight + row * d, sum_weight, D, d)
        store_channels(rows_bias + row * d, sum_bias, D, d)
        store_channels(grad_b + index * d, sum_b, D, d)
        tl.debug_barrier()

        sum_W = tl.zeros((D, D), tl.float32)
        for first in range(0, K, BLOCK):
            place = first + tl.arange(0, BLOCK)
            reader, reads = program_tokens(program, tokens, sequences, m, place, K)
            query = load_rotated(q, reader, reads, place, stride_qt, step, BLOCK, D, d, ROTARY)
            grad_read = load_tokens(grad_key, reader, reads, d, D, d)
            sum_W = tl.dot(tl.trans(query), grad_read, acc=sum_W, input_precision=PRECISION)
        store_matrix(grad_W + index * d * d, sum_W, D, D, d, d)
        tl.debug_barrier()

        for first in range(0, K, BLOCK):
            position = first + tl.arange(0, BLOCK)
            token, valid = program_tokens(program, tokens, sequences, m, position, K)
            key = load_rotated(k, token, valid, position, stride_kt, step, BLOCK, D, d, ROTARY)
            update = load_tokens(grad_update, token, valid, d, D, d)
            sum_update = tl.zeros((BLOCK, D), tl.float32)
            sum_key = tl.zeros((BLOCK, D), tl.float32)
            for after in range(first, K, BLOCK):
                place = after + tl.arange(0, BLOCK)
                reader, reads = program_tokens(program, tokens, sequences, m, place, K)
                query = load_rotated(q, reader, reads, place, stride_qt, step, BLOCK, D, d, ROTARY)
                factor = tl.load(coefficient + place, mask=reads, other=0.0)
                weighted = factor[:, None] * load_tokens(grad_key, reader, reads, d, D, d)
                scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) + 1.0
                scores = _causal(scores, place, position)
                grad_scores = tl.dot(weighted, tl.trans(update), input_precision=PRECISION)
                grad_scores = _causal(grad_scores, place, position)
                if m * K + after < tokens:
                    sum_update = tl.dot(
                        tl.trans(scores), weighted, acc=sum_update, input_precision=PRECISION
                    )
                if m * K + first < tokens:
                    sum_key = tl.dot(
                        tl.trans(grad_scores), query, acc=sum_key, input_precision=PRECISION
                    )
            tl.debug_barrier()
            store_tokens(grad_update, -sum_update, token, valid, d, D, d)
            store_tokens(grad_key, -sum_key, token, valid, d, D, d)


@triton.jit
def scan_backward_kernel(
    k, v, lr, coefficient, states_W, norm_weight, norm_bias,
    grad_final_W, grad_final_b, inner, grad_update, grad_key, grad_W, grad_b,
    grad_k, grad_v, grad_lr, grad_initial_W, grad_initial_b,
    rows_weight, rows_bias, rows_coefficient,
    heads, sequences, tokens, mini_batches,
    stride_kb, stride_kh, stride_kt, stride_vb, stride_vh, stride_vt,
    eps, scale, step,
    K: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr, d: tl.constexpr,
    GATED: tl.constexpr, ROTARY: tl.constexpr, PRECISION: tl.constexpr, REREAD: tl.constexpr,
):  # fmt: skip
    """One program: all mini-batches of a direction, sample and head, from the last to the first.

    Takes what `read_backward_kernel` left and stores the gradients of keys, values, rates and the
    initial state, the last rows of those of gamma and beta, and adds to those of coefficient.
    """
    program = tl.program_id(0).to(tl.int64)
    sample, head = program % sequences // heads, program % heads
    k += sample * stride_kb + head * stride_kh
    v += sample * stride_vb + head * stride_vh
    lr += program % sequences * tokens
    inner += program * tokens * d
    grad_update += program * tokens * d
    grad_key += program * tokens * d
    grad_k += program * tokens * d
    grad_v += program * tokens * d
    grad_lr += program * tokens
    gamma = load_channels(norm_weight + head * d, D, d)
    beta = load_channels(norm_bias + head * d, D, d)
    at_dW = grad_initial_W + program * d * d
    dW = load_matrix(grad_final_W + program * d * d, D, D, d, d)
    db = load_channels(grad_final_b + program * d, D, d)
    if REREAD:
        store_matrix(at_dW, dW, D, D, d, d)
        tl.debug_barrier()
    sum_weight = tl.zeros((D,), tl.float32)
    sum_bias = tl.zeros((D,), tl.float32)
    for back in range(mini_batches):
        m = mini_batches - 1 - back
        index = program * mini_batches + m
        at_W = states_W + index * d * d
        W_m = load_matrix(at_W, D, D, d, d)
        count = tl.minimum(K, tokens - m * K)
        last = tl.load(coefficient + count - 1)
        next_b = db + load_channels(grad_b + index * d, D, d)
        grad_last = 0.0
        for first in range(0, K, BLOCK):
            position = first + tl.arange(0, BLOCK)
            token, valid = program_tokens(program, tokens, sequences, m, position, K)
            key = load_rotated(k, token, valid, position, stride_kt, step, BLOCK, D, d, ROTARY)
            target = load_tokens(v, token, valid, stride_vt, D, d) - key
            logit = tl.load(lr + token, mask=valid, other=0.0)
            rate = token_rate(logit, valid, scale, GATED)
            z = load_tokens(inner, token, valid, d, D, d)
            pull = tl.dot(key, kept_or_loaded(at_dW, dW, D, d, REREAD), input_precision=PRECISION)
            pull += db[None, :]
            grad = load_tokens(grad_update, token, valid, d, D, d) - last * pull
            grad_z, grad_target, grad_gamma, grad_beta, gradient = inner_gradient_backward(
                rate[:, None] * grad, z, target, gamma, beta, eps, D, d
            )
            sum_weight += tl.sum(grad_gamma, 0)
            sum_bias += tl.sum(grad_beta, 0)
            next_b += tl.sum(grad_z, 0)
            grad_rate = token_rate_backward(tl.sum(gradient * grad, 1), logit, scale, GATED)
            tl.store(grad_lr + token, grad_rate, mask=valid)
            update = rate[:, None] * gradient
            grad_last += tl.sum(tl.sum(update * pull, 1), 0)
            through_state = tl.dot(
                update,
                tl.trans(kept_or_loaded(at_dW, dW, D, d, REREAD)),
                input_precision=PRECISION,
            )
            grad_rotated = load_tokens(grad_key, token, valid, d, D, d) - grad_target
            # These overwrite what other threads may still be about to read.
            tl.debug_barrier()
            store_tokens(grad_v, grad_target, token, valid, d, D, d)
            store_tokens(grad_update, grad_z, token, valid, d, D, d)
            store_tokens(grad_key, grad_rotated - last * through_state, token, valid, d, D, d)
        row = rows_coefficient + index * K + count - 1
        tl.store(row, tl.load(row) - grad_last)
        tl.debug_barrier()

        next_W = kept_or_loaded(at_dW, dW, D, d, REREAD) + load_matrix(
            grad_W + index * d * d, D, D, d, d
        )
        for first in range(0, K, BLOCK):
            position = first + tl.arange(0, BLOCK)
            token, valid = program_tokens(program, tokens, sequences, m, position, K)
            grad_z = load_tokens(grad_update, token, valid, d, D, d)
            grad_rotated = load_tokens(grad_key, token, valid, d, D, d)
            grad_rotated = tl.dot(
                grad_z,
                tl.trans(kept_or_loaded(at_W, W_m, D, d, REREAD)),
                acc=grad_rotated,
                input_precision=PRECISION,
            )
            _store_rotated_back(
                grad_k, grad_rotated, token, valid, position, d, step, BLOCK, D, d, ROTARY
            )
            key = load_rotated(k, token, valid, position, stride_kt, step, BLOCK, D, d, ROTARY)
            if m * K + first < tokens:
                next_W = tl.dot(tl.trans(key), grad_z, acc=next_W, input_precision=PRECISION)
        dW = next_W
        db = next_b
        if REREAD:
            tl.debug_barrier()
            store_matrix(at_dW, dW, D, D, d, d)
            tl.debug_barrier()
    row = program * (mini_batches + 1) + mini_batches
    store_channels(rows_weight + row * d, sum_weight, D, d)
    store_channels(rows_bias + row * d, sum_bias, D, d)
    store_matrix(at_dW, dW, D, D, d, d)
    store_channels(grad_initial_b + program * d, db, D, d)
