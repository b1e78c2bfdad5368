"""TTT-Linear forward in Triton: a state scan over the mini-batches, then a read-out of all at once.

The dual form of `dual.py`. Only z, the inner gradient and the step of the state are sequential:
the scan is one program per direction, sample and head, and stores the state that every mini-batch
starts from. The read-out is one program per mini-batch on top of that and forms the inner gradient
again, which is cheaper than passing it through memory. A single mini-batch needs no scan: one
launch.

Inside a program a mini-batch is worked through in blocks of tokens, so that few tiles are alive at
a time and nothing spills from the registers.

Memory besides the arguments and results, in bytes, M = ceil(T / K) mini-batches: the states,
4 R B H M (d^2 + d); with save = 1 they are the saved states, with save = n > 1 only
4 R B H ceil(M / n) (d^2 + d) of it is kept for the backward pass.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tttunet.kernels.contract import ForwardResult, OperatorError, Settings
from tttunet.kernels.triton_common import dot_precision, padded, rotary_step, runs_on_hip
from tttunet.kernels.triton_launch import Launch
from tttunet.kernels.triton_linear_kernels import read_kernel, scan_kernel

MAX_HEAD_DIM = 128
MAX_MINI_BATCH = 64
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Sizes(NamedTuple):
    """R directions, B samples, H heads, T tokens of d channels, M mini-batches of K tokens."""

    R: int
    B: int
    H: int
    T: int
    d: int
    K: int
    M: int


def sizes(q: Tensor, coefficient: Tensor, settings: Settings) -> Sizes:
    """The extents of a problem that the kernels take.

    Raises:
        OperatorError: they do not take it.
    """
    B, H, T, d = q.shape
    K = coefficient.shape[0]
    if d > MAX_HEAD_DIM or K > MAX_MINI_BATCH or q.dtype not in DTYPES:
        raise OperatorError(
            f"The Triton kernels take head dimensions up to {MAX_HEAD_DIM}, mini-batches up to "
            f"{MAX_MINI_BATCH} and fp32, bf16 or fp16; these are {d}, {K} and {q.dtype}.",
            "Use backend='dual'.",
        )
    return Sizes(1 + settings.bidirectional, B, H, T, d, K, -(-T // K))


def common_arguments(
    q: Tensor, k: Tensor, v: Tensor, W: Tensor, size: Sizes, settings: Settings
) -> dict[str, int | float]:
    """Extents, strides and scalars by the names of the kernels' parameters."""
    arguments: dict[str, int | float] = {
        "heads": size.H,
        "sequences": size.B * size.H,
        "tokens": size.T,
        "mini_batches": size.M,
        "stride_state": size.H if W.shape[0] > 1 else 0,
        "eps": settings.eps,
        "scale": (settings.base_lr or 0.0) / size.d,
        "step": rotary_step(settings.rope_theta, size.d),
    }
    for name, x in (("q", q), ("k", k), ("v", v)):
        for axis, stride in zip("bht", x.stride(), strict=False):
            arguments[f"stride_{name}{axis}"] = stride
    return arguments


def common_constants(q: Tensor, size: Sizes, settings: Settings) -> dict[str, Any]:
    """Compile-time parameters of every kernel."""
    return {
        "K": size.K,
        "D": padded(size.d),
        "d": size.d,
        "GATED": settings.base_lr is not None,
        "ROTARY": settings.rope_theta is not None,
        "PRECISION": dot_precision(q.dtype),
    }


def count_warps(d: int, hip: bool, at_16: int, at_32: int) -> int:
    """Warps of a program, by trial such that nothing spills; AMD's have 64 lanes.

    For small tiles ptxas now and then spills a few bytes for the sake of occupancy: hence the
    exceptions.

    Args:
        at_16, at_32: for head dimensions padded to 16 and 32.
    """
    return 4 if hip else {16: at_16, 32: at_32}.get(padded(d), 8)


def bind(kernel: Any, available: dict[str, Any]) -> dict[str, Any]:
    """The entries of `available` that a kernel takes, in its order."""
    return {name: available[name] for name in kernel.arg_names if name in available}


def plan_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    coefficient: Tensor,
    W: Tensor,
    b: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    settings: Settings,
    save: int,
    hip: bool | None = None,
) -> tuple[list[Launch], ForwardResult]:
    """The launches of `linear_forward` (same arguments) and the tensors that they fill.

    hip: plan for an AMD GPU; None: for what this PyTorch is made for.
    """
    size = sizes(q, coefficient, settings)
    R, B, H, T, d, K, M = size
    hip = runs_on_hip() if hip is None else hip
    # The three products that "tf32x3" makes of one want twice the registers for operands.
    full = q.dtype == torch.float32
    wide = padded(d) * (2 if full else 1) > 64
    block = min(16 if wide or (hip and d > 32) else 32, padded(K))

    def new(*shape: int) -> Tensor:
        return W.new_empty(R, B, H, *shape)

    saves = -(-M // save) if save else 0
    result = ForwardResult(
        output=new(T, d),
        state=(new(d, d), new(d)),
        losses=new(T),
        saved=(new(saves, d, d), new(saves, d)) if save else (W.new_empty(0), W.new_empty(0)),
    )
    saved_W, saved_b = result.saved
    available: dict[str, Any] = {
        **common_arguments(q, k, v, W, size, settings),
        **{"q": q, "k": k, "v": v, "lr": lr, "coefficient": coefficient, "W": W, "b": b},
        **{"norm_weight": norm_weight, "norm_bias": norm_bias},
        **{"output": result.output, "losses": result.losses},
        **{"final_W": result.state[0], "final_b": result.state[1]},
        **{"saved_W": saved_W, "saved_b": saved_b},
    }
    constants = common_constants(q, size, settings) | {"BLOCK": block}
    rows, states = R * B * H * T, 4 * R * B * H * M * (d * d + d)
    launches = []
    if M > 1:
        own = save != 1
        available["states_W"] = states_W = new(M, d, d) if own else saved_W
        available["states_b"] = states_b = new(M, d) if own else saved_b
        launches.append(
            Launch(
                name="ttt_linear_scan",
                kernel=scan_kernel,
                grid=(R * B * H,),
                arguments=bind(scan_kernel, available),
                constants=constants | {"SAVE": save if own else 0},
                num_warps=count_warps(d, hip, at_16=4 if full else 2, at_32=8),
                num_stages=1,
                flops=4 * rows * d * d,
                traffic=rows * (2 * d * q.element_size() + 4) + states,
            )
        )
        available |= {"W": states_W, "b": states_b}
    launches.append(
        Launch(
            name="ttt_linear_read",
            kernel=read_kernel,
            grid=(R * B * H * M,),
            arguments=bind(read_kernel, available),
            constants=constants
            | {"SINGLE": M == 1, "SAVE": bool(save), "REREAD": padded(d) > 64 and not hip},
            num_warps=count_warps(d, hip, at_16=4, at_32=4 if d == 32 else 8),
            num_stages=1,
            flops=4 * rows * d * (d + min(K, T)) + (4 * rows * d * d if M == 1 else 0),
            traffic=rows * (d * (3 * q.element_size() + 4) + 8) + states,
        )
    )
    return launches, result


def linear_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    coefficient: Tensor,
    W: Tensor,
    b: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    settings: Settings,
    save: int,
) -> ForwardResult:
    """TTT-Linear: rotation, learning rate, inner loop and read-out in at most two launches.

    Args:
        q, k, v: [B, H, T, d] in fp32, bf16 or fp16, before the rotation; last stride 1.
        lr: [B, H, T] contiguous, fp32 as all that follow; the rate, or its logit if
            `settings.base_lr` is set.
        coefficient: [K].
        W, b: initial state [S, H, d, d] and [S, H, d], S = 1 or B; contiguous.
        norm_weight, norm_bias: [H, d], contiguous.
        settings: of the operator.
        save: mini-batches between the saved states; 0: save none.

    Raises:
        OperatorError: a head dimension, mini-batch size or dtype that the kernels do not take.
    """
    launches, result = plan_forward(
        q, k, v, lr, coefficient, W, b, norm_weight, norm_bias, settings, save
    )
    for launch in launches:
        launch.run()
    return result
