"""How to fine-tune, from what there is to learn from."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from tttunet.models.config import ModelConfig
from tttunet.training.augment import AugmentConfig
from tttunet.training.config import TrainConfig

#: Largest patch of a fine-tuning per number of dimensions: more steps in the same time.
LARGEST_PATCH = {2: 160, 3: 48}
#: Patches per step.
BATCH_SIZE = {2: 4, 3: 2}
#: Steps for one labelled part, for every further one, and at most.
FIRST_STEPS, FURTHER_STEPS, MOST_STEPS = 120, 20, 400
#: More of them where the head is new, or everything.
NEW_HEAD, FROM_SCRATCH = 1.25, 5.0
#: Minutes after which a slow machine ends it, of so many steps as five parts and a new head need;
#: more steps have more. The learning rate falls in time.
MINUTES, MINUTES_STEPS = 2.0, 250
#: Learning rates of weights that know something and of fresh ones: at 1e-3, a network that knew
#: something forgot more on the way than it learnt.
KNOWN_RATE, FRESH_RATE = 5e-4, 1e-3
#: Highest `InstanceDecoding.confidence` of a model that was fine-tuned.
CONFIDENCE = 0.7
#: Share of the tuned weights in the result, where the model to start from has the same heads. On
#: training images, 0.4 to 0.75 learnt and forgot nearly alike, and 1 forgot twice as much.
BLEND = 0.5
#: Share of the labels that is held out.
SHARE = 0.25
VALIDATIONS = 8
PATIENCE = 4


def choose_settings(
    config: ModelConfig,
    parts: int,
    *,
    new_head: bool = False,
    from_scratch: bool = False,
    seed: int = 0,
    chosen: dict[str, Any] | None = None,
) -> TrainConfig:
    """Settings of a fine-tuning.

    The amount of labels decides the number of steps, the kind of start the learning rates. Nobody
    waits more than two minutes for what five regions teach: machines too slow for the steps make
    fewer. All weights move, however few the labels are: the blend and the earlier data hold on to
    what was known.

    Args:
        config: of the model to start from.
        parts: labelled parts of images.
        new_head: its heads are fresh. Then nothing is blended, whatever was chosen: the mean of
            weights that know something and of random ones knows nothing.
        from_scratch: all of its weights are fresh.
        seed: of order and augmentation.
        chosen: fields of `TrainConfig` that the user decided.
    """
    dim = config.network.dim
    stride = config.network.total_stride
    patch = tuple(
        max(min(n, LARGEST_PATCH[dim]) // s * s, s)
        for n, s in zip(config.plan.patch_size, stride, strict=True)
    )
    steps = min(MOST_STEPS, FIRST_STEPS + FURTHER_STEPS * (parts - 1))
    steps = round(steps * (FROM_SCRATCH if from_scratch else NEW_HEAD if new_head else 1.0))
    given = {name: value for name, value in (chosen or {}).items() if value is not None}
    minutes = None
    if "steps" not in given and "max_minutes" in given:
        given["steps"] = None
    elif "steps" not in given and not from_scratch:
        minutes = MINUTES * max(1.0, steps / MINUTES_STEPS)
    settings = {
        "batch_size": BATCH_SIZE[dim],
        "steps": steps,
        "max_minutes": minutes,
        "learning_rate": FRESH_RATE if new_head or from_scratch else KNOWN_RATE,
        # The old body keeps its own pace under a fresh head.
        "body_rate": KNOWN_RATE / FRESH_RATE if new_head and not from_scratch else 1.0,
        "warmup_steps": 20,
        "ema_decay": 0.97,
        "seed": seed,
        "oversample_foreground": 0.5,
        # Old and new data take turns, whatever their numbers.
        "balance_modalities": 1.0,
        "patch_size": patch,
        "patience": PATIENCE,
        "workers": 0,
        "augment": _augmentation(config, patch),
        **given,
        "blend": 1.0 if new_head or from_scratch else given.get("blend", BLEND),
    }
    length = settings["steps"] or steps
    settings.setdefault("validate_every", max(5, length // VALIDATIONS))
    return TrainConfig(**settings)


def with_low_confidence(config: ModelConfig) -> ModelConfig:
    """The model with a threshold that does not drop what it has only begun to learn.

    The threshold of a model is chosen when it has seen much. A network that has seen some tens of
    examples of a new kind finds them, but at a lower probability.
    """
    rules = config.plan.decoding
    if rules is None or rules.confidence <= CONFIDENCE:
        return config
    rules = rules.model_copy(update={"confidence": CONFIDENCE})
    plan = config.plan.model_copy(update={"decoding": rules})
    return config.model_copy(update={"plan": plan})


def _augmentation(config: ModelConfig, patch: tuple[int, ...]) -> AugmentConfig:
    """What the model was trained with; else nnU-Net's with colours where there are any."""
    stored = config.card.training.get("settings", {})
    try:
        return AugmentConfig.model_validate(stored["augment"])
    except (KeyError, TypeError, ValidationError):
        pass
    options: dict[str, Any] = {"quarter_turns": True} if len(patch) == 2 else {}
    if config.plan.channels == "rgb":
        options |= {"p_colour": 0.3, "hue": 10.0}
    return AugmentConfig.for_patch(patch, **options)
