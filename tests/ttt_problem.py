"""Random arguments for the TTT operators, and their results with all gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tttunet import kernels


@dataclass
class Problem:
    """Arguments of an operator; `leaves` are all of them, flat."""

    inner: str
    leaves: list[Tensor]

    @property
    def arguments(self) -> tuple[Any, ...]:
        q, k, v, lr, coefficient, gamma, beta, *state = self.leaves
        return q, k, v, lr, coefficient, tuple(state), gamma, beta

    def run(self, backend: str = "dual", **settings: Any) -> Tensor:
        operator = kernels.ttt_linear if self.inner == "linear" else kernels.ttt_mlp
        return operator(*self.arguments, backend=backend, **settings)

    def run_with_state(self, backend: str = "dual", **settings: Any) -> kernels.TTTResult:
        linear = self.inner == "linear"
        operator = kernels.ttt_linear_with_state if linear else kernels.ttt_mlp_with_state
        return operator(*self.arguments, backend=backend, **settings)

    def run_with_gradients(self, backend: str = "dual", **settings: Any) -> list[Tensor]:
        """Output, final state and losses; then the gradient of every argument."""
        leaves = [leaf.detach().clone().requires_grad_() for leaf in self.leaves]
        result = Problem(self.inner, leaves).run_with_state(backend, **settings)
        outputs = [result.output, *result.state]
        cotangents = [torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x) for x in outputs]
        gradients = torch.autograd.grad(outputs, leaves, cotangents)
        return [*(x.detach() for x in outputs), result.losses, *gradients]


def make_problem(
    inner: str,
    tokens: int,
    mini_batch: int,
    d: int,
    *,
    batch: int = 2,
    heads: int = 2,
    per_sample: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    generator = torch.Generator().manual_seed(tokens * 100 + d)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    hidden = 4 * d
    shapes = [(d, d), (d,)] if inner == "linear" else [(d, hidden), (hidden,), (hidden, d), (d,)]
    leading = (batch, heads) if per_sample else (heads,)
    state = [0.3 * normal(*leading, *shape) for shape in shapes]
    qkv = [normal(batch, heads, tokens, d) for _ in range(3)]
    lr = normal(batch, heads, tokens).sigmoid() / d
    coefficient = (1 / torch.arange(1, mini_batch + 1, dtype=dtype)) + 0.1 * normal(mini_batch)
    return Problem(inner, [*qkv, lr, coefficient, 1 + normal(heads, d), normal(heads, d), *state])


def assert_all_close(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))
