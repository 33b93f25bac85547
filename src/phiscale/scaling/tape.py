"""Every operation of a network with its shapes, from the spec alone: what cost is counted from.

The tape is the analytic twin of `phiscale.nn`: tests assert that parameters, multiply-adds and
activations summed over it equal those of the built network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from phiscale.spec import BlockSpec, NetworkSpec

__all__ = ["OpCost", "tape"]

# Measured: oneDNN has no own weight gradient for depthwise kernels above 3×3 and widens each channel
# to a block of 16×16.
ONEDNN_BLOCK = 256

OpKind = Literal["pad", "conv", "norm", "act", "se_gate", "mul", "add", "pool", "mean", "linear"]


@dataclass(frozen=True, kw_only=True)
class OpCost:
    """One operation on one image.

    Attributes:
        kind: What it does.
        row: Row of the stage table: 0 is the stem, i the i-th stage, the last the head.
        block: Index of the block, -1 before the first, the number of blocks after the last.
        in_elements: Elements of its input.
        out_elements: Elements of its output.
        params: Trainable numbers.
        buffers: Other stored numbers (running mean and variance).
        tensors: Stored tensors, parameters and buffers, one counter per norm included.
        macs: Multiply-adds of convolutions and classifier, no biases.
        scratch: Numbers that its weight gradient needs for a moment, whatever the batch.
    """

    kind: OpKind
    row: int
    block: int
    in_elements: int
    out_elements: int
    params: int = 0
    buffers: int = 0
    tensors: int = 0
    macs: int = 0
    scratch: int = 0


@dataclass
class _Writer:
    """Writes operations and keeps the current map's (channels, height, width)."""

    spec: NetworkSpec
    shape: tuple[int, int, int]
    row: int = 0
    block: int = -1

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    def op(self, kind: OpKind, in_elements: int, **costs: int) -> OpCost:
        return OpCost(
            kind=kind,
            row=self.row,
            block=self.block,
            in_elements=in_elements,
            out_elements=costs.pop("out_elements", self.elements),
            **costs,
        )

    def conv_norm(
        self, out_channels: int, kernel: int, stride: int, *, depthwise: bool = False, act: bool = True
    ) -> Iterator[OpCost]:
        channels, height, width = self.shape
        before = self.elements
        if self.spec.padding == "same":
            padded = [_padded(side, kernel, stride) for side in (height, width)]
            if padded != [height, width]:
                after = channels * math.prod(padded)
                yield self.op("pad", before, out_elements=after)
                before = after
        self.shape = (out_channels, math.ceil(height / stride), math.ceil(width / stride))
        weights = kernel * kernel * (1 if depthwise else channels) * out_channels
        bias = out_channels if self.spec.conv_bias else 0
        yield self.op(
            "conv",
            before,
            params=weights + bias,
            tensors=1 + bool(bias),
            macs=weights * self.shape[1] * self.shape[2],
            scratch=_scratch(weights, kernel, depthwise=depthwise),
        )
        yield self.op("norm", self.elements, params=2 * out_channels, buffers=2 * out_channels, tensors=5)
        if act:
            yield self.op("act", self.elements)

    def squeeze_excite(self, squeeze: int) -> Iterator[OpCost]:
        channels = self.shape[0]
        weights = channels * squeeze
        yield self.op("mean", self.elements, out_elements=channels)
        yield self.op(
            "se_gate", channels, out_elements=squeeze, params=weights + squeeze, tensors=2, macs=weights
        )
        yield self.op(
            "se_gate", squeeze, out_elements=channels, params=weights + channels, tensors=2, macs=weights
        )
        yield self.op("mul", self.elements)


def _scratch(weights: int, kernel: int, *, depthwise: bool) -> int:
    if depthwise:
        return weights * ONEDNN_BLOCK if kernel > 3 else 0
    # Measured: a dense weight gradient is made in another layout and copied, 1×1 ones excepted.
    return 2 * weights if kernel > 1 else 0


def _padded(side: int, kernel: int, stride: int) -> int:
    return max((math.ceil(side / stride) - 1) * stride + kernel, side)


def tape(spec: NetworkSpec, image_size: tuple[int, int]) -> Iterator[OpCost]:
    """Every operation of the forward pass for one image, in order.

    Args:
        spec: The network.
        image_size: (height, width) in pixels.
    """
    writer = _Writer(spec, (spec.in_channels, *image_size))
    stem = spec.stem
    yield from writer.conv_norm(stem.out_channels, stem.kernel_size, stem.stride)
    if stem.max_pool:
        before, (channels, height, width) = writer.elements, writer.shape
        writer.shape = (channels, math.ceil(height / 2), math.ceil(width / 2))
        yield writer.op("pool", before)
    for index, block in enumerate(spec.blocks()):
        writer.row, writer.block = block.stage_index + 1, index
        yield from _block(writer, block)
    writer.row, writer.block = len(spec.stages) + 1, spec.num_blocks
    if spec.head:
        yield from writer.conv_norm(spec.head.out_channels, 1, 1)
    channels = writer.shape[0]
    yield writer.op("mean", writer.elements, out_elements=channels)
    if spec.num_classes:
        weights = channels * spec.num_classes
        yield writer.op(
            "linear",
            channels,
            out_elements=spec.num_classes,
            params=weights + spec.num_classes,
            tensors=2,
            macs=weights,
        )


def _block(writer: _Writer, block: BlockSpec) -> Iterator[OpCost]:
    kernel, out_channels, stride = block.stage.kernel_size, block.out_channels, block.stride
    match block.stage.block:
        case "mbconv":
            if block.stage.expand_ratio != 1:
                yield from writer.conv_norm(block.expanded_channels, 1, 1)
            yield from writer.conv_norm(block.expanded_channels, kernel, stride, depthwise=True)
            if block.se_channels:
                yield from writer.squeeze_excite(block.se_channels)
            yield from writer.conv_norm(out_channels, 1, 1, act=False)
            if block.has_skip:
                yield writer.op("add", writer.elements)
        case "depthwise_separable":
            yield from writer.conv_norm(block.in_channels, kernel, stride, depthwise=True)
            yield from writer.conv_norm(out_channels, 1, 1)
        case "bottleneck" | "basic":
            if not block.has_skip:
                yield from _side_branch(writer, block)
            if block.stage.block == "bottleneck":
                yield from writer.conv_norm(out_channels // 4, 1, 1)
                yield from writer.conv_norm(out_channels // 4, kernel, stride)
                yield from writer.conv_norm(out_channels, 1, 1, act=False)
            else:
                yield from writer.conv_norm(out_channels, kernel, stride)
                yield from writer.conv_norm(out_channels, kernel, 1, act=False)
            yield writer.op("add", writer.elements)
            yield writer.op("act", writer.elements)


def _side_branch(writer: _Writer, block: BlockSpec) -> Iterator[OpCost]:
    """The projection shortcut, which reads the block's input and leaves the main path where it was."""
    shape = writer.shape
    yield from writer.conv_norm(block.out_channels, 1, block.stride, act=False)
    writer.shape = shape
