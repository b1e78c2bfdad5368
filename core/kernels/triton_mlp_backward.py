"""TTT-MLP backward in Triton: mini-batches in parallel, then a sequential scan against time.

The first launch recomputes the states between the saved ones and goes backward through the
read-out of every mini-batch, which no other mini-batch enters; the second carries the gradient of
the state from the last mini-batch to the first and completes dk, dv and dlr. Sums over programs are
left to PyTorch: no atomics, the same result every time.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tttunet.kernels import triton_mlp
from tttunet.kernels.contract import Settings
from tttunet.kernels.triton_common import dot_precision, rotary_step
from tttunet.kernels.triton_launch import Launch
from tttunet.kernels.triton_mlp import (
    WARPS,
    check_limits,
    empty_state,
    state_arguments,
    token_strides,
)
from tttunet.kernels.triton_mlp_backward_blocks import read_backward, scan_backward
from tttunet.kernels.triton_mlp_blocks import (
    FENCE_STEP,
    Sizes,
    advance_state,
    anew,
    fence,
    hidden_layer,
    hidden_output,
    hidden_steps,
    inner_steps,
    locate_scan,
    open_scratch,
    pack_state,
    store_matrix,
    store_rotated,
    zeros,
)


class MLPGradients(NamedTuple):
    """What the launches of the backward pass fill; `reduce` gives the gradients.

    Attributes:
        q, k, v: [R, B, H, T, d], in their dtype if R is 1.
        lr: [R, B, H, T].
        W1, b1, W2, b2: gradients of the initial state of every scan, [R, B, H, ...].
        coefficient: parts by launch and mini-batch, [2, R, B, H, M, N].
        norm: parts of the gradients of norm_weight and norm_bias, [2, R, B, H, M, 2, D].
    """

    q: Tensor
    k: Tensor
    v: Tensor
    lr: Tensor
    W1: Tensor
    b1: Tensor
    W2: Tensor
    b2: Tensor
    coefficient: Tensor
    norm: Tensor

    def reduce(self, dtype: torch.dtype, K: int, own_state: bool) -> tuple[Tensor, ...]:
        """Gradients as `mlp_backward` returns them."""
        tokens = [(x.sum(0) if len(x) > 1 else x[0]).to(dtype) for x in self[:3]]
        state = [x.sum(0) if own_state else x.sum((0, 1))[None] for x in self[4:8]]
        coefficient = self.coefficient.sum((0, 1, 2, 3, 4))[:K]
        d = self.q.shape[-1]
        # Copies: results of an operator may not share memory.
        weight, bias = (x.clone() for x in self.norm.sum((0, 1, 2, 4))[..., :d].unbind(1))
        return (*tokens, self.lr.sum(0), coefficient, *state, weight, bias)


@triton.jit
def backward_kernel(
    q, k, v, lr, coefficient, norm_weight, norm_bias, saved_W1, saved_b1, saved_W2, saved_b2,
    grad_output, final_W1, final_b1, final_W2, final_b2, grad_q, grad_k, grad_v, grad_lr,
    grad_W1, grad_b1, grad_W2, grad_b2, coefficient_parts, norm_parts,
    states, carries, exchanges, scratch,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token,
    tokens, batch, heads, total, programs, half, eps, scale, rope_step,
    S: tl.constexpr, GATED: tl.constexpr, ROTARY: tl.constexpr, SAVE: tl.constexpr,
    SCAN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Backward of the read-out, for all segments of SAVE mini-batches of all scans.

    With SCAN, backward of the scan, the segments from last to first. `final` are the gradients of
    the final states; of the parts, the read-out fills the first half, the scan the second.
    """
    program = tl.program_id(0)
    sequences = batch * heads
    mini_batches = tl.cdiv(tokens, S.K)
    segments = tl.cdiv(mini_batches, SAVE)
    scratch += tl.cast(program, tl.int64) * (FENCE_STEP + 7 * S.layer + 4 * S.tile + 4 * S.scores)
    hidden = scratch + FENCE_STEP
    slope, steps1 = hidden + S.layer, hidden + 2 * S.layer
    open_scratch(scratch)
    for item in tl.range(program, total, programs, disable_licm=True):
        if SCAN:
            scan, turns = item, segments
        else:
            scan, turns = item // segments, 1
        place = tl.cast(scan, tl.int64)
        sample, head = locate_scan(scan, batch, heads)
        queries = q + sample * q_batch + head * q_head
        keys_in = k + sample * k_batch + head * k_head
        values = v + sample * v_batch + head * v_head
        rates = lr + (sample * heads + head) * tokens
        rows = place * tokens * S.d
        gamma, beta = norm_weight + head * S.d, norm_bias + head * S.d
        carry = carries + place * 2 * S.record
        if SCAN:
            end = carry + mini_batches % 2 * S.record
            at = fence(scratch)
            pack_state(final_W1, final_b1, final_W2, final_b2, place, end, at, S, True)
        for turn in tl.range(0, turns, disable_licm=True):
            segment = segments - 1 - turn if SCAN else item % segments
            first = segment * SAVE
            count = tl.minimum(SAVE, mini_batches - first)
            slot = place * mini_batches + first
            if not SCAN:
                at = fence(scratch)
                number = place * segments + segment
                record = states + slot * S.record
                pack_state(saved_W1, saved_b1, saved_W2, saved_b2, number, record, at, S, True)
                for i in tl.range(0, count, disable_licm=True):
                    state = states + (slot + i) * S.record
                    exchange = exchanges + (slot + i) * (5 * S.tile + 2 * S.layer + S.record)
                    steps, inner = exchange + S.tile, exchange + 2 * S.tile
                    at = fence(scratch)
                    store_rotated(
                        keys_in, k_token, exchange + at, scan, tokens, sequences, first + i,
                        rope_step, S, ROTARY,
                    )  # fmt: skip
                    at = fence(scratch)
                    hidden_layer(exchange + at, state + at, hidden + at, slope + at, S, PRECISION)
                    at = fence(scratch)
                    z2 = hidden_output(hidden + at, state + at, zeros(S.N, S.D), S, PRECISION)
                    store_matrix(inner + at, z2, S.N, S.D)
                    at = fence(scratch)
                    inner_steps(
                        values, v_token, rates, exchange + at, inner + at, steps + at, rates,
                        gamma, beta, eps, scale, scan, tokens, sequences, first + i,
                        S, GATED, False,
                    )  # fmt: skip
                    if i + 1 < count:
                        at = fence(scratch)
                        hidden_steps(steps + at, state + at, slope + at, steps1 + at, S, PRECISION)
                        at = fence(scratch)
                        # Followed by another mini-batch, so this one has all K tokens.
                        advance_state(
                            exchange + at, steps + at, hidden + at, steps1 + at,
                            tl.load(coefficient + S.K - 1), state + at, state + S.record + at,
                            S, PRECISION,
                        )  # fmt: skip
            for i in tl.range(0, count, disable_licm=True):
                index, number = first + count - 1 - i, slot + count - 1 - i
                state = states + number * S.record
                exchange = exchanges + number * (5 * S.tile + 2 * S.layer + S.record)
                part = place * mini_batches + index
                if not SCAN:
                    at = fence(scratch)
                    hidden_layer(exchange + at, state + at, hidden + at, slope + at, S, PRECISION)
                    at = fence(scratch)
                    hidden_steps(
                        exchange + S.tile + at, state + at, slope + at, steps1 + at, S, PRECISION
                    )
                    read_backward(
                        queries, q_token, grad_output + rows, grad_q + rows,
                        anew(coefficient, at, False),
                        coefficient_parts + part * S.N, norm_parts + part * (2 * S.D),
                        gamma, eps, anew(state, at, True), anew(exchange, at, True),
                        anew(scratch, at, True),
                        scan, tokens, sequences, index, rope_step, S, ROTARY, PRECISION,
                    )  # fmt: skip
                if SCAN:
                    other = part + half
                    scan_backward(
                        values, v_token, rates, grad_k + rows, grad_v + rows,
                        grad_lr + place * tokens, coefficient,
                        coefficient_parts + other * S.N, norm_parts + other * (2 * S.D),
                        gamma, beta, eps, scale, state,
                        carry + (index + 1) % 2 * S.record, carry + index % 2 * S.record,
                        exchange, scratch, scan, tokens, sequences, index, rope_step,
                        S, GATED, ROTARY, PRECISION,
                    )  # fmt: skip
        if SCAN:
            at = fence(scratch)
            pack_state(grad_W1, grad_b1, grad_W2, grad_b2, place, carry, at, S, False)


def plan_backward(
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
) -> tuple[list[Launch], MLPGradients]:
    """Launches of the backward pass, not yet run, and the tensors they will fill.

    Works with tensors on the meta device. Arguments as of `mlp_backward`.
    """
    check_limits(q, coefficient)
    batch, heads, tokens, d = q.shape
    m, K = W1.shape[-1], coefficient.shape[0]
    S = Sizes.of(K, d, m, q.dtype)
    lead = (2 if settings.bidirectional else 1, batch, heads)
    scans, mini_batches = math.prod(lead), -(-tokens // K)
    slots = scans * mini_batches
    segments = scans * -(-mini_batches // save)

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=q.device)

    dtype = torch.float32 if settings.bidirectional else q.dtype
    result = MLPGradients(  # type: ignore[call-arg,misc]
        *(new(*lead, tokens, d, dtype=dtype) for _ in range(3)),
        new(*lead, tokens),
        *empty_state(q, *lead, d=d, m=m),
        coefficient=new(2, *lead, mini_batches, S.N),
        norm=new(2, *lead, mini_batches, 2, S.D),
    )
    readers = min(segments, triton_mlp.MAX_PROGRAMS)
    arguments: dict[str, Any] = {
        "q": q,
        "k": k,
        "v": v,
        "lr": lr,
        "coefficient": coefficient,
        "norm_weight": norm_weight,
        "norm_bias": norm_bias,
        "grad_output": grad_output.contiguous(),
        "coefficient_parts": result.coefficient,
        "norm_parts": result.norm,
        "states": new(slots, S.record),
        "carries": new(2 * scans, S.record),
        "exchanges": new(slots, 5 * S.tile + 2 * S.layer + S.record),
        "scratch": new(max(readers, scans), 16 + 7 * S.layer + 4 * S.tile + 4 * S.scores),
        "tokens": tokens,
        "batch": batch,
        "heads": heads,
        "half": slots,
        "eps": settings.eps,
        "scale": (settings.base_lr or 0.0) / d,
        "rope_step": rotary_step(settings.rope_theta, d),
    }
    arguments |= token_strides(q=q, k=k, v=v)
    arguments |= state_arguments("saved_", (saved_W1, saved_b1, saved_W2, saved_b2))
    final = (grad_W1, grad_b1, grad_W2, grad_b2)
    arguments |= state_arguments("final_", [x.contiguous() for x in final])
    arguments |= state_arguments("grad_", result[4:8])
    arguments |= {f"grad_{name}": getattr(result, name) for name in ("q", "k", "v", "lr")}
    constants = {
        "S": S,
        "GATED": settings.base_lr is not None,
        "ROTARY": settings.rope_theta is not None,
        "SAVE": save,
        "PRECISION": dot_precision(q.dtype),
    }
    # Terms of a product with the state, of one within a mini-batch, and of one of its tiles.
    large, middle, small = (2 * scans * tokens * x for x in (d * m, K * m, K * d))
    reading = 10 * large + 7 * middle + 7 * small
    scanning = 11 * large
    item, values = q.element_size(), scans * tokens * d
    state_bytes = 4 * (2 * d * m + m + d)
    layers = 2 * 4 * scans * tokens * m
    read_traffic = values * (3 * item + 4 + 2 * item) + state_bytes * segments
    scan_traffic = values * (item + 2 * item) + 8 * scans * tokens + 2 * state_bytes * scans
    passed = values * 4 * 5 + layers + 2 * state_bytes * slots

    def launch(
        name: str, total: int, programs: int, scan: bool, flops: int, traffic: int
    ) -> Launch:
        return Launch(
            name,
            backward_kernel,
            (programs,),
            arguments | {"total": total, "programs": programs},
            constants | {"SCAN": scan},
            num_warps=WARPS,
            num_stages=1,
            spacious=True,
            flops=flops,
            traffic=traffic + passed,
        )

    # One launch for both would have to keep more than the registers hold.
    return [
        launch("ttt_mlp_read_out_backward", segments, readers, False, reading, read_traffic),
        launch("ttt_mlp_scan_backward", scans, scans, True, scanning, scan_traffic),
    ], result


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
    """Gradients of `mlp_forward`, from those of its output and final state.

    Memory beside arguments and results, in floats: R B H M (2 (2 d m + m + d) + K (5 d + 2 m))
    for the state, its gradient and what the two launches exchange, M = ceil(T / K); all padded.

    Args:
        grad_output: [R, B, H, T, d] fp32.
        grad_W1, grad_b1, grad_W2, grad_b2: [R, B, H, ...] fp32.
        q, ..., norm_bias: as given to `mlp_forward`.
        saved_W1, saved_b1, saved_W2, saved_b2: as returned by it.
        settings, save: as given to it; save >= 1.

    Returns:
        Gradients of q, k, v (in their dtype), lr, coefficient, W1, b1, W2, b2, norm_weight and
        norm_bias.
    """
    launches, gradients = plan_backward(
        grad_output, grad_W1, grad_b1, grad_W2, grad_b2, q, k, v, lr, coefficient,
        W1, b1, W2, b2, norm_weight, norm_bias, saved_W1, saved_b1, saved_W2, saved_b2,
        settings, save,
    )  # fmt: skip
    for launch in launches:
        launch.run()
    return gradients.reduce(q.dtype, coefficient.shape[0], own_state=W1.shape[0] > 1)
