"""How to fine-tune, from what there is to learn from."""

import pytest

from tiny import make_config
from tttunet.models.card import read_config
from tttunet.models.library import resolve
from tttunet.training.defaults import (
    BLEND,
    FIRST_STEPS,
    FRESH_RATE,
    FROM_SCRATCH,
    FURTHER_STEPS,
    KNOWN_RATE,
    MOST_STEPS,
    NEW_HEAD,
    choose_settings,
)


def test_more_labels_more_steps():
    config = make_config()
    steps = [choose_settings(config, parts).steps for parts in (1, 2, 5, 1000)]
    assert steps == [FIRST_STEPS, FIRST_STEPS + FURTHER_STEPS, FIRST_STEPS + 4 * FURTHER_STEPS, 400]
    assert steps[-1] == MOST_STEPS
    every = [choose_settings(config, parts).validate_every for parts in (1, 1000)]
    assert every[0] < every[1]


@pytest.mark.parametrize("parts", [1, 3, 5])
def test_what_moves_and_how_fast_depends_on_the_start(parts):
    config = make_config()
    known = choose_settings(config, parts)
    assert (known.parts, known.blend) == ("all", BLEND)
    assert (known.learning_rate, known.body_rate) == (KNOWN_RATE, 1.0)
    head = choose_settings(config, parts, new_head=True)
    assert head.steps == round(known.steps * NEW_HEAD) > known.steps
    assert (head.parts, head.blend) == ("all", 1.0)
    assert head.learning_rate == FRESH_RATE
    assert head.learning_rate * head.body_rate == pytest.approx(KNOWN_RATE)
    fresh = choose_settings(config, parts, new_head=True, from_scratch=True)
    assert fresh.steps == round(known.steps * FROM_SCRATCH) > head.steps
    assert (fresh.learning_rate, fresh.body_rate, fresh.blend) == (FRESH_RATE, 1.0, 1.0)


def test_the_user_decides():
    chosen = {"steps": 7, "learning_rate": 3e-5, "parts": "head", "blend": 0.9, "batch_size": 1}
    settings = choose_settings(make_config(), 5, seed=3, chosen=chosen)
    assert {name: getattr(settings, name) for name in chosen} == chosen
    assert settings.seed == 3
    # What was left open is chosen, and nothing is blended with a head that knows nothing.
    assert choose_settings(make_config(), 5, chosen=dict.fromkeys(chosen)).blend == BLEND
    assert choose_settings(make_config(), 5, new_head=True, chosen=chosen).blend == 1.0


@pytest.mark.parametrize("parts", [1, 5, 1000])
def test_nobody_waits_long(parts):
    config = make_config()
    settings = choose_settings(config, parts, new_head=True)
    assert settings.max_minutes == pytest.approx(2.0 if parts <= 5 else 4.0)
    assert choose_settings(config, parts, chosen={"steps": 900}).max_minutes is None
    assert choose_settings(config, parts, from_scratch=True).max_minutes is None


def test_minutes_alone_end_the_training():
    timed = choose_settings(make_config(), 2, chosen={"max_minutes": 1.5, "steps": None})
    assert (timed.steps, timed.max_minutes) == (None, 1.5)
    both = choose_settings(make_config(), 2, chosen={"max_minutes": 1.5, "steps": 9})
    assert (both.steps, both.max_minutes) == (9, 1.5)


def test_patches_of_what_ships():
    config = read_config(resolve("nuclei"))
    settings = choose_settings(config, 1)
    stored = config.card.training["settings"]["augment"]
    assert settings.augment is not None
    assert stored.items() <= settings.augment.model_dump(mode="json").items()
    strides = config.network.total_stride
    assert all(n % s == 0 for n, s in zip(settings.patch_size, strides, strict=True))
    small = choose_settings(make_config(3), 1)
    assert (small.patch_size, small.batch_size) == ((32, 32, 32), 2)
