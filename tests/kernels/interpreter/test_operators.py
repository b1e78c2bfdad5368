"""The public operators on the Triton backend, through PyTorch's dispatch and autograd."""

from __future__ import annotations

import pytest
import torch

from ttt_problem import assert_all_close, make_problem
from tttunet import kernels
from tttunet.kernels import norm
from tttunet.kernels.fused import _forward

SETTINGS = {"base_lr": 0.7, "rope_theta": 100.0, "bidirectional": True}


@pytest.mark.parametrize("inner", ["linear", "mlp"])
@pytest.mark.parametrize("settings", [{}, SETTINGS], ids=["plain", "all_settings"])
def test_the_operator_is_the_reference_s(inner, settings):
    problem = make_problem(inner, 7, 4, 4, dtype=torch.float32)
    expected = problem.run_with_gradients("reference", **settings)
    assert_all_close(problem.run_with_gradients("triton", **settings), expected, 1e-4)


def test_opcheck():
    problem = make_problem("linear", 6, 4, 4, heads=1, dtype=torch.float32)
    q, k, v, lr, coefficient, state, gamma, beta = problem.arguments
    leaves = [x.detach().requires_grad_() for x in (q, k, v, lr, coefficient)]
    parts = [part[None].detach().requires_grad_() for part in state]
    options = (1e-6, None, 100.0, True, "linear", "triton", 2)
    torch.library.opcheck(_forward, (*leaves, parts, gamma, beta, *options))


@pytest.mark.parametrize("spatial", [(5, 7), (3, 2, 5)], ids=["2D", "3D"])
@pytest.mark.parametrize("with_residual", [False, True])
def test_instance_norm_is_pytorch_s(spatial, with_residual):
    torch.manual_seed(0)
    shape, format_ = (2, 6, *spatial), (torch.channels_last, torch.channels_last_3d)
    x, residual, cotangent = (
        torch.randn(shape).to(memory_format=format_[len(spatial) - 2]) for _ in range(3)
    )
    leaves = [x, torch.randn(6), torch.randn(6), residual]
    results = []
    for backend in ("triton", "torch"):
        mine = [leaf.clone().requires_grad_() for leaf in leaves[: 4 if with_residual else 3]]
        y = kernels.instance_norm(*mine, slope=0.01, backend=backend)
        assert y.stride() == x.stride() or backend == "torch"
        results.append([y.detach(), *torch.autograd.grad(y, mine, cotangent)])
    assert_all_close(*results, 1e-4)


def test_instance_norm_opcheck():
    rows = torch.randn(2, 9, 5, requires_grad=True)
    weight, bias = torch.randn(2, 5, requires_grad=True)
    torch.library.opcheck(norm._forward, (rows, weight.detach(), bias.detach(), None, 1e-5, 0.01))
    residual = torch.randn(2, 9, 5, requires_grad=True)
    arguments = (rows, weight.detach(), bias.detach(), residual, 1e-5, 0.01)
    torch.library.opcheck(norm._forward, arguments)
