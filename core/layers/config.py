"""Configuration of the TTT layer, as validated JSON."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Flavour = Literal["paper", "released"]


class StrictModel(BaseModel):
    """Immutable, and a misspelt key is an error rather than a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TTTConfig(StrictModel):
    """The test-time-training layer inside the network.

    Attributes:
        inner: the inner model whose weights are the hidden state.
        heads: number of heads; a token width that it does not divide into heads of at least four
            channels takes the largest smaller number that does. `released` keeps every number
            that the authors' code runs with, down to two channels a head.
        mini_batch: tokens per inner gradient step (K).
        base_lr: base inner learning rate (eta_base).
        rope_theta: base of the rotary position embedding on queries and keys; None: no RoPE.
        share_qk: `released` only: one projection for queries and keys, told apart by causal
            depthwise convolutions along the token axis.
        gate: `released` only: gate the output with a tanh-GELU of a linear map
            (the `paper` flavour always has its SiLU gate).
        conv_kernel: taps of the convolutions on Q and K: causal 1D in `released` (4), spatial
            in `paper` (3 per axis).
        residual: add the block's input to its output.
        bidirectional: also scan the tokens in reverse order and average; `paper` only.
    """

    inner: Literal["linear", "mlp"] = "linear"
    heads: int = Field(16, ge=1)
    mini_batch: int = Field(64, ge=1)
    base_lr: float = Field(1.0, gt=0)
    rope_theta: float | None = Field(10000.0, gt=0)
    share_qk: bool = False
    gate: bool = False
    conv_kernel: int = Field(3, ge=1)
    residual: bool = False
    bidirectional: bool = False
