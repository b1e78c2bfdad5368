from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tttunet.kernels import cpu_weight_gradient
from tttunet.kernels.cpu_weight_gradient import convolution, pays
from tttunet.layers.residual import ResidualBlock, same_conv

CONVOLUTION = {4: F.conv2d, 5: F.conv3d}
#: Odd sizes, batches, one column, one slice; in 3D one to three taps; strides; even kernels, more
#: padding than they need; channels enough for Winograd's way.
PROBLEMS = [
    ((2, 5, 8, 12), 3, (3, 3), (1, 1), (1, 1)),
    ((1, 4, 13, 7), 6, (3, 3), (1, 1), (1, 1)),
    ((1, 3, 1, 2), 2, (3, 3), (1, 1), (1, 1)),
    ((3, 2, 6, 1), 2, (3, 3), (1, 1), (1, 1)),
    ((1, 3, 9, 7), 2, (3, 3), (1, 1), (0, 2)),
    ((2, 5, 8, 12), 3, (3, 3), (2, 2), (1, 1)),
    ((1, 4, 13, 7), 6, (3, 3), (2, 1), (1, 1)),
    ((1, 4, 9, 8), 6, (2, 2), (1, 1), (1, 1)),
    ((1, 64, 9, 8), 65, (3, 3), (1, 1), (1, 1)),
    ((2, 4, 5, 10, 7), 3, (3, 3, 3), (1, 1, 1), (1, 1, 1)),
    ((1, 4, 5, 8, 8), 3, (1, 3, 3), (1, 1, 1), (0, 1, 1)),
    ((1, 4, 1, 6, 9), 3, (3, 3, 3), (1, 1, 1), (1, 1, 1)),
    ((2, 4, 5, 10, 7), 3, (3, 3, 3), (2, 2, 2), (1, 1, 1)),
    ((1, 4, 6, 10, 7), 3, (3, 3, 3), (1, 2, 2), (1, 1, 1)),
    ((1, 4, 3, 5, 4), 3, (2, 2, 2), (1, 1, 1), (1, 1, 1)),
    ((1, 4, 3, 5, 4), 3, (1, 2, 2), (1, 1, 1), (0, 1, 1)),
    ((1, 33, 3, 5, 4), 32, (3, 3, 3), (1, 1, 1), (1, 1, 1)),
]


def make(shape, outputs, kernel, dtype=torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=dtype)
    weight = torch.randn(outputs, shape[1], *kernel, generator=generator, dtype=dtype)
    bias = torch.randn(outputs, generator=generator, dtype=dtype)
    x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    return [t.requires_grad_() for t in (x, weight, bias)]


@pytest.fixture
def avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")


@pytest.mark.parametrize("rows", [1, 3, 1000])
@pytest.mark.parametrize(("shape", "outputs", "kernel", "stride", "padding"), PROBLEMS)
def test_gradients_are_those_of_the_convolution(
    shape, outputs, kernel, stride, padding, rows, monkeypatch
):
    values = rows * 3 * shape[-1] * shape[1]
    monkeypatch.setattr(cpu_weight_gradient, "STRIP_VALUES", values)
    arguments = make(shape, outputs, kernel)
    y = convolution(*arguments, stride, padding)
    expected = CONVOLUTION[len(shape)](*arguments, stride, padding)
    torch.testing.assert_close(y, expected)
    cotangent = torch.randn_like(expected)
    ours = torch.autograd.grad(y, arguments, cotangent)
    theirs = torch.autograd.grad(expected, arguments, cotangent)
    for gradient, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, reference)


def test_only_wanted_gradients():
    x, weight, _ = make((1, 4, 6, 6), 3, (3, 3))
    y = convolution(x.detach(), weight, None, (1, 1), (1, 1))
    (gradient,) = torch.autograd.grad(y.sum(), weight)
    assert gradient.shape == weight.shape


def test_where_it_pays(avx2, monkeypatch):
    x, weight, _ = make((1, 4, 6, 6), 3, (3, 3), torch.float32)
    assert pays(x, weight)
    assert not pays(x.detach().contiguous(), weight)
    assert not pays(x, weight.detach())
    assert not pays(x.double(), weight.double())
    assert not pays(x, torch.randn(3, 4, 5, 5, requires_grad=True))
    with torch.no_grad():
        assert not pays(x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert not pays(x, weight)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert not pays(x, weight)


@pytest.mark.parametrize("stride", [1, 2])
def test_layers_take_it(avx2, stride, monkeypatch):
    """The gradients are the same either way."""
    layer = same_conv(2, 4, 3, (3, 3), stride)
    x, _, _ = make((2, 4, 8, 6), 3, (3, 3), torch.float32)
    y = layer(x)
    assert "_Convolution" in type(y.grad_fn).__name__
    cotangent = torch.randn_like(y)
    ours = torch.autograd.grad(y, layer.weight, cotangent)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    theirs = torch.autograd.grad(layer(x), layer.weight, cotangent)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dim", [2, 3])
def test_upsampled_maps_take_it(avx2, dim, monkeypatch):
    block = ResidualBlock(dim, 5, 3, (3,) * dim, project=True)
    low, _, _ = make((2, 3, *(4, 3, 5)[:dim]), 3, (3, 3), torch.float32)
    skip, _, _ = make((2, 2, *(8, 6, 10)[:dim]), 3, (3, 3), torch.float32)
    weights = block.conv1.weight, block.shortcut.weight

    def gradients() -> tuple[torch.Tensor, ...]:
        y = block.forward_upsampled(low, (2,) * dim, skip)
        cotangent = torch.linspace(-1, 1, y.numel()).view_as(y)
        return torch.autograd.grad(y, (*weights, low, skip), cotangent)

    calls = []
    by_products = cpu_weight_gradient.weight_gradient
    monkeypatch.setattr(
        cpu_weight_gradient,
        "weight_gradient",
        lambda x, *others: calls.append(x.shape) or by_products(x, *others),
    )
    ours = gradients()
    assert low.shape in calls
    assert skip.shape in calls
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    torch.testing.assert_close(ours, gradients(), rtol=1e-4, atol=1e-4)
