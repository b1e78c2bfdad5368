from __future__ import annotations

import itertools
import math
import threading
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from tttunet.errors import Cancelled, ModelError
from tttunet.imaging.tiles import gaussian_weight, tile_grid
from tttunet.inference import tiled
from tttunet.inference.tiled import (
    DeviceCanvas,
    HostCanvas,
    instance_activation,
    padded_shape,
    predict,
    region_activation,
    semantic_activation,
)


class Local(nn.Module):
    """A network whose output depends on a neighbourhood of 3 pixels only."""

    def __init__(self, dim: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[dim]
        self.conv = conv(1, 2, 3, padding=1, padding_mode="reflect")
        self.shapes: list[tuple[int, ...]] = []
        self.batches: list[int] = []

    def forward(self, x):
        self.shapes.append(tuple(x.shape[2:]))
        self.batches.append(len(x))
        return self.conv(x)


class PerTile(nn.Module):
    """A network whose output at a pixel depends on the whole tile, as InstanceNorm makes it."""

    def forward(self, x):
        mean = x.mean(tuple(range(2, x.ndim)), keepdim=True)
        return torch.cat((x - mean, x * mean, mean.expand_as(x)), dim=1)


def identity(logits):
    return logits


def whole(network, image):
    return network(torch.from_numpy(image)[None])[0].detach().numpy()


def plainly(network, image, activation, tile, stride, overlap, mirror_axes=()):
    """The definition: one tile after the other, everything in fp64."""
    padded = padded_shape(image.shape[1:], stride)
    padding = [(0, 0), *((0, p - n) for p, n in zip(padded, image.shape[1:], strict=True))]
    source = np.pad(image, padding, mode="symmetric")
    size = [min(-(-t // s) * s, n) for t, s, n in zip(tile, stride, padded, strict=True)]
    total: float | np.ndarray = 0.0
    norm = np.zeros(padded)
    axes = [axis + 2 for axis in mirror_axes]
    flips = [c for n in range(len(axes) + 1) for c in itertools.combinations(axes, n)]
    for place in tile_grid(padded, size, overlap):
        x = torch.from_numpy(source[(slice(None), *place)])[None]
        with torch.no_grad():
            maps = [activation(network(x.flip(f))).flip(f)[0].double().numpy() for f in flips]
        added = np.zeros((len(maps[0]), *padded))
        added[(slice(None), *place)] = np.mean(maps, axis=0) * gaussian_weight(size)
        total = total + added
        norm[place] += gaussian_weight(size)
    return (total / norm)[(slice(None), *map(slice, image.shape[1:]))]


@pytest.mark.parametrize(
    ("shape", "tile", "stride", "overlap"),
    [
        ((40, 56), (24, 24), (4, 4), 0.25),
        ((41, 57), (24, 16), (8, 4), 0.5),  # the last tiles reach beyond the image
        ((9, 100), (32, 32), (16, 16), 0.25),
        ((3, 3), (4, 4), (8, 8), 0.25),  # tiles wholly beyond the image
        ((500, 300), (256, 272), (16, 16), 0.25),  # too large for a batch
        ((17, 23, 30), (16, 16, 16), (4, 4, 4), 0.75),
        ((5, 70, 33), (8, 32, 32), (1, 8, 8), 0.25),
    ],
)
@pytest.mark.parametrize("activation", [semantic_activation, instance_activation])
def test_result_is_the_weighted_mean_of_the_tiles(shape, tile, stride, overlap, activation):
    image = np.random.default_rng(0).normal(1, 1, (1, *shape)).astype(np.float32)
    result = predict(PerTile(), image, activation, tile=tile, stride=stride, overlap=overlap)
    expected = plainly(PerTile(), image, activation, tile, stride, overlap)
    assert (result.dtype, result.shape) == (np.float32, (3, *shape))
    np.testing.assert_allclose(result, expected, atol=2e-6)


def test_mirrored_tiles_are_the_mean_of_all_flips():
    image = np.random.default_rng(0).normal(1, 1, (1, 50, 40)).astype(np.float32)
    options = {"tile": (24, 24), "stride": (4, 4), "overlap": 0.25, "mirror_axes": (0, 1)}
    network = Local()
    result = predict(network, image, semantic_activation, **options)
    expected = plainly(network, image, semantic_activation, **options)
    np.testing.assert_allclose(result, expected, atol=2e-6)


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
    np.testing.assert_array_equal(result, whole(network, image))


def test_result_never_shares_memory_with_the_image():
    image = np.ones((1, 16, 16), np.float32)
    for tile in (16, 32):
        result = predict(nn.Identity(), image, identity, tile=(tile,) * 2, stride=(1, 1))
        assert result.flags.owndata or result.base is not image
        result[:] = 5
        assert image.max() == 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (7, 13)])
def test_any_size_is_padded_and_cropped(shape):
    image = np.random.default_rng(2).random((1, *shape)).astype(np.float32)
    network = Local()
    result = predict(network, image, identity, tile=(32, 32), stride=(8, 8))
    assert (result.shape, result.flags.c_contiguous) == ((2, *shape), True)
    assert all(n % 8 == 0 and n >= 16 for seen in network.shapes for n in seen)


def test_mirroring_averages_over_flips():
    class Ramp(nn.Module):
        def forward(self, x):
            return x * torch.arange(x.shape[-1])

    image = np.ones((1, 16, 16), np.float32)
    result = predict(Ramp(), image, identity, tile=(16, 16), stride=(1, 1), mirror_axes=(0, 1))
    np.testing.assert_allclose(result, np.full_like(image, 7.5), rtol=1e-5)


def test_an_image_on_disk_is_read_tile_by_tile(tmp_path):
    image = np.random.default_rng(3).random((1, 60, 70)).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    mapped = np.load(tmp_path / "image.npy", mmap_mode="r")
    options = {"tile": (32, 32), "stride": (8, 8)}
    result = predict(Local(), mapped, identity, **options)
    np.testing.assert_array_equal(result, predict(Local(), image, identity, **options))


def test_channels_last_outputs_are_understood():
    class ChannelsLast(Local):
        def forward(self, x):
            return super().forward(x).contiguous(memory_format=torch.channels_last)

    image = np.random.default_rng(3).random((1, 60, 70)).astype(np.float32)
    for tile in (32, 128):
        options = {"tile": (tile, tile), "stride": (4, 4)}
        result = predict(ChannelsLast(), image, identity, **options)
        assert result.flags.c_contiguous
        np.testing.assert_allclose(result, predict(Local(), image, identity, **options), atol=1e-6)


def test_small_tiles_go_through_the_network_together():
    network = Local()
    image = np.zeros((1, 192, 64), np.float32)
    predict(network, image, identity, tile=(16, 16), stride=(8, 8), overlap=0.0)
    assert network.batches == [8] * 6
    network = Local()
    predict(network, image, identity, tile=(128, 64), stride=(8, 8), overlap=0.0)
    assert network.batches == [2]
    network = Local()
    image = np.zeros((1, 528, 264), np.float32)
    predict(network, image, identity, tile=(264, 264), stride=(8, 8), overlap=0.0)
    assert network.batches == [1] * 2


@pytest.mark.parametrize(("shape", "tile"), [((50, 43), 16), ((50, 43), 64), ((300, 520), 264)])
def test_tile_done_receives_every_tile(shape, tile):
    image = np.random.default_rng(3).random((1, *shape)).astype(np.float32)
    network, last = Local(), np.zeros((2, *shape), np.float32)
    threads = set()

    def tile_done(place, maps):
        assert maps.shape == (2, *(along.stop - along.start for along in place))
        assert all(
            0 <= along.start < along.stop <= n for along, n in zip(place, shape, strict=True)
        )
        last[(slice(None), *place)] = maps
        threads.add(threading.get_ident())

    options = {"tile": (tile, tile), "stride": (8, 8), "overlap": 0.0}
    result = predict(network, image, identity, tile_done=tile_done, **options)
    assert threads == {threading.get_ident()}
    inner = (slice(None), slice(0, 8), slice(0, 8))  # in one tile only
    np.testing.assert_allclose(last[inner], result[inner], rtol=1e-6)
    np.testing.assert_allclose(last, result, atol=0.5)
    assert last.all()


def test_stitching_on_the_cpu_is_a_wish_that_changes_nothing_there():
    image = np.random.default_rng(3).random((1, 50, 60)).astype(np.float32)
    options = {"tile": (32, 32), "stride": (8, 8)}
    result = predict(Local(), image, identity, stitch_on_cpu=True, **options)
    np.testing.assert_array_equal(result, predict(Local(), image, identity, **options))


def test_progress_after_every_tile_and_cancel_before_it():
    seen: list[tuple[int, int]] = []
    image = np.zeros((1, 64, 64), np.float32)
    options = {"tile": (32, 32), "stride": (8, 8), "overlap": 0.0}
    predict(Local(), image, identity, progress=lambda *a: seen.append(a), **options)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    asked: list[int] = []
    predict(Local(), image, identity, cancel=lambda: bool(asked.append(1)), **options)
    assert len(asked) == 4


@pytest.mark.parametrize(("shape", "computed"), [((1, 256, 256), 0), ((1, 900, 300), 2)])
def test_cancel_takes_effect_before_the_next_tile(shape, computed):
    network = Local()
    with pytest.raises(Cancelled):
        predict(
            network,
            np.zeros(shape, np.float32),
            identity,
            tile=(304, 304),
            stride=(8, 8),
            overlap=0.0,
            cancel=lambda: len(network.shapes) == computed,
        )
    assert len(network.shapes) == computed


def test_callbacks_run_in_the_callers_thread_and_may_fail():
    image = np.zeros((1, 64, 64), np.float32)
    options = {"tile": (32, 32), "stride": (8, 8)}
    threads = set()
    predict(
        Local(), image, identity, progress=lambda *_: threads.add(threading.get_ident()), **options
    )
    assert threads == {threading.get_ident()}

    def fail(*_):
        raise RuntimeError("the viewer is gone")

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="the viewer is gone"):
        predict(Local(), image, identity, progress=fail, **options)
    assert threading.active_count() == before


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 64, 64)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_output_is_an_error(shape, value):
    class Broken(nn.Module):
        def forward(self, x):
            y = torch.zeros_like(x)
            y[..., 0, 3] = value
            y[..., 3, 0] = -value
            return y

    with pytest.raises(ModelError, match="NaN or infinity"):
        predict(Broken(), np.zeros(shape, np.float32), identity, tile=(32, 32), stride=(8, 8))


def test_large_finite_values_are_no_error():
    image = np.full((1, 64, 64), 3e38, np.float32)
    for tile in (64, 32):
        options = {"tile": (tile, tile), "stride": (8, 8), "overlap": 0.0}
        np.testing.assert_allclose(predict(nn.Identity(), image, identity, **options), image)


class Channels(nn.Module):
    """Copies its input to so many channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x):
        return x.expand(-1, self.channels, *x.shape[2:]).contiguous()


@pytest.mark.parametrize(
    ("shape", "tile"), [((1000, 1200), (256, 256)), ((64, 120, 120), (64,) * 3)]
)
def test_peak_memory_is_as_the_docstring_says(shape, tile):
    channels, pixels, tile_pixels = 6, math.prod(shape), math.prod(tile)
    image = np.zeros((1, *shape), np.float32)
    options = {"tile": tile, "stride": (8,) * len(tile)}
    gaussian_weight(tile)
    tracemalloc.start()
    try:
        result = predict(Channels(channels), image, identity, **options)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.shape == (channels, *shape)
    # tracemalloc sees NumPy's memory; the tiles are PyTorch's.
    assert peak <= 4 * ((channels + 1) * pixels + tile_pixels) + 2**18


def test_one_tile_needs_no_second_result():
    image = np.zeros((1, 1024, 1024), np.float32)
    tracemalloc.start()
    try:
        predict(Channels(4), image, identity, tile=(1024, 1024), stride=(8, 8))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**18


def test_no_more_than_two_outputs_are_kept():
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0

    class Counted(nn.Module):
        def forward(self, x):
            nonlocal most
            y = x.clone()
            alive.add(y)
            most = max(most, len(alive))
            return y

    image = np.zeros((1, 900, 900), np.float32)
    predict(Counted(), image, identity, tile=(256, 256), stride=(8, 8))
    assert most == 2
    assert not alive


def test_both_canvases_compute_the_same():
    spatial, size = (30, 25), (16, 16)
    places = tile_grid((32, 32), size, 0.25)
    outputs = torch.from_numpy(
        np.random.default_rng(0).random((len(places), 3, *size)).astype(np.float32)
    )
    results = []
    for canvas in (HostCanvas(3, spatial, size), DeviceCanvas(3, spatial, size, "cpu")):
        with ThreadPoolExecutor(1) as helper:
            for start in range(0, len(places), 2):
                part = slice(start, start + 2)
                canvas.add(outputs[part], places[part], helper).result()
        results.append(canvas.finish())
    assert results[0].shape == (3, *spatial)
    np.testing.assert_allclose(*results, atol=1e-6)


def test_device_canvas_reports_nan_at_the_end():
    canvas = DeviceCanvas(1, (8, 8), (8, 8), "cpu")
    with ThreadPoolExecutor(1) as helper:
        canvas.add(torch.full((1, 1, 8, 8), math.nan), [(slice(0, 8), slice(0, 8))], helper)
    with pytest.raises(ModelError, match="NaN or infinity"):
        canvas.finish()


def test_strips_do_not_change_the_result(monkeypatch):
    image = np.random.default_rng(0).random((1, 70, 60)).astype(np.float32)
    options = {"tile": (32, 32), "stride": (4, 4)}
    expected = predict(Local(), image, identity, **options)
    monkeypatch.setattr(tiled, "_STRIP_PIXELS", 100)
    np.testing.assert_array_equal(predict(Local(), image, identity, **options), expected)


@pytest.mark.parametrize("regions", [1, 2, 5])
def test_regions_become_the_labels_that_nnunet_writes(regions: int):
    logits = torch.randn(2, regions, 30, 30, generator=torch.Generator().manual_seed(0))
    maps = region_activation(logits)
    torch.testing.assert_close(maps.sum(1), torch.ones(2, 30, 30))
    assert maps.min() >= 0
    expected = torch.zeros(2, 30, 30, dtype=torch.long)
    for number in range(regions):
        expected[logits[:, number].sigmoid() > 0.5] = number + 1
    torch.testing.assert_close(maps.argmax(1), expected)
