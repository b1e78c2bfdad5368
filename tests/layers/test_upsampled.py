from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tttunet.kernels import cpu_winograd
from tttunet.layers import upsampled
from tttunet.layers.residual import ResidualStage, to_channels_last

CONVOLVE = {2: F.conv2d, 3: F.conv3d}


def make(size: tuple[int, ...], factors: tuple[int, ...], with_skip: bool, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(2, 3, *size, generator=generator, dtype=dtype)
    large = [n * f for n, f in zip(size, factors, strict=True)]
    skip = torch.randn(2, 4, *large, generator=generator, dtype=dtype) if with_skip else None
    return to_channels_last(low), None if skip is None else to_channels_last(skip)


def concatenated(low: torch.Tensor, factors: tuple[int, ...], skip: torch.Tensor | None):
    x = F.interpolate(low, scale_factor=[float(f) for f in factors])
    return x if skip is None else torch.cat((x, skip), dim=1)


@pytest.mark.parametrize("with_skip", [False, True])
@pytest.mark.parametrize(
    ("size", "factors", "kernel"),
    [
        ((4, 5), (2, 2), (3, 3)),
        ((1, 1), (2, 2), (3, 3)),
        ((3, 4, 2), (2, 2, 2), (3, 3, 3)),
        ((3, 4, 2), (1, 2, 2), (3, 3, 3)),
        ((3, 4, 2), (1, 2, 2), (1, 3, 3)),
        ((5, 4), (1, 1), (5, 3)),
    ],
)
def test_is_the_convolution_of_the_upsampled_map(size, factors, kernel, with_skip):
    low, skip = make(size, factors, with_skip)
    x = concatenated(low, factors, skip)
    weight = torch.randn(6, x.shape[1], *kernel)
    convolve = CONVOLVE[len(size)]
    y = upsampled.convolve_upsampled(low, skip, factors, weight)
    expected = convolve(x, weight, padding=[k // 2 for k in kernel])
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    assert y.movedim(1, -1).is_contiguous()
    point = weight[(..., *([slice(0, 1)] * len(size)))]
    y = upsampled.project_upsampled(low, skip, factors, point)
    torch.testing.assert_close(y, convolve(x, point), rtol=1e-4, atol=1e-4)
    assert y.movedim(1, -1).is_contiguous()


@pytest.mark.parametrize("with_skip", [False, True])
@pytest.mark.parametrize(("size", "factors"), [((6, 8), (2, 2)), ((2, 4, 6), (1, 2, 2))])
def test_stage_gives_the_same_both_ways(size, factors, with_skip, monkeypatch):
    torch.manual_seed(0)
    dim = len(size)
    stage = ResidualStage(dim, 7 if with_skip else 3, 6, (3,) * dim, 1, blocks=2)
    low, skip = make(size, factors, with_skip)
    used = []
    original = upsampled.convolve_upsampled
    monkeypatch.setattr(
        "tttunet.layers.residual.convolve_upsampled", lambda *a: used.append(1) or original(*a)
    )
    inputs = [t.requires_grad_() for t in (low, skip) if t is not None]
    tensors = [*inputs, *stage.parameters()]
    expected = stage(concatenated(low, factors, skip))
    assert not used
    y = stage.forward_upsampled(low, factors, skip)
    assert used
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    cotangent = torch.randn_like(expected)
    # None is unused: processes that train together wait for the gradient of every parameter.
    gradients = torch.autograd.grad(y, tensors, cotangent)
    for gradient, reference in zip(
        gradients, torch.autograd.grad(expected, tensors, cotangent), strict=True
    ):
        torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-3)
    with torch.inference_mode():
        torch.testing.assert_close(stage.forward_upsampled(low, factors, skip), y)


@pytest.mark.parametrize(("channels", "size"), [(64, (16, 16)), (32, (1, 16, 16))])
def test_wide_skips_go_winograds_way(channels, size, monkeypatch):
    torch.manual_seed(0)
    dim = len(size)
    low = to_channels_last(torch.randn(1, channels, *size))
    skip = to_channels_last(torch.randn(1, channels, *(2 * n for n in size)))
    weight = torch.randn(channels, 2 * channels, *[3] * dim) / (18 * channels) ** 0.5
    assert upsampled.pays(low, skip, (2,) * dim, weight)
    maps = []
    original = cpu_winograd.convolve
    monkeypatch.setattr(cpu_winograd, "convolve", lambda *a: maps.append(a[0]) or original(*a))
    y = upsampled.convolve_upsampled(low, skip, (2,) * dim, weight)
    assert [one is skip for one in maps] == [True]
    x = concatenated(low, (2,) * dim, skip)
    expected = CONVOLVE[dim](x.double(), weight.double(), padding=1)
    assert float((y - expected).abs().max() / expected.abs().max()) < 2e-5


def test_pays_only_where_it_is_right():
    low, skip = make((4, 6), (2, 2), True)
    weight = torch.randn(6, 7, 3, 3)
    assert upsampled.pays(low, skip, (2, 2), weight)
    assert not upsampled.pays(low, skip, (3, 3), weight)
    assert not upsampled.pays(low, skip, (2, 2), weight[..., :1])
    assert not upsampled.pays(low.contiguous(), skip, (2, 2), weight)
    assert not upsampled.pays(low.double(), skip.double(), (2, 2), weight.double())
    assert not upsampled.pays(low, skip, (2, 2), torch.randn(256, 256, 3, 3))
    with torch.autocast("cpu", torch.bfloat16):
        assert not upsampled.pays(low, skip, (2, 2), weight)
