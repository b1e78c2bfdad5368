"""The fused InstanceNorm against torch's autograd in fp64, by Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tttunet.kernels import triton_norm
from tttunet.kernels.triton_launch import Launch

EPS = 1e-5


def leaves(
    shape: tuple[int, int, int],
    *,
    residual: bool,
    dtype: torch.dtype = torch.float32,
    mean: float = 0.0,
) -> list[Tensor | None]:
    """x, weight, bias, residual, grad_y."""
    generator = torch.Generator().manual_seed(sum(shape))

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    channels = shape[-1]
    scale = 0.5 + torch.rand(channels, generator=generator)
    x = mean + scale * normal(*shape)
    skip = normal(*shape).to(dtype) if residual else None
    affine = [1 + 0.3 * normal(channels), 0.3 * normal(channels)]
    return [x.to(dtype), *affine, skip, normal(*shape).to(dtype)]


def run_poisoned(launches: list[Launch], inputs: list[Tensor | None]) -> None:
    """Run with NaN in every tensor that is not an input."""
    given = {x.data_ptr() for x in inputs if x is not None}
    for launch in launches:
        for tensor in launch.arguments.values():
            if isinstance(tensor, Tensor) and tensor.data_ptr() not in given:
                tensor.fill_(float("nan"))
    for launch in launches:
        launch.run()


def fused(
    inputs: list[Tensor | None], slope: float
) -> tuple[triton_norm.NormForward, triton_norm.NormBackward]:
    x, weight, bias, residual, grad_y = inputs
    launches, forward = triton_norm.plan_norm_forward(x, weight, bias, residual, EPS, slope)
    assert len(launches) <= 2
    run_poisoned(launches, inputs)
    launches, backward = triton_norm.plan_norm_backward(
        grad_y, x, weight, bias, residual, forward.mean, forward.rstd, slope
    )
    assert len(launches) <= 2
    run_poisoned(launches, [*inputs, forward.mean, forward.rstd])
    return forward, backward


def expected(inputs: list[Tensor | None], slope: float) -> list[Tensor | None]:
    """y and the gradients of x, weight, bias and residual, in fp64."""
    *arguments, grad_y = [None if t is None else t.double() for t in inputs]
    for tensor in arguments:
        if tensor is not None:
            tensor.requires_grad_()
    x, weight, bias, residual = arguments
    y = F.instance_norm(x.transpose(1, 2), weight=weight, bias=bias, eps=EPS).transpose(1, 2)
    y = F.leaky_relu(y if residual is None else y + residual, slope)
    wanted = [tensor for tensor in arguments if tensor is not None]
    gradients = list(torch.autograd.grad(y, wanted, grad_y))
    return [y.detach(), *gradients, *([] if residual is not None else [None])]


def assert_agrees(inputs: list[Tensor | None], slope: float, tolerance: float) -> None:
    forward, backward = fused(inputs, slope)
    names = ("y", "x", "weight", "bias", "residual")
    reference = expected(inputs, slope)
    for name, actual, exact in zip(names, (forward.y, *backward), reference, strict=True):
        if exact is None:
            assert actual is None
            continue
        scale = float(exact.abs().max())
        error = float((actual.double() - exact).abs().max())
        assert error <= tolerance * scale, f"{name}: {error:.2e} of {scale:.2e}"
        source = inputs[0] if name == "y" else inputs[names.index(name) - 1]
        assert actual.dtype == source.dtype


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, tiles per chunk, channel tiles and merges at sizes an interpreter can do."""
    monkeypatch.setattr(triton_norm, "TILE", 64)
    monkeypatch.setattr(triton_norm, "MAX_BLOCK_C", 8)
    monkeypatch.setattr(triton_norm, "MERGE", 16)
    monkeypatch.setattr(triton_norm, "PROGRAMS", 6)


@pytest.mark.parametrize(
    ("shape", "slope", "residual"),
    [
        pytest.param((1, 3, 1), 0.01, True, id="smallest"),
        pytest.param((2, 35, 5), 0.01, False, id="odd"),
        pytest.param((2, 35, 5), 0.01, True, id="odd_residual"),
        pytest.param((2, 35, 5), 1.0, False, id="odd_no_activation"),
        pytest.param((2, 35, 5), 1.0, True, id="odd_no_activation_residual"),
        pytest.param((3, 53, 3), 0.01, False, id="three_samples"),
        pytest.param((1, 67, 11), 0.01, True, id="two_channel_tiles"),
        pytest.param((1, 64, 8), 0.2, True, id="whole_tiles"),
    ],
)
def test_agrees_with_autograd(shape, slope, residual):
    assert_agrees(leaves(shape, residual=residual), slope, 2e-6)


def test_large_mean_does_not_cancel():
    # fp32 holds a mean of 1000 to 3e-5: this error is left, whatever the algorithm.
    inputs = leaves((1, 71, 5), residual=True, mean=1e3)
    assert_agrees(inputs, 1.0, 3e-4)
    forward, _ = fused(inputs, 1.0)
    variance = inputs[0].double().var(1, correction=0)
    torch.testing.assert_close(forward.rstd.double(), (variance + EPS).rsqrt(), rtol=2e-5, atol=0.0)


def test_chunks_that_differ_much_are_merged_exactly():
    inputs = leaves((1, 90, 3), residual=False)
    inputs[0][:, :9] += 1e3
    assert_agrees(inputs, 1.0, 1e-5)


def test_half_precision_is_computed_in_fp32():
    inputs = leaves((1, 35, 5), residual=True, dtype=torch.float16)
    assert_agrees(inputs, 0.01, 2e-3)


def test_layouts_that_are_not_contiguous_are_copied():
    inputs = leaves((1, 35, 5), residual=True)
    outputs = triton_norm.norm_forward(*inputs[:4], EPS, 0.01)
    strided = [inputs[0].transpose(1, 2).contiguous().transpose(1, 2), *inputs[1:3]]
    residual = torch.stack([inputs[3], inputs[3]], dim=-1)[..., 0]
    again = triton_norm.norm_forward(*strided, residual, EPS, 0.01)
    assert torch.equal(again.y, outputs.y)


def test_default_tiles_agree_too(monkeypatch):
    monkeypatch.undo()
    assert_agrees(leaves((1, 75, 67), residual=True), 0.01, 2e-6)
