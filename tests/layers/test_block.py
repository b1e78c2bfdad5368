from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from golden import case_parameters, check_case, load_case
from tttunet.errors import ModelError
from tttunet.layers.block import PaperMixer, ReleasedMixer, TTTBuildingBlock, build_mixer
from tttunet.layers.config import TTTConfig
from tttunet.models.released import convert_mixer

SMALL = TTTConfig(heads=2, mini_batch=8)


@pytest.mark.parametrize("path", case_parameters("ttt_layer"))
def test_golden_mixer(path: Path):
    case = load_case(path)
    x = case.tensors["in.x"]
    config = TTTConfig(heads=16 if case.config["variant"] == "bot" else 8, conv_kernel=4)
    map_size = math.prod(x.shape[2:]) if case.config["channel_token"] else None
    check_case(case, lambda: ReleasedMixer(x.shape[1], config, map_size), convert_mixer, 1e-5, 1e-4)


@pytest.mark.parametrize("inner", ["linear", "mlp"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (8, 8), (2, 3, 5), (1, 4, 1)])
def test_paper_mixer_takes_any_size(size, bidirectional, inner):
    config = TTTConfig(heads=2, mini_batch=8, inner=inner, bidirectional=bidirectional)
    mixer = PaperMixer(len(size), 8, config)
    x = torch.randn(2, 8, *size, requires_grad=True)
    y = mixer(x)
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad is not None for p in mixer.parameters())


@pytest.mark.parametrize("size", [(5, 7), (2, 3, 5)])
def test_bidirectional_mixer_commutes_with_a_flip(size):
    torch.manual_seed(0)
    mixer = PaperMixer(len(size), 8, TTTConfig(heads=2, mini_batch=8, bidirectional=True))
    axes = tuple(range(2, 2 + len(size)))
    with torch.no_grad():
        for conv in (mixer.conv_key, mixer.conv_query):
            conv.weight.copy_((conv.weight + conv.weight.flip(axes)) / 2)
        mixer.inner.W1.mul_(20)
    x = torch.randn(2, 8, *size)
    torch.testing.assert_close(mixer(x.flip(axes)), mixer(x).flip(axes))
    mixer.inner.bidirectional = False
    assert not torch.allclose(mixer(x.flip(axes)), mixer(x).flip(axes), atol=1e-3)


@pytest.mark.parametrize("flavour", ["paper", "released"])
def test_residual_adds_the_input(flavour):
    x = torch.randn(1, 8, 4, 5)
    for residual in (False, True):
        config = TTTConfig(heads=2, mini_batch=8, residual=residual)
        mixer = build_mixer(2, 8, flavour, config)
        output = mixer.output if flavour == "paper" else mixer.layer.output
        for parameter in output.parameters():
            nn.init.zeros_(parameter)
        assert torch.equal(mixer(x), x if residual else torch.zeros_like(x))


@pytest.mark.parametrize("flavour", ["paper", "released"])
def test_half_precision_maps_keep_their_dtype(flavour):
    torch.manual_seed(0)
    mixer = build_mixer(2, 8, flavour, SMALL)
    x = torch.randn(2, 8, 4, 5).bfloat16()
    y = mixer(x) if flavour == "released" else mixer.bfloat16()(x)
    assert y.dtype == torch.bfloat16
    assert y.isfinite().all()


def test_no_configuration_means_identity():
    assert isinstance(build_mixer(2, 8, "paper", None), nn.Identity)
    block = TTTBuildingBlock(2, 3, 8, (3, 3), (1, 1), 1, "paper", None)
    assert not any(name.startswith("ttt.") for name, _ in block.named_parameters())


def test_channel_tokens_refuse_another_size():
    mixer = ReleasedMixer(24, SMALL, map_size=12)
    assert mixer(torch.randn(1, 24, 3, 4)).shape == (1, 24, 3, 4)
    assert mixer(torch.randn(1, 24, 4, 3)).shape == (1, 24, 4, 3)
    with pytest.raises(ModelError, match="12 positions, the map has 20"):
        mixer(torch.randn(1, 24, 4, 5))
