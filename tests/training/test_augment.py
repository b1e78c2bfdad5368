from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tttunet.training.augment import AugmentConfig, Augmenter, augment

ALL = {name: 1.0 for name in AugmentConfig.model_fields if name.startswith("p_")}


def sample(shape, channels=3):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand((channels, *shape), generator=generator)
    label = torch.randint(0, 5, shape, generator=generator, dtype=torch.int32) * 1000
    return image, label


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), flat=st.booleans(), dim=st.sampled_from([2, 3]))
def test_everything_on_keeps_label_numbers(seed, flat, dim):
    image, label = sample((20,) * dim)
    config = AugmentConfig(**ALL, in_plane=flat, quarter_turns=True)
    patch = (12,) * dim if not flat or dim == 2 else (20, 12, 12)
    before = image.clone()
    new, new_label = augment(image, label, config, np.random.default_rng(seed), patch)
    assert new.shape == (3, *patch)
    assert new.dtype == torch.float32
    assert torch.isfinite(new).all()
    assert new_label.shape == patch
    assert new_label.dtype == label.dtype
    assert set(new_label.unique().tolist()) <= set(label.unique().tolist())
    assert torch.equal(image, before)


def test_same_generator_same_result_and_global_state_untouched():
    image, label = sample((24, 24))
    config = AugmentConfig(**ALL)
    torch.manual_seed(1)
    np.random.seed(1)
    results = [augment(image, label, config, np.random.default_rng(s)) for s in (3, 3, 4)]
    after = torch.rand(1), np.random.rand()
    torch.manual_seed(1)
    np.random.seed(1)
    assert after == (torch.rand(1), np.random.rand())
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][0], results[2][0])


def test_image_and_label_move_together():
    label = torch.zeros(64, 64, dtype=torch.int32)
    label[20:44, 26:50] = 7
    config = AugmentConfig.none().model_copy(
        update={"p_rotation": 1.0, "p_scale": 1.0, "p_elastic": 1.0, "mirror_axes": (0, 1)}
    )
    for seed in range(5):
        image, moved = augment(
            (label > 0).float()[None], label, config, np.random.default_rng(seed), (48, 48)
        )
        assert ((image[0] > 0.5) != (moved > 0)).float().mean() < 0.02


def test_none_changes_nothing():
    image, label = sample((10, 12))
    same, same_label = augment(image, label, AugmentConfig.none(), np.random.default_rng(0))
    assert torch.equal(same, image)
    assert torch.equal(same_label, label)


def test_depth_stays_in_place_when_flat():
    image = torch.arange(6.0)[:, None, None].expand(6, 24, 24)[None].contiguous()
    config = AugmentConfig.none().model_copy(update={"p_rotation": 1.0, "in_plane": True})
    label = image[0].int()
    new, new_label = augment(image, label, config, np.random.default_rng(0), (6, 24, 24))
    torch.testing.assert_close(new, image)
    assert torch.equal(new_label, label)


def test_colour_options():
    image, label = sample((8, 8))
    rng = np.random.default_rng(0)
    off = AugmentConfig.none()
    grey, _ = augment(image, label, off.model_copy(update={"p_grey": 1.0}), rng)
    torch.testing.assert_close(grey[0], image.mean(0))
    inverted, _ = augment(image, label, off.model_copy(update={"p_invert": 1.0}), rng)
    torch.testing.assert_close(inverted, 1 - image)
    hue = {"p_colour": 1.0, "channel_gain": 0.0, "channel_bias": 0.0}
    turned, _ = augment(image, label, off.model_copy(update=hue), rng)
    torch.testing.assert_close(turned.mean(0), image.mean(0))
    one, _ = augment(image[:1], label, off.model_copy(update=hue), rng)
    torch.testing.assert_close(one, image[:1])


def test_rules_of_the_patch_shape():
    assert AugmentConfig.for_patch((256, 256)).rotation == 180
    assert AugmentConfig.for_patch((256, 128)).rotation == 15
    assert AugmentConfig.for_patch((32, 40, 32)).rotation == 30
    assert AugmentConfig.for_patch((16, 128, 128)).in_plane
    assert AugmentConfig.for_patch((64, 64), p_blur=0.0).p_blur == 0


def test_source_is_as_large_as_the_draw_needs():
    always = AugmentConfig.for_patch((8, 64, 64), p_rotation=1.0, p_scale=1.0)
    size = Augmenter(always, (8, 64, 64)).draw(np.random.default_rng(0)).source_size
    assert size[0] == 8
    assert size[1] == pytest.approx(64 * 2**0.5 * 1.4, abs=1)
    still = Augmenter(AugmentConfig.none(), (9, 7)).draw(np.random.default_rng(0))
    assert still.source_size == (9, 7)
