"""What all backends of the TTT operators share: settings, states, errors, PyTorch's machinery."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ttt_problem import assert_all_close, make_problem
from tttunet import kernels
from tttunet.kernels import OperatorError, available_backends
from tttunet.kernels.device import fused_backend
from tttunet.kernels.fused import _backward, _forward

inners = pytest.mark.parametrize("inner", ["linear", "mlp"])
backends = pytest.mark.parametrize("backend", ["cpu", "dual", "reference"])

SETTINGS = {"base_lr": 0.7, "rope_theta": 100.0, "bidirectional": True}


@inners
@pytest.mark.parametrize("backend", ["cpu", "dual"])
@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_the_reference_s(inner, backend, name):
    problem = make_problem(inner, 19, 4, 5)
    settings = {name: SETTINGS[name]}
    expected = problem.run_with_gradients("reference", **settings)
    assert_all_close(problem.run_with_gradients(backend, **settings), expected, 1e-9)
    plain = problem.run("reference")
    assert not torch.allclose(expected[0], plain, atol=1e-3)


@inners
def test_settings_are_what_they_say(inner):
    problem = make_problem(inner, 10, 4, 6)
    q, k, v, lr, coefficient, *rest = problem.leaves

    def run(*leaves):
        return type(problem)(inner, [*leaves, coefficient, *rest]).run("reference")

    rates = 0.7 * torch.sigmoid(lr) / 6
    torch.testing.assert_close(problem.run("reference", base_lr=0.7), run(q, k, v, rates))
    rotated = [kernels.rotary_embedding(x, 4, 100.0) for x in (q, k)]
    torch.testing.assert_close(problem.run("reference", rope_theta=100.0), run(*rotated, v, lr))
    against = run(*(x.flip(2) for x in (q, k, v, lr))).flip(2)
    both = (run(q, k, v, lr) + against) / 2
    torch.testing.assert_close(problem.run("reference", bidirectional=True), both)


@inners
@backends
def test_a_state_can_be_carried_on(inner, backend):
    problem = make_problem(inner, 20, 4, 5)
    whole = problem.run_with_state(backend)
    q, k, v, lr, *shared = problem.leaves
    state: tuple[torch.Tensor, ...] = tuple(shared[3:])
    outputs, losses = [], []
    for part in (slice(0, 8), slice(8, 20)):
        leaves = [x[:, :, part] for x in (q, k, v, lr)] + [*shared[:3], *state]
        result = type(problem)(inner, leaves).run_with_state(backend)
        outputs.append(result.output)
        losses.append(result.losses)
        state = result.state
    torch.testing.assert_close(torch.cat(outputs, 2), whole.output)
    torch.testing.assert_close(torch.cat(losses, 2), whole.losses)
    for actual, expected in zip(state, whole.state, strict=True):
        torch.testing.assert_close(actual, expected)


@inners
@backends
def test_both_directions_have_their_own_state_and_losses(inner, backend):
    problem = make_problem(inner, 11, 4, 4)
    both = problem.run_with_state(backend, bidirectional=True)
    streams = [x.flip(2) for x in problem.leaves[:4]]
    against = type(problem)(inner, streams + problem.leaves[4:]).run_with_state(backend)
    along = problem.run_with_state(backend)
    torch.testing.assert_close(both.losses, torch.stack((along.losses, against.losses.flip(2))))
    for actual, first, second in zip(both.state, along.state, against.state, strict=True):
        torch.testing.assert_close(actual, torch.stack((first, second)))


@inners
@backends
def test_losses_fall_where_the_tokens_repeat(inner, backend):
    problem = make_problem(inner, 8, 8, 6)
    problem.leaves[:4] = [torch.cat([x] * 8, 2) for x in problem.leaves[:4]]
    problem.leaves[3] = problem.leaves[3] / 10
    problem.leaves[4] = problem.leaves[4].abs()
    losses = problem.run_with_state(backend).losses
    assert losses[:, :, -8:].mean() < losses[:, :, :8].mean()


@inners
@backends
def test_non_contiguous_arguments_change_nothing(inner, backend):
    problem = make_problem(inner, 11, 4, 6)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in problem.leaves[:4]]
    odd = [torch.stack((x, x), -1).flatten(-2)[..., ::2] for x in problem.leaves[4:]]
    expected = problem.run_with_gradients(backend)
    assert_all_close(
        type(problem)(inner, strided + odd).run_with_gradients(backend), expected, 1e-12
    )
    last = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in problem.leaves[:3]]
    again = type(problem)(inner, last + problem.leaves[3:]).run_with_gradients(backend)
    assert_all_close(again, expected, 1e-12)


@inners
@pytest.mark.parametrize("settings", [{}, SETTINGS], ids=["plain", "all_settings"])
def test_opcheck(inner, settings):
    problem = make_problem(inner, 9, 4, 4, dtype=torch.float32)
    q, k, v, lr, coefficient, state, gamma, beta = problem.arguments
    leaves = [x.detach().requires_grad_() for x in (q, k, v, lr, coefficient)]
    parts = [part[None].detach().requires_grad_() for part in state]
    names = ("base_lr", "rope_theta")
    options = (1e-6, *(settings.get(name) for name in names), bool(settings), inner, "cpu", 1)
    arguments = (*leaves, parts, gamma.requires_grad_(), beta.requires_grad_(), *options)
    torch.library.opcheck(_forward, arguments)
    with torch.no_grad():
        output, final, _, saved = _forward(*arguments)
        gradients = (torch.ones_like(output), [torch.ones_like(part) for part in final])
        *before, _, _, _ = arguments[:8]
        backward = (*gradients, *before, parts, gamma, beta, saved, *options)
        torch.library.opcheck(_backward, backward, test_utils=("test_schema", "test_faketensor"))


@inners
def test_compiled_and_exported_it_is_one_operator(inner):
    problem = make_problem(inner, 9, 4, 4, dtype=torch.float32)

    class Operator(torch.nn.Module):
        def forward(self, *leaves):
            return type(problem)(inner, list(leaves)).run("cpu", **SETTINGS)

    expected = problem.run("cpu", **SETTINGS)
    compiled = torch.compile(Operator(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*problem.leaves), expected)
    leaves = [leaf.detach().requires_grad_() for leaf in problem.leaves]
    gradients = torch.autograd.grad(compiled(*leaves).sum(), leaves)
    eager = torch.autograd.grad(Operator()(*leaves).sum(), leaves)
    assert_all_close(list(gradients), list(eager), 1e-5)
    exported = torch.export.export(Operator(), tuple(problem.leaves))
    calls = [n for n in exported.graph.nodes if n.target is torch.ops.tttunet.ttt.default]
    assert len(calls) == 1
    torch.testing.assert_close(exported.module()(*problem.leaves), expected)


@inners
@pytest.mark.parametrize("backend", ["cpu", "dual"])
def test_autocast_leaves_the_gradients_in_fp32(inner, backend):
    problem = make_problem(inner, 11, 4, 8, dtype=torch.float32)
    problem.leaves = [leaf.requires_grad_() for leaf in problem.leaves]
    expected = problem.run(backend)
    with torch.autocast("cpu", torch.bfloat16):
        actual = problem.run(backend)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)
    # PyTorch wants backward passes outside of autocast.
    for a, b in zip(
        *(torch.autograd.grad(y.sum(), problem.leaves) for y in (actual, expected)), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_auto_takes_the_cpu_backend_on_cpus():
    assert available_backends("cpu")[0] == "cpu"
    problem = make_problem("linear", 11, 4, 8)
    assert torch.equal(problem.run("auto"), problem.run("cpu"))
    assert available_backends("meta")[0] == "dual"


def test_triton_runs_what_it_can_take_on_gpus():
    pytest.importorskip("triton", reason="pip install 'napari-tttunet[triton]'")

    def choice(d: int, mini_batch: int, dtype: torch.dtype = torch.bfloat16) -> str | None:
        # Tensors of a GPU without one: shapes, dtypes and a device, no memory.
        with FakeTensorMode():
            q = torch.empty(1, 2, 100, d, dtype=dtype, device="cuda")
            coefficient = torch.empty(mini_batch, device="cuda")
            return fused_backend(q, coefficient)

    assert choice(128, 64) == "triton"
    assert choice(129, 64) is None
    assert choice(128, 65) is None
    assert choice(64, 64, torch.float64) is None


BAD = {
    "q_of_three_axes": (0, lambda x: x[0], r"q has the shape \[2, 9, 4\]"),
    "empty": (0, lambda x: x[:, :, :0], r"q is empty"),
    "integers": (0, lambda x: x.long(), r"q is torch.int64; it must be floating"),
    "shorter_k": (1, lambda x: x[:, :, 1:], r"k has the shape \[2, 2, 8, 4\]"),
    "v_of_another_dtype": (2, lambda x: x.half(), r"v is torch.float16, but q is"),
    "v_elsewhere": (2, lambda x: x.to("meta"), r"v is on meta, but q is on cpu"),
    "lr_per_channel": (3, lambda x: x[..., None], r"lr has the shape"),
    "no_coefficient": (4, lambda x: x[:0], r"coefficient has the shape \[0\]"),
    "norm_of_another_width": (5, lambda x: x[:, 1:], r"norm_weight has the shape \[2, 3\]"),
    "state_of_another_batch": (7, lambda x: x.expand(3, *x.shape), r"state\[0\] has the shape"),
    "integer_state": (7, lambda x: x.long(), r"state\[0\] is torch.int64"),
    "nan_in_v": (2, lambda x: x.index_fill(2, torch.tensor(3), torch.nan), r"^v contain"),
    "infinite_state": (7, lambda x: x + torch.inf, r"^state\[0\] contain"),
}


@inners
@backends
@pytest.mark.parametrize(("index", "change", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_named(inner, backend, index, change, message):
    problem = make_problem(inner, 9, 4, 4)
    problem.leaves[index] = change(problem.leaves[index])
    with pytest.raises(OperatorError, match=message):
        problem.run(backend)


def test_divergence_is_told_apart_from_bad_arguments():
    problem = make_problem("linear", 400, 4, 4, dtype=torch.float32)
    problem.leaves[3] = problem.leaves[3] * 1e38
    with pytest.raises(OperatorError, match="diverged"):
        problem.run("auto")


@pytest.mark.parametrize("name", ["eps", "rope_theta"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_bad_settings_are_named(name, value):
    with pytest.raises(OperatorError, match=name):
        make_problem("linear", 9, 4, 4).run("dual", **{name: value})


def test_backends_that_cannot_run_are_named():
    problem = make_problem("linear", 9, 4, 4)
    with pytest.raises(
        OperatorError, match=r"'triton' cannot run on cpu here\. Choose one of: cpu"
    ):
        problem.run("triton")
    with pytest.raises(OperatorError, match="no backend 'cuda'"):
        problem.run("cuda")
    problem.leaves = problem.leaves[:-1]
    with pytest.raises(OperatorError, match="state has 1 parts"):
        problem.run("dual")
