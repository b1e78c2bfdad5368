"""The kernels of the TTT-Linear forward pass in Triton, launched by `triton_linear.py`.

A tile of a mini-batch is a block of tokens: every inner gradient is taken at the state (W, b) that
the mini-batch starts from, however many blocks it has.

Some products stand in a branch of their own (`if` the block holds tokens at all). Triton lays out
all products that depend on each other in one basic block as in flash attention, rows over warps;
with blocks of 16 or 32 tokens that repeats them in most warps and spills registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tttunet.kernels.triton_common import (
    inner_gradient,
    kept_or_loaded,
    load_channels,
    load_matrix,
    load_rotated,
    load_tokens,
    program_tokens,
    standardise,
    store_channels,
    store_matrix,
    store_tokens,
    token_rate,
)


@triton.jit
def key_step(
    k, v, lr, token, valid, position, stride_k, stride_v, W, b, gamma, beta, eps, scale, step,
    N: tl.constexpr, D: tl.constexpr, d: tl.constexpr, GATED: tl.constexpr, ROTARY: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Keys, their updates (the rate times the inner gradient), the inner model's values z, all
    [N, D], and the losses [N]."""
    key = load_rotated(k, token, valid, position, stride_k, step, N, D, d, ROTARY)
    target = load_tokens(v, token, valid, stride_v, D, d) - key
    z = tl.dot(key, W, input_precision=PRECISION) + b[None, :]
    gradient, error = inner_gradient(z, target, gamma, beta, eps, D, d)
    rate = token_rate(tl.load(lr + token, mask=valid, other=0.0), valid, scale, GATED)
    return key, rate[:, None] * gradient, z, tl.sum(error * error, 1) / 2


@triton.jit
def state_step(
    k, v, lr, coefficient, W, b, gamma, beta, program, sequences, tokens, mini_batch,
    stride_k, stride_v, eps, scale, step,
    K: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr, d: tl.constexpr,
    GATED: tl.constexpr, ROTARY: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The state (W [D, D], b [D]) after a mini-batch."""
    last = tl.load(coefficient + tl.minimum(K, tokens - mini_batch * K) - 1)
    # W and b stay what the mini-batch starts from: all its gradients are taken there.
    next_W = W
    next_b = b
    # A loop of one round would be dissolved, and NVIDIA's prefetching of the products fails on
    # what is left (Triton 3.7): its end is not known to the compiler.
    stop = tl.minimum(K, tokens - mini_batch * K) if K <= BLOCK else K
    for first in range(0, stop, BLOCK):
        position = first + tl.arange(0, BLOCK)
        token, valid = program_tokens(program, tokens, sequences, mini_batch, position, K)
        key, update, _, _ = key_step(
            k, v, lr, token, valid, position, stride_k, stride_v, W, b, gamma, beta, eps,
            scale, step, BLOCK, D, d, GATED, ROTARY, PRECISION,
        )  # fmt: skip
        update = -last * update
        next_b += tl.sum(update, 0)
        if mini_batch * K + first < tokens:
            next_W = tl.dot(tl.trans(key), update, acc=next_W, input_precision=PRECISION)
    return next_W, next_b


@triton.jit
def scan_kernel(
    k, v, lr, coefficient, W, b, norm_weight, norm_bias, states_W, states_b, final_W, final_b,
    saved_W, saved_b,
    heads, sequences, tokens, mini_batches,
    stride_kb, stride_kh, stride_kt, stride_vb, stride_vh, stride_vt, stride_state,
    eps, scale, step,
    K: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr, d: tl.constexpr,
    GATED: tl.constexpr, ROTARY: tl.constexpr, PRECISION: tl.constexpr,
    SAVE: tl.constexpr,
):  # fmt: skip
    """One program: all mini-batches of a direction, sample and head, in reading order.

    Stores the state that every mini-batch starts from, and the final one; with SAVE = n > 0, the
    first and every n-th after it also in `saved_*`.
    """
    program = tl.program_id(0).to(tl.int64)
    sample, head = program % sequences // heads, program % heads
    k += sample * stride_kb + head * stride_kh
    v += sample * stride_vb + head * stride_vh
    lr += program % sequences * tokens
    gamma = load_channels(norm_weight + head * d, D, d)
    beta = load_channels(norm_bias + head * d, D, d)
    start = sample * stride_state + head
    W_m = load_matrix(W + start * d * d, D, D, d, d)
    b_m = load_channels(b + start * d, D, d)
    for m in range(mini_batches):
        index = program * mini_batches + m
        store_matrix(states_W + index * d * d, W_m, D, D, d, d)
        store_channels(states_b + index * d, b_m, D, d)
        if SAVE:
            slot = program * tl.cdiv(mini_batches, SAVE) + m // SAVE
            if m % SAVE == 0:
                store_matrix(saved_W + slot * d * d, W_m, D, D, d, d)
                store_channels(saved_b + slot * d, b_m, D, d)
        W_m, b_m = state_step(
            k, v, lr, coefficient, W_m, b_m, gamma, beta, program, sequences, tokens, m,
            stride_kt, stride_vt, eps, scale, step, K, BLOCK, D, d, GATED, ROTARY, PRECISION,
        )  # fmt: skip
    store_matrix(final_W + program * d * d, W_m, D, D, d, d)
    store_channels(final_b + program * d, b_m, D, d)


@triton.jit
def read_kernel(
    q, k, v, lr, coefficient, W, b, norm_weight, norm_bias, output, losses,
    final_W, final_b, saved_W, saved_b,
    heads, sequences, tokens, mini_batches,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt,
    stride_vb, stride_vh, stride_vt, stride_state,
    eps, scale, step,
    K: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr, d: tl.constexpr,
    GATED: tl.constexpr, ROTARY: tl.constexpr, PRECISION: tl.constexpr,
    SINGLE: tl.constexpr, SAVE: tl.constexpr, REREAD: tl.constexpr,
):  # fmt: skip
    """One program: the output and losses of one mini-batch.

    SINGLE: it is the only one, W and b are the initial state (samples `stride_state` states
    apart), and the final state is stored too, with SAVE also the initial one; otherwise W and b
    are those of `scan_kernel`.
    """
    m = tl.program_id(0) % mini_batches
    program = (tl.program_id(0) // mini_batches).to(tl.int64)
    sample, head = program % sequences // heads, program % heads
    q += sample * stride_qb + head * stride_qh
    k += sample * stride_kb + head * stride_kh
    v += sample * stride_vb + head * stride_vh
    lr += program % sequences * tokens
    output += program * tokens * d
    losses += program * tokens
    gamma = load_channels(norm_weight + head * d, D, d)
    beta = load_channels(norm_bias + head * d, D, d)
    start = sample * stride_state + head if SINGLE else program * mini_batches + m
    at_W = W + start * d * d
    W_m = load_matrix(at_W, D, D, d, d)
    b_m = load_channels(b + start * d, D, d)
    for first in range(0, K, BLOCK):
        place = first + tl.arange(0, BLOCK)
        reader, reads = program_tokens(program, tokens, sequences, m, place, K)
        query = load_rotated(q, reader, reads, place, stride_qt, step, BLOCK, D, d, ROTARY)
        steps = tl.zeros((BLOCK, D), tl.float32)
        for before in range(0, first + 1, BLOCK):
            position = before + tl.arange(0, BLOCK)
            token, valid = program_tokens(program, tokens, sequences, m, position, K)
            key, update, _, loss = key_step(
                k, v, lr, token, valid, position, stride_kt, stride_vt,
                kept_or_loaded(at_W, W_m, D, d, REREAD), b_m, gamma, beta, eps,
                scale, step, BLOCK, D, d, GATED, ROTARY, PRECISION,
            )  # fmt: skip
            tl.store(losses + token, loss, mask=valid & (before == first))
            scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) + 1.0
            scores = tl.where(place[:, None] >= position[None, :], scores, 0.0)
            if m * K + before < tokens:
                steps = tl.dot(scores, update, acc=steps, input_precision=PRECISION)
        factor = tl.load(coefficient + place, mask=reads, other=0.0)
        W_q = kept_or_loaded(at_W, W_m, D, d, REREAD)
        read = tl.dot(query, W_q, input_precision=PRECISION) + b_m[None, :]
        normalised, _ = standardise(read - factor[:, None] * steps, eps, D, d)
        y = query + gamma[None, :] * normalised + beta[None, :]
        store_tokens(output, y, reader, reads, d, D, d)
    if SINGLE:
        if SAVE:
            store_matrix(saved_W + program * d * d, W_m, D, D, d, d)
            store_channels(saved_b + program * d, b_m, D, d)
        W_m, b_m = state_step(
            k, v, lr, coefficient, W_m, b_m, gamma, beta, program, sequences, tokens, m,
            stride_kt, stride_vt, eps, scale, step, K, BLOCK, D, d, GATED, ROTARY, PRECISION,
        )  # fmt: skip
        store_matrix(final_W + program * d * d, W_m, D, D, d, d)
        store_channels(final_b + program * d, b_m, D, d)
