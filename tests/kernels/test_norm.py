"""The fused norm against PyTorch's own operators, and its errors."""

from __future__ import annotations

import pytest
import torch

from tttunet import kernels
from tttunet.kernels import OperatorError

BAD = {
    "tokens": ({"x": torch.ones(2, 3)}, r"x is torch.float32 of the shape \[2, 3\]"),
    "empty": ({"x": torch.ones(2, 0, 4, 4)}, "not empty"),
    "integers": ({"x": torch.ones(2, 3, 4, 4).long()}, "must be floating point"),
    "one_position": ({"x": torch.ones(2, 3, 1, 1)}, "a single position"),
    "weight": ({"weight": torch.ones(4)}, r"weight has the shape \[4\]; it must be \[3\]"),
    "bias": ({"bias": torch.ones(3, 1)}, r"bias has the shape \[3, 1\]"),
    "residual": ({"residual": torch.ones(2, 3, 4, 1)}, r"residual has the shape \[2, 3, 4, 1\]"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_named(change, message):
    arguments = {"x": torch.ones(2, 3, 4, 4), "weight": torch.ones(3), "bias": torch.ones(3)}
    with pytest.raises(OperatorError, match=message):
        kernels.instance_norm(**(arguments | change))


def test_it_runs_on_the_meta_device():
    x = torch.ones(2, 3, 4, 4, device="meta")
    weight = torch.ones(3, device="meta")
    assert kernels.instance_norm(x, weight, weight, x, slope=0.01).shape == x.shape
