"""TTT-Linear backward in Triton: the read-out of all mini-batches at once, then a reverse scan.

With P = c * dL/dzbar, G = l g and the notation of `dual.py`, the read-out of a mini-batch gives

    dq = dy + dA k + dzbar W^T,  dA = -tril(P G^T)          (local)
    dG = -A^T P,  dk = dA^T q,  dW = q^T dzbar              (what the scan adds to)

and depends on no other mini-batch. The scan carries dW, db of the state that a mini-batch leaves
behind, from the last to the first:

    dG -= c_last (k dW + db);  dl = <g, dG>;  dz, dr = derivative of the inner gradient at l dG
    dk += dz W^T - c_last G dW^T - dr;  dv = dr;  dW += k^T dz;  db += sum dz

The inner gradients are formed again from the states that the forward pass saved; with save = n > 1
every read-out program first steps through the n mini-batches of its interval to get the others.

Sums over programs (gamma, beta, coefficient, shared state) go through one buffer row per program,
which PyTorch adds: no atomics, the same bits every time. Memory besides the saved states and the
results, in bytes: 4 R B H (2 T d + M (d^2 + 3 d) + M K); for half precision tokens in one
direction another 4 B H T d, with save > 1 another 4 R B H M (d^2 + d).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tttunet.kernels.contract import Settings
from tttunet.kernels.triton_common import padded, runs_on_hip
from tttunet.kernels.triton_launch import Launch
from tttunet.kernels.triton_linear import (
    bind,
    common_arguments,
    common_constants,
    count_warps,
    sizes,
)
from tttunet.kernels.triton_linear_backward_kernels import (
    read_backward_kernel,
    scan_backward_kernel,
)


class LinearGradients(NamedTuple):
    """What the two launches fill, per direction (R): q, k, v [R, B, H, T, d], lr [R, B, H, T],
    W, b [R, B, H, ...]; and rows of those of gamma, beta [R, B, H, M + 1, d] and of coefficient
    [R, B, H, M, K]."""

    q: Tensor
    k: Tensor
    v: Tensor
    lr: Tensor
    W: Tensor
    b: Tensor
    weight: Tensor
    bias: Tensor
    coefficient: Tensor


def plan_backward(
    grad_output: Tensor,
    grad_W: Tensor,
    grad_b: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    coefficient: Tensor,
    W: Tensor,
    b: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    saved_W: Tensor,
    saved_b: Tensor,
    settings: Settings,
    save: int,
    hip: bool | None = None,
) -> tuple[list[Launch], LinearGradients]:
    """The launches of `linear_backward` (same arguments) and the tensors that they fill.

    hip: plan for an AMD GPU; None: for what this PyTorch is made for.
    """
    size = sizes(q, coefficient, settings)
    R, B, H, T, d, K, M = size
    hip = runs_on_hip() if hip is None else hip
    warps = count_warps(d, hip, at_16=2 if q.dtype == torch.float32 else 4, at_32=4)
    if grad_output.stride(-1) != 1:
        grad_output = grad_output.contiguous()

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return lr.new_empty(R, B, H, *shape, dtype=dtype)

    # With one direction there is nothing to add up: the kernels store the results' dtype.
    dtype = torch.float32 if R > 1 else q.dtype
    gradients = LinearGradients(
        q=new(T, d, dtype=dtype),
        k=new(T, d, dtype=dtype),
        v=new(T, d, dtype=dtype),
        lr=new(T),
        W=new(d, d),
        b=new(d),
        weight=new(M + 1, d),
        bias=new(M + 1, d),
        coefficient=new(M, K),
    )
    states_W = saved_W if save == 1 else new(M, d, d)
    states_b = saved_b if save == 1 else new(M, d)
    available: dict[str, Any] = {
        **common_arguments(q, k, v, W, size, settings),
        **{f"stride_g{axis}": x for axis, x in zip("rbht", grad_output.stride(), strict=False)},
        **{"q": q, "k": k, "v": v, "lr": lr, "coefficient": coefficient},
        **{"norm_weight": norm_weight, "norm_bias": norm_bias},
        **{"saved_W": saved_W, "saved_b": saved_b, "states_W": states_W, "states_b": states_b},
        **{"grad_output": grad_output},
        **{"grad_final_W": grad_W.contiguous(), "grad_final_b": grad_b.contiguous()},
        # Free until the scan stores the gradient of v, block by block after it read z.
        "inner": gradients.v if dtype == torch.float32 else new(T, d),
        **{"grad_update": new(T, d), "grad_key": new(T, d)},
        **{"grad_W": new(M, d, d), "grad_b": new(M, d)},
        **{"grad_q": gradients.q, "grad_k": gradients.k, "grad_v": gradients.v},
        **{"grad_lr": gradients.lr, "grad_initial_W": gradients.W, "grad_initial_b": gradients.b},
        **{"rows_weight": gradients.weight, "rows_bias": gradients.bias},
        "rows_coefficient": gradients.coefficient,
    }
    constants = common_constants(q, size, settings)
    constants |= {"BLOCK": 16, "REREAD": padded(d) > 32}
    rows, states = R * B * H * T, 4 * R * B * H * M * (d * d + d)
    given, returned = q.element_size(), gradients.q.element_size()
    read = Launch(
        name="ttt_linear_read_backward",
        kernel=read_backward_kernel,
        grid=(R * B * H * -(-M // save),),
        arguments=bind(read_backward_kernel, available),
        constants=constants | {"INTERVAL": save},
        num_warps=warps,
        num_stages=1,
        flops=rows * d * (8 * d + 16 * min(K, T) + (4 * d if save > 1 else 0)),
        traffic=rows * (d * (3 * given + returned + 16) + 8) + (2 if save == 1 else 3) * states,
    )
    scan = Launch(
        name="ttt_linear_scan_backward",
        kernel=scan_backward_kernel,
        grid=(R * B * H,),
        arguments=bind(scan_backward_kernel, available),
        constants=constants,
        num_warps=warps,
        num_stages=1,
        flops=8 * rows * d * d,
        traffic=rows * (d * (2 * given + 2 * returned + 12) + 12) + 2 * states,
    )
    return [read, scan], gradients


def linear_backward(
    grad_output: Tensor,
    grad_W: Tensor,
    grad_b: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    coefficient: Tensor,
    W: Tensor,
    b: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    saved_W: Tensor,
    saved_b: Tensor,
    settings: Settings,
    save: int,
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, lr, coefficient, W, b, norm_weight and norm_bias in two launches.

    Args:
        grad_output: of `LinearForward.output`, [R, B, H, T, d].
        grad_W, grad_b: of the final state, [R, B, H, d, d] and [R, B, H, d].
        saved_W, saved_b: from the forward pass with the same save >= 1.
        The others are those of `linear_forward`.

    Returns:
        Each with the shape of its argument; those of q, k, v in their dtype, the others fp32.

    Raises:
        OperatorError: as `linear_forward`.
    """
    launches, rows = plan_backward(
        grad_output, grad_W, grad_b, q, k, v, lr, coefficient, W, b, norm_weight, norm_bias,
        saved_W, saved_b, settings, save,
    )  # fmt: skip
    for launch in launches:
        launch.run()
    state = (rows.W.sum(0), rows.b.sum(0))
    if W.shape[0] == 1:
        state = (state[0].sum(0, keepdim=True), state[1].sum(0, keepdim=True))
    return (
        *(x[0] if len(x) == 1 else x.sum(0).to(q.dtype) for x in (rows.q, rows.k, rows.v)),
        rows.lr.sum(0),
        rows.coefficient.sum((0, 1, 2, 3)),
        *state,
        rows.weight.sum((0, 1, 3)),
        rows.bias.sum((0, 1, 3)),
    )
