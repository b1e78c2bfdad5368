from __future__ import annotations

import pytest
import torch

from tttunet.kernels import cpu_norm
from tttunet.kernels.cpu_norm import instance_norm, plain_instance_norm

#: 2D and 3D, batches, odd sizes, one channel, a map of several blocks.
SHAPES = [
    *[(2, 5, 7, 9), (1, 1, 4, 4), (2, 8, 3, 4, 5), (1, 32, 72, 64), (1, 130, 33, 31)],
    (2, 24, 128, 192),
]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def make_arguments(
    shape: tuple[int, ...], dtype: torch.dtype, residual: bool
) -> list[torch.Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *size: torch.randn(size, generator=generator, dtype=torch.float64)  # noqa: E731
    weights = torch.promote_types(dtype, torch.float32)
    x = channels_last(2 * draw(*shape) + 3).to(dtype).requires_grad_()
    weight = (1 + 0.3 * draw(shape[1])).to(weights).requires_grad_()
    bias = draw(shape[1]).to(weights).requires_grad_()
    added = channels_last(draw(*shape)).to(dtype).requires_grad_() if residual else None
    return [x, weight, bias, added]


def in_double(arguments: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
    return [None if a is None else a.detach().double().requires_grad_() for a in arguments]


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    difference = (actual.detach().double() - expected.detach()).abs().max()
    return float(difference / expected.detach().abs().max())


@pytest.fixture(autouse=True)
def _only_the_fast_path(request, monkeypatch):
    """What would fall back to PyTorch's operators fails, except in tests of the fallback."""
    if "fallback" not in request.node.name:
        monkeypatch.setattr(cpu_norm, "plain_instance_norm", None)


@pytest.mark.parametrize("slope", [1.0, 0.01])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_plain_operators(shape, dtype, residual, slope):
    arguments = make_arguments(shape, dtype, residual)
    exact = in_double(arguments)
    y = instance_norm(*arguments, 1e-5, slope)
    expected = plain_instance_norm(*exact, 1e-5, slope)
    assert (y.shape, y.dtype) == (arguments[0].shape, dtype)
    assert y.movedim(1, -1).is_contiguous()
    assert error(y, expected) < TOLERANCE[dtype]

    cotangent = channels_last(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    given = [a for a in arguments if a is not None]
    gradients = torch.autograd.grad(y, given, cotangent.to(dtype))
    # PyTorch's own gradient is wrong for a channels-last cotangent and a batch of one.
    cotangent = cotangent.double().contiguous()
    wanted = torch.autograd.grad(expected, [a for a in exact if a is not None], cotangent)
    for argument, gradient, reference in zip(given, gradients, wanted, strict=True):
        assert gradient.dtype == argument.dtype
        assert error(gradient, reference) < 5 * TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_place_is_the_same_and_overwrites(dtype):
    x, *others = make_arguments((1, 32, 72, 64), dtype, True)
    with torch.no_grad():
        expected = instance_norm(x, *others, 1e-5, 0.01)
        y = instance_norm(x, *others, 1e-5, 0.01, inplace=True)
    assert y.data_ptr() == x.data_ptr()
    assert torch.equal(y, expected)


def test_never_in_place_where_gradients_are_wanted():
    x, *others = make_arguments((2, 5, 7, 9), torch.float64, False)
    before = x.detach().clone()
    y = instance_norm(x, *others, 1e-5, 0.01, inplace=True)
    assert y.data_ptr() != x.data_ptr()
    assert torch.equal(x, before)


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, True)])
def test_some_gradients_may_be_unwanted(wanted):
    arguments = make_arguments((2, 5, 7, 9), torch.float64, False)
    for argument, want in zip(arguments, wanted, strict=False):
        argument.requires_grad_(want)
    instance_norm(*arguments).square().sum().backward()
    assert tuple(a.grad is not None for a in arguments[:3]) == wanted


def test_gradient_through_a_strided_cotangent():
    arguments = make_arguments((2, 6, 4, 5), torch.float64, True)
    exact = in_double(arguments)
    wide = torch.randn(2, 12, 4, 5, dtype=torch.float64)
    (torch.cat((instance_norm(*arguments), arguments[0]), 1) * wide).sum().backward()
    (torch.cat((plain_instance_norm_in_double(*exact), exact[0]), 1) * wide).sum().backward()
    for argument, reference in zip(arguments, exact, strict=True):
        torch.testing.assert_close(argument.grad, reference.grad)


def plain_instance_norm_in_double(x, weight, bias, residual):
    y = torch.nn.functional.instance_norm(x, weight=weight, bias=bias)
    return y + residual


def test_large_offset_does_not_cancel():
    x = torch.randn(1, 8, 64, 64, dtype=torch.float64)
    x[:, :, :8] = 0  # the first positions are unlike the rest
    x = channels_last(x + 1000)
    one, zero = torch.ones(8), torch.zeros(8)
    y = instance_norm(x.float(), one, zero)
    expected = torch.nn.functional.instance_norm(x.float().double())
    # The scale times the mean, about 1000, is rounded.
    assert error(y, expected) < 1e-4


def test_constant_map_is_the_bias():
    bias = torch.randn(4)
    y = instance_norm(channels_last(torch.full((1, 4, 6, 6), 3.3)), torch.ones(4), bias)
    torch.testing.assert_close(y, bias[:, None, None].expand(1, 4, 6, 6), rtol=0, atol=2e-4)


def test_result_does_not_depend_on_the_threads():
    arguments = make_arguments((1, 32, 72, 64), torch.float32, True)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with torch.no_grad():
                results.append(instance_norm(*arguments, 1e-5, 0.01))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        # To the last bit: Winograd's maps, which follow, make a multiple of what differs.
        assert torch.equal(result, results[0])


def test_nan_stays_visible():
    x = torch.randn(1, 4, 6, 6)
    x[0, 1, 2, 3] = float("nan")
    y = instance_norm(channels_last(x), torch.ones(4), torch.zeros(4), slope=0.01)
    assert y[0, 1].isnan().all()
    assert y[0, [0, 2, 3]].isfinite().all()


def test_channels_first_is_converted():
    arguments = make_arguments((1, 5, 7, 9), torch.float64, True)
    expected = instance_norm(*arguments, 1e-5, 0.01)
    x, weight, bias, residual = arguments
    y = instance_norm(x.contiguous(), weight, bias, residual.contiguous(), 1e-5, 0.01)
    assert torch.equal(y, expected)


def test_fallback_without_data():
    x, weight = torch.randn(2, 4, 5, 6, device="meta"), torch.rand(4, device="meta")
    assert instance_norm(x, weight, weight, x, 1e-5, 0.01).shape == x.shape


def test_fallback_refuses_a_single_position():
    with pytest.raises(ValueError, match="more than 1 spatial"):
        instance_norm(torch.randn(1, 4, 1, 1), torch.ones(4), torch.zeros(4))


def test_fallback_while_compiling():
    x, weight, bias, residual = make_arguments((2, 5, 7, 9), torch.float32, True)
    compiled = torch.compile(instance_norm, backend="eager", fullgraph=True)
    y = compiled(x, weight, bias, residual, 1e-5, 0.01)
    torch.testing.assert_close(y, instance_norm(x, weight, bias, residual, 1e-5, 0.01))
