"""The contract against its definition: autograd gives the inner gradients here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tttunet.kernels import reference, ttt_linear, ttt_mlp


def inner_model(x: Tensor, state: tuple[Tensor, ...]) -> Tensor:
    if len(state) == 2:
        return x @ state[0] + state[1]
    W1, b1, W2, b2 = state
    return F.gelu(x @ W1 + b1, approximate="tanh") @ W2 + b2


def descend(q, k, v, lr, coefficient, state, gamma, beta) -> Tensor:
    """One sample and one head, [tokens, d], by gradient descent as the equations read."""
    norm = {"normalized_shape": gamma.shape, "weight": gamma, "bias": beta, "eps": 1e-6}
    size, outputs = len(coefficient), []
    for start in range(0, len(q), size):
        leaves = tuple(part.detach().requires_grad_() for part in state)
        total = [torch.zeros_like(part) for part in state]
        for i, t in enumerate(range(start, min(start + size, len(q)))):
            error = F.layer_norm(inner_model(k[t], leaves), **norm) - (v[t] - k[t])
            gradients = torch.autograd.grad(0.5 * error.square().sum(), leaves)
            total = [s + lr[t] * g for s, g in zip(total, gradients, strict=True)]
            now = tuple(p - coefficient[i] * s for p, s in zip(leaves, total, strict=True))
            outputs.append(q[t] + F.layer_norm(inner_model(q[t], now), **norm))
        state = now
    return torch.stack(outputs).detach()


@pytest.mark.parametrize("inner", ["linear", "mlp"])
def test_reference_descends_the_inner_loss(inner: str):
    torch.manual_seed(0)
    tokens, d, hidden, heads = 11, 4, 6, 2
    q, k, v = torch.randn(3, 1, heads, tokens, d, dtype=torch.float64)
    lr = torch.rand(1, heads, tokens, dtype=torch.float64)
    coefficient = torch.rand(4, dtype=torch.float64)
    gamma, beta = torch.randn(2, heads, d, dtype=torch.float64)
    shapes = [(d, d), (d,)] if inner == "linear" else [(d, hidden), (hidden,), (hidden, d), (d,)]
    state = tuple(torch.randn(heads, *shape, dtype=torch.float64) for shape in shapes)
    operator = ttt_linear if inner == "linear" else ttt_mlp
    actual = operator(q, k, v, lr, coefficient, state, gamma, beta, backend="reference")
    for h in range(heads):
        own = tuple(part[h] for part in state)
        streams = (x[0, h] for x in (q, k, v, lr))
        expected = descend(*streams, coefficient, own, gamma[h], beta[h])
        torch.testing.assert_close(actual[0, h], expected, rtol=1e-9, atol=1e-9)


def test_gelu_derivative_is_that_of_gelu():
    x = torch.linspace(-6, 6, 101, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(reference.gelu(x).sum(), x)
    # The derivative's constants carry the 16 digits of a double.
    torch.testing.assert_close(reference.gelu_derivative(x.detach()), expected)
