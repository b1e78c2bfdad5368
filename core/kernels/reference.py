"""TTT-Linear and TTT-MLP token by token, straight from the equations.

This file is the contract: slow, short, any dtype. Every faster backend is tested against it.

Notation (TTT-UNet, MIDL 2026, section 3.2; Sun et al., "Learning to (learn at test time)",
2024, section 2): the hidden state is the inner model f. Tokens come in mini-batches of K. All
inner gradients of a mini-batch are taken at the state S that the mini-batch starts from; token i
reads with the state S_i that has seen the tokens 0..i of its mini-batch:

    loss_j = 1/2 || LN(f(k_j; S)) - (v_j - k_j) ||^2
    S_i    = S - c_i * sum_{j <= i} l_j dloss_j/dS
    y_i    = q_i + LN(f(q_i; S_i))

c_i depends on the position inside the mini-batch only, l_j on the token; the state that the next
mini-batch starts from is the S_i of the last token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tttunet.kernels.contract import TTTResult

SQRT_2_OVER_PI = 0.7978845608028654
GELU_CUBIC = 0.044715


def layer_norm(z: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Inner LayerNorm over the last axis, with eps inside the square root."""
    mean = z.mean(-1, keepdim=True)
    variance = (z - mean).pow(2).mean(-1, keepdim=True)
    return weight * (z - mean) / torch.sqrt(variance + eps) + bias


def inner_gradient(z: Tensor, target: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """d/dz of 1/2 || LN(z) - target ||^2, in closed form.

    Args:
        z, target: [..., d].
        weight, bias: scale and shift of the LayerNorm, broadcastable to z.
        eps: added to the variance.

    Returns:
        The gradient, [..., d].
    """
    mean = z.mean(-1, keepdim=True)
    variance = (z - mean).pow(2).mean(-1, keepdim=True)
    deviation = torch.sqrt(variance + eps)
    normalised = (z - mean) / deviation
    error = weight * (weight * normalised + bias - target)
    projection = (error * normalised).mean(-1, keepdim=True)
    return (error - error.mean(-1, keepdim=True) - normalised * projection) / deviation


def inner_loss(z: Tensor, target: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """1/2 || LN(z) - target ||^2 of every token, [...]; arguments as in `inner_gradient`."""
    return (layer_norm(z, weight, bias, eps) - target).pow(2).sum(-1) / 2


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh approximation."""
    return F.gelu(x, approximate="tanh")


def gelu_derivative(x: Tensor) -> Tensor:
    """Derivative of the tanh approximation of GELU."""
    tanh = torch.tanh(SQRT_2_OVER_PI * x * (1 + GELU_CUBIC * x * x))
    slope = SQRT_2_OVER_PI * (1 + 3 * GELU_CUBIC * x * x)
    return 0.5 * x * (1 - tanh * tanh) * slope + 0.5 * (1 + tanh)


def ttt_linear(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    coefficient: Tensor,
    state: tuple[Tensor, Tensor],
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float = 1e-6,
) -> TTTResult:
    """TTT with the inner model f(x) = x W + b. Arguments as in `tttunet.kernels.ttt_linear`."""
    W_i, b_i = state
    outputs, losses = [], []
    for t in range(q.shape[2]):
        i = t % coefficient.shape[0]
        if i == 0:
            W, b = W_i, b_i
            sum_W, sum_b = torch.zeros_like(W), torch.zeros_like(b)
        q_t, k_t, v_t = q[:, :, t], k[:, :, t], v[:, :, t]
        z = torch.einsum("bhd,bhde->bhe", k_t, W) + b
        inner = (z, v_t - k_t, norm_weight, norm_bias, eps)
        losses.append(inner_loss(*inner))
        step = lr[:, :, t, None] * inner_gradient(*inner)
        sum_W = sum_W + torch.einsum("bhd,bhe->bhde", k_t, step)
        sum_b = sum_b + step
        W_i, b_i = W - coefficient[i] * sum_W, b - coefficient[i] * sum_b
        read = torch.einsum("bhd,bhde->bhe", q_t, W_i) + b_i
        outputs.append(q_t + layer_norm(read, norm_weight, norm_bias, eps))
    return TTTResult(torch.stack(outputs, dim=2), (W_i, b_i), torch.stack(losses, dim=2))


def ttt_mlp(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    coefficient: Tensor,
    state: tuple[Tensor, Tensor, Tensor, Tensor],
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float = 1e-6,
) -> TTTResult:
    """TTT with f(x) = gelu(x W1 + b1) W2 + b2. Arguments as in `tttunet.kernels.ttt_mlp`."""
    W1_i, b1_i, W2_i, b2_i = state
    outputs, losses = [], []
    for t in range(q.shape[2]):
        i = t % coefficient.shape[0]
        if i == 0:
            start = W1, b1, W2, b2 = W1_i, b1_i, W2_i, b2_i
            sums = [torch.zeros_like(part) for part in start]
        q_t, k_t, v_t = q[:, :, t], k[:, :, t], v[:, :, t]
        z1 = torch.einsum("bhd,bhdm->bhm", k_t, W1) + b1
        hidden = gelu(z1)
        z2 = torch.einsum("bhm,bhmd->bhd", hidden, W2) + b2
        inner = (z2, v_t - k_t, norm_weight, norm_bias, eps)
        losses.append(inner_loss(*inner))
        gradient2 = inner_gradient(*inner)
        gradient1 = torch.einsum("bhd,bhmd->bhm", gradient2, W2) * gelu_derivative(z1)
        step1, step2 = lr[:, :, t, None] * gradient1, lr[:, :, t, None] * gradient2
        increments = (
            torch.einsum("bhd,bhm->bhdm", k_t, step1),
            step1,
            torch.einsum("bhm,bhd->bhmd", hidden, step2),
            step2,
        )
        sums = [total + part for total, part in zip(sums, increments, strict=True)]
        W1_i, b1_i, W2_i, b2_i = (
            part - coefficient[i] * total for part, total in zip(start, sums, strict=True)
        )
        read = gelu(torch.einsum("bhd,bhdm->bhm", q_t, W1_i) + b1_i)
        read = torch.einsum("bhm,bhmd->bhd", read, W2_i) + b2_i
        outputs.append(q_t + layer_norm(read, norm_weight, norm_bias, eps))
    state = (W1_i, b1_i, W2_i, b2_i)
    return TTTResult(torch.stack(outputs, dim=2), state, torch.stack(losses, dim=2))
