"""3x3 convolutions on the CPU with a quarter of the multiplications: Winograd's F(4x4, 3x3).

Tiles of 6 x 6 inputs become 36 values by a linear map, one matrix product per value mixes the
channels, and 16 outputs come back by another linear map (Lavin and Gray, CVPR 2016, with their
matrices). 36 instead of 144 products per tile and pair of channels. In 3D the depth axis is summed
directly. All in fp32; the maps' entries up to 8 cost about one decimal digit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

#: Outputs along a tile's side, and the inputs they need.
OUT, IN = 4, 6
#: Values of one transformed strip of tiles; it stays in the cache between the three steps.
STRIP_VALUES = 32768 * IN * IN
#: Fewer channels do not pay for the two maps; the depth axis shares them.
MIN_CHANNELS = {(3, 3): 64, (1, 3, 3): 64, (3, 3, 3): 32}
#: Fewer tiles do not pay for reading the transformed weights, which are four times as large.
MIN_TILES = 48

_INPUT_MAP = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_WEIGHT_MAP = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_OUTPUT_MAP = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)
#: A constant here is the same constant in all 16 outputs (column 1 of the output map is ones).
_CONSTANT = 1 * IN + 1
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@functools.cache
def _matrix(rows: tuple[tuple[float, ...], ...], dtype: torch.dtype) -> Tensor:
    """The map along one axis of a tile."""
    with torch.inference_mode(False):
        return torch.tensor(rows, dtype=dtype)


@functools.cache
def _squared(rows: tuple[tuple[float, ...], ...], dtype: torch.dtype) -> Tensor:
    """The map along both axes of a tile as one matrix."""
    with torch.inference_mode(False):
        matrix = _matrix(rows, torch.float64)
        return torch.kron(matrix, matrix).to(dtype).contiguous()


class _TileMap:
    """A map applied along one axis of all tiles, then along the other.

    Two products of this size are faster than one with the map's square, and batches of them, with
    contiguous results, do not depend on the number of threads.

    Args:
        matrix: [m, n].
        tiles: [n (rows) * n (columns), ...], contiguous.
        halfway: buffer, one-dimensional, of n * m times as many values as the tiles' rest.
        out: [m (columns) * m (rows), ...], contiguous, may be `tiles`: the axes change places.
    """

    def __init__(self, matrix: Tensor, tiles: Tensor, halfway: Tensor, out: Tensor) -> None:
        m, n = matrix.shape
        given, result = tiles.view(n, n, -1), out.view(m, m, -1)
        first = halfway[: n * m * given.shape[2]].view(n, m, -1)
        self._along_rows = matrix.expand(n, m, n), given, first
        self._along_columns = matrix.expand(m, m, n), first.transpose(0, 1), result

    def __call__(self) -> None:
        for matrix, given, result in (self._along_rows, self._along_columns):
            torch.bmm(matrix, given, out=result)


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether `convolve(x, ...)` is faster than PyTorch's convolution.

    Args:
        x: [batch, C, (D,) H, W], or of outputs.
        weight: [outputs, C, *kernel].
    """
    least = MIN_CHANNELS.get(tuple(weight.shape[2:]))
    return least is not None and min(weight.shape[:2]) >= least and _tiles(x) >= MIN_TILES


def _tiles(x: Tensor) -> int:
    height, width = x.shape[-2:]
    slices = x.shape[0] * math.prod(x.shape[2:-2])
    return slices * -(-height // OUT) * -(-width // OUT)


def transform_weight(weight: Tensor, backwards: bool = False) -> Tensor:
    """[outputs, C, (kd,) 3, 3] -> [kd, 36, C, outputs], a transposed view.

    The 36 have the order of `_TileMap`, columns before rows.

    Args:
        weight: of a convolution.
        backwards: make [kd, 36, outputs, C], with which the gradient of the convolution's result
            becomes that of its input.
    """
    outputs, channels = weight.shape[:2]
    taps = weight.flatten(2).movedim(2, 0).reshape(-1, 9, outputs * channels)
    # One matrix maps rows and columns, swaps them, and turns the kernel round where asked to.
    pairs = _squared(_WEIGHT_MAP, weight.dtype).view(IN, IN, 3, 3).transpose(0, 1)
    if backwards:
        taps, pairs = taps.flip(0), pairs.flip(2, 3)
    transformed = (pairs.reshape(IN * IN, 9) @ taps).unflatten(2, (outputs, channels))
    return transformed if backwards else transformed.transpose(2, 3)


def convolve(x: Tensor, transformed: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolution with stride 1 and zero padding that keeps the size, without gradients.

    Args:
        x: [batch, C, (D,) H, W], contiguous in channels-last.
        transformed: from `transform_weight`.
        bias: [outputs].

    Returns:
        [batch, outputs, (D,) H, W] in channels-last.
    """
    shape = (x.shape[0], transformed.shape[3], *x.shape[2:])
    y = torch.empty(shape, dtype=x.dtype, memory_format=_CHANNELS_LAST[x.ndim])
    taps, _, _, outputs = transformed.shape
    for volume, target in zip(_volumes(x), _volumes(y), strict=True):
        for strip, z, row, _ in _strips(volume, taps, outputs):
            strip.read(volume, z, row)
            strip.mix(transformed, bias)
            strip.write(target, z, row)
    return y


def _volumes(x: Tensor) -> Tensor:
    """[batch, C, (D,) H, W] -> volumes [*, D, H, W, C], a view; in 2D samples are slices of one."""
    rows = x.movedim(1, -1)
    return rows if x.ndim == 5 else rows[None]


def _strips(
    x: Tensor, taps: int, outputs: int
) -> Iterator[tuple[_Strip, int, int, tuple[int, int]]]:
    """Divide [D, H, W, C] into strips of about `STRIP_VALUES` transformed values.

    Yields:
        The strip (always the same, with its buffers), its first slice, its first row of tiles,
        and how many of its first slices and rows were in the strips before it: the last ones
        overlap the ones before them, so that all have one size.
    """
    depth, height, width, channels = x.shape
    tile_rows, columns = -(-height // OUT), -(-width // OUT)
    tiles = max(1, STRIP_VALUES // (IN * IN * columns * max(channels, outputs)))
    slices = _evenly(depth, tiles)
    rows = _evenly(tile_rows, max(1, tiles // slices))
    strip = _Strip(x, rows, slices, taps // 2, outputs)
    for row in range(0, tile_rows, rows):
        for z in range(0, depth, slices):
            place = min(z, depth - slices), min(row, tile_rows - rows)
            yield strip, *place, (z - place[0], row - place[1])


def _evenly(length: int, limit: int) -> int:
    """Length of the fewest parts of at most `limit` that overlap least."""
    parts = -(-length // limit)
    return -(-length // parts)


def weight_gradient(x: Tensor, grad: Tensor, taps: int) -> Tensor:
    """Gradient of a loss with respect to the weights of `convolve`.

    The maps applied backwards: tiles of the gradient become 36 values each, which are multiplied
    with those of the inputs, summed over all tiles, and mapped to 9.

    Args:
        x: [batch, C, (D,) H, W], contiguous in channels-last.
        grad: [batch, outputs, (D,) H, W], of the loss with respect to the output; the same.
        taps: of the kernel along the depth axis, 1 or 3; 1 in 2D.

    Returns:
        [outputs, C, taps, 3, 3].
    """
    channels, outputs = x.shape[1], grad.shape[1]
    total = x.new_zeros(taps, IN * IN, channels, outputs)
    for volume, result in zip(_volumes(x), _volumes(grad), strict=True):
        for strip, z, row, known in _strips(volume, taps, outputs):
            strip.read(volume, z, row)
            strip.read_gradient(result, z, row, known)
            strip.add_products(total)
    mapped = _squared(_WEIGHT_MAP, x.dtype).T @ total.flatten(2)
    return mapped.view(taps, 3, 3, channels, outputs).permute(4, 3, 0, 2, 1)


class _Strip:
    """Some rows of tiles of some slices, and the buffers for them.

    Attributes:
        z, row: the first output slice and the first row of tiles.
        reach: slices that the kernel needs before and after.
        padded: [slices + 2 reach, 4 rows + 2, 4 columns + 2, C], the inputs with the padding.
        inputs: [36, slices + 2 reach, tiles of a slice, C], the inputs of the tiles, transformed;
            of the 36, columns come before rows.
        mixed: [36, slices, tiles of a slice, outputs].
        results: [16, the same].
    """

    def __init__(self, x: Tensor, rows: int, slices: int, reach: int, outputs: int) -> None:
        width, channels = x.shape[2:]
        self.rows, self.columns = rows, -(-width // OUT)
        self.slices, self.reach = slices, reach
        tiles = rows * self.columns
        needed = slices + 2 * reach
        self.padded = x.new_zeros(needed, OUT * rows + 2, OUT * self.columns + 2, channels)
        self.inputs = x.new_empty(IN * IN, needed, tiles, channels)
        self.mixed = x.new_empty(IN * IN, slices, tiles, outputs)
        self.results = x.new_empty(OUT * OUT, slices, tiles, outputs)
        halfway = x.new_empty(max(self.inputs.numel(), self.mixed.numel()))
        deep, down, right, _ = self.padded.stride()
        extents = IN, IN, needed, rows, self.columns, channels
        strides = down, right, deep, OUT * down, OUT * right, 1
        self._windows = self.padded.as_strided(extents, strides)
        self._tiles = self.inputs.view(extents)
        extents = OUT, OUT, slices, rows, self.columns, outputs
        # As `_as_tiles` has them.
        self._outputs = self.results.view(extents).permute(2, 3, 0, 4, 1, 5)
        inputs, back = (_matrix(one, x.dtype) for one in (_INPUT_MAP, _OUTPUT_MAP))
        self._map_inputs = _TileMap(inputs, self.inputs, halfway, self.inputs)
        self._map_outputs = _TileMap(back, self.mixed, halfway, self.results)
        self._map_gradient = _TileMap(back.T, self.results, halfway, self.mixed)

    def read(self, x: Tensor, first: int, row: int) -> None:
        """Transform what the outputs from slice `first` and row `row` of tiles on need."""
        depth, height, width, _ = x.shape
        count, tall = self.padded.shape[:2]
        low, above = first - self.reach, OUT * row - 1
        near, far = max(low, 0), min(low + count, depth)
        top, bottom = max(above, 0), min(above + tall, height)
        inside = self.padded[near - low : far - low]
        inside[:, top - above : bottom - above, 1 : width + 1] = x[near:far, top:bottom]
        # What lies outside of the map; the columns there were never anything but zero.
        if top > above:
            inside[:, : top - above] = 0
        if bottom < above + tall:
            inside[:, bottom - above :] = 0
        if near > low:
            self.padded[: near - low] = 0
        if far < low + count:
            self.padded[far - low :] = 0
        self._tiles.copy_(self._windows)
        self._map_inputs()

    def mix(self, transformed: Tensor, bias: Tensor | None) -> None:
        """Multiply with the transformed weights, summed over the taps along the depth axis."""
        mixed = self.mixed.flatten(1, 2)
        for tap, weight in enumerate(transformed):
            inputs = self.inputs[:, tap : tap + self.slices].flatten(1, 2)
            if tap == 0:
                torch.bmm(inputs, weight, out=mixed)
            else:
                mixed.baddbmm_(inputs, weight)
        if bias is not None:
            self.mixed[_CONSTANT] += bias

    def write(self, y: Tensor, first: int, row: int) -> None:
        """Transform to outputs and put them into y [D, H, W, outputs]."""
        width = y.shape[2]
        self._map_outputs()
        target = y[first : first + self.slices, OUT * row : OUT * (row + self.rows)]
        if target.shape[1] == OUT * self.rows and width == OUT * self.columns:
            self._as_tiles(target).copy_(self._outputs)
        else:
            whole = self._outputs.flatten(3, 4).flatten(1, 2)
            target.copy_(whole[:, : target.shape[1], :width])

    def _as_tiles(self, x: Tensor) -> Tensor:
        """[slices, 4 rows, 4 columns, outputs] -> view [slices, rows, 4, columns, 4, outputs]."""
        return x.unflatten(2, (self.columns, OUT)).unflatten(1, (self.rows, OUT))

    def read_gradient(self, grad: Tensor, first: int, row: int, known: tuple[int, int]) -> None:
        """Transform the gradient [D, H, W, outputs] of the strip's outputs into `mixed`.

        Args:
            known: slices and rows of tiles at the beginning that count as zero.
        """
        width, outputs = grad.shape[2:]
        source = grad[first : first + self.slices, OUT * row : OUT * (row + self.rows)]
        if source.shape[1] != OUT * self.rows or width != OUT * self.columns:
            whole = grad.new_zeros(self.slices, OUT * self.rows, OUT * self.columns, outputs)
            whole[:, : source.shape[1], :width] = source
            source = whole
        self._outputs.copy_(self._as_tiles(source))
        if known[0]:
            self._outputs[: known[0]] = 0
        if known[1]:
            self._outputs[:, : known[1]] = 0
        self._map_gradient()

    def add_products(self, total: Tensor) -> None:
        """Add to the gradient of the transformed weights [taps, 36, C, outputs]."""
        mixed = self.mixed.flatten(1, 2)
        for tap, gradient in enumerate(total):
            inputs = self.inputs[:, tap : tap + self.slices].flatten(1, 2)
            gradient.baddbmm_(inputs.transpose(1, 2), mixed)
