"""TTT-Linear in Triton against the reference in fp64: results and gradients of every argument."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tttunet.kernels import reference, rotary_embedding
from tttunet.kernels.contract import OperatorError, Settings
from tttunet.kernels.triton_linear import linear_forward, plan_forward
from tttunet.kernels.triton_linear_backward import linear_backward

RESULTS = ("output", "W", "b", "losses")
GRADIENTS = ("q", "k", "v", "lr", "coefficient", "W", "b", "norm_weight", "norm_bias")
PLAIN = Settings()
FULL = Settings(base_lr=0.7, rope_theta=10000.0, bidirectional=True)
FORWARD_ONLY = Settings(base_lr=0.7, rope_theta=10000.0)


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan(monkeypatch):
    """What a kernel forgets to write shows."""
    new_empty = Tensor.new_empty

    def filled(self: Tensor, *shape: int, **options: torch.dtype) -> Tensor:
        return new_empty(self, *shape, **options).fill_(float("nan"))

    monkeypatch.setattr(Tensor, "new_empty", filled)


@dataclass
class Problem:
    """Arguments of `linear_forward` and gradients of its output and final state."""

    arguments: list[Tensor]
    cotangents: list[Tensor]
    settings: Settings

    def fused(self, save: int) -> tuple[list[Tensor], list[Tensor]]:
        forward = linear_forward(*self.arguments, self.settings, save)
        gradients = linear_backward(
            *self.cotangents, *self.arguments, *forward.saved, self.settings, save
        )
        return [forward.output, *forward.state, forward.losses], list(gradients)

    def reference(self) -> tuple[list[Tensor], list[Tensor]]:
        leaves = [x.detach().double().requires_grad_() for x in self.arguments]
        one_way = [self._scan(leaves, against) for against in (False, True)]
        results = [
            torch.stack(x) for x in zip(*one_way[: 1 + self.settings.bidirectional], strict=True)
        ]
        cotangents = [x.double() for x in self.cotangents]
        gradients = torch.autograd.grad(results[:3], leaves, cotangents)
        return [x.detach() for x in results], list(gradients)

    def _scan(self, leaves: list[Tensor], against: bool) -> tuple[Tensor, ...]:
        q, k, v, lr, coefficient, W, b, norm_weight, norm_bias = leaves
        batch, d = q.shape[0], q.shape[-1]
        if against:
            q, k, v, lr = (x.flip(2) for x in (q, k, v, lr))
        if self.settings.rope_theta is not None:
            q, k = (rotary_embedding(x, len(coefficient), self.settings.rope_theta) for x in (q, k))
        if self.settings.base_lr is not None:
            lr = self.settings.base_lr * lr.sigmoid() / d
        state = (W.expand(batch, *W.shape[1:]), b.expand(batch, *b.shape[1:]))
        result = reference.ttt_linear(
            q, k, v, lr, coefficient, state, norm_weight, norm_bias, self.settings.eps
        )
        output, losses = result.output, result.losses
        if against:
            output, losses = output.flip(2), losses.flip(2)
        return output, *result.state, losses


def make_problem(
    tokens: int,
    mini_batch: int,
    d: int,
    settings: Settings,
    batch: int = 1,
    heads: int = 1,
    states: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Problem:
    generator = torch.Generator().manual_seed(tokens * 100 + d)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    # As the layer hands them over: a transposed view.
    q, k, v = (normal(batch, tokens, heads, d).to(dtype).transpose(1, 2) for _ in range(3))
    lr = normal(batch, heads, tokens)
    if settings.base_lr is None:
        lr = lr.sigmoid() / d
    coefficient = 1 / torch.arange(1, mini_batch + 1) + 0.1 * normal(mini_batch)
    state = [0.3 * normal(states, heads, d, d), 0.3 * normal(states, heads, d)]
    norm = [1 + 0.5 * normal(heads, d), normal(heads, d)]
    directions = 1 + settings.bidirectional
    cotangents = [
        # The gradient of a mean over directions and a transposed output: no contiguous tensor.
        normal(1, batch, tokens, heads, d).transpose(2, 3).expand(directions, -1, -1, -1, -1),
        normal(directions, batch, heads, d, d),
        normal(directions, batch, heads, d),
    ]
    return Problem([q, k, v, lr, coefficient, *state, *norm], cotangents, settings)


def assert_agree(
    actual: list[Tensor], expected: list[Tensor], names: tuple[str, ...], tolerance: float
) -> None:
    for name, x, y in zip(names, actual, expected, strict=True):
        assert x.shape == y.shape, name
        error = float((x.double() - y).abs().max() / y.abs().max())
        assert error < tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize(
    ("tokens", "mini_batch", "d", "settings", "save", "more"),
    [
        pytest.param(13, 16, 5, FULL, 1, {}, id="one_short_mini_batch"),
        pytest.param(35, 16, 8, FULL, 2, {}, id="interval_of_2_and_a_tail"),
        pytest.param(32, 16, 16, FORWARD_ONLY, 1, {"heads": 2}, id="whole_mini_batches"),
        pytest.param(21, 20, 24, PLAIN, 1, {"batch": 2, "states": 2}, id="state_of_each_sample"),
        pytest.param(19, 16, 4, FORWARD_ONLY, 3, {"batch": 2}, id="shared_state"),
    ],
)
def test_results_and_gradients_are_the_reference_s(tokens, mini_batch, d, settings, save, more):
    problem = make_problem(tokens, mini_batch, d, settings, **more)
    results, gradients = problem.fused(save)
    expected_results, expected_gradients = problem.reference()
    assert_agree(results, expected_results, RESULTS, 1e-5)
    assert_agree(gradients, expected_gradients, GRADIENTS, 2e-5)


@pytest.mark.slow
def test_mini_batches_of_64_tokens_of_32_channels():
    problem = make_problem(70, 64, 32, FULL)
    results, gradients = problem.fused(1)
    expected_results, expected_gradients = problem.reference()
    assert_agree(results, expected_results, RESULTS, 1e-5)
    assert_agree(gradients, expected_gradients, GRADIENTS, 2e-5)


def test_fp16_tokens_are_computed_in_fp32():
    problem = make_problem(18, 16, 8, FORWARD_ONLY, dtype=torch.float16)
    results, gradients = problem.fused(1)
    expected_results, expected_gradients = problem.reference()
    assert_agree(results, expected_results, RESULTS, 1e-5)
    assert [x.dtype for x in gradients[:3]] == [torch.float16] * 3
    # Those of q, k and v are rounded to fp16.
    assert_agree(gradients[:3], expected_gradients[:3], GRADIENTS[:3], 1e-3)
    assert_agree(gradients[3:], expected_gradients[3:], GRADIENTS[3:], 2e-5)


@pytest.mark.parametrize(("tokens", "save"), [(10, 0), (10, 2), (50, 0), (50, 3)])
def test_saved_states_are_those_that_the_mini_batches_start_from(tokens, save):
    problem = make_problem(tokens, 16, 4, PLAIN, states=1)
    forward = linear_forward(*problem.arguments, problem.settings, save)
    if save == 0:
        assert [part.numel() for part in forward.saved] == [0, 0]
        return
    assert forward.saved[0].shape[3] == -(-tokens // (16 * save))
    torch.testing.assert_close(forward.saved[0][0, 0, :, 0], problem.arguments[5][0])
    if tokens == 50:
        cut = [x[:, :, : 16 * save] for x in problem.arguments[:4]] + problem.arguments[4:]
        before = linear_forward(*cut, problem.settings, 0)
        for saved, final in zip(forward.saved, before.state, strict=True):
            torch.testing.assert_close(saved[:, :, :, 1], final)


def test_a_single_mini_batch_is_one_launch():
    for tokens, launches in ((16, 1), (17, 2)):
        problem = make_problem(tokens, 16, 4, PLAIN)
        assert len(plan_forward(*problem.arguments, problem.settings, 1)[0]) == launches


@pytest.mark.parametrize(
    ("mini_batch", "d", "dtype"),
    [(65, 4, torch.float32), (16, 129, torch.float32), (16, 4, torch.float64)],
)
def test_what_the_kernels_do_not_take_is_refused(mini_batch, d, dtype):
    problem = make_problem(3, mini_batch, d, PLAIN, dtype=dtype)
    with pytest.raises(OperatorError, match="Triton kernels take"):
        linear_forward(*problem.arguments, problem.settings, 0)
