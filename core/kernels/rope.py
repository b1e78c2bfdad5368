"""Rotary position embedding that restarts in every mini-batch (TTT, appendix; RoFormer)."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_embedding(x: Tensor, mini_batch: int, theta: float) -> Tensor:
    """Rotate the channel pairs (2i, 2i + 1) of every token by its position.

    The angle of pair i at token t is (t mod mini_batch) * theta^(-2i/d). Cosine and sine are
    formed in fp32, as in the authors' code, and half precision tokens are rotated in fp32: the
    positions of a mini-batch are more than bf16 can tell apart. With an odd d the last channel
    is left as it is.

    Args:
        x: queries or keys, [..., tokens, d].
        mini_batch: tokens per inner step.
        theta: base of the frequencies.

    Returns:
        Tensor of the shape of x, in fp32 (fp64 for fp64 x).
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    tokens, d = x.shape[-2:]
    pairs = d // 2
    exponent = torch.arange(pairs, dtype=torch.float32, device=x.device) * 2 / d
    position = torch.arange(tokens, device=x.device) % mini_batch
    angle = position[:, None].float() * (1.0 / theta**exponent)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    even, odd = x[..., : 2 * pairs].unflatten(-1, (pairs, 2)).unbind(-1)
    rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
    return rotated if d == 2 * pairs else torch.cat((rotated, x[..., 2 * pairs :]), dim=-1)
