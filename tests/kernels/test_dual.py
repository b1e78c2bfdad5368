from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ttt_problem import Problem, assert_all_close, make_problem
from tttunet.kernels import dual

inners = pytest.mark.parametrize("inner", ["linear", "mlp"])


@inners
@pytest.mark.parametrize("per_sample", [False, True], ids=["shared", "per_sample"])
@pytest.mark.parametrize(
    ("tokens", "mini_batch", "d"),
    [
        pytest.param(1, 4, 4, id="one_token"),
        pytest.param(5, 8, 4, id="fewer_than_a_mini_batch"),
        pytest.param(8, 8, 3, id="one_mini_batch"),
        pytest.param(12, 4, 6, id="whole_mini_batches"),
        pytest.param(19, 4, 5, id="tail"),
        pytest.param(13, 6, 7, id="tail_of_one"),
        pytest.param(7, 1, 4, id="mini_batch_of_one"),
    ],
)
def test_dual_agrees_with_the_reference(inner, per_sample, tokens, mini_batch, d):
    problem = make_problem(inner, tokens, mini_batch, d, per_sample=per_sample)
    expected = problem.run_with_gradients("reference")
    assert_all_close(problem.run_with_gradients("dual"), expected, 1e-10)


@inners
def test_fp32_dual_agrees_with_the_fp64_reference(inner):
    expected = make_problem(inner, 40, 16, 8).run("reference")
    actual = make_problem(inner, 40, 16, 8, dtype=torch.float32).run()
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-4)


@inners
def test_checkpointing_changes_nothing_but_memory(inner, monkeypatch):
    problem = make_problem(inner, 4 * 11 + 3, 4, 6)
    kept = {}
    results = {}
    for mini_batches in (64, 2):
        monkeypatch.setattr(dual, "CHECKPOINT_MINI_BATCHES", mini_batches)
        sizes: list[int] = []

        def keep(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            leaves = [leaf.detach().requires_grad_() for leaf in problem.leaves]
            Problem(inner, leaves).run()
        kept[mini_batches] = sum(sizes)
        results[mini_batches] = problem.run_with_gradients()
    assert_all_close(results[2], results[64], 1e-13)
    assert kept[2] < kept[64] / 2


def test_only_long_sequences_with_gradients_are_computed_twice(monkeypatch):
    calls = []

    def spy(function, *arguments, **options):
        calls.append(function)
        return function(*arguments)

    monkeypatch.setattr(dual, "checkpoint", spy)
    monkeypatch.setattr(dual, "CHECKPOINT_MINI_BATCHES", 2)
    make_problem("linear", 4 * 2 + 3, 4, 4).run_with_gradients()
    with torch.no_grad():
        make_problem("linear", 4 * 6, 4, 4).run()
    assert not calls
    make_problem("linear", 4 * 3, 4, 4).run_with_gradients()
    assert len(calls) == 2


@inners
@pytest.mark.parametrize("backend", ["dual", "reference"])
def test_every_sample_starts_from_the_same_state(inner, backend):
    problem = make_problem(inner, 11, 4, 4)
    together = problem.run(backend)
    for sample in range(2):
        alone = [x[sample : sample + 1] for x in problem.leaves[:4]] + problem.leaves[4:]
        torch.testing.assert_close(
            Problem(inner, alone).run(backend), together[sample : sample + 1]
        )


@inners
@pytest.mark.parametrize("backend", ["dual", "reference"])
def test_no_token_sees_the_future(inner, backend):
    problem = make_problem(inner, 11, 4, 4)
    before = problem.run(backend)
    for stream in problem.leaves[:4]:
        stream[:, :, 6] += 1
    after = problem.run(backend)
    torch.testing.assert_close(after[:, :, :6], before[:, :, :6])
    assert not torch.allclose(after[:, :, 6:], before[:, :, 6:])


@inners
@pytest.mark.parametrize("backend", ["dual", "reference"])
def test_inner_state_is_fp32_under_autocast(inner, backend):
    problem = make_problem(inner, 11, 4, 8, dtype=torch.float32)
    expected = problem.run(backend)
    with torch.autocast("cpu", torch.bfloat16):
        actual = problem.run(backend)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)


@inners
def test_half_precision_arguments_are_computed_in_fp32(inner):
    half = make_problem(inner, 11, 4, 8, dtype=torch.bfloat16)
    single = Problem(inner, [leaf.float() for leaf in half.leaves])
    assert torch.equal(half.run(), single.run())


@inners
def test_operators_run_on_the_meta_device(inner):
    problem = make_problem(inner, 11, 4, 4)
    problem.leaves = [leaf.to("meta") for leaf in problem.leaves]
    assert problem.run().shape == (2, 2, 11, 4)
