"""InstanceNorm + residual add + LeakyReLU in Triton, forward and backward, channels-last.

    y = leaky_relu((x - mean) * rstd * weight + bias [+ residual])

with mean and 1 / sqrt(variance + eps) of every sample and channel over the P positions (Ulyanov
et al. 2016; the order is that of `tttunet.layers.residual`). A channels-last map is [N, P, C] in
memory. Each pass has two launches: one forms partial statistics over chunks of the positions, the
other merges them, every program for itself and always in the same order, and applies the result.
There are no atomics: two runs agree bit for bit.

Statistics are fp32 by Welford's update in every lane and Chan's merge of lanes and chunks, so a
mean far above the deviation does not cancel (Chan, Golub, LeVeque 1983). A pass reads x twice;
forward moves 3 elements per value (4 with a residual), backward 5 (7 with a residual), plus
16 N C chunks bytes of partial statistics.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from tttunet.kernels.triton_launch import Launch
from tttunet.kernels.triton_norm_kernels import (
    apply_kernel,
    gradient_kernel,
    gradient_sums_kernel,
    statistics_kernel,
)

#: Values that a program holds at a time, over all its threads.
TILE = 2048
#: Enough programs to fill every multiprocessor of a large GPU several times.
PROGRAMS = 512
#: Every program of the second launch reads all chunks' statistics, so there are not more of them.
MAX_CHUNKS = 256
#: Channels of a tile: 128 bytes of a half precision row.
MAX_BLOCK_C = 64
#: Statistics, chunks times channels, that a program merges at a time.
MERGE = 1024
NUM_WARPS = 8


class NormForward(NamedTuple):
    """y [N, P, C] in x's dtype; mean and rstd [N, C] in fp32."""

    y: Tensor
    mean: Tensor
    rstd: Tensor


class NormBackward(NamedTuple):
    """Gradients of x, weight, bias and the residual (None without one), each as its argument."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    residual: Tensor | None


class _Partition(NamedTuple):
    """How [N, P, C] is dealt to programs."""

    grid: tuple[int, int, int]
    sizes: dict[str, int]
    blocks: dict[str, int]
    merge: dict[str, int]

    @property
    def chunks(self) -> int:
        return self.grid[1]


def _partition(x: Tensor) -> _Partition:
    samples, positions, channels = x.shape
    block_c = min(MAX_BLOCK_C, triton.next_power_of_2(channels))
    block_p = TILE // block_c
    columns = triton.cdiv(channels, block_c)
    block_g = max(1, MERGE // block_c)
    # A program goes through its chunk's tiles, then through groups of chunks: as many of both.
    balanced = math.isqrt(triton.cdiv(positions, block_p) * block_g)
    wanted = max(1, min(MAX_CHUNKS, triton.cdiv(PROGRAMS, columns * samples), balanced))
    # Whole tiles, so that only the last chunk has a masked tail.
    chunk = triton.cdiv(triton.cdiv(positions, wanted), block_p) * block_p
    chunks = triton.cdiv(positions, chunk)
    sizes = {"P": positions, "C": channels, "chunk": chunk, "chunks": chunks}
    blocks = {"BLOCK_P": block_p, "BLOCK_C": block_c}
    return _Partition((columns, chunks, samples), sizes, blocks, {"BLOCK_G": block_g})


def _optional(name: str, tensor: Tensor | None, arguments: dict, constants: dict) -> None:
    """An absent pointer is a constant None."""
    if tensor is None:
        constants[name] = None
    else:
        arguments[name] = tensor


def _empty(x: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=x.device)


def plan_norm_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    eps: float,
    slope: float,
) -> tuple[list[Launch], NormForward]:
    """The launches of `norm_forward` and the tensors they will fill; also on the meta device."""
    x = x.contiguous()
    residual = None if residual is None else residual.contiguous()
    samples, _, channels = x.shape
    part = _partition(x)
    result = NormForward(
        torch.empty_like(x), _empty(x, samples, channels), _empty(x, samples, channels)
    )
    part_mean, part_m2 = (_empty(x, samples, part.chunks, channels) for _ in range(2))
    statistics = Launch(
        name="norm_statistics",
        kernel=statistics_kernel,
        grid=part.grid,
        arguments={"x_ptr": x, "mean_ptr": part_mean, "m2_ptr": part_m2, **part.sizes},
        constants=part.blocks,
        num_warps=NUM_WARPS,
        flops=6 * x.numel(),
    )
    arguments: dict = {"x_ptr": x, "weight_ptr": weight, "bias_ptr": bias}
    constants = {**part.blocks, **part.merge}
    _optional("residual_ptr", residual, arguments, constants)
    apply = Launch(
        name="norm_apply",
        kernel=apply_kernel,
        grid=part.grid,
        arguments={
            **arguments,
            "part_mean_ptr": part_mean,
            "part_m2_ptr": part_m2,
            "y_ptr": result.y,
            "mean_ptr": result.mean,
            "rstd_ptr": result.rstd,
            **part.sizes,
            "eps": eps,
            "slope": slope,
        },
        constants=constants,
        num_warps=NUM_WARPS,
        flops=(4 if residual is None else 5) * x.numel(),
    )
    return [statistics, apply], result


def norm_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    eps: float,
    slope: float,
) -> NormForward:
    """leaky_relu(instance_norm(x) [+ residual]).

    Args:
        x: [N, P, C], fp32, bf16 or fp16; copied if it is not contiguous.
        weight, bias: [C].
        residual: as x, or None.
        eps: added to the variance.
        slope: negative slope of the LeakyReLU; 1 means no activation.

    Returns:
        y in the dtype of x; mean and rstd, [N, C] in fp32, for `norm_backward`.
    """
    launches, result = plan_norm_forward(x, weight, bias, residual, eps, slope)
    for launch in launches:
        launch.run()
    return result


def plan_norm_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    slope: float,
) -> tuple[list[Launch], NormBackward]:
    """The launches of `norm_backward` and the tensors they will fill; also on the meta device."""
    grad_y, x = grad_y.contiguous(), x.contiguous()
    residual = None if residual is None else residual.contiguous()
    samples, _, channels = x.shape
    part = _partition(x)
    activated = slope != 1.0
    result = NormBackward(
        torch.empty_like(x),
        torch.empty_like(weight),
        torch.empty_like(bias),
        None if residual is None else torch.empty_like(residual),
    )
    sums = {
        "sum_g_ptr": _empty(x, samples, part.chunks, channels),
        "sum_gx_ptr": _empty(x, samples, part.chunks, channels),
    }
    affine = {"weight_ptr": weight, "bias_ptr": bias}
    saved = {"mean_ptr": mean, "rstd_ptr": rstd}
    arguments: dict = {"grad_y_ptr": grad_y, "x_ptr": x, **affine, **saved}
    constants: dict = {"ACTIVATED": activated, **part.blocks}
    _optional("residual_ptr", residual if activated else None, arguments, constants)
    _optional("grad_residual_ptr", result.residual, arguments, constants)
    reduce = Launch(
        name="norm_gradient_sums",
        kernel=gradient_sums_kernel,
        grid=part.grid,
        arguments={**arguments, **sums, **part.sizes, "slope": slope},
        constants=constants,
        num_warps=NUM_WARPS,
        flops=(9 if activated else 5) * x.numel(),
    )
    # With a residual the first launch has written the gradient behind the activation.
    again = activated and result.residual is None
    apply = Launch(
        name="norm_gradient",
        kernel=gradient_kernel,
        grid=part.grid,
        arguments={
            "grad_ptr": grad_y if result.residual is None else result.residual,
            "x_ptr": x,
            **affine,
            **saved,
            **sums,
            "grad_x_ptr": result.x,
            "grad_weight_ptr": result.weight,
            "grad_bias_ptr": result.bias,
            **part.sizes,
            "samples": samples,
            "slope": slope,
        },
        constants={"ACTIVATED": again, **part.blocks, **part.merge},
        num_warps=NUM_WARPS,
        flops=(10 if again else 6) * x.numel(),
    )
    return [reduce, apply], result


def norm_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    slope: float,
) -> NormBackward:
    """Gradients of `norm_forward`'s arguments.

    Args:
        grad_y: gradient of y, [N, P, C].
        x, weight, bias, residual, slope: as given to `norm_forward`.
        mean, rstd: as returned by it.

    Returns:
        Gradients of x, weight, bias and residual (None without one), in their dtypes.
    """
    launches, result = plan_norm_backward(grad_y, x, weight, bias, residual, mean, rstd, slope)
    for launch in launches:
        launch.run()
    return result
