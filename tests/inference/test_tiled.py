import numpy as np
import pytest
import torch
from torch import nn

from tttunet.errors import Cancelled, ModelError
from tttunet.inference.tiled import pad_to_multiple, predict


class Local(nn.Module):
    """A network whose output depends on a neighbourhood of 3 pixels only."""

    def __init__(self, dim: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[dim]
        self.conv = conv(1, 2, 3, padding=1, padding_mode="reflect")
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x):
        self.shapes.append(tuple(x.shape[2:]))
        return self.conv(x)


def identity(logits):
    return logits


def whole(network, image):
    return network(torch.from_numpy(image)[None])[0].detach().numpy()


@pytest.mark.parametrize(("shape", "tile"), [((40, 56), (24, 24)), ((17, 23, 30), (16, 16, 16))])
def test_tiles_agree_with_the_whole_image_away_from_tile_borders(shape, tile):
    network = Local(len(shape))
    image = np.random.default_rng(0).random((1, *shape)).astype(np.float32)
    result = predict(network, image, identity, tile=tile, stride=(4,) * len(shape), overlap=0.5)
    assert result.shape == (2, *shape)
    assert all(n <= t for seen in network.shapes for n, t in zip(seen, tile, strict=True))
    # Gaussian weights make the wrong outermost pixels of a tile count little.
    inner = (slice(None), *(slice(2, -2) for _ in shape))
    expected = whole(network, image)[inner]
    error = np.abs(result[inner] - expected) / np.abs(expected).max()
    assert error.max() < 0.1
    assert error.mean() < 0.005


def test_one_tile_is_exact():
    network = Local()
    image = np.random.default_rng(1).random((1, 32, 32)).astype(np.float32)
    result = predict(network, image, identity, tile=(64, 64), stride=(4, 4))
    np.testing.assert_allclose(result, whole(network, image), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (7, 13)])
def test_any_size_is_padded_and_cropped(shape):
    image = np.random.default_rng(2).random((1, *shape)).astype(np.float32)
    network = Local()
    result = predict(network, image, identity, tile=(32, 32), stride=(8, 8))
    assert result.shape == (2, *shape)
    assert all(n % 8 == 0 and n >= 16 for seen in network.shapes for n in seen)


def test_padding_is_a_reflection():
    image = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    padded = pad_to_multiple(image, (2, 2))
    assert padded.shape == (1, 4, 4)
    np.testing.assert_array_equal(padded[0, 0], [0, 1, 2, 2])
    np.testing.assert_array_equal(padded[0, :, 0], [0, 3, 3, 0])


def test_mirroring_averages_over_flips():
    class Ramp(nn.Module):
        def forward(self, x):
            return x * torch.arange(x.shape[-1])

    image = np.ones((1, 16, 16), np.float32)
    result = predict(Ramp(), image, identity, tile=(16, 16), stride=(1, 1), mirror_axes=(0, 1))
    np.testing.assert_allclose(result, np.full_like(image, 7.5), rtol=1e-5)


def test_progress_and_cancel():
    seen: list[tuple[int, int]] = []
    image = np.zeros((1, 64, 64), np.float32)
    options = {"tile": (32, 32), "stride": (8, 8), "overlap": 0.0}
    predict(Local(), image, identity, progress=lambda *a: seen.append(a), **options)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    network = Local()
    with pytest.raises(Cancelled):
        predict(network, image, identity, cancel=lambda: len(network.shapes) == 2, **options)
    assert len(network.shapes) == 2


def test_non_finite_output_is_an_error():
    class Broken(nn.Module):
        def forward(self, x):
            return x / 0

    with pytest.raises(ModelError, match="NaN or infinity"):
        predict(Broken(), np.zeros((1, 8, 8), np.float32), identity, tile=(8, 8), stride=(1, 1))
