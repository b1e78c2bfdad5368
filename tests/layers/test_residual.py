from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tttunet.layers.residual import (
    NEGATIVE_SLOPE,
    ResidualStage,
    instance_norm,
    pointwise_conv,
    same_conv,
    to_channels_last,
)

SIZES = {2: (16, 20), 3: (4, 12, 10)}
CONV = {2: F.conv2d, 3: F.conv3d}


def plain_stage(stage: ResidualStage, x: torch.Tensor) -> torch.Tensor:
    """The equations, by PyTorch's functions."""
    conv = CONV[x.ndim - 2]
    for block in stage:
        y = x
        for unit, norm in ((block.conv1, block.norm1), (block.conv2, block.norm2)):
            y = conv(y, unit.weight, unit.bias, unit.stride, unit.padding)
            y = F.instance_norm(y, weight=norm.weight, bias=norm.bias, eps=1e-5)
            y = F.leaky_relu(y, NEGATIVE_SLOPE) if unit is block.conv1 else y
        if not isinstance(block.shortcut, nn.Identity):
            x = conv(x, block.shortcut.weight, block.shortcut.bias, block.shortcut.stride)
        x = F.leaky_relu(y + x, NEGATIVE_SLOPE)
    return x


def make_stage(dim: int, stride: int) -> ResidualStage:
    torch.manual_seed(0)
    stage = ResidualStage(dim, 3, 6, (3,) * dim, (stride,) * dim, blocks=2).double()
    for name, parameter in stage.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, 1.0, 0.3)
    return stage


@pytest.mark.parametrize("layout", ["channels first", "channels last"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dim", [2, 3])
def test_stage_follows_the_equations(dim, stride, layout):
    stage = make_stage(dim, stride)
    x = torch.randn(2, 3, *SIZES[dim], dtype=torch.float64)
    x = to_channels_last(x) if layout == "channels last" else x
    y, expected = stage(x), plain_stage(stage, x)
    torch.testing.assert_close(y, expected)
    with torch.inference_mode():
        before = x.clone()
        torch.testing.assert_close(stage(x), expected)
        assert torch.equal(x, before), "the block's input is not its to overwrite"
    parameters = list(stage.parameters())
    cotangent = torch.randn_like(y)
    for gradient, reference in zip(
        torch.autograd.grad(y, parameters, cotangent),
        torch.autograd.grad(expected, parameters, cotangent),
        strict=True,
    ):
        # The bias of a convolution before a norm has gradient zero, up to rounding.
        torch.testing.assert_close(gradient, reference, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dim", [2, 3])
def test_under_autocast_the_result_is_that_of_plain_layers(dim):
    stage = make_stage(dim, 1).float()
    x = to_channels_last(torch.randn(1, 3, *SIZES[dim]))
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = stage(x), plain_stage(stage, x)
    assert y.dtype == expected.dtype
    torch.testing.assert_close(y.float(), expected.float(), rtol=0.05, atol=0.05)
    y.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in stage.parameters())


def test_layers_are_known_as_what_they_are():
    assert isinstance(same_conv(2, 4, 4, (3, 3)), nn.Conv2d)
    assert isinstance(same_conv(3, 4, 4, (3, 3, 3), (1, 2, 2)), nn.Conv3d)
    assert isinstance(pointwise_conv(3, 4, 2), nn.Conv3d)
    assert isinstance(instance_norm(2, 4), nn.InstanceNorm2d)
    assert isinstance(instance_norm(3, 4), nn.InstanceNorm3d)
    names = {name for name, _ in ResidualStage(2, 3, 6, (3, 3)).named_parameters()}
    assert {name.split(".")[1] for name in names} == {
        "conv1",
        "norm1",
        "conv2",
        "norm2",
        "shortcut",
    }


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dim", [2, 3])
def test_pointwise_convolution(dim, stride):
    layer = pointwise_conv(dim, 5, 3, stride).double()
    x = torch.randn(2, 5, *SIZES[dim], dtype=torch.float64)
    expected = CONV[dim](x, layer.weight, layer.bias, stride)
    for given in (x, to_channels_last(x)):
        torch.testing.assert_close(layer(given), expected)


@pytest.mark.parametrize("dim", [2, 3])
def test_strided_pointwise_convolution_never_reaches_onednn(dim):
    """Its gradient of the weights overwrites memory there, with few channels on AVX2."""
    layer = pointwise_conv(dim, 4, 8, 2)
    y = layer(to_channels_last(torch.randn(2, 4, *SIZES[dim])))
    assert "Convolution" not in str(y.grad_fn.next_functions) + str(y.grad_fn)
    y.sum().backward()
    assert layer.weight.grad.shape == layer.weight.shape


def test_channels_last_repairs_the_stride_of_a_single_sample():
    tokens = torch.randn(1, 12, 5)
    x = tokens.transpose(1, 2).unflatten(2, (3, 4)).as_strided((1, 5, 3, 4), (5, 1, 20, 5))
    y = to_channels_last(x)
    assert torch.equal(x, y)
    assert y.stride() == (60, 1, 20, 5)
    assert y.data_ptr() == x.data_ptr()


def test_large_convolution_is_the_same_in_both_ways():
    torch.manual_seed(0)
    layer = same_conv(2, 128, 128, (3, 3))
    x = to_channels_last(torch.randn(1, 128, 32, 32))
    with torch.no_grad():
        expected = F.conv2d(x, layer.weight, layer.bias, padding=1)
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dim", [2, 3])
def test_stage_compiles_into_one_graph(dim):
    stage = make_stage(dim, 1)
    x = torch.randn(1, 3, *SIZES[dim], dtype=torch.float64)
    compiled = torch.compile(stage, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), stage(x))
