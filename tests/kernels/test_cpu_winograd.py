from __future__ import annotations

import math

import pytest
import torch

from convolutions import CONVOLUTION, SAME, make
from tttunet.kernels import cpu_winograd
from tttunet.kernels.cpu_winograd import convolve, pays, transform_weight, weight_gradient


def direct(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return CONVOLUTION[x.ndim](x, weight, bias, padding=[k // 2 for k in weight.shape[2:]])


# Of 24 values, the last strips overlap those before them.
@pytest.mark.parametrize("strip", [1, 7, 24, 10**6])
@pytest.mark.parametrize(("shape", "outputs", "kernel"), [p[:3] for p in SAME])
def test_is_the_convolution(shape, outputs, kernel, strip, monkeypatch):
    monkeypatch.setattr(cpu_winograd, "STRIP_VALUES", strip * 36)
    arguments = make(shape, outputs, kernel)
    expected = direct(*arguments)
    x, weight, bias = (a.detach() for a in arguments)
    y = convolve(x, transform_weight(weight), bias)
    torch.testing.assert_close(y, expected)
    assert y.movedim(1, -1).is_contiguous()
    torch.testing.assert_close(convolve(x, transform_weight(weight)), direct(x, weight, None))

    cotangent = torch.randn_like(expected)
    grad = cotangent.movedim(1, -1).contiguous().movedim(-1, 1)
    of_x, of_weight = torch.autograd.grad(expected, arguments[:2], cotangent)
    torch.testing.assert_close(convolve(grad, transform_weight(weight, backwards=True)), of_x)
    ours = weight_gradient(x, grad, math.prod(kernel[:-2]))
    torch.testing.assert_close(ours.reshape(weight.shape), of_weight)


@pytest.mark.parametrize(
    ("shape", "kernel"), [((1, 128, 32, 36), (3, 3)), ((1, 64, 4, 16, 20), (3, 3, 3))]
)
def test_single_precision_keeps_five_digits(shape, kernel):
    x, weight, bias = (t.detach() for t in make(shape, shape[1], kernel, torch.float32))
    assert pays(x, weight)
    y = convolve(x, transform_weight(weight), bias)
    expected = direct(x.double(), weight.double(), bias.double())
    assert float((y - expected).abs().max() / expected.abs().max()) < 2e-5


@pytest.mark.parametrize(
    ("shape", "kernel"), [((1, 128, 32, 36), (3, 3)), ((1, 32, 4, 32, 36), (3, 3, 3))]
)
def test_result_does_not_depend_on_the_threads(shape, kernel):
    x, weight, bias = (t.detach() for t in make(shape, shape[1], kernel, torch.float32))
    assert pays(x, weight)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(convolve(x, transform_weight(weight), bias))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


def test_pays_only_where_it_is_faster():
    x, weight, _ = (t.detach() for t in make((1, 128, 32, 32), 128, (3, 3), torch.float32))
    assert pays(x, weight)
    assert not pays(x, weight[:32]), "few channels"
    assert not pays(x[:, :, :16, :16].contiguous(memory_format=torch.channels_last), weight)
    assert not pays(x, weight[:, :, :1, :1]), "another kernel"
