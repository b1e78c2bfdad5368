from __future__ import annotations

import pytest
import torch

from tttunet.errors import ModelError
from tttunet.networks import build_network, count_cost, paper_cost_table, uniform_config

#: Network, input: parameters in millions, convolution MACs and fvcore's total in 1e9.
COUNTED_FROM_THE_AUTHORS_CODE = {
    ("TTT-UNet_Bot", (1, 320, 320)): (8.011, 33.202, 33.688),
    ("TTT-UNet_Bot", (3, 384, 640)): (8.008, 79.795, 80.964),
    ("TTT-UNet_Bot", (3, 512, 512)): (8.006, 85.073, 86.320),
    ("TTT-UNet_Bot", (1, 64, 224, 192)): (22.325, 1340.02, 1345.90),
    ("TTT-UNet_Bot", (1, 64, 160, 224)): (22.325, 1116.68, 1121.58),
    ("nnU-Net", (1, 320, 320)): (5.694, 18.014, 18.138),
    ("nnU-Net", (3, 384, 640)): (5.692, 43.328, 43.626),
    ("nnU-Net", (3, 512, 512)): (5.690, 46.175, 46.493),
    ("nnU-Net", (1, 64, 224, 192)): (16.553, 621.32, 623.66),
    ("nnU-Net", (1, 64, 160, 224)): (16.553, 517.76, 519.72),
}


def test_paper_tables_are_reproduced():
    rows = {(row.network, row.input_shape): row for row in paper_cost_table()}
    assert rows.keys() == COUNTED_FROM_THE_AUTHORS_CODE.keys()
    for key, (parameters, conv_macs, total) in COUNTED_FROM_THE_AUTHORS_CODE.items():
        row, cost = rows[key], rows[key].cost
        assert round(cost.parameters / 1e6, 3) == parameters, key
        assert cost.conv_macs / 1e9 == pytest.approx(conv_macs, rel=1e-4), key
        assert cost.fvcore_total / 1e9 == pytest.approx(total, rel=1e-3), key
        assert cost.fvcore_total / 1e9 == pytest.approx(row.paper_flops, rel=1e-3), key
        # The paper cuts 22.325 to 22.32.
        assert cost.parameters / 1e6 == pytest.approx(row.paper_parameters, abs=0.0051), key


@pytest.mark.parametrize("architecture", ["ttt_unet", "plain_unet"])
def test_convolutions_are_counted_by_hand(architecture):
    config = uniform_config(2, 1, 3, (2, 8), 1, architecture=architecture, ttt=None)
    cost = count_cost(config, (8, 8))
    network = build_network(config)
    macs = 0

    def count(module, inputs, output):
        nonlocal macs
        transposed = isinstance(module, torch.nn.ConvTranspose2d)
        positions = (inputs[0] if transposed else output)[0, 0].numel()
        macs += positions * module.weight.numel()

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            module.register_forward_hook(count)
    # Where gradients are wanted, blocks compute shortcut and convolution in one, past the hooks.
    with torch.no_grad():
        network(torch.randn(1, 1, 8, 8))
    assert cost.conv_macs == cost.macs == macs
    assert cost.parameters == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("inner", ["linear", "mlp"])
@pytest.mark.parametrize("placement", ["bottleneck", "encoder"])
def test_ttt_layers_are_counted(inner, placement):
    options = {"placement": placement, "ttt": {"inner": inner, "heads": 2}}
    with_ttt = count_cost(uniform_config(2, 1, 2, (8, 16, 16), **options), (32, 32))
    without = count_cost(uniform_config(2, 1, 2, (8, 16, 16), ttt=None), (32, 32))
    assert with_ttt.macs > without.macs
    assert with_ttt.parameters > without.parameters


def test_size_that_does_not_fit_is_refused():
    with pytest.raises(ModelError, match="multiples of"):
        count_cost(uniform_config(2, 1, 2, (4, 8)), (9, 8))
