"""How a network is trained: everything in the recipe but the network and the plan."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tttunet.networks.config import StrictModel
from tttunet.training.augment import AugmentConfig


class TrainConfig(StrictModel):
    """The training recipe.

    Attributes:
        batch_size: patches per step and process.
        steps: optimiser steps; None: until `max_minutes`.
        max_minutes: time budget of all runs together, validation included. Whichever of steps
            and minutes is used up first ends the training; the learning rate follows it.
        optimiser: `adamw`, or `sgd` with Nesterov momentum 0.99 as in nnU-Net.
        learning_rate: initial; decays as (1 - progress) ** 0.9 (poly schedule).
        warmup_steps: linear warm-up of the learning rate.
        clip_norm: largest norm of the gradient.
        ema_decay: of the moving average of the weights, which is what is validated and saved.
        precision: Lightning Fabric's: `32-true`, `16-mixed`, `bf16-mixed`; None: `16-mixed` on
            CUDA, `bf16-mixed` on CPUs with AMX, else `32-true`. The inner TTT state is fp32 in
            every case.
        seed: of weights, order and augmentation.
        oversample_foreground: share of patches that contain a random object or class.
        balance_modalities: draw rare modalities more often, n ** -balance_modalities; 0: not.
        validate_every: steps between validations on whole images of `val`.
        validation_cases: at most this many, evenly spaced; None: all.
        workers: processes that prepare patches.
        patch_size: of training patches; None: the plan's.
        parts: which weights move: `all`, `decoder` (with the heads) or `head`.
        body_rate: learning rate of everything but the heads, as a share of theirs.
        blend: share of the trained weights in what is validated and saved; the rest is the weights
            that the training began with. See `finetune`.
        patience: validations in a row without a better score that end the training; None: any
            number.
        augment: see `AugmentConfig`; None: nnU-Net's for the patch size.
        folds: parts of a cross-validation; None: the data set's own split.
        fold: the part that is held out, from 0.
    """

    batch_size: int = Field(4, ge=1)
    steps: int | None = Field(None, ge=1)
    max_minutes: float | None = Field(None, gt=0)
    optimiser: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    warmup_steps: int = Field(100, ge=0)
    clip_norm: float = Field(12.0, gt=0)
    ema_decay: float = Field(0.998, ge=0, lt=1)
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] | None = None
    seed: int = 0
    oversample_foreground: float = Field(0.33, ge=0, le=1)
    balance_modalities: float = Field(0.0, ge=0, le=1)
    validate_every: int = Field(500, ge=1)
    validation_cases: int | None = Field(None, ge=1)
    workers: int = Field(1, ge=0)
    patch_size: tuple[int, ...] | None = None
    parts: Literal["all", "decoder", "head"] = "all"
    body_rate: float = Field(1.0, gt=0, le=1)
    blend: float = Field(1.0, gt=0, le=1)
    patience: int | None = Field(None, ge=1)
    augment: AugmentConfig | None = None
    folds: int | None = Field(None, ge=2)
    fold: int = Field(0, ge=0)
