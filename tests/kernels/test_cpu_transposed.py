"""Gradients of upsampling convolutions beside PyTorch's own, in fp64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tttunet.kernels import cpu_transposed
from tttunet.kernels.cpu_transposed import convolution
from tttunet.layers.residual import up_conv

TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def make(shape: tuple[int, ...], kernel: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    weight = torch.randn(shape[1], 3, *kernel, generator=generator, dtype=torch.float64)
    bias = torch.randn(3, generator=generator, dtype=torch.float64)
    x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    return [t.requires_grad_() for t in (x, weight, bias)]


@pytest.mark.parametrize(
    ("shape", "kernel"),
    [
        ((2, 5, 4, 6), (2, 2)),
        ((1, 4, 3, 5), (1, 2)),
        ((1, 4, 1, 1), (3, 2)),
        ((2, 4, 3, 2, 5), (2, 2, 2)),
        ((1, 4, 3, 2, 5), (1, 2, 2)),
    ],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_are_pytorchs(shape, kernel, channels_last):
    x, weight, bias = tensors = make(shape, kernel)
    expected = (torch.conv_transpose2d if len(kernel) == 2 else torch.conv_transpose3d)(
        x, weight, bias, kernel
    )
    result = convolution(x, weight, bias)
    torch.testing.assert_close(result, expected)
    cotangent = torch.randn_like(expected)
    if channels_last:
        cotangent = cotangent.movedim(1, -1).contiguous().movedim(-1, 1)
    found = torch.autograd.grad(result, tensors, cotangent)
    for gradient, reference in zip(
        found, torch.autograd.grad(expected, tensors, cotangent), strict=True
    ):
        torch.testing.assert_close(gradient, reference)


@pytest.mark.parametrize("dim", [2, 3])
def test_the_layer_takes_it_where_it_pays(dim, monkeypatch):
    taken = []

    def watched(*arguments):
        taken.append(arguments[0].shape)
        return convolution(*arguments)

    monkeypatch.setattr(cpu_transposed, "convolution", watched)
    layer = up_conv(dim, 4, 3, (2,) * dim)
    plain = TRANSPOSED[dim](4, 3, 2, 2)
    plain.load_state_dict(copy.deepcopy(layer.state_dict()))
    x = torch.randn(1, *(6,) * dim, 4).movedim(-1, 1)
    torch.testing.assert_close(layer(x), plain(x))
    assert len(taken) == 1
    layer(x).square().sum().backward()
    plain(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad)
    with torch.no_grad():
        layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert len(taken) == 2
