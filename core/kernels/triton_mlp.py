"""TTT-MLP forward in Triton: a sequential scan of the state, then a parallel read-out.

The scan (one program per direction, sample and head) walks over the mini-batches: it forms the
inner gradient at the mini-batch's first state and writes the next state. The read-out takes
mini-batches in any order: it needs their states and l dloss/dz2 only, and recomputes the hidden
layer. With one mini-batch, or scans enough to fill a GPU, the scan reads out itself: one launch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tttunet.kernels.contract import ForwardResult, OperatorError, Settings
from tttunet.kernels.triton_common import dot_precision, rotary_step
from tttunet.kernels.triton_launch import Launch
from tttunet.kernels.triton_mlp_blocks import (
    FENCE_STEP,
    Sizes,
    advance_state,
    fence,
    hidden_layer,
    hidden_output,
    hidden_steps,
    inner_steps,
    locate_scan,
    open_scratch,
    pack_state,
    query_scores,
    read_hidden,
    read_output,
    read_scores,
    store_matrix,
    store_output,
    store_rotated,
    zeros,
)

MAX_HEAD_DIM = 128
MAX_MINI_BATCH = 64
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
STATE = ("W1", "b1", "W2", "b2")
WARPS = 8
#: From this many scans on a GPU is busy (an H100 has 132 multiprocessors) and one launch does all.
FILLING_SCANS = 128
#: Most programs of a launch over mini-batches; they take turns, so that their scratch stays small.
MAX_PROGRAMS = 1024


@triton.jit
def read_mini_batch(
    q, q_token, output, keys, scratch, coefficient, norm_weight, norm_bias, eps, state,
    scan, tokens, sequences, index, rope_step,
    S: tl.constexpr, ROTARY: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Output of a mini-batch.

    Args:
        keys: the tiles k and l dloss/dz2; scratch: of the program, with the layers hidden, (any)
            and l dloss/dz1; norm_weight, norm_bias: of the head; state: a record.
    """
    hidden = scratch + FENCE_STEP
    steps1, read = hidden + 2 * S.layer, hidden + 3 * S.layer
    queries = read + S.layer
    outputs, scores = queries + S.tile, queries + 2 * S.tile
    hidden_scores = scores + S.scores
    store_rotated(q, q_token, queries, scan, tokens, sequences, index, rope_step, S, ROTARY)
    at = fence(scratch)
    query_scores(queries + at, keys + at, scores + at, coefficient, at, S, PRECISION)
    at = fence(scratch)
    read_hidden(
        queries + at, scores + at, steps1 + at, state + at, read + at, read + at,
        S, False, PRECISION,
    )  # fmt: skip
    at = fence(scratch)
    read_scores(read + at, hidden + at, hidden_scores + at, at, S, PRECISION)
    at = fence(scratch)
    read_output(
        read + at, hidden_scores + at, keys + S.tile + at, coefficient, state + at, outputs + at,
        S, PRECISION,
    )  # fmt: skip
    at = fence(scratch)
    store_output(
        outputs + at, queries + at, output, norm_weight, norm_bias, eps,
        scan, tokens, sequences, index, S,
    )  # fmt: skip


@triton.jit
def scan_kernel(
    q, k, v, lr, coefficient, W1, b1, W2, b2, norm_weight, norm_bias,
    saved_W1, saved_b1, saved_W2, saved_b2, final_W1, final_b1, final_W2, final_b2,
    losses, output, states, keys_steps, scratch,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token,
    tokens, batch, heads, own_state, eps, scale, rope_step,
    S: tl.constexpr, GATED: tl.constexpr, ROTARY: tl.constexpr, SAVE: tl.constexpr,
    READ: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One scan: states, losses, and with READ the output, else what the read-out needs.

    SAVE > 0: every SAVE-th state is saved.
    """
    scan = tl.program_id(0)
    sample, head = locate_scan(scan, batch, heads)
    place, sequences = tl.cast(scan, tl.int64), batch * heads
    mini_batches = tl.cdiv(tokens, S.K)
    q += sample * q_batch + head * q_head
    k += sample * k_batch + head * k_head
    v += sample * v_batch + head * v_head
    lr += (sample * heads + head) * tokens
    losses += place * tokens
    norm_weight += head * S.d
    norm_bias += head * S.d
    scratch += place * (FENCE_STEP + 4 * S.layer + 2 * S.tile + 2 * S.scores)
    hidden = scratch + FENCE_STEP
    slope, steps1, outputs = hidden + S.layer, hidden + 2 * S.layer, hidden + 4 * S.layer
    open_scratch(scratch)
    # With READ two records of states and one mini-batch of tokens are enough.
    states += place * (2 if READ else mini_batches + 1) * S.record
    keys_steps += place * (1 if READ else mini_batches) * (2 * S.tile)
    at = fence(scratch)
    pack_state(W1, b1, W2, b2, sample * own_state * heads + head, states, at, S, True)
    for index in tl.range(0, mini_batches, disable_licm=True):
        at = fence(scratch)
        if READ:
            keys, state = keys_steps, states + index % 2 * S.record
            to = states + (index + 1) % 2 * S.record
        else:
            keys = keys_steps + tl.cast(index, tl.int64) * (2 * S.tile)
            state = states + tl.cast(index, tl.int64) * S.record
            to = state + S.record
        steps = keys + S.tile
        if SAVE > 0:  # noqa: SIM102 (the modulus must not be 0)
            if index % SAVE == 0:
                number = place * tl.cdiv(mini_batches, SAVE) + index // SAVE
                pack_state(saved_W1, saved_b1, saved_W2, saved_b2, number, state, at, S, False)
        store_rotated(k, k_token, keys + at, scan, tokens, sequences, index, rope_step, S, ROTARY)
        at = fence(scratch)
        hidden_layer(keys + at, state + at, hidden + at, slope + at, S, PRECISION)
        at = fence(scratch)
        z2 = hidden_output(hidden + at, state + at, zeros(S.N, S.D), S, PRECISION)
        store_matrix(outputs + at, z2, S.N, S.D)
        at = fence(scratch)
        inner_steps(
            v, v_token, lr, keys + at, outputs + at, steps + at, losses,
            norm_weight, norm_bias, eps, scale, scan, tokens, sequences, index, S, GATED, True,
        )  # fmt: skip
        at = fence(scratch)
        hidden_steps(steps + at, state + at, slope + at, steps1 + at, S, PRECISION)
        at = fence(scratch)
        last = tl.load(coefficient + tl.minimum(S.K, tokens - index * S.K) - 1)
        advance_state(
            keys + at, steps + at, hidden + at, steps1 + at, last, state + at, to + at,
            S, PRECISION,
        )  # fmt: skip
        if READ:
            read_mini_batch(
                q, q_token, output + place * tokens * S.d, keys, scratch, coefficient,
                norm_weight, norm_bias, eps, state, scan, tokens, sequences, index, rope_step,
                S, ROTARY, PRECISION,
            )  # fmt: skip
    at = fence(scratch)
    end = mini_batches % 2 if READ else mini_batches
    pack_state(
        final_W1, final_b1, final_W2, final_b2, place,
        states + tl.cast(end, tl.int64) * S.record, at, S, False,
    )  # fmt: skip


@triton.jit
def read_out_kernel(
    q, coefficient, norm_weight, norm_bias, output, states, keys_steps, scratch,
    q_batch, q_head, q_token, tokens, batch, heads, total, programs, eps, rope_step,
    S: tl.constexpr, ROTARY: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Output of the mini-batches program, program + programs, ... of all scans, total in all."""
    program = tl.program_id(0)
    mini_batches = tl.cdiv(tokens, S.K)
    scratch += tl.cast(program, tl.int64) * (FENCE_STEP + 4 * S.layer + 2 * S.tile + 2 * S.scores)
    hidden = scratch + FENCE_STEP
    slope, steps1 = hidden + S.layer, hidden + 2 * S.layer
    open_scratch(scratch)
    for item in tl.range(program, total, programs, disable_licm=True):
        scan, index = item // mini_batches, item % mini_batches
        sample, head = locate_scan(scan, batch, heads)
        place = tl.cast(scan, tl.int64)
        keys = keys_steps + tl.cast(item, tl.int64) * (2 * S.tile)
        state = states + (tl.cast(item, tl.int64) + place) * S.record
        at = fence(scratch)
        hidden_layer(keys + at, state + at, hidden + at, slope + at, S, PRECISION)
        at = fence(scratch)
        hidden_steps(keys + S.tile + at, state + at, slope + at, steps1 + at, S, PRECISION)
        read_mini_batch(
            q + sample * q_batch + head * q_head, q_token, output + place * tokens * S.d,
            keys, scratch, coefficient, norm_weight + head * S.d, norm_bias + head * S.d, eps,
            state, scan, tokens, batch * heads, index, rope_step, S, ROTARY, PRECISION,
        )  # fmt: skip


def check_limits(q: Tensor, coefficient: Tensor) -> None:
    """What the kernels can take beyond the checks of `contract.py`.

    Raises:
        OperatorError: the head dimension, the mini-batch or the dtype is not supported.
    """
    if not (q.shape[-1] <= MAX_HEAD_DIM and coefficient.shape[0] <= MAX_MINI_BATCH):
        raise OperatorError(
            f"TTT-MLP in Triton takes d <= {MAX_HEAD_DIM} and mini-batches of at most "
            f"{MAX_MINI_BATCH} tokens; these are {q.shape[-1]} and {coefficient.shape[0]}.",
            'Use backend="dual".',
        )
    if q.dtype not in DTYPES:
        raise OperatorError(f"q is {q.dtype}; TTT in Triton takes fp32, bf16 and fp16.")


def token_strides(**tensors: Tensor) -> dict[str, int]:
    """Strides of samples, heads and tokens as kernel arguments `q_batch`, `q_head`, ..."""
    return {
        f"{name}_{axis}": x.stride(index)
        for name, x in tensors.items()
        for index, axis in enumerate(("batch", "head", "token"))
    }


def state_arguments(prefix: str, state: Sequence[Tensor]) -> dict[str, Tensor]:
    """The parts of a state as kernel arguments `<prefix>W1`, ..."""
    return {f"{prefix}{name}": part for name, part in zip(STATE, state, strict=True)}


def empty_state(like: Tensor, *lead: int, d: int, m: int) -> tuple[Tensor, ...]:
    """fp32 tensors for W1, b1, W2, b2 with leading axes, on the device of `like`."""
    return tuple(
        torch.empty((*lead, *shape), dtype=torch.float32, device=like.device)
        for shape in ((d, m), (m,), (m, d), (d,))
    )


def plan_forward(
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
) -> tuple[list[Launch], ForwardResult]:
    """Launches of the forward pass, not yet run, and the tensors they will fill.

    Works with tensors on the meta device. Arguments as of `mlp_forward`.
    """
    check_limits(q, coefficient)
    batch, heads, tokens, d = q.shape
    m, K = W1.shape[-1], coefficient.shape[0]
    S = Sizes.of(K, d, m, q.dtype)
    lead = (2 if settings.bidirectional else 1, batch, heads)
    scans, mini_batches = math.prod(lead), -(-tokens // K)
    total = scans * mini_batches
    single = mini_batches == 1 or scans >= FILLING_SCANS

    def new(*shape: int) -> Tensor:
        return q.new_empty(shape, dtype=torch.float32)

    output, losses, final = (
        new(*lead, tokens, d),
        new(*lead, tokens),
        empty_state(q, *lead, d=d, m=m),
    )
    saved = tuple(new(0) for _ in STATE)
    if save:
        saved = empty_state(q, *lead, -(-mini_batches // save), d=d, m=m)
    programs = scans if single else min(total, MAX_PROGRAMS)
    both: dict[str, Any] = {
        "q": q,
        "coefficient": coefficient,
        "norm_weight": norm_weight,
        "norm_bias": norm_bias,
        "states": new(scans * (2 if single else mini_batches + 1), S.record),
        "keys_steps": new(scans if single else total, 2 * S.tile),
        "scratch": new(max(scans, programs), 16 + 4 * S.layer + 2 * S.tile + 2 * S.scores),
        "tokens": tokens,
        "batch": batch,
        "heads": heads,
        "eps": settings.eps,
        "rope_step": rotary_step(settings.rope_theta, d),
    }
    constants = {
        "S": S,
        "ROTARY": settings.rope_theta is not None,
        "PRECISION": dot_precision(q.dtype),
    }
    # Terms of a product with the state, of one within a mini-batch, and of one of its tiles.
    large, middle, small = (2 * scans * tokens * x for x in (d * m, K * m, K * d))
    reading = 2 * large + 2 * middle + 2 * small
    item, values = q.element_size(), scans * tokens * d
    state_bytes = 4 * (2 * d * m + m + d)

    arguments = (
        both
        | token_strides(q=q, k=k, v=v)
        | {
            "k": k,
            "v": v,
            "lr": lr,
            "losses": losses,
            "own_state": int(W1.shape[0] > 1),
            "scale": (settings.base_lr or 0.0) / d,
        }
    )
    arguments |= state_arguments("", (W1, b1, W2, b2)) | state_arguments("final_", final)
    absent: dict[str, Any] = {}
    if save:
        arguments |= state_arguments("saved_", saved)
    else:
        absent |= dict.fromkeys(f"saved_{name}" for name in STATE)
    if single:
        arguments["output"] = output
    else:
        absent["output"] = None
    scan = Launch(
        "ttt_mlp_scan_read_out" if single else "ttt_mlp_scan",
        scan_kernel,
        (scans,),
        arguments,
        constants | absent | {"GATED": settings.base_lr is not None, "SAVE": save, "READ": single},
        num_warps=WARPS,
        num_stages=1,
        spacious=True,
        flops=5 * large + (reading if single else 0),
        traffic=values * (2 * item + (item + 4 if single else 8))
        + 8 * scans * tokens
        + state_bytes * (2 * scans + (0 if single else total))
        + sum(4 * part.numel() for part in saved),
    )
    result = ForwardResult(output, final, losses, saved)
    if single:
        return [scan], result
    read = Launch(
        "ttt_mlp_read_out",
        read_out_kernel,
        (programs,),
        both | token_strides(q=q) | {"output": output, "total": total, "programs": programs},
        constants,
        num_warps=WARPS,
        num_stages=1,
        spacious=True,
        flops=2 * large + reading,
        traffic=values * (item + 12) + state_bytes * total,
    )
    return [scan, read], result


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
    """TTT-MLP: output, final state, losses and the states that `mlp_backward` starts from.

    Memory beside arguments and results, in floats: with M = ceil(T / K) mini-batches, R B H M
    (2 d m + m + d) for the state each starts from and 2 R B H T d, all padded, while this runs, and
    R B H ceil(M / save) (2 d m + m + d) saved. Where one launch does all, M is 2 in the first.

    Args:
        q, k, v: [B, H, T, d] in fp32, bf16 or fp16, last stride 1, before the rotary embedding;
            d <= 128.
        lr: [B, H, T]; the token's rate, or its logit if `settings.base_lr` is given.
        coefficient: [K], K <= 64.
        W1 [S, H, d, m], b1 [S, H, m], W2 [S, H, m, d], b2 [S, H, d]: initial state of all (S = 1)
            or each of the samples (S = B).
        norm_weight, norm_bias: [H, d].
        settings: the scalars; R = 2 directions if `bidirectional`, else 1.
        save: mini-batches between states to save; 0: none.

    All tensors but q, k, v are fp32 and contiguous.

    Raises:
        OperatorError: d, K or the dtype is beyond the kernels.
    """
    launches, result = plan_forward(
        q, k, v, lr, coefficient, W1, b1, W2, b2, norm_weight, norm_bias, settings, save
    )
    for launch in launches:
        launch.run()
    return result
