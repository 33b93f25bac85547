"""The repeated blocks: MBConv, depthwise separable, and the two of ResNet, each usable alone."""

from __future__ import annotations

from torch import Tensor, nn

from phiscale.errors import SpecError
from phiscale.nn.layers import (
    ConvNormAct,
    DropPath,
    LayerOptions,
    SqueezeExcite,
    make_activation,
)
from phiscale.spec import BlockSpec

__all__ = ["BasicBlock", "Bottleneck", "DepthwiseSeparable", "MBConv", "make_block"]


class MBConv(nn.Module):
    """Mobile inverted bottleneck (Sandler et al. 2018) with squeeze-excite (Tan et al. 2019).

    1×1 expansion (only when `expand_ratio` is not 1), k×k depthwise, squeeze-excite, 1×1 linear
    projection; input and output are added only at stride 1 with equal channels, and not without `skip`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Odd side of the depthwise kernel.
        stride: Stride of the depthwise convolution.
        expand_ratio: Widening inside the block.
        se_ratio: Squeeze width as a fraction of `in_channels`; 0 leaves squeeze-excite out.
        skip: Whether input and output are added where they have one shape.
        drop_path: Probability of dropping the branch of a sample, where there is a skip.
        options: Activation, padding, norm and bias.

    Raises:
        SpecError: A ratio or rate is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        expand_ratio: int = 6,
        se_ratio: float = 0.25,
        skip: bool = True,
        drop_path: float = 0.0,
        options: LayerOptions = LayerOptions(),
    ) -> None:
        super().__init__()
        if expand_ratio < 1:
            raise SpecError(f"expand_ratio must be at least 1, got {expand_ratio!r}")
        if not 0.0 <= se_ratio <= 1.0:
            raise SpecError(f"se_ratio must lie in [0, 1], got {se_ratio!r}")
        channels = in_channels * expand_ratio
        self.has_skip = skip and stride == 1 and in_channels == out_channels
        self.expand = (
            ConvNormAct(in_channels, channels, 1, options=options) if expand_ratio != 1 else nn.Identity()
        )
        self.depthwise = ConvNormAct(
            channels, channels, kernel_size, stride=stride, groups=channels, options=options
        )
        self.se = (
            SqueezeExcite(channels, max(1, int(in_channels * se_ratio)), activation=options.activation)
            if se_ratio > 0
            else nn.Identity()
        )
        self.project = ConvNormAct(channels, out_channels, 1, activate=False, options=options)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, in_channels, H, W). Returns (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        shortcut = x
        x = self.expand(x)
        x = self.depthwise(x)
        x = self.se(x)
        x = self.project(x)
        return shortcut + self.drop_path(x) if self.has_skip else x


class DepthwiseSeparable(nn.Module):
    """MobileNetV1's block: k×k depthwise, 1×1 pointwise, both activated, no skip."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        options: LayerOptions = LayerOptions(),
    ) -> None:
        super().__init__()
        self.depthwise = ConvNormAct(
            in_channels, in_channels, kernel_size, stride=stride, groups=in_channels, options=options
        )
        self.pointwise = ConvNormAct(in_channels, out_channels, 1, options=options)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, in_channels, H, W). Returns (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        x = self.depthwise(x)
        return self.pointwise(x)


def _shortcut(in_channels: int, out_channels: int, stride: int, options: LayerOptions) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    # A 1×1 kernel needs no padding, so both kinds agree.
    return ConvNormAct(in_channels, out_channels, 1, stride=stride, activate=False, options=options)


class Bottleneck(nn.Module):
    """ResNet-50's block: 1×1 to a quarter of the channels, k×k with the stride, 1×1 back, add, activate."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        drop_path: float = 0.0,
        options: LayerOptions = LayerOptions(),
    ) -> None:
        super().__init__()
        if out_channels % 4:
            raise SpecError(f"out_channels of a bottleneck must be a multiple of 4, got {out_channels}")
        channels = out_channels // 4
        self.reduce = ConvNormAct(in_channels, channels, 1, options=options)
        self.conv = ConvNormAct(channels, channels, kernel_size, stride=stride, options=options)
        self.expand = ConvNormAct(channels, out_channels, 1, activate=False, options=options)
        self.shortcut = _shortcut(in_channels, out_channels, stride, options)
        self.drop_path = DropPath(drop_path)
        self.act = make_activation(options.activation, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, in_channels, H, W). Returns (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        shortcut = self.shortcut(x)
        x = self.reduce(x)
        x = self.conv(x)
        x = self.expand(x)
        return self.act(self.drop_path(x) + shortcut)


class BasicBlock(nn.Module):
    """ResNet-18's block: k×k with the stride, k×k, add, activate."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        drop_path: float = 0.0,
        options: LayerOptions = LayerOptions(),
    ) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(in_channels, out_channels, kernel_size, stride=stride, options=options)
        self.conv2 = ConvNormAct(out_channels, out_channels, kernel_size, activate=False, options=options)
        self.shortcut = _shortcut(in_channels, out_channels, stride, options)
        self.drop_path = DropPath(drop_path)
        self.act = make_activation(options.activation, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, in_channels, H, W). Returns (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        shortcut = self.shortcut(x)
        x = self.conv1(x)
        x = self.conv2(x)
        return self.act(self.drop_path(x) + shortcut)


def make_block(block: BlockSpec, options: LayerOptions) -> nn.Module:
    """Build the block that a spec describes."""
    stage = block.stage
    match stage.block:
        case "mbconv":
            return MBConv(
                block.in_channels,
                block.out_channels,
                kernel_size=stage.kernel_size,
                stride=block.stride,
                expand_ratio=stage.expand_ratio,
                se_ratio=stage.se_ratio,
                skip=stage.skip,
                drop_path=block.drop_path,
                options=options,
            )
        case "depthwise_separable":
            return DepthwiseSeparable(
                block.in_channels,
                block.out_channels,
                kernel_size=stage.kernel_size,
                stride=block.stride,
                options=options,
            )
        case "bottleneck" | "basic":
            residual = Bottleneck if stage.block == "bottleneck" else BasicBlock
            return residual(
                block.in_channels,
                block.out_channels,
                kernel_size=stage.kernel_size,
                stride=block.stride,
                drop_path=block.drop_path,
                options=options,
            )
