from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from convolutions import CONVOLUTION, OTHERS, SAME, make
from tttunet.kernels import cpu_convolution, cpu_weight_gradient, cpu_winograd
from tttunet.kernels.cpu_convolution import convolution, pays, takes, with_projection
from tttunet.layers.residual import ResidualBlock, same_conv

WAYS = {
    "products": cpu_convolution._by_products,
    "pytorch": cpu_convolution._by_pytorch,
    "winograd": cpu_convolution._by_winograd,
}
#: Those whose results are as large as a 1x1 convolution's of the same stride.
PROJECTED = [*SAME, *OTHERS[1:3], *OTHERS[4:6]]


def capability(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: name)


@pytest.fixture
def avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    capability(monkeypatch, "AVX2")


def force(monkeypatch: pytest.MonkeyPatch, way: str) -> list[torch.Size]:
    """Take one way for the gradient of the weights; returns the shapes that it was taken for."""
    taken = []
    monkeypatch.setattr(cpu_winograd, "pays", lambda x, weight: way == "winograd")
    note = lambda x, *rest: taken.append(x.shape) or WAYS[way](x, *rest)  # noqa: E731
    monkeypatch.setattr(cpu_convolution, "_weight_gradient_of", lambda *_: note)
    return taken


def assert_same_gradients(outputs, expected, arguments) -> None:
    cotangents = [torch.randn_like(one) for one in expected]
    ours = torch.autograd.grad(outputs, arguments, cotangents)
    theirs = torch.autograd.grad(expected, arguments, cotangents)
    for gradient, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, reference)


@pytest.mark.parametrize(
    ("way", "problem"),
    [("winograd", problem) for problem in SAME]
    + [(way, problem) for way in ("products", "pytorch") for problem in SAME + OTHERS],
)
def test_gradients_are_those_of_the_convolution(way, problem, monkeypatch):
    shape, outputs, kernel, stride, padding = problem
    taken = force(monkeypatch, way)
    arguments = make(shape, outputs, kernel)
    y = convolution(*arguments, stride, padding)
    expected = CONVOLUTION[len(shape)](*arguments, stride, padding)
    torch.testing.assert_close(y, expected)
    assert_same_gradients([y], [expected], arguments)
    assert taken == [shape]


@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize(
    ("way", "problem"),
    [("winograd", problem) for problem in SAME]
    + [(way, problem) for way in ("products", "pytorch") for problem in PROJECTED],
)
def test_projection_is_a_convolution_of_its_own(way, problem, channels_first, monkeypatch):
    shape, outputs, kernel, stride, padding = problem
    force(monkeypatch, way)
    x, weight, _ = make(shape, outputs, kernel)
    # Fewer and more outputs than inputs.
    for more in (1, 9):
        projection = torch.randn(more, shape[1], *(1 for _ in kernel), dtype=x.dtype)
        arguments = [x, weight, projection.requires_grad_()]
        ours = with_projection(*arguments, stride, padding)
        direct = CONVOLUTION[x.ndim]
        expected = direct(x, weight, None, stride, padding), direct(x, projection, None, stride)
        assert ours[1].movedim(1, -1).is_contiguous()
        for y, reference in zip(ours, expected, strict=True):
            torch.testing.assert_close(y, reference)
        if channels_first:
            ours = tuple(1 * y.contiguous() for y in ours)
        assert_same_gradients(ours, expected, arguments)


@pytest.mark.parametrize("without", [0, 1, 2])
def test_only_wanted_gradients(without):
    arguments = make((1, 4, 8, 8), 3, (3, 3))
    arguments[without].requires_grad_(False)
    convolution(*arguments, (1, 1), (1, 1)).sum().backward()
    assert [a.grad is None for a in arguments] == [n == without for n in range(3)]
    arguments[2] = torch.randn(2, 4, 1, 1, dtype=torch.float64, requires_grad=without != 2)
    for argument in arguments:
        argument.grad = None
    sum(y.sum() for y in with_projection(*arguments, (1, 1), (1, 1))).backward()
    assert [a.grad is None for a in arguments] == [n == without for n in range(3)]


def test_without_bias():
    x, weight, _ = make((1, 4, 8, 8), 3, (3, 3))
    y = convolution(x, weight, None, (1, 1), (1, 1))
    torch.testing.assert_close(y, F.conv2d(x, weight, padding=1))
    y.sum().backward()
    assert weight.grad.isfinite().all()


def test_where_it_pays(avx2, monkeypatch):
    x, weight, _ = make((1, 24, 6, 6), 24, (3, 3), torch.float32)
    ones = (1, 1), (1, 1)
    assert takes(x, weight)
    assert pays(x, weight, *ones)
    assert not pays(x.detach().contiguous(), weight, *ones)
    assert not pays(x, weight.detach(), *ones)
    assert not pays(x.double(), weight.double(), *ones)
    assert not pays(x[:0], weight, *ones)
    assert not pays(x, torch.randn(24, 24, 5, 5, requires_grad=True), (1, 1), (2, 2))
    assert not takes(x.to("meta"), weight.to("meta"))
    with torch.no_grad():
        assert not pays(x, weight, *ones)
    with torch.autocast("cpu", torch.bfloat16):
        assert not pays(x, weight, *ones)
    capability(monkeypatch, "AVX512")
    assert not pays(x, weight, *ones)
    # Winograd's way pays without gradients and anywhere.
    x, weight, _ = (t.detach() for t in make((1, 128, 32, 32), 128, (3, 3), torch.float32))
    assert pays(x, weight, *ones)
    assert not pays(x, weight, (2, 2), (1, 1))
    assert not pays(x, weight, (1, 1), (0, 0))


@pytest.mark.parametrize(
    ("channels", "outputs", "kernel", "stride", "way"),
    [
        (3, 24, (3, 3), 1, "pytorch"),
        (1, 24, (3, 3), 1, "products"),
        (24, 24, (3, 3), 1, "winograd"),
        (24, 48, (3, 3), 2, "products"),
        (16, 24, (3, 3), 2, "pytorch"),
        (64, 64, (2, 2), 1, "products"),
        (64, 64, (5, 5), 1, "pytorch"),
        (1, 32, (3, 3, 3), 1, "winograd"),
        (16, 32, (3, 3, 3), 2, "products"),
        (32, 32, (2, 3, 3), 1, "products"),
        (16, 16, (1, 3, 3), 1, "pytorch"),
        (32, 32, (1, 3, 3), 1, "winograd"),
    ],
)
def test_choice_with_avx2(channels, outputs, kernel, stride, way, avx2):
    shape = (1, channels, *(8 for _ in kernel))
    x, weight, _ = make(shape, outputs, kernel, torch.float32)
    arguments = [stride] * len(kernel), [k // 2 for k in kernel]
    assert cpu_convolution._weight_gradient_of(x, weight, *arguments) is WAYS[way]
    assert pays(x, weight, *arguments) == (way != "pytorch")


@pytest.mark.parametrize(("stride", "channels"), [(1, 20), (2, 24)])
def test_layers_take_it(avx2, stride, channels, monkeypatch):
    """The gradients are the same either way."""
    layer = same_conv(2, channels, 24, (3, 3), stride)
    x, _, _ = make((2, channels, 8, 6), 3, (3, 3), torch.float32)
    y = layer(x)
    assert "_Convolution" in type(y.grad_fn).__name__
    cotangent = torch.randn_like(y)
    ours = torch.autograd.grad(y, layer.weight, cotangent)
    capability(monkeypatch, "AVX512")
    theirs = torch.autograd.grad(layer(x), layer.weight, cotangent)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dim", [2, 3])
def test_blocks_project_along_with_their_convolution(dim, stride):
    block = ResidualBlock(dim, 4, 6, (3,) * dim, stride, project=True)
    x, _, _ = make((2, 4, *(8, 6, 10)[:dim]), 3, (3, 3), torch.float32)
    y, _ = block._convolve_and_project(x)
    assert "_WithProjection" in type(y.grad_fn).__name__
    ours = block(x)
    plain = x.detach().contiguous().requires_grad_()
    assert not takes(plain, block.conv1.weight)
    theirs = block(plain)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    cotangent = torch.randn_like(theirs)
    parameters = [*block.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(ours, [x, *parameters], cotangent),
        torch.autograd.grad(theirs, [plain, *parameters], cotangent),
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize("dim", [2, 3])
def test_upsampled_maps_take_it(avx2, dim, monkeypatch):
    monkeypatch.setattr(cpu_weight_gradient, "MIN_PAIRS", 0)
    monkeypatch.setattr(cpu_convolution, "WINOGRAD_GRADIENT_CHANNELS", {})
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
    capability(monkeypatch, "AVX512")
    torch.testing.assert_close(ours, gradients(), rtol=1e-4, atol=1e-4)
