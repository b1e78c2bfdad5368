from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tttunet.kernels import cpu_winograd
from tttunet.kernels.cpu_winograd import convolution, convolve, pays, transform_weight

CONVOLUTION = {4: F.conv2d, 5: F.conv3d}


def channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def make(shape: tuple[int, ...], outputs: int, kernel: tuple[int, ...], dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = channels_last(torch.randn(shape, generator=generator, dtype=dtype))
    weight = torch.randn(outputs, shape[1], *kernel, generator=generator, dtype=dtype)
    bias = torch.randn(outputs, generator=generator, dtype=dtype)
    return [t.requires_grad_() for t in (x, weight / weight[0].numel() ** 0.5, bias)]


def direct(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return CONVOLUTION[x.ndim](x, weight, bias, padding=[k // 2 for k in weight.shape[2:]])


#: Whole tiles, cut tiles, less than a tile, batches; in 3D one and three taps, one slice.
PROBLEMS = [
    ((2, 5, 8, 12), 3, (3, 3)),
    ((1, 4, 13, 18), 6, (3, 3)),
    ((1, 4, 26, 8), 6, (3, 3)),
    ((1, 3, 1, 2), 2, (3, 3)),
    ((2, 4, 5, 10, 7), 3, (3, 3, 3)),
    ((1, 4, 5, 8, 8), 3, (1, 3, 3)),
    ((1, 4, 1, 6, 9), 3, (3, 3, 3)),
    ((1, 4, 2, 6, 9), 3, (3, 3, 3)),
]


# Of 24 values, the last strips overlap those before them.
@pytest.mark.parametrize("strip", [1, 7, 24, 10**6])
@pytest.mark.parametrize(("shape", "outputs", "kernel"), PROBLEMS)
def test_is_the_convolution(shape, outputs, kernel, strip, monkeypatch):
    monkeypatch.setattr(cpu_winograd, "STRIP_VALUES", strip * 36)
    arguments = make(shape, outputs, kernel)
    y, expected = convolution(*arguments), direct(*arguments)
    torch.testing.assert_close(y, expected)
    assert y.movedim(1, -1).is_contiguous()
    cotangent = torch.randn_like(expected)
    gradients = torch.autograd.grad(y, arguments, cotangent)
    for gradient, reference in zip(
        gradients, torch.autograd.grad(expected, arguments, cotangent), strict=True
    ):
        torch.testing.assert_close(gradient, reference)


@pytest.mark.parametrize("without", [0, 1, 2])
def test_only_wanted_gradients(without):
    arguments = make((1, 4, 8, 8), 3, (3, 3))
    arguments[without].requires_grad_(False)
    convolution(*arguments).sum().backward()
    assert [a.grad is None for a in arguments] == [n == without for n in range(3)]


def test_without_bias():
    x, weight, _ = make((1, 4, 8, 8), 3, (3, 3))
    y = convolution(x, weight, None)
    torch.testing.assert_close(y, direct(x, weight, None))
    y.sum().backward()
    assert weight.grad.isfinite().all()


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
            results.append(convolution(x, weight, bias))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


def test_pays_only_where_it_is_right_and_faster():
    x, weight, _ = (t.detach() for t in make((1, 128, 32, 32), 128, (3, 3), torch.float32))
    assert pays(x, weight)
    assert not pays(x, weight[:32]), "few channels"
    assert not pays(x[:, :, :16, :16].contiguous(memory_format=torch.channels_last), weight)
    assert not pays(x.contiguous(), weight), "channels first"
    assert not pays(x.double(), weight.double())
    assert not pays(x.to("meta"), weight.to("meta"))
    assert not pays(x, weight[:, :, :1, :1]), "another kernel"
    with torch.autocast("cpu", torch.bfloat16):
        assert not pays(x, weight)
