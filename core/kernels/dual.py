"""Mini-batch dual form of TTT-Linear and TTT-MLP in PyTorch: CPU, MPS and autograd everywhere.

Per mini-batch with rows k_j, v_j, q_j the token-by-token recurrence of `reference.py` becomes
three matrix products (TTT, Sun et al. 2024, section 2.5). The learning rate matrix c_i l_j has
rank 1, so l_j is folded into the gradient and c_i multiplies rows; the update of the bias is
the same masked sum with ones in place of <q_i, k_j>, hence the `+ 1` in `_masked_scores`:

    G    = l * dloss/dz                       at the state the mini-batch starts from
    zbar = q W + b - c * (tril(q k^T + 1) G)
    W'   = W - c_last k^T G,   b' = b - c_last sum_j G_j

Work is split in a sequential scan that forms G and the states, and a read-out that is batched
over all mini-batches of a segment of at most `CHECKPOINT_MINI_BATCHES`. Memory is linear in the
number of tokens; where tokens fill more than one segment, segments are recomputed in the backward
pass, so that only their inputs and one state per segment are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tttunet.kernels.contract import TTTResult
from tttunet.kernels.reference import (
    gelu,
    gelu_derivative,
    inner_gradient,
    inner_loss,
    layer_norm,
)

State = tuple[Tensor, ...]
Segment = Callable[..., tuple[Tensor, ...]]

#: Mini-batches per segment: 64 of 64 tokens are a 64 x 64 map.
CHECKPOINT_MINI_BATCHES = 64


def ttt_linear(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    coefficient: Tensor,
    state: State,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float = 1e-6,
) -> TTTResult:
    """TTT-Linear. Arguments as in `tttunet.kernels.ttt_linear`."""
    return _scan(_linear_segment, q, k, v, lr, coefficient, state, norm_weight, norm_bias, eps)


def ttt_mlp(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    coefficient: Tensor,
    state: State,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float = 1e-6,
) -> TTTResult:
    """TTT-MLP. Arguments as in `tttunet.kernels.ttt_mlp`."""
    return _scan(_mlp_segment, q, k, v, lr, coefficient, state, norm_weight, norm_bias, eps)


def _scan(
    segment: Segment,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    coefficient: Tensor,
    state: Sequence[Tensor],
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
) -> TTTResult:
    """Cut the tokens into segments of whole mini-batches plus a tail, and run them in order."""
    tokens, size = q.shape[2], coefficient.shape[0]
    whole = tokens // size * size
    span = CHECKPOINT_MINI_BATCHES * size
    bounds = [(start, min(start + span, whole)) for start in range(0, whole, span)]
    if whole < tokens:
        bounds.append((whole, tokens))
    affine = (norm_weight[:, None, :], norm_bias[:, None, :])
    recompute = torch.is_grad_enabled() and whole > span

    # The biases carry a token axis of one.
    state = [part[:, :, None] if part.ndim == 3 else part for part in state]
    outputs, losses = [], []
    for start, stop in bounds:
        length = min(size, stop - start)
        blocks = [x[:, :, start:stop].unflatten(2, (-1, length)) for x in (q, k, v, lr[..., None])]
        arguments = (*blocks, coefficient[:length, None], *affine, eps, *state)
        if recompute:
            output, loss, *state = checkpoint(
                segment, *arguments, use_reentrant=False, preserve_rng_state=False
            )
        else:
            output, loss, *state = segment(*arguments)
        outputs.append(output.flatten(2, 3))
        losses.append(loss.flatten(2, 3))
    state = [part.squeeze(2) if index % 2 else part for index, part in enumerate(state)]
    return TTTResult(torch.cat(outputs, dim=2), tuple(state), torch.cat(losses, dim=2))


def _masked_scores(queries: Tensor, keys: Tensor) -> Tensor:
    """tril(<q_i, k_j> + 1) for all pairs of a mini-batch, [..., n, n]."""
    return (queries @ keys.transpose(-1, -2) + 1).tril()


def _linear_segment(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    coefficient: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    W: Tensor,
    b: Tensor,
) -> tuple[Tensor, ...]:
    """q, k, v: [B, H, M, n, d]; lr: [B, H, M, n, 1]; W: [B, H, d, d]; b: [B, H, 1, d]."""
    target, last = v - k, coefficient[-1]
    weights, biases, steps, losses = [], [], [], []
    for m in range(q.shape[2]):
        key = k[:, :, m]
        inner = (key @ W + b, target[:, :, m], gamma, beta, eps)
        losses.append(inner_loss(*inner))
        step = lr[:, :, m] * inner_gradient(*inner)
        weights.append(W)
        biases.append(b)
        steps.append(step)
        W = W - last * (key.transpose(-1, -2) @ step)
        b = b - last * step.sum(-2, keepdim=True)
    start_W, start_b, all_steps = (torch.stack(x, dim=2) for x in (weights, biases, steps))
    read = q @ start_W + start_b - coefficient * (_masked_scores(q, k) @ all_steps)
    output = q + layer_norm(read, gamma[:, None], beta[:, None], eps)
    return output, torch.stack(losses, dim=2), W, b


def _mlp_segment(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    coefficient: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    W1: Tensor,
    b1: Tensor,
    W2: Tensor,
    b2: Tensor,
) -> tuple[Tensor, ...]:
    """As `_linear_segment`, with m hidden units.

    W1: [B, H, d, m]; b1: [B, H, 1, m]; W2: [B, H, m, d]; b2: [B, H, 1, d].
    """
    target, last = v - k, coefficient[-1]
    starts: list[State] = []
    steps: list[State] = []
    losses = []
    for m in range(q.shape[2]):
        key = k[:, :, m]
        z1 = key @ W1 + b1
        hidden = gelu(z1)
        inner = (hidden @ W2 + b2, target[:, :, m], gamma, beta, eps)
        losses.append(inner_loss(*inner))
        gradient2 = inner_gradient(*inner)
        gradient1 = (gradient2 @ W2.transpose(-1, -2)) * gelu_derivative(z1)
        step1, step2 = lr[:, :, m] * gradient1, lr[:, :, m] * gradient2
        starts.append((W1, b1, W2, b2))
        steps.append((step1, hidden, step2))
        W1 = W1 - last * (key.transpose(-1, -2) @ step1)
        b1 = b1 - last * step1.sum(-2, keepdim=True)
        W2 = W2 - last * (hidden.transpose(-1, -2) @ step2)
        b2 = b2 - last * step2.sum(-2, keepdim=True)
    start_W1, start_b1, start_W2, start_b2 = (torch.stack(x, 2) for x in zip(*starts, strict=True))
    all_step1, all_hidden, all_step2 = (torch.stack(x, 2) for x in zip(*steps, strict=True))
    z1 = q @ start_W1 + start_b1 - coefficient * (_masked_scores(q, k) @ all_step1)
    read = gelu(z1)
    z2 = read @ start_W2 + start_b2 - coefficient * (_masked_scores(read, all_hidden) @ all_step2)
    output = q + layer_norm(z2, gamma[:, None], beta[:, None], eps)
    return output, torch.stack(losses, dim=2), W1, b1, W2, b2
