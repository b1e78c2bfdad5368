from __future__ import annotations

import gc
import logging
import signal
import threading

import pytest
import torch

pytest.importorskip("openvino", reason="needs pip install 'napari-tttunet[openvino]'")

from tttunet.inference import accelerate, openvino_graph
from tttunet.inference.accelerate import SETTLED, SHAPES, Accelerated, accelerated
from tttunet.networks import (
    NetworkConfig,
    TTTConfig,
    build_network,
    released_config,
    uniform_config,
)

TTT = TTTConfig(heads=2, mini_batch=16)
SPATIAL = {2: (32, 64), 3: (8, 16, 32)}


def released(dim: int, placement: str, **options) -> NetworkConfig:
    return released_config(
        dim=dim,
        input_channels=2,
        output_channels=3,
        features=(8, 16, 24),
        kernel_sizes=((3,) * dim,) * 3,
        strides=((1,) * dim, *options.pop("strides", ((2,) * dim,) * 2)),
        placement=placement,
        patch_size=SPATIAL[dim],
        deep_supervision=False,
    )


def paper(dim: int, placement: str, **options) -> NetworkConfig:
    given = {"ttt": TTT, "placement": placement, **options}
    return uniform_config(dim, 2, 3, (8, 16, 24), blocks=1, **given)


CONFIGS = {
    "bot2d": released(2, "bottleneck"),
    "bot3d": released(3, "bottleneck"),
    "anisotropic": released(3, "bottleneck", strides=((1, 2, 2), (2, 2, 2))),
    "enc2d": released(2, "encoder"),
    "paper2d": paper(2, "bottleneck", deep_supervision=True),
    "paper3d": paper(3, "encoder"),
    "without_ttt": paper(2, "bottleneck", ttt=None),
}


@torch.inference_mode(False)
def make(config: NetworkConfig, batch: int = 1) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    network = build_network(config).eval()
    # Norms and biases off their initial values, which would hide a missing one.
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return network, torch.randn(batch, 2, *SPATIAL[config.dim])


@pytest.mark.parametrize("deep", [1, 24, 1000], ids=["all_but_one", "last_level", "no_level"])
@pytest.mark.parametrize("case", CONFIGS)
@torch.inference_mode()
def test_graph_is_the_network(case, deep, monkeypatch):
    """However many of its levels PyTorch computes."""
    monkeypatch.setattr(openvino_graph, "DEEP_CHANNELS", {2: deep, 3: deep})
    network, x = make(CONFIGS[case], batch=2 if case == "paper2d" else 1)
    model = openvino_graph.build(network, x.shape)
    core = accelerate.openvino_core()
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    y = torch.from_numpy(compiled(x.numpy())[0])
    expected = network(x)
    assert y.shape == expected.shape
    torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))


@torch.inference_mode()
def test_one_is_chosen_and_every_result_is_right():
    network, x = make(CONFIGS["bot2d"])
    forward, expected = accelerated(network), network(x)
    assert accelerated(network) is forward
    scale = float(expected.max() - expected.min())
    for _ in range(SETTLED + 2):
        assert float((forward(x) - expected).abs().max()) <= 1e-3 * scale
    assert forward.chosen(*x.shape) in ("torch", "openvino")
    other = torch.randn(1, 2, 64, 64)
    assert torch.equal(forward(other), network(other))
    assert forward.chosen(*other.shape) is None


@torch.inference_mode()
def test_a_trained_on_network_is_compiled_again():
    network, x = make(CONFIGS["paper2d"])
    forward = accelerated(network)
    while forward.chosen(*x.shape) is None:
        before = forward(x)
    with torch.inference_mode(False), torch.no_grad():
        network.decoder.heads[-1].bias.add_(5.0)
    for _ in range(SETTLED):
        after = forward(x)
        assert float((after - before - 5).abs().max()) < 1e-2


@torch.inference_mode()
def test_only_some_shapes_are_kept():
    network, _ = make(CONFIGS["paper2d"])
    forward = Accelerated(network)
    shapes = [(1, 2, 16, 16 * n) for n in range(1, SHAPES + 3)]
    for shape in shapes:
        for _ in range(2):
            forward(torch.randn(shape))
    assert len(forward._choices) == SHAPES


@torch.inference_mode()
def test_a_wrong_result_is_never_used(caplog, monkeypatch):
    network, x = make(CONFIGS["paper2d"])
    expected = network(x)
    other, _ = make(CONFIGS["paper2d"])
    with torch.inference_mode(False), torch.no_grad():
        other.decoder.heads[-1].weight.mul_(1.1)
    compile_right = accelerate._compiled
    monkeypatch.setattr(accelerate, "_compiled", lambda _, shape: compile_right(other, shape))
    forward = Accelerated(network)
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            assert torch.equal(forward(x), expected)
    assert "OpenVINO's result differs by" in caplog.text
    assert forward.chosen(*x.shape) == "torch"


@torch.inference_mode()
def test_a_failure_leaves_pytorch(caplog, monkeypatch):
    def fail(*_):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(accelerate, "_compiled", fail)
    network, x = make(CONFIGS["paper2d"])
    forward = Accelerated(network)
    with caplog.at_level(logging.DEBUG):
        for _ in range(4):
            assert torch.equal(forward(x), network(x))
    assert "OpenVINO failed: no such instruction" in caplog.text
    (told,) = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert told == "The network is computed by torch; OpenVINO could not compile it."


def test_other_networks_are_left_alone():
    network, _ = make(CONFIGS["paper2d"])
    assert accelerated(network.double()) is network
    plain = build_network(
        uniform_config(2, 2, 3, (8, 16), architecture="plain_unet", deep_supervision=False)
    )
    assert accelerated(plain) is plain


def test_it_can_be_switched_off(monkeypatch):
    network, _ = make(CONFIGS["paper2d"])
    monkeypatch.setenv("TTTUNET_OPENVINO", "0")
    accelerate.available.cache_clear()
    try:
        assert accelerated(network) is network
    finally:
        accelerate.available.cache_clear()


def test_networks_are_not_kept_alive():
    network, x = make(CONFIGS["paper2d"])
    forward = accelerated(network)
    with torch.inference_mode():
        for _ in range(SETTLED):
            forward(x)
    assert network in accelerate._networks
    count = len(accelerate._networks)
    del network, forward
    gc.collect()
    assert len(accelerate._networks) == count - 1


def test_signals_arrive_after_the_models_are_gone():
    """With the pytest plugin faulthandler a signal uses the thread's signal stack."""
    network, x = make(CONFIGS["paper2d"])
    heard = []

    def compile_and_forget() -> None:
        forward = Accelerated(network)
        with torch.inference_mode():
            for _ in range(SETTLED):
                forward(x)

    compile_and_forget()
    thread = threading.Thread(target=gc.collect)
    thread.start()
    thread.join()
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(True))
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard
