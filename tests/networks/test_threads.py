"""What a network computes does not depend on the number of threads."""

from __future__ import annotations

import pytest
import torch

from tttunet.networks import build_network, uniform_config


@pytest.mark.parametrize("architecture", ["ttt_unet", "plain_unet"])
@pytest.mark.parametrize("size", [(256, 192), (16, 48, 64)])
def test_maps_do_not_depend_on_the_threads(architecture, size):
    dim = len(size)
    torch.manual_seed(0)
    # Wide enough for Winograd's way, and for blocks of the norm and strips on both sides of it.
    features = (32, 64, 128) if dim == 2 else (16, 32, 64)
    config = uniform_config(dim, 3, 4, features, 1, architecture=architecture)
    network = build_network(config)
    image = torch.randn(1, 3, *size)
    maps, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with torch.inference_mode():
                maps.append(network(image))
    finally:
        torch.set_num_threads(before)
    for other in maps[1:]:
        assert float((other - maps[0]).abs().max() / maps[0].abs().max()) < 1e-5
