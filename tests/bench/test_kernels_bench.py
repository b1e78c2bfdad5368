from __future__ import annotations

import pytest
import torch

from tttunet import kernels as operators
from tttunet.bench import kernels
from tttunet.bench.kernels import Case, check_backends, choose_backends, make_problem
from tttunet.bench.paired import GateFailed
from tttunet.errors import TTTUNetError


@pytest.fixture
def small_cases(monkeypatch):
    cases = {"a": Case("here", 66, 16, 4), "b": Case("there", 8, 8, 1)}
    monkeypatch.setattr(kernels, "CASES", cases)
    monkeypatch.setattr(kernels, "GATE_TOKENS", 20)


@pytest.mark.parametrize("inner", ["linear", "mlp"])
def test_every_case_pass_and_backend_has_a_row(small_cases, inner):
    seen = []
    report = kernels.measure_kernels(
        ("a", "b"),
        ("dual", "reference"),
        inner=inner,
        rounds=2,
        threads=1,
        progress=lambda *a: seen.append(a),
    )
    keys = {(row["case"], row["pass"], row["backend"]) for row in report.rows}
    assert len(keys) == len(report.rows) == 2 * 2 * 2
    assert seen[-1] == (24, 24)
    assert [done for done, _ in seen] == list(range(1, 25))
    for row in report.rows:
        assert row["seconds"].rounds == 2
        if row["backend"] == "reference":
            assert row["times_faster"].median == 1
    assert report.machine["torch_threads"] == 1
    assert set(report.gate["largest_error"]) == {"4 heads of 4", "1 heads of 8"}


def test_wrong_backend_is_not_timed(small_cases, monkeypatch):
    right = operators.ttt_linear

    def wrong(*arguments, backend, **options):
        return right(*arguments, backend=backend, **options) * (1.01 if backend == "dual" else 1)

    monkeypatch.setattr(operators, "ttt_linear", wrong)
    timed = []
    monkeypatch.setattr(kernels, "run_paired", lambda *a, **k: timed.append(1))
    with pytest.raises(GateFailed, match="output of backend 'dual'"):
        kernels.measure_kernels(("a",), ("dual",))
    assert timed == []


def test_wrong_gradient_is_noticed(monkeypatch):
    right = operators.ttt_linear

    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return x.clone()

        @staticmethod
        def backward(context, gradient):
            return 1.01 * gradient

    def wrong(q, *arguments, backend, **options):
        q = Scaled.apply(q) if backend == "dual" else q
        return right(q, *arguments, backend=backend, **options)

    monkeypatch.setattr(operators, "ttt_linear", wrong)
    monkeypatch.setattr(kernels, "GATE_TOKENS", 20)
    with pytest.raises(GateFailed, match="gradient 0 of backend 'dual'"):
        check_backends(("dual",), "linear", 2, 8, "cpu")


def test_backends_are_chosen():
    available = operators.available_backends("cpu")
    assert "reference" not in choose_backends((), "cpu")
    assert choose_backends(("reference", "dual", "dual"), "cpu") == ("reference", "dual")
    with pytest.raises(TTTUNetError, match=f"There is: {', '.join(available)}"):
        choose_backends(("turbo",), "cpu")
    with pytest.raises(TTTUNetError, match="no case 'c'"):
        kernels.measure_kernels(("c",))


def test_problems_are_as_the_layer_makes_them():
    problem = make_problem(70, 3, 5, "mlp")
    q, _, _, lr, coefficient, *state, weight, _ = problem.arguments
    assert q.shape == (1, 3, 70, 5)
    assert q.transpose(1, 2).is_contiguous()
    assert lr.shape == (1, 3, 70)
    assert coefficient[-1] == 1 / 64
    assert [tuple(x.shape) for x in state] == [(3, 5, 20), (3, 20), (3, 20, 5), (3, 5)]
    assert weight.shape == (3, 5)
    again = make_problem(70, 3, 5, "mlp")
    assert all(map(torch.equal, problem.arguments, again.arguments))
    assert problem.run("dual").shape == (1, 3, 70, 5)
