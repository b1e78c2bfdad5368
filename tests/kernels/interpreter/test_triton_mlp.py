"""TTT-MLP in Triton against the reference in fp64: results and the gradient of every argument."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tttunet.kernels import reference, rotary_embedding, triton_mlp
from tttunet.kernels.contract import ForwardResult, OperatorError, Settings
from tttunet.kernels.triton_mlp import mlp_forward, plan_forward
from tttunet.kernels.triton_mlp_backward import mlp_backward, plan_backward

RESULTS = ("output", "W1", "b1", "W2", "b2", "losses")
ARGUMENTS = tuple(
    ["q", "k", "v", "lr", "coefficient", "W1", "b1", "W2", "b2", "norm_weight", "norm_bias"]
)
PLAIN = Settings()
GATED = Settings(base_lr=0.7, rope_theta=10000.0)
FULL = Settings(base_lr=0.7, rope_theta=10000.0, bidirectional=True)


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan(monkeypatch):
    """What a kernel forgets to write shows."""
    new_empty, empty = Tensor.new_empty, torch.empty

    def new_filled(self: Tensor, *shape: int, **options: torch.dtype) -> Tensor:
        return new_empty(self, *shape, **options).fill_(float("nan"))

    def filled(*shape: int, **options: torch.dtype) -> Tensor:
        return empty(*shape, **options).fill_(float("nan"))

    monkeypatch.setattr(Tensor, "new_empty", new_filled)
    monkeypatch.setattr(torch, "empty", filled)


@dataclass
class Problem:
    """Arguments of `mlp_forward` and gradients of its output and final state."""

    arguments: list[Tensor]
    cotangents: list[Tensor]
    settings: Settings

    def forward(self, save: int) -> ForwardResult:
        return mlp_forward(*self.arguments, self.settings, save)

    def fused(self, save: int) -> list[Tensor]:
        """Results, then gradients."""
        forward = self.forward(save)
        gradients = mlp_backward(
            *self.cotangents, *self.arguments, *forward.saved, self.settings, save
        )
        return [forward.output, *forward.state, forward.losses, *gradients]

    def reference(self) -> list[Tensor]:
        """The same in fp64, through autograd."""
        leaves = [x.detach().double().requires_grad_() for x in self.arguments]
        scans = [_scan(leaves, self.settings, False)]
        if self.settings.bidirectional:
            scans.append(_scan(leaves, self.settings, True))
        results = [torch.stack(x) for x in zip(*scans, strict=True)]
        cotangents = [x.double() for x in self.cotangents]
        gradients = torch.autograd.grad(results[:5], leaves, cotangents)
        return [*(x.detach() for x in results), *gradients]


def _scan(leaves: list[Tensor], settings: Settings, against: bool) -> tuple[Tensor, ...]:
    q, k, v, lr, coefficient, *state, norm_weight, norm_bias = leaves
    batch, d = q.shape[0], q.shape[-1]
    if against:
        q, k, v, lr = (x.flip(2) for x in (q, k, v, lr))
    if settings.rope_theta is not None:
        q, k = (rotary_embedding(x, len(coefficient), settings.rope_theta) for x in (q, k))
    if settings.base_lr is not None:
        lr = settings.base_lr * lr.sigmoid() / d
    parts = tuple(part.expand(batch, *part.shape[1:]) for part in state)
    result = reference.ttt_mlp(
        q, k, v, lr, coefficient, parts, norm_weight, norm_bias, settings.eps
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
    hidden: int | None = None,
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
    m = hidden or 4 * d
    shapes = [(d, m), (m,), (m, d), (d,)]
    state = [0.3 * normal(states, heads, *shape) for shape in shapes]
    norm = [1 + 0.3 * normal(heads, d), 0.3 * normal(heads, d)]
    lead = (2 if settings.bidirectional else 1, batch, heads)
    cotangents = [normal(*lead, tokens, d), *(normal(*lead, *shape) for shape in shapes)]
    return Problem([q, k, v, lr, coefficient, *state, *norm], cotangents, settings)


def assert_agree(problem: Problem, save: int, tolerance: float) -> None:
    names = (*RESULTS, *(f"gradient of {name}" for name in ARGUMENTS))
    for name, actual, expected in zip(names, problem.fused(save), problem.reference(), strict=True):
        assert actual.shape == expected.shape, name
        error = (actual.double() - expected).abs().max() / expected.abs().max()
        assert error < tolerance, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize(
    ("tokens", "mini_batch", "d", "save", "settings", "shape"),
    [
        pytest.param(19, 8, 4, 1, PLAIN, {"heads": 2}, id="tail"),
        pytest.param(33, 16, 16, 1, GATED, {}, id="one token in the tail"),
        pytest.param(25, 8, 5, 2, FULL, {"batch": 2}, id="odd d, both directions, save 2"),
        pytest.param(21, 8, 8, 2, GATED, {"batch": 2, "states": 2}, id="a state per sample"),
        pytest.param(18, 8, 8, 3, PLAIN, {"hidden": 70}, id="two blocks of hidden units"),
        pytest.param(9, 8, 20, 1, GATED, {"hidden": 40}, id="channels padded to 32"),
        pytest.param(7, 8, 8, 2, GATED, {"batch": 2}, id="less than a mini-batch"),
    ],
)
def test_results_and_gradients_agree_with_the_reference(
    tokens, mini_batch, d, save, settings, shape
) -> None:
    assert_agree(make_problem(tokens, mini_batch, d, settings, **shape), save, 2e-5)


def test_one_launch_for_many_scans(monkeypatch) -> None:
    monkeypatch.setattr(triton_mlp, "FILLING_SCANS", 2)
    problem = make_problem(29, 8, 4, FULL)
    assert len(plan_forward(*problem.arguments, problem.settings, 2)[0]) == 1
    assert_agree(problem, 2, 2e-5)


def test_half_precision_tokens() -> None:
    problem = make_problem(10, 8, 8, GATED, dtype=torch.float16)
    gradients = problem.fused(1)[6:]
    assert [x.dtype for x in gradients[:4]] == [torch.float16] * 3 + [torch.float32]
    assert_agree(problem, 1, 2e-3)


def test_programs_take_turns(monkeypatch) -> None:
    monkeypatch.setattr(triton_mlp, "MAX_PROGRAMS", 2)
    problem = make_problem(19, 8, 4, FULL)
    launches, _ = plan_forward(*problem.arguments, problem.settings, 0)
    assert [launch.grid for launch in launches] == [(2,), (2,)]
    assert_agree(problem, 1, 2e-5)


def test_save_does_not_change_results() -> None:
    problem = make_problem(21, 8, 4, GATED)
    results = [problem.forward(save) for save in (0, 1, 2)]
    assert [x.saved[0].numel() for x in results] == [0, 3 * 4 * 16, 2 * 4 * 16]
    for every, second in zip(results[1].saved, results[2].saved, strict=True):
        assert torch.equal(every[:, :, :, ::2], second)
    assert torch.equal(results[1].saved[3][:, :, :, 0], problem.arguments[8][None])
    first, second = ((x.output, *x.state, x.losses) for x in (results[0], results[2]))
    assert all(map(torch.equal, first, second))


def test_planning_needs_no_data() -> None:
    problem = make_problem(50, 16, 8, FULL, batch=2)
    arguments = [x.to("meta") for x in problem.arguments]
    launches, result = plan_forward(*arguments, problem.settings, 2)
    assert [launch.name for launch in launches] == ["ttt_mlp_scan", "ttt_mlp_read_out"]
    assert all(launch.flops > 0 and launch.bytes_moved > 0 for launch in launches)
    cotangents = [x.to("meta") for x in problem.cotangents]
    launches, gradients = plan_backward(*cotangents, *arguments, *result.saved, problem.settings, 2)
    assert len(launches) == 2
    reduced = gradients.reduce(torch.float32, 16, own_state=False)
    assert [x.shape for x in reduced] == [x.shape for x in arguments]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d": 129}, "d <= 128"),
        ({"mini_batch": 65}, "at most 64 tokens"),
        ({"dtype": torch.float64}, "float64"),
    ],
)
def test_what_the_kernels_cannot_take_is_refused(change, message) -> None:
    shape = {"tokens": 4, "mini_batch": 8, "d": 4, "hidden": 8} | change
    problem = make_problem(settings=PLAIN, **shape)
    with pytest.raises(OperatorError, match=message):
        problem.forward(0)
