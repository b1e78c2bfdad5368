"""Training augmentation: nnU-Net's recipe (the paper's appendix B.3) plus colour for microscopy.

The transforms are batchgeneratorsv2's, the library that nnU-Net itself uses; this module says
which of them run, in which order and with which numbers.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.helpers.scalar_type import RandomScalar
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.rot90 import Rot90Transform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.pseudo2d import (
    Convert2DTo3DTransform,
    Convert3DTo2DTransform,
)
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from pydantic import Field

from tttunet.networks.config import StrictModel

#: Patches longer than this many times their depth are rotated and scaled in the plane only.
ANISOTROPY_THRESHOLD = 3.0

Range = tuple[float, float]


class AugmentConfig(StrictModel):
    """Probabilities and ranges; the defaults are nnU-Net's for a square 2D patch.

    Every `p_*` is the probability per sample. The colour part (`p_colour` onwards) is off by
    default and needs three channels, except `p_invert`, which works with any number.

    Attributes:
        rotation: largest angle in degrees, either way; about every axis in 3D.
        scale: zoom range; larger numbers make objects smaller. `p_scale_together`: the
            probability that all axes share one factor.
        elastic_sigma: smoothness of the deformation, as a share of the patch size.
        elastic_magnitude: largest displacement, in pixels.
        in_plane: 3D only: rotate, scale and deform slices in their plane, all in the same way.
        quarter_turns: turn by multiples of 90 degrees in the plane of the last two axes.
        mirror_axes: spatial axes that are flipped with probability 0.5; None: all of them.
        noise: range of the standard deviation, in units of the normalised image.
        blur: range of the Gaussian's sigma in pixels.
        low_resolution: range of the factor by which a channel is sampled down and up again.
        channel_gain, channel_bias: each channel is multiplied by 1 +- gain, then +- bias is added.
        hue: largest rotation of the colours about the grey axis, in degrees.
        saturation: range of the distance from grey.
        p_grey: all channels become their mean. p_permute: the channels change places.
        p_invert: dark on bright becomes bright on dark, by reflection at `invert_about`
            (0.5 for images normalised to 0..1, 0 for z-scores).
    """

    p_rotation: float = Field(0.2, ge=0, le=1)
    rotation: float = Field(180.0, ge=0, le=180)
    p_scale: float = Field(0.2, ge=0, le=1)
    scale: Range = (0.7, 1.4)
    p_scale_together: float = Field(1.0, ge=0, le=1)
    p_elastic: float = Field(0.0, ge=0, le=1)
    elastic_sigma: Range = (0.05, 0.15)
    elastic_magnitude: Range = (2.0, 8.0)
    in_plane: bool = False
    quarter_turns: bool = False
    mirror_axes: tuple[int, ...] | None = None
    p_noise: float = Field(0.1, ge=0, le=1)
    noise: Range = (0.0, 0.1)
    p_blur: float = Field(0.2, ge=0, le=1)
    blur: Range = (0.5, 1.0)
    p_brightness: float = Field(0.15, ge=0, le=1)
    brightness: Range = (0.75, 1.25)
    p_contrast: float = Field(0.15, ge=0, le=1)
    contrast: Range = (0.75, 1.25)
    p_low_resolution: float = Field(0.25, ge=0, le=1)
    low_resolution: Range = (0.5, 1.0)
    p_gamma: float = Field(0.3, ge=0, le=1)
    p_gamma_inverted: float = Field(0.1, ge=0, le=1)
    gamma: Range = (0.7, 1.5)
    p_colour: float = Field(0.0, ge=0, le=1)
    channel_gain: float = Field(0.2, ge=0, lt=1)
    channel_bias: float = Field(0.1, ge=0)
    hue: float = Field(30.0, ge=0, le=180)
    saturation: Range = (0.5, 1.5)
    p_grey: float = Field(0.0, ge=0, le=1)
    p_permute: float = Field(0.0, ge=0, le=1)
    p_invert: float = Field(0.0, ge=0, le=1)
    invert_about: float = 0.5

    @classmethod
    def for_patch(cls, patch_size: tuple[int, ...], **options: Any) -> AugmentConfig:
        """nnU-Net's rotation rules for a patch of this shape; `options` win over them.

        2D: any angle, or 15 degrees if one side is 1.5 times the other. 3D: 30 degrees about
        every axis, or any angle in the plane only if the patch is flat.
        """
        defaults: dict[str, Any] = {}
        if len(patch_size) == 2:
            if max(patch_size) / min(patch_size) > 1.5:
                defaults["rotation"] = 15.0
        elif max(patch_size) / patch_size[0] > ANISOTROPY_THRESHOLD:
            defaults["in_plane"] = True
        else:
            defaults["rotation"] = 30.0
        return cls(**(defaults | options))

    @classmethod
    def none(cls) -> AugmentConfig:
        """Patches as they are."""
        off: dict[str, Any] = {name: 0.0 for name in cls.model_fields if name.startswith("p_")}
        return cls(**off, mirror_axes=())


@dataclass(frozen=True)
class Draw:
    """What is decided about a sample before its pixels are read.

    Attributes:
        seed: of everything that is not decided yet.
        moves: whether to rotate, zoom and deform.
        source_size: the size of the crop to hand over: the patch where nothing moves, otherwise
            enough for any angle and zoom in range (what lies beyond it is mirrored).
    """

    seed: int
    moves: tuple[bool, bool, bool]
    source_size: tuple[int, ...]


class Augmenter:
    """`AugmentConfig` made ready for one patch size."""

    def __init__(self, config: AugmentConfig, patch_size: tuple[int, ...]) -> None:
        self.config = config
        self.patch_size = tuple(patch_size)
        self._warps: dict[tuple[bool, bool, bool], ComposeTransforms] = {}
        self._rest = ComposeTransforms(
            [*_turns(config, self.patch_size), *_intensity(config, self.patch_size)]
        )

    def draw(self, rng: np.random.Generator) -> Draw:
        """Decide what will be done to the next sample."""
        c = self.config
        rotate, zoom, deform = (rng.random(3) < (c.p_rotation, c.p_scale, c.p_elastic)).tolist()
        moves = (rotate, zoom, deform)
        return Draw(int(rng.integers(2**32)), moves, _source_size(c, self.patch_size, moves))

    def __call__(
        self, image: torch.Tensor, label: torch.Tensor, draw: Draw
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Augment one sample; the result depends on the arguments alone.

        Args:
            image: [C, *spatial] float32, at best `draw.source_size` large; may be overwritten.
            label: [*spatial] integers below 2**24; never mixed: no new numbers appear.
            draw: from `draw`.

        Returns:
            image [C, *patch] float32 and label [*patch] of the label's own dtype.
        """
        if draw.moves not in self._warps:
            steps = _warp(self.config, self.patch_size, draw.moves)
            self._warps[draw.moves] = ComposeTransforms(steps)
        with _seeded(draw.seed):
            sample = self._warps[draw.moves](image=image, segmentation=label[None])
            sample = self._rest(**sample)
        return sample["image"].contiguous(), sample["segmentation"][0].contiguous()


def augment(
    image: torch.Tensor,
    label: torch.Tensor,
    config: AugmentConfig,
    rng: np.random.Generator,
    patch_size: tuple[int, ...] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Augment one sample and cut the middle `patch_size` (default: all) out of it.

    See `Augmenter.__call__` for shapes and dtypes; the arguments are not changed.
    """
    augmenter = _augmenter(config, tuple(patch_size or label.shape))
    return augmenter(image.clone(), label, augmenter.draw(rng))


@functools.lru_cache(maxsize=8)
def _augmenter(config: AugmentConfig, patch_size: tuple[int, ...]) -> Augmenter:
    return Augmenter(config, patch_size)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators, which the library draws from, and put them back afterwards."""
    numpy_state = np.random.get_state()
    torch_state = torch.default_generator.get_state()
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        torch.default_generator.set_state(torch_state)


def _source_size(
    config: AugmentConfig, patch_size: tuple[int, ...], moves: tuple[bool, bool, bool]
) -> tuple[int, ...]:
    """Edge lengths of the crop that covers the patch turned and zoomed out as far as it goes."""
    rotate, zoom, deform = moves
    fixed = 1 if _in_plane(config, patch_size) else 0
    size = np.array(patch_size, dtype=float)
    if rotate:
        for i, j in itertools.permutations(range(fixed, len(size)), 2):
            a, b = patch_size[i], patch_size[j]
            angle = min(math.radians(config.rotation), math.atan2(b, a))
            size[i] = max(size[i], a * math.cos(angle) + b * math.sin(angle))
    if zoom:
        size[fixed:] *= max(1.0, config.scale[1])
    if deform:
        size[fixed:] += 2 * config.elastic_magnitude[1]
    return tuple(math.ceil(s) for s in size)


def _in_plane(config: AugmentConfig, patch_size: tuple[int, ...]) -> bool:
    return config.in_plane and len(patch_size) == 3


def _warp(
    config: AugmentConfig, patch_size: tuple[int, ...], moves: tuple[bool, bool, bool]
) -> list[BasicTransform]:
    rotate, zoom, deform = moves
    flat = _in_plane(config, patch_size)
    angle = math.radians(config.rotation)
    warp = SpatialTransform(
        patch_size[1:] if flat else patch_size,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_elastic_deform=float(deform),
        elastic_deform_scale=config.elastic_sigma,
        elastic_deform_magnitude=config.elastic_magnitude,
        p_rotation=float(rotate),
        rotation=(-angle, angle),
        p_scaling=float(zoom),
        scaling=config.scale,
        p_synchronize_scaling_across_axes=config.p_scale_together,
        mode_seg="nearest",
        border_mode_seg="reflection",
        padding_mode_image="reflection",
    )
    return [Convert3DTo2DTransform(), warp, Convert2DTo3DTransform()] if flat else [warp]


def _turns(config: AugmentConfig, patch_size: tuple[int, ...]) -> list[BasicTransform]:
    steps: list[BasicTransform] = []
    rows, columns = len(patch_size) - 2, len(patch_size) - 1
    if config.quarter_turns and patch_size[rows] == patch_size[columns]:
        steps.append(Rot90Transform(1, (0, 1, 2, 3), {rows, columns}))
    axes = config.mirror_axes
    steps.append(MirrorTransform(tuple(range(len(patch_size))) if axes is None else axes))
    return steps


def _intensity(config: AugmentConfig, patch_size: tuple[int, ...]) -> list[BasicTransform]:
    c = config
    kernel_fits = min(patch_size) > 3 * c.blur[1]  # the blur pads by reflection
    contrast: RandomScalar = BGContrast(c.contrast)
    brightness: RandomScalar = BGContrast(c.brightness)
    gamma: RandomScalar = BGContrast(c.gamma)
    flat_axes = (0,) if _in_plane(c, patch_size) else None
    steps: list[tuple[BasicTransform, float]] = [
        (_Colour(c), c.p_colour),
        (_Grey(), c.p_grey),
        (_Permute(), c.p_permute),
        (_Invert(c.invert_about), c.p_invert),
        (GaussianNoiseTransform(c.noise, 1.0, synchronize_channels=True), c.p_noise),
        (GaussianBlurTransform(c.blur, p_per_channel=0.5), c.p_blur if kernel_fits else 0),
        (MultiplicativeBrightnessTransform(brightness, False, 1.0), c.p_brightness),
        (ContrastTransform(contrast, True, False, 1.0), c.p_contrast),
        (
            SimulateLowResolutionTransform(c.low_resolution, False, True, flat_axes, None, 0.5),
            c.p_low_resolution,
        ),
        (GammaTransform(gamma, 1.0, False, 1.0, 1.0), c.p_gamma_inverted),
        (GammaTransform(gamma, 0.0, False, 1.0, 1.0), c.p_gamma),
    ]
    return [RandomTransform(step, p) for step, p in steps if p > 0]


class _Colour(ImageOnlyTransform):
    """Gain and bias per channel, hue and saturation, as one linear map of the colours.

    Hue is a rotation about the grey axis and saturation the distance from it, which needs no
    detour through HSV and has no trouble with values outside 0..1.
    """

    def __init__(self, config: AugmentConfig) -> None:
        super().__init__()
        self.config = config

    def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
        c = self.config
        channels = img.shape[0]
        grey = np.full((channels, channels), 1 / channels)
        mix = np.eye(channels)
        if channels == 3:
            angle = math.radians(np.random.uniform(-c.hue, c.hue))
            axis = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
            turn = math.cos(angle) * (mix - grey) + math.sin(angle) * axis
            mix = grey + np.random.uniform(*c.saturation) * turn
        gain = np.random.uniform(1 - c.channel_gain, 1 + c.channel_gain, (channels, 1))
        bias = np.random.uniform(-c.channel_bias, c.channel_bias, (channels, 1))
        flat = torch.from_numpy(gain * mix).float() @ img.flatten(1)
        return flat.add_(torch.from_numpy(bias).float()).view_as(img)


class _Grey(ImageOnlyTransform):
    def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
        return img.mean(0, keepdim=True).expand_as(img).clone()


class _Permute(ImageOnlyTransform):
    def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
        return img[torch.randperm(img.shape[0])]


class _Invert(ImageOnlyTransform):
    def __init__(self, about: float) -> None:
        super().__init__()
        self.about = about

    def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
        return 2 * self.about - img
