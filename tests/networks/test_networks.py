from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from golden import case_parameters, check_case, load_case, released_network_config
from tttunet.errors import ModelError
from tttunet.models.released import convert_network
from tttunet.networks import (
    NetworkConfig,
    TTTConfig,
    TTTUNet,
    build_network,
    released_config,
    uniform_config,
)

FEATURES = (4, 8, 64)
#: Deepest maps of 32 positions, so that released encoder networks have channel tokens there.
SIZES = {2: (16, 32), 3: (8, 16, 16)}


def make_config(
    dim: int, flavour: str, placement: str, *, deep_supervision: bool = False, **options: Any
) -> NetworkConfig:
    if flavour == "released":
        return released_config(
            dim=dim,
            input_channels=2,
            output_channels=3,
            features=FEATURES,
            kernel_sizes=((3,) * dim,) * 3,
            strides=((1,) * dim, (2,) * dim, (2,) * dim),
            placement=placement,
            patch_size=SIZES[dim],
            deep_supervision=deep_supervision,
        )
    ttt = TTTConfig(heads=4, mini_batch=16)
    given = {"placement": placement, "ttt": ttt, "deep_supervision": deep_supervision, **options}
    return uniform_config(dim, 2, 3, FEATURES, blocks=1, **given)


def make_input(dim: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 2, *SIZES[dim], generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("path", case_parameters("uttt_bot_2d", "uttt_bot_3d", "uttt_enc_2d"))
def test_golden_network(path: Path):
    case = load_case(path)
    config = released_network_config(case)
    convert = lambda state: convert_network(state, config)  # noqa: E731
    check_case(case, lambda: build_network(config), convert, 1e-4, 1e-2)


def every_network(test: Callable[..., None]) -> Callable[..., None]:
    """Bot and Enc, 2D and 3D, both flavours."""
    for name, values in (
        ("dim", [2, 3]),
        ("flavour", ["paper", "released"]),
        ("placement", ["bottleneck", "encoder"]),
    ):
        test = pytest.mark.parametrize(name, values)(test)
    return test


@every_network
def test_network_trains_all_its_parameters(dim, flavour, placement, capsys):
    network = build_network(make_config(dim, flavour, placement))
    assert isinstance(network, TTTUNet)
    y = network(make_input(dim))
    assert y.shape == (1, 3, *SIZES[dim])
    y.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert capsys.readouterr().out == ""


@every_network
def test_deep_supervision_predicts_at_every_resolution(dim, flavour, placement):
    network = build_network(make_config(dim, flavour, placement, deep_supervision=True)).eval()
    x = make_input(dim)
    with torch.no_grad():
        outputs = network.forward_all(x)
        torch.testing.assert_close(network(x), outputs[0])
    half = tuple(n // 2 for n in SIZES[dim])
    assert [y.shape for y in outputs] == [(1, 3, *SIZES[dim]), (1, 3, *half)]


@pytest.mark.parametrize("architecture", ["ttt_unet", "plain_unet"])
def test_without_deep_supervision_there_is_one_prediction(architecture):
    network = build_network(make_config(2, "paper", "bottleneck", architecture=architecture))
    (y,) = network.forward_all(make_input(2))
    assert y.shape == (1, 3, *SIZES[2])


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("deep_supervision", [False, True])
def test_plain_network_trains_all_its_parameters(dim, deep_supervision):
    config = make_config(
        dim, "paper", "bottleneck", architecture="plain_unet", deep_supervision=deep_supervision
    )
    network = build_network(config)
    outputs = network.forward_all(make_input(dim))
    assert len(outputs) == (2 if deep_supervision else 1)
    sum(y.square().mean() for y in outputs).backward()
    assert all(p.grad is not None for p in network.parameters())
    torch.testing.assert_close(network(make_input(dim)), outputs[0])


@pytest.mark.parametrize("placement", ["bottleneck", "encoder"])
def test_samples_of_a_batch_do_not_meet(placement):
    # In double precision: some random weights make much of the rounding of single precision.
    network = build_network(make_config(2, "paper", placement)).eval().double()
    x = make_input(2, batch=2).double()
    with torch.no_grad():
        alone = torch.cat([network(sample) for sample in x.split(1)])
        torch.testing.assert_close(network(x), alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("placement", ["bottleneck", "encoder"])
@pytest.mark.parametrize("size", [(4, 8), (20, 12), (48, 16)])
def test_paper_networks_are_not_tied_to_their_patch_size(placement, size):
    network = build_network(make_config(2, "paper", placement, patch_size=(16, 32))).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 2, *size)).shape == (1, 3, *size)


def test_only_released_encoder_networks_are_tied_to_their_patch_size():
    x = torch.randn(1, 2, 32, 32)
    build_network(make_config(2, "released", "bottleneck"))(x)
    with pytest.raises(ModelError, match="configured patch_size"):
        build_network(make_config(2, "released", "encoder"))(x)


@pytest.mark.parametrize("architecture", ["ttt_unet", "plain_unet"])
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 2, 18, 16), "multiples of"),
        ((1, 2, 4, 4), "too small"),
        ((1, 3, 16, 16), "takes"),
        ((1, 2, 8, 16, 16), "takes"),
        ((2, 16, 16), "takes"),
    ],
)
def test_input_that_does_not_fit_is_refused(architecture, shape, message):
    network = build_network(make_config(2, "paper", "bottleneck", architecture=architecture))
    with pytest.raises(ModelError, match=message):
        network(torch.randn(shape))


@pytest.mark.parametrize("placement", ["bottleneck", "encoder"])
def test_ablation_is_the_same_network_without_ttt(placement):
    config = make_config(2, "paper", placement)
    network = build_network(config)
    ablation = build_network(config.model_copy(update={"ttt": None}))
    expected = {
        name: value.shape for name, value in network.state_dict().items() if ".ttt." not in name
    }
    assert {name: value.shape for name, value in ablation.state_dict().items()} == expected
    assert len(expected) < len(network.state_dict())
    assert ablation(make_input(2)).shape == (1, 3, *SIZES[2])


@pytest.mark.parametrize(
    ("stages", "expected"), [(4, (1, 3)), (5, (0, 2, 4)), (6, (1, 3, 5)), (7, (0, 2, 4, 6))]
)
def test_encoder_network_has_ttt_at_every_second_stage_and_the_last(stages, expected):
    config = uniform_config(2, 1, 2, (8,) * stages, placement="encoder", ttt=TTTConfig(heads=2))
    names = [name for name, _ in build_network(config).named_parameters() if ".ttt." in name]
    assert {int(name.split(".")[2]) for name in names} == set(expected)


@pytest.mark.parametrize("architecture", ["ttt_unet", "plain_unet"])
def test_anisotropic_kernels_and_strides(architecture):
    config = NetworkConfig(
        architecture=architecture,
        dim=3,
        input_channels=1,
        output_channels=2,
        features=(4, 8, 16),
        kernel_sizes=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
        encoder_blocks=(1, 1, 1),
        decoder_blocks=(1, 1),
        ttt=TTTConfig(heads=2),
    )
    outputs = build_network(config).forward_all(torch.randn(1, 1, 6, 8, 12))
    assert [tuple(y.shape[2:]) for y in outputs] == [(6, 8, 12), (6, 4, 6)]


def test_fresh_convolutions_are_kaiming_normal():
    torch.manual_seed(0)
    for architecture in ("ttt_unet", "plain_unet"):
        config = uniform_config(2, 1, 2, (8, 64), architecture=architecture)
        for module in build_network(config).modules():
            if isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 4000:
                fan_in = module.weight[0].numel()
                assert float(module.weight.detach().std()) == pytest.approx(
                    (2 / fan_in) ** 0.5, rel=0.1
                )
                assert not module.bias.any()
