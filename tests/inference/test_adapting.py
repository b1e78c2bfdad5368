"""Modes of adaptation, and the map of where the TTT layers adapted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tttunet.errors import ModelError
from tttunet.imaging import Image
from tttunet.inference.segment import predict_maps, segment
from tttunet.layers.adaptation import MODES, Adaptation
from tttunet.layers.config import TTTConfig
from tttunet.layers.ttt import InnerLoop
from tttunet.models.model import load_model
from tttunet.networks import NetworkConfig, build_network, released_config


@pytest.fixture(scope="module")
def nuclei():
    return load_model("nuclei")


def an_image(size=(96, 96)) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, *size)).astype(np.float32)


def loop_and_tokens(inner: str, bidirectional: bool = False):
    torch.manual_seed(0)
    loop = InnerLoop(
        32, TTTConfig(heads=2, mini_batch=16, inner=inner), bidirectional=bidirectional
    )
    return loop, [torch.randn(2, 83, 32) for _ in range(4)]


@pytest.mark.parametrize("inner", ["linear", "mlp"])
@torch.inference_mode()
def test_off_reads_with_the_learned_state(inner):
    loop, tokens = loop_and_tokens(inner)
    with Adaptation(loop, "off"):
        still = loop(*tokens)
        # Without steps every token is read by itself.
        alone = torch.cat([loop(*(x[:, i : i + 16] for x in tokens)) for i in range(0, 83, 16)], 1)
    torch.testing.assert_close(still, alone)
    assert (loop(*tokens) - still).abs().max() > 1e-3
    loop.lr_weight.zero_()
    loop.lr_bias.fill_(-200)  # sigmoid is zero
    torch.testing.assert_close(loop(*tokens), still)


@pytest.mark.parametrize("inner", ["linear", "mlp"])
@torch.inference_mode()
def test_a_carried_state_makes_one_scan_of_two_tiles(inner):
    loop, tokens = loop_and_tokens(inner)
    first, second = ([x[:1, part] for x in tokens] for part in (slice(0, 48), slice(48, 83)))
    with Adaptation(loop, "image"):
        parts = torch.cat((loop(*first), loop(*second)), 1)
    torch.testing.assert_close(parts, loop(*(x[:1] for x in tokens)), atol=1e-5, rtol=1e-4)
    with Adaptation(loop, "image"):  # a batch is read one after the other
        both = loop(*(torch.cat((x[:1, :48], x[1:, :48])) for x in tokens))
        alone = loop(*first)
    torch.testing.assert_close(both[:1], loop(*first))
    assert (both[1:] - loop(*(x[1:, :48] for x in tokens))).abs().max() > 1e-3
    assert (alone - loop(*first)).abs().max() > 1e-3


@pytest.mark.parametrize("bidirectional", [False, True])
@torch.inference_mode()
def test_both_is_the_mean_of_the_two_orders(bidirectional):
    loop, tokens = loop_and_tokens("linear", bidirectional)
    loop.bidirectional = False
    there, back = loop(*tokens), loop(*(x.flip(1) for x in tokens)).flip(1)
    loop.bidirectional = bidirectional
    with Adaptation(loop, "both"):
        torch.testing.assert_close(loop(*tokens), (there + back) / 2, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mode", ["tile", "image"])
@torch.inference_mode()
def test_gated_mini_batches_make_no_step(mode):
    loop, tokens = loop_and_tokens("linear")
    tokens = [x[:1] for x in tokens]
    free = loop(*tokens)
    with Adaptation(loop, "off"):
        still = loop(*tokens)
    with Adaptation(loop, mode, gate=1e6):
        torch.testing.assert_close(loop(*tokens), still)
    seen = []

    class Second(Adaptation):
        def _closed(self, losses):
            seen.append(losses)
            return torch.arange(losses.shape[1])[None] == 1

    with Second(loop, mode, gate=1.0):
        gated = loop(*tokens)
    torch.testing.assert_close(gated[:, :16], free[:, :16], atol=1e-5, rtol=1e-4)
    # The third mini-batch finds the state that the first has left, as if it were the second.
    without = [torch.cat((x[:, :16], x[:, 32:]), 1) for x in tokens]
    torch.testing.assert_close(gated[:, 32:], loop(*without)[:, 16:], atol=1e-5, rtol=1e-4)
    assert (gated[:, 16:] - free[:, 16:]).abs().max() > 1e-3
    (losses,) = seen
    assert losses.shape == (1, 6)
    with Adaptation(loop, mode, keep_losses=True) as kept:
        loop(*tokens)
        before = kept._losses[loop][:, 0]
    expected = torch.stack([part.mean(1) for part in before.split(16, 1)], 1)
    torch.testing.assert_close(losses, expected)
    with Adaptation(loop, mode, gate=float(losses.min()) * 0.99):
        torch.testing.assert_close(loop(*tokens), free, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_losses_are_those_of_the_definition():
    loop, tokens = loop_and_tokens("linear")
    with Adaptation(loop, "tile", keep_losses=True) as adaptation:
        adapted = loop(*tokens)
        before, after = adaptation.loss_maps([(loop, (83,))], (83,)).unbind(1)
    torch.testing.assert_close(adapted, loop(*tokens))
    with Adaptation(loop, "off", keep_losses=True) as adaptation:
        loop(*tokens)
        unchanged = adaptation.loss_maps([(loop, (83,))], (83,))
    torch.testing.assert_close(unchanged, torch.stack((before, before), 1))
    # The first token of all is read with the learned state in either case.
    _, _, k, v = (y[:, :1] for y in tokens)
    key, value = (y.unflatten(-1, (2, -1)).transpose(1, 2) for y in (k, v))
    z = key @ loop.W1 + loop.b1[:, None]
    error = torch.nn.functional.layer_norm(z, (16,), eps=1e-6) - (value - key)
    expected = error.square().sum(-1).mean(1) / 2 / 16
    torch.testing.assert_close(before[:, :1], expected)
    assert (after - before).abs().max() > 1e-3


def test_leaving_it_restores_the_network(nuclei):
    image = an_image()
    expected = predict_maps(nuclei, image)
    for mode in MODES:
        with pytest.raises(RuntimeError), Adaptation(nuclei.network, mode):
            raise RuntimeError
        np.testing.assert_allclose(predict_maps(nuclei, image), expected, atol=1e-4)


def test_maps_cover_the_image_and_change_no_label(nuclei):
    array = np.random.default_rng(0).integers(0, 255, (2, 70, 90), np.uint8)
    image = Image.from_array(array, "TYX")
    plain = segment(image, nuclei, tile=(64, 64))
    seen = []
    mapped = segment(
        image,
        nuclei,
        tile=(64, 64),
        adaptation_map=True,
        tile_done=lambda place, maps: seen.append(maps.shape[0]),
    )
    np.testing.assert_array_equal(mapped.labels, plain.labels)
    assert plain.adaptation_map is None
    assert mapped.adaptation_map.shape == (2, 2, 70, 90)
    assert (mapped.adaptation_map > 0).all()
    assert set(seen) == {4}
    assert mapped.settings["adaptation"] == "tile"


def test_modes_differ_where_there_are_tiles(nuclei):
    image = an_image((128, 96))
    maps = {
        mode: predict_maps(nuclei, image, tile=(64, 64), adaptation=mode, mirror=mode == "both")
        for mode in MODES
    }
    for mode in ("off", "image", "both"):
        assert np.abs(maps[mode] - maps["tile"]).max() > 1e-4
        assert np.isfinite(maps[mode]).all()


def test_volumes_and_encoder_networks_have_maps():
    config = released_config(
        dim=3,
        input_channels=1,
        output_channels=2,
        features=(8, 16, 32, 32),
        kernel_sizes=((3,) * 3,) * 4,
        strides=((1,) * 3,) + ((2,) * 3,) * 3,
        placement="encoder",
        patch_size=(16, 16, 16),
    )
    network = build_network(config).eval()
    places = network.token_maps((16, 16, 16))
    assert [shape for _, shape in places] == [(8, 8, 8)], "the last stage has channel tokens"
    with Adaptation(network, keep_losses=True) as adaptation, torch.inference_mode():
        network(torch.randn(1, 1, 16, 16, 16))
        assert adaptation.loss_maps(places, (16, 16, 16)).shape == (1, 2, 16, 16, 16)


def test_wrong_use_is_told(nuclei):
    with pytest.raises(ModelError, match="no adaptation 'sometimes'"):
        predict_maps(nuclei, an_image(), adaptation="sometimes")  # type: ignore[arg-type]
    config = nuclei.config.network.model_copy(update={"ttt": None})
    nuclei_without = type(nuclei)(
        build_network(NetworkConfig(**config.model_dump())), nuclei.config
    )
    with pytest.raises(ModelError, match="no TTT layer"):
        predict_maps(nuclei_without, an_image(), losses=np.zeros((2, 96, 96), np.float32))
