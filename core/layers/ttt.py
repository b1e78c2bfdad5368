"""The TTT layer: projections, the inner loop, the normalisation after it, the output map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tttunet import kernels
from tttunet.layers.config import TTTConfig

if TYPE_CHECKING:
    from tttunet.layers.adaptation import Adaptation

#: Standard deviation of the initial inner weights and of the learning rate gate (authors' code).
INIT_STD = 0.02
MLP_EXPANSION = 4
#: The inner LayerNorm maps one channel to a constant and two channels to their sign.
MIN_HEAD_DIM = 4


def head_count(width: int, heads: int, as_released: bool) -> int:
    """Heads for a token width: the largest number <= heads that leaves MIN_HEAD_DIM channels each.

    Args:
        width: token width D.
        heads: number that the configuration asks for.
        as_released: keep `heads` wherever the authors' code runs with it (even head dimensions),
            so that their weights fit.
    """
    if as_released and width % heads == 0 and width // heads % 2 == 0:
        return heads
    limit = max(1, min(heads, width // MIN_HEAD_DIM))
    return next(n for n in range(limit, 0, -1) if width % n == 0)


class InnerLoop(nn.Module):
    """The inner model and its training: everything between the projections and the read-out.

    The state starts from the same learned values for every sample. The learning rate of a token
    is base_lr * sigmoid(<w, x> + b) / d, that of a position in the mini-batch
    max(0, 1/(i + 1) + learned offset).

    Args:
        width: token width D.
        config: heads, mini-batch, inner model, base learning rate, rotary embedding.
        as_released: see `head_count`.
        bidirectional: scan the tokens in both orders and average.

    Attributes:
        adaptation: what replaces the training of the inner model at the moment.
    """

    adaptation: Adaptation | None = None

    def __init__(
        self,
        width: int,
        config: TTTConfig,
        as_released: bool = False,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        self.bidirectional = bidirectional
        self.heads = head_count(width, config.heads, as_released)
        self.config = config
        heads, d = self.heads, width // self.heads
        self.lr_weight = nn.Parameter(torch.randn(heads, width) * INIT_STD)
        self.lr_bias = nn.Parameter(torch.zeros(heads))
        self.position_offset = nn.Parameter(torch.zeros(config.mini_batch))
        self.norm_weight = nn.Parameter(torch.ones(heads, d))
        self.norm_bias = nn.Parameter(torch.zeros(heads, d))
        hidden = d if config.inner == "linear" else MLP_EXPANSION * d
        self.W1 = nn.Parameter(torch.randn(heads, d, hidden) * INIT_STD)
        self.b1 = nn.Parameter(torch.zeros(heads, hidden))
        if config.inner == "mlp":
            self.W2 = nn.Parameter(torch.randn(heads, hidden, d) * INIT_STD)
            self.b2 = nn.Parameter(torch.zeros(heads, d))

    @property
    def initial_state(self) -> tuple[Tensor, ...]:
        """What every sample starts from."""
        parts = (self.W1, self.b1)
        return parts if self.config.inner == "linear" else (*parts, self.W2, self.b2)

    def forward(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """All arguments and the result are [batch, tokens, D]; x drives the learning rate.

        Whatever the arguments' dtype, the learning rates, the rotation and the inner model are
        computed in fp32 (fp64 for fp64); the result has the parameters' dtype.
        """
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))
        config = self.config
        lr = F.linear(x, self.lr_weight, self.lr_bias).transpose(1, 2)
        position = torch.arange(1, config.mini_batch + 1, device=x.device)
        coefficient = (self.position_offset + 1 / position).clamp_min(0)
        settings = {
            "base_lr": config.base_lr,
            "rope_theta": config.rope_theta,
            "bidirectional": self.bidirectional,
        }
        if self.adaptation is not None:
            y = self.adaptation.run(self, (q, k, v), lr, coefficient, settings)
        else:
            operator: Any = kernels.ttt_linear if config.inner == "linear" else kernels.ttt_mlp
            norm = (self.norm_weight, self.norm_bias)
            y = operator(q, k, v, lr, coefficient, self.initial_state, *norm, **settings)
        return y.transpose(1, 2).flatten(-2).to(self.norm_weight.dtype)


class TTTLayer(nn.Module):
    """The TTT layer of the authors' code, on tokens.

    [batch, tokens, D] -> [batch, tokens, D]. Strictly causal in the order of the tokens. Input of
    another dtype than the parameters' is converted.

    Args:
        width: token width D.
        config: `share_qk` and `gate` choose the variants of the language model code.
    """

    def __init__(self, width: int, config: TTTConfig) -> None:
        super().__init__()
        self.share_qk = config.share_qk
        self.query = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        if config.share_qk:
            self.conv_query = nn.Conv1d(width, width, config.conv_kernel, groups=width)
            self.conv_key = nn.Conv1d(width, width, config.conv_kernel, groups=width)
        else:
            self.key = nn.Linear(width, width, bias=False)
        self.inner = InnerLoop(width, config, as_released=True)
        self.post_norm = nn.LayerNorm(width, eps=1e-6)
        self.gate = nn.Linear(width, width, bias=False) if config.gate else None
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.query.weight.dtype)
        q = self.query(x)
        if self.share_qk:
            q, k = (_causal_conv(q, conv) for conv in (self.conv_query, self.conv_key))
        else:
            k = self.key(x)
        y = self.post_norm(self.inner(x, q, k, self.value(x)))
        if self.gate is not None:
            y = F.gelu(self.gate(x), approximate="tanh") * y
        return self.output(y)


def _causal_conv(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """Depthwise convolution along the tokens that sees the present and the past only."""
    return conv(F.pad(x.transpose(1, 2), (conv.kernel_size[0] - 1, 0))).transpose(1, 2)
