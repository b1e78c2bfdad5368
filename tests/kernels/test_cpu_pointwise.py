from __future__ import annotations

import pytest
import torch

from convolutions import CONVOLUTION, make
from tttunet.kernels import cpu_pointwise


@pytest.fixture(params=["AVX2", "AVX512"], autouse=True)
def _capability(request, monkeypatch):
    """The result is PyTorch's convolution on the one, a product on the other."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)
    monkeypatch.setattr(cpu_pointwise, "MIN_POSITIONS", 0)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("shape", "outputs", "stride"),
    [
        ((2, 5, 8, 12), 3, (1, 1)),
        ((1, 3, 7, 5), 9, (1, 1)),
        ((2, 5, 7, 12), 3, (2, 2)),
        ((1, 1, 1, 2), 2, (2, 1)),
        ((2, 4, 3, 5, 6), 3, (1, 1, 1)),
        ((1, 4, 3, 5, 6), 7, (1, 2, 2)),
    ],
)
def test_is_the_convolution(shape, outputs, stride, biased):
    x, weight, bias = make(shape, outputs, (1,) * len(stride))
    arguments = [x, weight, bias][: 2 + biased]
    y = cpu_pointwise.convolution(x, weight, bias if biased else None, stride)
    expected = CONVOLUTION[x.ndim](*arguments, stride=stride)
    torch.testing.assert_close(y, expected)
    assert y.movedim(1, -1).is_contiguous()
    cotangent = torch.randn_like(expected)
    ours = torch.autograd.grad(y, arguments, cotangent)
    theirs = torch.autograd.grad(expected, arguments, cotangent)
    for gradient, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, reference)
    # In place, as after an upsampling.
    with torch.no_grad():
        again = cpu_pointwise.convolution(x, weight, bias if biased else None, stride)
    torch.testing.assert_close(again.add_(1), expected + 1)


@pytest.mark.parametrize("without", [0, 1, 2])
def test_only_wanted_gradients(without):
    arguments = make((1, 4, 8, 8), 3, (1, 1))
    arguments[without].requires_grad_(False)
    cpu_pointwise.convolution(*arguments, (1, 1)).sum().backward()
    assert [a.grad is None for a in arguments] == [n == without for n in range(3)]


@pytest.mark.parametrize(
    ("channels", "size", "taken"),
    [(4, 64, True), (128, 64, True), (4, 63, False), (129, 64, False)],
)
def test_pytorchs_own_only_for_large_thin_maps_with_avx2(channels, size, taken, monkeypatch):
    """Elsewhere its rounding depends on the number of threads."""
    monkeypatch.setattr(cpu_pointwise, "MIN_POSITIONS", 64 * 64)
    calls = []
    convolve = cpu_pointwise._CONVOLVE[4]
    monkeypatch.setitem(
        cpu_pointwise._CONVOLVE, 4, lambda *arguments: calls.append(1) or convolve(*arguments)
    )
    x, weight, _ = make((1, channels, 64, size), 3, (1, 1))
    cpu_pointwise.project(x.detach(), weight.detach(), None, (1, 1))
    avx2 = torch.backends.cpu.get_cpu_capability() == "AVX2"
    assert bool(calls) == (taken and avx2)
