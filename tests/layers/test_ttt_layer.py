from __future__ import annotations

from pathlib import Path

import pytest
import torch

from golden import case_parameters, check_case, load_case
from tttunet.layers.config import TTTConfig
from tttunet.layers.ttt import InnerLoop, TTTLayer, head_count
from tttunet.models.released import convert_layer

VARIANTS = {
    "linear": TTTConfig(heads=3, mini_batch=4),
    "mlp": TTTConfig(heads=3, mini_batch=4, inner="mlp"),
    "share_qk": TTTConfig(heads=3, mini_batch=4, share_qk=True, conv_kernel=4),
    "gate": TTTConfig(heads=3, mini_batch=4, gate=True),
    "no_rope": TTTConfig(heads=3, mini_batch=4, rope_theta=None),
}
variants = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)


def make_layer(config: TTTConfig, width: int = 15) -> TTTLayer:
    """A layer whose inner weights are large enough to matter."""
    torch.manual_seed(0)
    layer = TTTLayer(width, config)
    with torch.no_grad():
        for parameter in layer.inner.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


@pytest.mark.parametrize("path", case_parameters("ttt_linear", "ttt_mlp"))
def test_golden_layer(path: Path):
    case = load_case(path)
    facts = case.config
    config = TTTConfig(
        inner="mlp" if facts["kind"] == "ttt_mlp" else "linear",
        heads=facts["num_heads"],
        mini_batch=facts["mini_batch_size"],
        base_lr=facts["ttt_base_lr"],
        rope_theta=facts["rope_theta"],
        share_qk=facts["share_qk"],
        gate=facts["use_gate"],
        conv_kernel=facts.get("conv_kernel", 4),
    )
    check_case(case, lambda: TTTLayer(facts["hidden_size"], config), convert_layer, 1e-5, 1e-4)


@variants
def test_every_parameter_gets_a_gradient(config: TTTConfig):
    layer = make_layer(config)
    layer(torch.randn(2, 11, 15)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@variants
def test_state_is_reset_for_every_sample(config: TTTConfig):
    layer = make_layer(config)
    x = torch.randn(2, 11, 15)
    alone = torch.cat([layer(sample) for sample in x.split(1)])
    torch.testing.assert_close(layer(x), alone)
    torch.testing.assert_close(layer(x), alone)


@variants
def test_layer_is_causal(config: TTTConfig):
    layer = make_layer(config)
    x = torch.randn(1, 11, 15)
    changed = torch.cat((x[:, :6], torch.randn(1, 5, 15)), dim=1)
    before, after = layer(x), layer(changed)
    torch.testing.assert_close(after[:, :6], before[:, :6])
    assert not torch.allclose(after[:, 6:], before[:, 6:], atol=1e-3)


@variants
@pytest.mark.parametrize("how", ["bf16_input", "bf16_module", "autocast"])
def test_half_precision_runs_and_is_close(config: TTTConfig, how: str):
    layer = make_layer(config)
    x = torch.randn(2, 11, 15).bfloat16().float()
    expected = layer(x)
    if how == "bf16_input":
        assert torch.equal(layer(x.bfloat16()), expected)
        return
    if how == "bf16_module":
        actual = layer.bfloat16()(x.bfloat16())
    else:
        with torch.autocast("cpu", torch.bfloat16):
            actual = layer(x)
    assert actual.dtype == torch.bfloat16
    assert (actual.float() - expected).norm() < 0.05 * expected.norm()


def test_autocast_keeps_the_inner_loop_in_fp32():
    layer = make_layer(VARIANTS["linear"])
    tokens = torch.randn(2, 11, 15)
    seen = []
    layer.inner.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        layer(tokens)
    assert seen == [torch.float32]


@pytest.mark.parametrize(
    ("width", "heads", "released", "paper"),
    [
        (320, 16, 16, 16),
        (64, 16, 16, 16),
        (32, 16, 16, 8),  # the authors' two channels a head are kept for their weights
        (16, 8, 8, 4),
        (25, 8, 5, 5),
        (60, 8, 6, 6),
        (13, 8, 1, 1),
        (3, 8, 1, 1),
    ],
)
def test_head_count(width: int, heads: int, released: int, paper: int):
    assert head_count(width, heads, as_released=True) == released
    assert head_count(width, heads, as_released=False) == paper
    assert InnerLoop(width, TTTConfig(heads=heads)).heads == paper


def test_learned_position_offset_never_makes_a_step_ascend():
    layer = make_layer(VARIANTS["linear"])
    x = torch.randn(1, 4, 15)
    outputs = []
    for offset in (-2.0, -3.0):
        torch.nn.init.constant_(layer.inner.position_offset, offset)
        outputs.append(layer(x))
    assert torch.equal(*outputs)
