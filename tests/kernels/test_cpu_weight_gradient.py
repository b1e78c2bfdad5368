from __future__ import annotations

import pytest
import torch

from convolutions import CONVOLUTION, OTHERS, SAME, make
from tttunet.kernels import cpu_weight_gradient
from tttunet.kernels.cpu_weight_gradient import weight_gradient


@pytest.mark.parametrize("rows", [1, 3, 1000])
@pytest.mark.parametrize(("shape", "outputs", "kernel", "stride", "padding"), SAME + OTHERS)
def test_is_the_gradient_in_strips_of_any_size(
    shape, outputs, kernel, stride, padding, rows, monkeypatch
):
    values = rows * 3 * shape[-1] * shape[1]
    monkeypatch.setattr(cpu_weight_gradient, "STRIP_VALUES", values)
    x, weight, _ = make(shape, outputs, kernel)
    y = CONVOLUTION[len(shape)](x, weight, None, stride, padding)
    cotangent = torch.randn_like(y)
    expected = torch.autograd.grad(y, weight, cotangent)[0]
    grad = cotangent.movedim(1, -1).contiguous().movedim(-1, 1)
    ours = weight_gradient(x.detach(), grad, kernel, stride, padding)
    torch.testing.assert_close(ours, expected)
