"""A network as an OpenVINO model: wide maps by OpenVINO, TTT layers and deep stages by ours.

OpenVINO's convolutions are the faster ones where channels are few. Deeper down ours need a quarter
of the multiplications, so the graph has the levels from there on as one operation, and TTT layers
above as one each. It is built from the modules, without an exporter or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino as ov
import torch
import torch.nn.functional as F
from openvino import opset13 as ops
from torch import Tensor, nn

from tttunet.layers.residual import NEGATIVE_SLOPE, ResidualBlock, to_channels_last
from tttunet.networks.ttt_unet import NearestUpsample, TTTUNet

Node = Any
NO_PADDING = (0, 0, 0)
#: Channels, by spatial axes, from which on our convolutions are faster (see `cpu_winograd`).
DEEP_CHANNELS = {2: 128, 3: 64}


class _Module(ov.Op):
    """An operation that a PyTorch module computes: [batch, C, *] -> [batch, channels, * / stride].

    Args:
        inputs: the map.
        module: float32 on the CPU.
        channels, stride: of its result.
    """

    def __init__(
        self,
        inputs: list[Node] | None = None,
        module: nn.Module | None = None,
        channels: int = 0,
        stride: Sequence[int] = (),
    ) -> None:
        self.arguments = module, channels, stride
        super().__init__(self, inputs)

    def validate_and_infer_types(self) -> None:
        _, channels, stride = self.arguments
        batch, _, *size = self.get_input_shape(0)
        size = [n // step for n, step in zip(size, stride, strict=True)]
        self.set_output_type(0, ov.Type.f32, ov.PartialShape([batch, channels, *size]))

    def clone_with_new_inputs(self, new_inputs: list[Node]) -> _Module:
        return _Module(new_inputs, *self.arguments)

    def has_evaluate(self) -> bool:
        return True

    def evaluate(self, outputs: list[Any], inputs: list[Any]) -> bool:
        module = self.arguments[0]
        assert module is not None
        with torch.inference_mode():
            y = module(to_channels_last(torch.from_numpy(inputs[0].data)))
            torch.from_numpy(outputs[0].data).copy_(y)
        return True

    def visit_attributes(self, _: Any) -> bool:
        return True


class _Deep(nn.Module):
    """The levels of a network from one on: the map above it -> the decoder's map of that level."""

    def __init__(self, network: TTTUNet, level: int) -> None:
        super().__init__()
        self.encoder, self.decoder, self.level = network.encoder, network.decoder, level

    def forward(self, x: Tensor) -> Tensor:
        # Those above are not read here.
        maps = [x] * self.level
        for stage in self.encoder.stages[self.level :]:
            x = to_channels_last(stage(x))
            maps.append(x)
        for depth in range(len(maps) - 1 - self.level):
            x = self.decoder.rise(depth, x, maps)
        return x


def supports(network: nn.Module) -> bool:
    """Whether `build` knows the network: a TTT-UNet in fp32 on the CPU."""
    return isinstance(network, TTTUNet) and all(
        p.dtype == torch.float32 and p.device.type == "cpu" for p in network.parameters()
    )


def build(network: TTTUNet, shape: Sequence[int]) -> ov.Model:
    """The network for inputs of one shape.

    Args:
        network: as `supports`, for inference. Of the upper levels weights are copied, modules that
            the graph calls are shared.
        shape: [batch, channels, *spatial], the spatial sizes multiples of the total stride.

    Returns:
        Model of one input and one output, the logits at full resolution, fp32.
    """
    config, decoder = network.config, network.decoder
    stages: list[Any] = list(network.encoder.stages)
    deep = _first_deep_level(network)
    inputs = x = ops.parameter(list(shape), np.float32)
    for block in _blocks(network.encoder.stem):
        x = _block(block, x)
    skips = []
    for level, stage in enumerate(stages[:deep]):
        for block in _blocks(stage.blocks):
            x = _block(block, x)
        if not isinstance(stage.ttt, nn.Identity):
            x = _Module([x.output(0)], stage.ttt, config.features[level], (1,) * config.dim)
        skips.append(x)
    if deep < config.stages:
        stride, channels = config.strides[deep], config.features[deep]
        x = _Module([x.output(0)], _Deep(network, deep), channels, stride)
    else:
        deep -= 1
    for level in reversed(range(deep)):
        depth = config.stages - 2 - level
        skip = skips[level] if decoder.has_skip(level) else None
        x = _rise(decoder.upsample[depth], decoder.stages[depth], x, skip)
    return ov.Model([_convolve(decoder.heads[-1], x)], [inputs], "TTT-UNet")


def _first_deep_level(network: TTTUNet) -> int:
    """The level from which on our convolutions are faster; at least one is above."""
    features, least = network.config.features, DEEP_CHANNELS[network.config.dim]
    return next((n for n in range(1, len(features)) if features[n] >= least), len(features))


def _blocks(stage: Any) -> Sequence[ResidualBlock]:
    return () if isinstance(stage, nn.Identity) else tuple(stage)


def _rise(upsample: Any, stage: Any, x: Node, skip: Node | None) -> Node:
    """`Decoder.rise`."""
    first, *rest = stage
    if isinstance(upsample, NearestUpsample):
        x = _block_upsampled(first, _convolve(upsample.conv, x), upsample.stride, skip)
    else:
        kernel = ops.constant(upsample.weight.detach().numpy())
        x = ops.convolution_backprop_data(x, kernel, list(upsample.stride))
        x = ops.add(x, _per_channel(upsample.bias, x))
        x = _block(first, x if skip is None else ops.concat([x, skip], 1))
    for block in rest:
        x = _block(block, x)
    return x


def _block(block: ResidualBlock, x: Node) -> Node:
    shortcut = x if isinstance(block.shortcut, nn.Identity) else _convolve(block.shortcut, x)
    return _rest_of_block(block, _convolve(block.conv1, x, bias=False), shortcut)


def _block_upsampled(
    block: ResidualBlock, low: Node, factors: tuple[int, ...], skip: Node | None
) -> Node:
    """`ResidualBlock.forward_upsampled`."""
    conv, project = block.conv1, block.shortcut
    weight, point = conv.weight.detach(), project.weight.detach()
    own = low.shape[1]
    y = _upsampled_conv(low, weight[:, :own], factors)
    shortcut = _enlarge(_conv(low, point[:, :own], NO_PADDING), factors)
    if skip is not None:
        y = ops.add(y, _conv(skip, weight[:, own:], conv.padding))
        shortcut = ops.add(shortcut, _conv(skip, point[:, own:], NO_PADDING))
    return _rest_of_block(block, y, ops.add(shortcut, _per_channel(project.bias, shortcut)))


def _upsampled_conv(low: Node, weight: Tensor, factors: tuple[int, ...]) -> Node:
    """A convolution that keeps the size, of the enlarged map: a transposed one of the small map."""
    before = []
    for axis, factor in enumerate(factors):
        taps = weight.shape[2 + axis]
        # Tap t of factor neighbours reads the same value: all their sums, from the last one on.
        padded = F.pad(weight.movedim(2 + axis, -1), (factor - 1, factor - 1))
        windows = padded.unfold(-1, factor, 1)
        weight = windows.sum(-1).flip(-1).movedim(-1, 2 + axis)
        before.append(taps // 2)
    return ops.convolution_backprop_data(
        low,
        ops.constant(weight.transpose(0, 1).contiguous().numpy()),
        list(factors),
        pads_begin=before,
        pads_end=before,
    )


def _rest_of_block(block: ResidualBlock, y: Node, shortcut: Node) -> Node:
    y = _activate(_normalise(block.norm1, y), NEGATIVE_SLOPE)
    y = _normalise(block.norm2, _convolve(block.conv2, y, bias=False))
    return _activate(ops.add(y, shortcut), NEGATIVE_SLOPE)


def _normalise(norm: Any, x: Node) -> Node:
    """InstanceNorm; the bias of a convolution before it would vanish."""
    axes = np.arange(2, len(x.shape))
    x = ops.mvn(x, ops.constant(axes), True, norm.eps, "inside_sqrt")
    return ops.add(ops.multiply(x, _per_channel(norm.weight, x)), _per_channel(norm.bias, x))


def _activate(x: Node, slope: float) -> Node:
    return ops.prelu(x, ops.constant(np.array([slope], np.float32)))


def _convolve(conv: Any, x: Node, bias: bool = True) -> Node:
    y = _conv(x, conv.weight.detach(), conv.padding, conv.stride)
    return ops.add(y, _per_channel(conv.bias, y)) if bias else y


def _conv(
    x: Node, weight: Tensor, padding: Sequence[int], stride: Sequence[int] = (1, 1, 1)
) -> Node:
    dim = weight.ndim - 2
    around, steps = list(padding[:dim]), list(stride[:dim])
    kernel = ops.constant(weight.contiguous().numpy())
    return ops.convolution(x, kernel, steps, around, around, [1] * dim)


def _enlarge(x: Node, factors: tuple[int, ...]) -> Node:
    """Nearest neighbours."""
    axes = list(range(2, 2 + len(factors)))
    return ops.interpolate(
        x,
        ops.constant(np.array(factors, np.float32)),
        "nearest",
        "scales",
        axes=ops.constant(np.array(axes)),
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _per_channel(values: Tensor, x: Node) -> Node:
    shape = (1, -1, *[1] * (len(x.shape) - 2))
    return ops.constant(values.detach().reshape(shape).numpy())
