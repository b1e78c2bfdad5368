"""The Triton kernels of InstanceNorm + residual add + LeakyReLU; planned by `triton_norm`.

x, residual, y and their gradients are [N, P, C], weight and bias [C], statistics [N, C], partial
sums [N, chunks, C] in fp32. The grid is (tiles of channels, chunks of positions, samples).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _lane_counts(total, size, lanes):
    """How many of the positions 0..total-1, dealt in turn to `size` lanes, each lane got."""
    return tl.maximum((total - lanes + size - 1) // size, 0).to(tl.float32)


@triton.jit
def _merge(counts, mean, m2):
    """Count, mean and sum of squared deviations of groups along axis 0 (Chan's merge)."""
    total = tl.sum(counts, axis=0)
    merged = tl.sum(counts * mean, axis=0) / total
    # One correction step: the first sum carries the rounding of a large mean.
    merged += tl.sum(counts * (mean - merged[None, :]), axis=0) / total
    deviation = mean - merged[None, :]
    return total, merged, tl.sum(m2 + counts * deviation * deviation, axis=0)


@triton.jit
def statistics_kernel(
    x_ptr,
    mean_ptr,
    m2_ptr,
    P,
    C,
    chunk,
    chunks,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Mean and sum of squared deviations of one chunk of positions, [N, chunks, C]."""
    n = tl.program_id(2).to(tl.int64)
    group = tl.program_id(1)
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    lanes = tl.arange(0, BLOCK_P)
    inside = channels[None, :] < C
    start = group * chunk
    rows = tl.minimum(P - start, chunk)
    offsets = lanes[:, None] * C + channels[None, :]
    tile_ptr = x_ptr + (n * P + start) * C
    mean = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
    m2 = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
    count = 0.0
    for first in range(0, rows, BLOCK_P):
        mask = (first + lanes[:, None] < rows) & inside
        x = tl.load(tile_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        count += 1.0
        delta = tl.where(mask, x - mean, 0.0)
        mean += delta * (1.0 / count)
        m2 += delta * (x - mean)
        tile_ptr += BLOCK_P * C
    counts = _lane_counts(rows, BLOCK_P, lanes)[:, None] + tl.zeros_like(mean)
    _, mean, m2 = _merge(counts, mean, m2)
    out = (n * chunks + group) * C + channels
    tl.store(mean_ptr + out, mean, mask=channels < C)
    tl.store(m2_ptr + out, m2, mask=channels < C)


@triton.jit
def apply_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    part_mean_ptr,
    part_m2_ptr,
    y_ptr,
    mean_ptr,
    rstd_ptr,
    P,
    C,
    chunk,
    chunks,
    eps,
    slope,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """Merge the chunks' statistics; normalise, add, activate one chunk of positions."""
    n = tl.program_id(2).to(tl.int64)
    group = tl.program_id(1)
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid = channels < C

    mean = tl.zeros([BLOCK_C], dtype=tl.float32)
    m2 = tl.zeros([BLOCK_C], dtype=tl.float32)
    for first in range(0, chunks, BLOCK_G):
        groups = first + tl.arange(0, BLOCK_G)
        mask = (groups[:, None] < chunks) & valid[None, :]
        offsets = (n * chunks + groups[:, None]) * C + channels[None, :]
        part_mean = tl.load(part_mean_ptr + offsets, mask=mask, other=0.0)
        part_m2 = tl.load(part_m2_ptr + offsets, mask=mask, other=0.0)
        sizes = tl.maximum(tl.minimum(P - groups * chunk, chunk), 0).to(tl.float32)
        more, tile_mean, tile_m2 = _merge(
            sizes[:, None] + tl.zeros_like(part_mean), part_mean, part_m2
        )
        count = tl.minimum(first * chunk, P).to(tl.float32)
        share = more / (count + more)
        delta = tile_mean - mean
        mean += delta * share
        m2 += tile_m2 + delta * delta * (count * share)
    rstd = 1.0 / tl.sqrt(m2 / P + eps)
    if group == 0:
        tl.store(mean_ptr + n * C + channels, mean, mask=valid)
        tl.store(rstd_ptr + n * C + channels, rstd, mask=valid)

    scale = rstd * tl.load(weight_ptr + channels, mask=valid, other=0.0).to(tl.float32)
    shift = tl.load(bias_ptr + channels, mask=valid, other=0.0).to(tl.float32)
    lanes = tl.arange(0, BLOCK_P)
    start = group * chunk
    rows = tl.minimum(P - start, chunk)
    base = (n * P + start) * C
    for first in range(0, rows, BLOCK_P):
        mask = (first + lanes[:, None] < rows) & valid[None, :]
        offsets = base + lanes[:, None] * C + channels[None, :]
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        y = (x - mean[None, :]) * scale[None, :] + shift[None, :]
        if residual_ptr is not None:
            y += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        y = tl.where(y > 0, y, y * slope)
        tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)
        base += BLOCK_P * C


@triton.jit
def gradient_sums_kernel(
    grad_y_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    mean_ptr,
    rstd_ptr,
    grad_residual_ptr,
    sum_g_ptr,
    sum_gx_ptr,
    P,
    C,
    chunk,
    chunks,
    slope,
    ACTIVATED: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sums of g and g * xhat over one chunk of positions, g = d loss / d (norm + residual)."""
    n = tl.program_id(2).to(tl.int64)
    group = tl.program_id(1)
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid = channels < C
    mean = tl.load(mean_ptr + n * C + channels, mask=valid, other=0.0)
    rstd = tl.load(rstd_ptr + n * C + channels, mask=valid, other=0.0)
    weight = tl.load(weight_ptr + channels, mask=valid, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channels, mask=valid, other=0.0).to(tl.float32)
    lanes = tl.arange(0, BLOCK_P)
    start = group * chunk
    rows = tl.minimum(P - start, chunk)
    base = (n * P + start) * C
    sum_g = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
    sum_gx = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
    for first in range(0, rows, BLOCK_P):
        mask = (first + lanes[:, None] < rows) & valid[None, :]
        offsets = base + lanes[:, None] * C + channels[None, :]
        g = tl.load(grad_y_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        normalised = (x - mean[None, :]) * rstd[None, :]
        if ACTIVATED:
            before = normalised * weight[None, :] + bias[None, :]
            if residual_ptr is not None:
                before += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
            g = tl.where(before > 0, g, g * slope)
        if grad_residual_ptr is not None:
            tl.store(
                grad_residual_ptr + offsets, g.to(grad_residual_ptr.dtype.element_ty), mask=mask
            )
        sum_g += g
        sum_gx += g * normalised
        base += BLOCK_P * C
    out = (n * chunks + group) * C + channels
    tl.store(sum_g_ptr + out, tl.sum(sum_g, axis=0), mask=valid)
    tl.store(sum_gx_ptr + out, tl.sum(sum_gx, axis=0), mask=valid)


@triton.jit
def _add_chunks(ptr, n, chunks, C, channels, BLOCK_C: tl.constexpr, BLOCK_G: tl.constexpr):
    """Sum over the chunks of sample n of a [N, chunks, C] tensor."""
    total = tl.zeros([BLOCK_C], dtype=tl.float32)
    for first in range(0, chunks, BLOCK_G):
        groups = first + tl.arange(0, BLOCK_G)
        mask = (groups[:, None] < chunks) & (channels[None, :] < C)
        offsets = (n * chunks + groups[:, None]) * C + channels[None, :]
        total += tl.sum(tl.load(ptr + offsets, mask=mask, other=0.0), axis=0)
    return total


@triton.jit
def gradient_kernel(
    grad_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    rstd_ptr,
    sum_g_ptr,
    sum_gx_ptr,
    grad_x_ptr,
    grad_weight_ptr,
    grad_bias_ptr,
    P,
    C,
    chunk,
    chunks,
    samples,
    slope,
    ACTIVATED: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """Gradient of x over one chunk; the first programs also sum up those of weight and bias.

    ACTIVATED: grad_ptr is the gradient of y of a norm without residual. Otherwise it is already
    that of the sum in front of the activation.
    """
    n = tl.program_id(2).to(tl.int64)
    group = tl.program_id(1)
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid = channels < C
    sum_g = _add_chunks(sum_g_ptr, n, chunks, C, channels, BLOCK_C, BLOCK_G)
    sum_gx = _add_chunks(sum_gx_ptr, n, chunks, C, channels, BLOCK_C, BLOCK_G)
    if (group == 0) & (n == 0):
        grad_bias, grad_weight = sum_g, sum_gx
        for other in range(1, samples):
            grad_bias += _add_chunks(sum_g_ptr, n + other, chunks, C, channels, BLOCK_C, BLOCK_G)
            grad_weight += _add_chunks(sum_gx_ptr, n + other, chunks, C, channels, BLOCK_C, BLOCK_G)
        to = grad_weight_ptr.dtype.element_ty
        tl.store(grad_weight_ptr + channels, grad_weight.to(to), mask=valid)
        tl.store(grad_bias_ptr + channels, grad_bias.to(to), mask=valid)

    mean = tl.load(mean_ptr + n * C + channels, mask=valid, other=0.0)
    rstd = tl.load(rstd_ptr + n * C + channels, mask=valid, other=0.0)
    weight = tl.load(weight_ptr + channels, mask=valid, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channels, mask=valid, other=0.0).to(tl.float32)
    mean_g, mean_gx = sum_g / P, sum_gx / P
    scale = weight * rstd
    lanes = tl.arange(0, BLOCK_P)
    start = group * chunk
    rows = tl.minimum(P - start, chunk)
    base = (n * P + start) * C
    for first in range(0, rows, BLOCK_P):
        mask = (first + lanes[:, None] < rows) & valid[None, :]
        offsets = base + lanes[:, None] * C + channels[None, :]
        g = tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        normalised = (x - mean[None, :]) * rstd[None, :]
        if ACTIVATED:
            before = normalised * weight[None, :] + bias[None, :]
            g = tl.where(before > 0, g, g * slope)
        grad = scale[None, :] * (g - mean_g[None, :] - normalised * mean_gx[None, :])
        tl.store(grad_x_ptr + offsets, grad.to(grad_x_ptr.dtype.element_ty), mask=mask)
        base += BLOCK_P * C
