"""The CPU backend, forward and every gradient, against autograd through `reference.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from tttunet.kernels import cpu_linear, cpu_mlp, cpu_tokens, reference, rotary_embedding
from tttunet.kernels.contract import ForwardResult, Settings

FORWARD = {"linear": cpu_linear.linear_forward, "mlp": cpu_mlp.mlp_forward}
BACKWARD = {"linear": cpu_linear.linear_backward, "mlp": cpu_mlp.mlp_backward}
REFERENCE = {"linear": reference.ttt_linear, "mlp": reference.ttt_mlp}

inners = pytest.mark.parametrize("inner", ["linear", "mlp"])


@dataclass
class Case:
    inner: str
    tokens: int
    mini_batch: int
    d: int
    save: int = 1
    batch: int = 1
    heads: int = 2
    hidden: int = 0
    per_sample: bool = False
    settings: Settings = field(default_factory=Settings)
    dtype: torch.dtype = torch.float64

    def arguments(self) -> list[Tensor]:
        """q, k, v, lr, coefficient, the parts of the state, norm_weight, norm_bias."""
        generator = torch.Generator().manual_seed(self.tokens * 100 + self.d)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(self.dtype)

        heads, d, m = self.heads, self.d, self.hidden or 2 * self.d
        # As the layer has them: heads are a view of the token width.
        q, k, v = (normal(self.batch, self.tokens, heads, d).transpose(1, 2) for _ in range(3))
        lr = normal(self.batch, self.tokens, heads).transpose(1, 2)
        if self.settings.base_lr is None:
            lr = lr.sigmoid() / d
        position = torch.arange(1, self.mini_batch + 1, dtype=self.dtype)
        shapes = [(d, d), (d,)] if self.inner == "linear" else [(d, m), (m,), (m, d), (d,)]
        lead = (self.batch if self.per_sample else 1, heads)
        state = [0.3 * normal(*lead, *shape) for shape in shapes]
        coefficient = 1 / position + 0.1 * normal(self.mini_batch)
        norm = (1 + 0.3 * normal(heads, d), 0.3 * normal(heads, d))
        return [q, k, v, lr, coefficient, *state, *norm]

    def forward(self, arguments: list[Tensor], save: int | None = None) -> ForwardResult:
        return FORWARD[self.inner](*arguments, self.settings, self.save if save is None else save)

    def results(self, arguments: list[Tensor]) -> list[Tensor]:
        """Output, final state, losses; then the gradient of every argument."""
        result = self.forward(arguments)
        differentiable = (result.output, *result.state)
        gradients = BACKWARD[self.inner](
            *map(cotangent, differentiable),
            *arguments,
            *result.saved,
            self.settings,
            self.save,
        )
        return [*differentiable, result.losses, *gradients]

    def expected(self, arguments: list[Tensor]) -> list[Tensor]:
        leaves = [x.detach().double().requires_grad_() for x in arguments]
        output, state, losses = self._reference(*leaves)
        differentiable = [output, *state]
        gradients = torch.autograd.grad(
            differentiable, leaves, [cotangent(x) for x in differentiable], materialize_grads=True
        )
        return [x.detach() for x in (*differentiable, losses)] + list(gradients)

    def _reference(self, q, k, v, lr, coefficient, *rest):
        *state, gamma, beta = rest
        settings = self.settings
        if settings.base_lr is not None:
            lr = settings.base_lr * torch.sigmoid(lr) / self.d
        state = tuple(x.expand(self.batch, *x.shape[1:]) for x in state)
        results = []
        for direction in range(1 + settings.bidirectional):
            streams = [x.flip(2) if direction else x for x in (q, k, v, lr)]
            if settings.rope_theta is not None:
                for i in (0, 1):
                    streams[i] = rotary_embedding(streams[i], self.mini_batch, settings.rope_theta)
            result = REFERENCE[self.inner](*streams, coefficient, state, gamma, beta, settings.eps)
            back = (2,) if direction else ()
            results.append((result.output.flip(back), result.state, result.losses.flip(back)))
        outputs, states, losses = zip(*results, strict=True)
        parts = [torch.stack(x) for x in zip(*states, strict=True)]
        return torch.stack(outputs), parts, torch.stack(losses)

    def check(self, tolerance: float) -> None:
        arguments = self.arguments()
        expected, actual = self.expected(arguments), self.results(arguments)
        assert len(actual) == len(expected)
        for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
            assert a.dtype == self.dtype
            torch.testing.assert_close(
                a.double(),
                e,
                rtol=0,
                atol=tolerance * max(float(e.abs().max()), 1e-3),
                msg=lambda text, index=index: f"result {index}: {text}",
            )


def cotangent(x: Tensor) -> Tensor:
    return torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)


ROPE = Settings(base_lr=1.5, rope_theta=100.0)
BOTH = Settings(base_lr=1.5, rope_theta=100.0, bidirectional=True)


@inners
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"tokens": 1, "mini_batch": 4, "d": 4}, id="one_token"),
        pytest.param({"tokens": 5, "mini_batch": 8, "d": 4}, id="less_than_a_mini_batch"),
        pytest.param({"tokens": 7, "mini_batch": 1, "d": 4, "save": 2}, id="mini_batches_of_one"),
        pytest.param({"tokens": 12, "mini_batch": 4, "d": 8, "settings": ROPE}, id="whole"),
        pytest.param({"tokens": 13, "mini_batch": 4, "d": 5, "settings": ROPE}, id="odd_d"),
        pytest.param({"tokens": 19, "mini_batch": 4, "d": 4, "save": 2, "batch": 2}, id="batch"),
        pytest.param(
            {"tokens": 23, "mini_batch": 4, "d": 5, "save": 2, "batch": 2, "per_sample": True}
            | {"settings": BOTH},
            id="both_directions_per_sample_state",
        ),
        pytest.param(
            {"tokens": 14, "mini_batch": 4, "d": 4, "batch": 2, "settings": BOTH},
            id="both_directions_shared_state",
        ),
        pytest.param({"tokens": 27, "mini_batch": 3, "d": 4, "save": 5}, id="incomplete_interval"),
        pytest.param({"tokens": 29, "mini_batch": 3, "d": 4, "save": 5}, id="tail_without_state"),
        pytest.param({"tokens": 11, "mini_batch": 4, "d": 16, "settings": ROPE}, id="d_16"),
        pytest.param({"tokens": 9, "mini_batch": 4, "d": 33, "heads": 1}, id="d_33"),
    ],
)
def test_agrees_with_the_reference(inner: str, options: dict[str, Any]) -> None:
    Case(inner, **options).check(1e-9)


@inners
@pytest.mark.parametrize(("limit", "save"), [(2, 1), (4, 2), (3, 2), (1, 5)])
def test_segments_change_nothing(inner: str, limit: int, save: int, monkeypatch) -> None:
    monkeypatch.setattr(cpu_tokens, "SEGMENT_MINI_BATCHES", limit)
    Case(inner, tokens=31, mini_batch=4, d=4, save=save, batch=2, settings=BOTH).check(1e-9)


@inners
def test_fp32(inner: str) -> None:
    # fp32 rounding, through the divisions by a standard deviation of the inner LayerNorm.
    Case(inner, 40, 16, 8, settings=BOTH, dtype=torch.float32).check(2e-4)


@hypothesis_settings(max_examples=15, deadline=None, derandomize=True)
@given(
    inner=st.sampled_from(["linear", "mlp"]),
    tokens=st.integers(1, 18),
    mini_batch=st.integers(1, 7),
    d=st.integers(3, 9),
    save=st.integers(1, 4),
    batch=st.integers(1, 2),
    hidden=st.integers(1, 9),
    per_sample=st.booleans(),
    bidirectional=st.booleans(),
)
def test_any_shape(inner, tokens, mini_batch, d, save, batch, hidden, per_sample, bidirectional):
    settings = Settings(bidirectional=bidirectional)
    Case(inner, tokens, mini_batch, d, save, batch, 1, hidden, per_sample, settings).check(1e-8)


@inners
def test_strides_do_not_matter(inner: str) -> None:
    case = Case(inner, 13, 4, 4, batch=2, settings=BOTH)
    arguments = case.arguments()
    sliced = torch.stack(arguments[:3], dim=-1)
    strided = [*sliced.unbind(-1), *arguments[3:]]
    contiguous = [x.contiguous() for x in arguments]
    assert strided[0].stride(-1) != 1
    for a, b in zip(case.results(strided), case.results(contiguous), strict=True):
        torch.testing.assert_close(a, b)


@inners
def test_arguments_are_left_alone(inner: str) -> None:
    case = Case(inner, 13, 4, 4, settings=BOTH)
    arguments = case.arguments()
    copies = [x.clone() for x in arguments]
    case.results(arguments)
    assert all(map(torch.equal, arguments, copies))


@inners
def test_saved_states_are_those_of_the_mini_batches(inner: str) -> None:
    case = Case(inner, 19, 4, 5, save=2, batch=2, settings=BOTH)
    arguments = case.arguments()
    parts = len(arguments) - 7
    saved = case.forward(arguments).saved
    for index in range(3):
        read = index * case.save * case.mini_batch
        for direction in range(2):
            tokens = slice(read) if direction == 0 else slice(19 - read, 19)
            if read == 0:
                states = [x.expand(2, *x.shape[1:]) for x in arguments[5 : 5 + parts]]
            else:
                before = [x[:, :, tokens] for x in arguments[:4]] + arguments[4:]
                states = [x[direction] for x in case.forward(before, save=0).state]
            for part, state in zip(saved, states, strict=True):
                torch.testing.assert_close(part[direction, :, :, index], state)


@inners
def test_nothing_is_saved_without_gradients(inner: str) -> None:
    case = Case(inner, 9, 4, 4)
    arguments = case.arguments()
    result = case.forward(arguments, save=0)
    assert all(x.numel() == 0 for x in result.saved)
    saving = case.forward(arguments)
    assert torch.equal(result.output, saving.output)
    assert torch.equal(result.losses, saving.losses)
    assert all(map(torch.equal, result.state, saving.state))


@inners
def test_results_are_contiguous_and_share_no_memory(inner: str) -> None:
    case = Case(inner, 9, 4, 4, settings=BOTH)
    arguments = case.arguments()
    results = case.results(arguments)
    assert all(x.is_contiguous() for x in results)
    memory = {x.untyped_storage().data_ptr() for x in (*results, *arguments)}
    assert len(memory) == len(results) + len(arguments)


@inners
def test_results_do_not_depend_on_the_number_of_threads(inner: str) -> None:
    case = Case(inner, 300, 64, 16, batch=2, heads=4, settings=BOTH, dtype=torch.float32)
    arguments = case.arguments()
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(case.results(arguments))
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert (one - two).abs().max() <= 1e-5 * one.abs().max()
