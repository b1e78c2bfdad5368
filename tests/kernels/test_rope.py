from __future__ import annotations

import pytest
import torch

from tttunet.kernels import rotary_embedding


@pytest.mark.parametrize(("tokens", "mini_batch"), [(5, 8), (19, 8)])
def test_rotation_is_a_complex_multiplication(tokens, mini_batch):
    d, theta = 6, 10000.0
    x = torch.randn(2, 3, tokens, d, dtype=torch.float64)
    position = torch.arange(tokens, dtype=torch.float64) % mini_batch
    frequency = theta ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    turn = torch.polar(
        torch.ones(tokens, d // 2, dtype=torch.float64), position[:, None] * frequency
    )
    pairs = torch.view_as_complex(x.unflatten(-1, (d // 2, 2)))
    expected = torch.view_as_real(pairs * turn).flatten(-2)
    # Angles are formed in fp32.
    torch.testing.assert_close(rotary_embedding(x, mini_batch, theta), expected, rtol=0, atol=5e-6)


def test_last_channel_of_an_odd_dimension_stays():
    x = torch.randn(1, 9, 5)
    rotated = rotary_embedding(x, 4, 10000.0)
    assert torch.equal(rotated[..., -1], x[..., -1])
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1))


def test_half_precision_is_rotated_in_fp32():
    x = torch.randn(1, 64, 8).bfloat16()
    rotated = rotary_embedding(x, 64, 10000.0)
    assert rotated.dtype == torch.float32
    assert torch.equal(rotated, rotary_embedding(x.float(), 64, 10000.0))
