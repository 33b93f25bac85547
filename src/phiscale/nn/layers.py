"""The layers that every block is made of, each usable alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phiscale.errors import ShapeError, SpecError
from phiscale.spec import Activation, NetworkSpec, Padding, as_size

__all__ = [
    "ACTIVATIONS",
    "Conv2dSame",
    "ConvNormAct",
    "DropPath",
    "Dropout",
    "HardSwish",
    "LayerOptions",
    "MaxPool2dSame",
    "ReLU6",
    "Rows",
    "SqueezeExcite",
    "Swish",
    "make_activation",
    "pad_same",
    "same_pads",
    "set_rows",
]

Pair = int | tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class LayerOptions:
    """What all layers of a network share.

    Attributes:
        activation: Name of the activation.
        padding: ``"same"`` (TensorFlow's) or ``"symmetric"`` (k // 2).
        norm_eps: Epsilon of batch normalisation.
        norm_momentum: Momentum of batch normalisation in PyTorch's sense.
        conv_bias: Whether convolutions before a norm have a bias.
    """

    activation: Activation = "swish"
    padding: Padding = "same"
    norm_eps: float = 1e-3
    norm_momentum: float = 0.01
    conv_bias: bool = False

    @classmethod
    def of(cls, spec: NetworkSpec) -> LayerOptions:
        """The options that a network spec asks for."""
        return cls(
            activation=spec.activation,
            padding=spec.padding,
            norm_eps=spec.norm_eps,
            norm_momentum=spec.norm_momentum,
            conv_bias=spec.conv_bias,
        )


def _pair(value: Pair, name: str) -> tuple[int, int]:
    sides = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(sides) != 2 or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in sides):
        raise SpecError(f"{name} must be one or two integers of at least 1, got {value!r}")
    return (sides[0], sides[1])


def same_pads(
    size: tuple[int, int],
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
) -> tuple[int, int, int, int]:
    """What TensorFlow's "SAME" adds: the output has ceil(size / stride), the odd pixel goes last.

    Args:
        size: (height, width) of the input.
        kernel_size: (height, width) of the kernel that follows.
        stride: Its stride.
        dilation: Its dilation.

    Returns:
        Pixels to the left, right, top and bottom, the order that `torch.nn.functional.pad` wants.
    """
    pads: list[int] = []
    for n, k, s, d in zip(size[::-1], kernel_size[::-1], stride[::-1], dilation[::-1], strict=True):
        total = max((math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n, 0)
        pads += [total // 2, total - total // 2]
    left, right, top, bottom = pads
    return left, right, top, bottom


def pad_same(
    x: Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
    *,
    value: float = 0.0,
) -> Tensor:
    """Pad as TensorFlow's "SAME" does; see `same_pads`.

    Args:
        x: (N, C, H, W).
        kernel_size: (height, width) of the kernel that follows.
        stride: Its stride.
        dilation: Its dilation.
        value: What to pad with.

    Returns:
        (N, C, H + vertical padding, W + horizontal padding).
    """
    pads = same_pads((x.shape[-2], x.shape[-1]), kernel_size, stride, dilation)
    return F.pad(x, pads, value=value) if any(pads) else x


class Conv2dSame(nn.Conv2d):
    """Convolution with TensorFlow's "SAME" padding, for any kernel, stride, dilation and input size.

    Stride 2 on an even size pads below and right only, so the result differs from PyTorch's symmetric
    ``padding=k // 2``: weights trained with one lose accuracy with the other.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side or (height, width), odd or even.
        stride: One number or (vertical, horizontal).
        dilation: One number or (vertical, horizontal).
        groups: Groups of channels; `in_channels` for a depthwise convolution.
        bias: Whether a bias is added.
        input_size: Side or (height, width) that every input must have, or None for any.

    Raises:
        SpecError: A size is not positive, or channels are no multiple of `groups`.

    Examples:
        >>> conv = Conv2dSame(3, 8, 3, stride=2, input_size=(225, 224))
        >>> conv.input_shape, conv.output_shape
        ((3, 225, 224), (8, 113, 112))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        input_size: Pair | None = None,
    ) -> None:
        for name, count in (("in_channels", in_channels), ("out_channels", out_channels), ("groups", groups)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise SpecError(f"{name} must be an integer of at least 1, got {count!r}")
        if in_channels % groups or out_channels % groups:
            raise SpecError(
                f"groups={groups} must divide in_channels={in_channels} and out_channels={out_channels}"
            )
        super().__init__(
            in_channels,
            out_channels,
            _pair(kernel_size, "kernel_size"),
            stride=_pair(stride, "stride"),
            dilation=_pair(dilation, "dilation"),
            groups=groups,
            bias=bias,
        )
        self.input_size = None if input_size is None else as_size(input_size, name="input_size")

    @property
    def input_shape(self) -> tuple[int, int, int] | None:
        """(channels, height, width) of one input, or None where any size is taken."""
        return None if self.input_size is None else (self.in_channels, *self.input_size)

    @property
    def output_shape(self) -> tuple[int, int, int] | None:
        """(channels, height, width) of one output, or None where any size is taken."""
        if self.input_size is None:
            return None
        height, width = (math.ceil(n / s) for n, s in zip(self.input_size, self.stride, strict=True))
        return (self.out_channels, height, width)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x: (N, in_channels, H, W). Returns (N, out_channels, ceil(H / s), ceil(W / s)).

        Raises:
            ShapeError: `x` has another rank or channel count, or not the fixed `input_size`.
        """
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ShapeError(
                f"expected an input of shape (N, {self.in_channels}, H, W), got {tuple(x.shape)}"
            )
        if self.input_size is not None and tuple(x.shape[-2:]) != self.input_size:
            raise ShapeError(
                f"expected an input of {self.input_size[0]}×{self.input_size[1]} px as fixed by input_size, "
                f"got {x.shape[-2]}×{x.shape[-1]}; resize it or build with input_size=None"
            )
        k, s, d = self.kernel_size, self.stride, self.dilation
        x = pad_same(x, (k[0], k[1]), (s[0], s[1]), (d[0], d[1]))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    def extra_repr(self) -> str:
        """The arguments, as in `torch.nn.Conv2d`, and the fixed size where there is one."""
        size = "" if self.input_size is None else f", input_size={self.input_size}"
        return f"{super().extra_repr()}, padding='same'{size}"  # type: ignore[no-untyped-call]


class MaxPool2dSame(nn.Module):
    """Max pooling with TensorFlow's "SAME" padding."""

    def __init__(self, kernel_size: int = 3, stride: int = 2) -> None:
        super().__init__()
        self.kernel_size, self.stride = _pair(kernel_size, "kernel_size"), _pair(stride, "stride")

    def forward(self, x: Tensor) -> Tensor:
        """Pool x: (N, C, H, W). Returns (N, C, ceil(H / stride), ceil(W / stride))."""
        padded = pad_same(x, self.kernel_size, self.stride, value=-math.inf)
        return F.max_pool2d(padded, self.kernel_size, self.stride)


class Swish(nn.Module):
    """x · sigmoid(βx) (Ramachandran et al. 2017); with β = 1 it is SiLU.

    Args:
        beta: β, fixed or where a learnable one starts.
        learnable: Whether β is a parameter.
        inplace: Whether the input may be overwritten while no gradient is recorded.
    """

    def __init__(self, beta: float = 1.0, *, learnable: bool = False, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace
        self.beta: float | nn.Parameter = nn.Parameter(torch.tensor(float(beta))) if learnable else beta

    def forward(self, x: Tensor) -> Tensor:
        """Activate x of any shape. Returns the same shape."""
        if not isinstance(self.beta, Tensor) and self.beta == 1.0:
            # With a gradient, silu_ would first clone its input for the backward pass.
            return F.silu(x, inplace=self.inplace and not torch.is_grad_enabled())
        return x * torch.sigmoid(self.beta * x)

    def extra_repr(self) -> str:
        """β, and whether it learns."""
        learnable = isinstance(self.beta, Tensor)
        beta = self.beta.detach().item() if isinstance(self.beta, Tensor) else self.beta
        return f"beta={beta:g}, learnable={learnable}"


class HardSwish(nn.Module):
    """x · relu6(x + 3) / 6 (Howard et al. 2019), the cheap stand-in for Swish."""

    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        """Activate x of any shape. Returns the same shape."""
        return F.hardswish(x, inplace=self.inplace and not torch.is_grad_enabled())


class ReLU6(nn.Module):
    """min(max(x, 0), 6), friendly to integers (Howard et al. 2017)."""

    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        """Activate x of any shape. Returns the same shape."""
        return F.relu6(x, inplace=self.inplace and not torch.is_grad_enabled())


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "swish": Swish,
    "relu": nn.ReLU,
    "relu6": ReLU6,
    "hard_swish": HardSwish,
}


def make_activation(name: Activation, *, inplace: bool = False) -> nn.Module:
    """An activation module by name.

    Raises:
        SpecError: No such activation.
    """
    if name not in ACTIVATIONS:
        raise SpecError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {name!r}")
    return ACTIVATIONS[name](inplace=inplace)


class Rows(NamedTuple):
    """Which rows of a batch this process has, where several processes share the batch.

    Attributes:
        first: Position of its first image in the whole batch.
        total: Images in the whole batch.
    """

    first: int
    total: int


class Dropout(nn.Dropout):
    """Dropout that can be told which rows of a larger batch its input is, see `set_rows`.

    It then draws for the whole batch and takes its rows, so that all processes together drop what one
    process would with the same generator.
    """

    rows: Rows | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Drop values of x: (N, ...). Returns the same shape."""
        if self.rows is None or not self.training:
            return super().forward(x)
        mask = F.dropout(x.new_ones((self.rows.total, *x.shape[1:])), self.p, True)
        return x * mask[self.rows.first : self.rows.first + len(x)]


class DropPath(nn.Module):
    """Drop the whole branch of a sample with probability `rate` ("drop connect" in the authors' code).

    What is kept is divided by 1 - rate, so the expectation stays. Active in train mode only. Like `Dropout`,
    it can be told which rows of a larger batch its input is.

    Raises:
        SpecError: `rate` is outside [0, 1).
    """

    rows: Rows | None = None

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise SpecError(f"drop path rate must lie in [0, 1), got {rate!r}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Drop samples of x: (N, ...). Returns the same shape."""
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        count = x.shape[0] if self.rows is None else self.rows.total
        mask = x.new_empty((count,) + (1,) * (x.dim() - 1)).bernoulli_(keep)
        if self.rows is not None:
            mask = mask[self.rows.first : self.rows.first + x.shape[0]]
        return x * mask.div_(keep)

    def extra_repr(self) -> str:
        """The rate."""
        return f"rate={self.rate:.4g}"


def set_rows(net: nn.Module, rows: Rows | None) -> None:
    """Tell the random layers of a network which rows of the whole batch they get; None = all of them."""
    for module in net.modules():
        if isinstance(module, Dropout | DropPath):
            module.rows = rows


def make_conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int,
    groups: int,
    bias: bool,
    padding: Padding,
) -> nn.Conv2d:
    """A convolution with either kind of padding."""
    if padding == "same":
        return Conv2dSame(in_channels, out_channels, kernel_size, stride, groups=groups, bias=bias)
    return nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=bias
    )


class ConvNormAct(nn.Module):
    """Convolution, batch normalisation and, unless told otherwise, activation.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Odd side of the kernel.
        stride: Stride of the convolution.
        groups: Groups of channels; `in_channels` for a depthwise convolution.
        activate: Whether the activation of `options` follows.
        options: Activation, padding, norm and bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        groups: int = 1,
        activate: bool = True,
        options: LayerOptions = LayerOptions(),
    ) -> None:
        super().__init__()
        self.conv = make_conv(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            groups=groups,
            bias=options.conv_bias,
            padding=options.padding,
        )
        self.norm = nn.BatchNorm2d(out_channels, eps=options.norm_eps, momentum=options.norm_momentum)
        # The norm's output is nobody else's, so the activation may overwrite it.
        self.act = make_activation(options.activation, inplace=True) if activate else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, in_channels, H, W). Returns (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        x = self.conv(x)
        x = self.norm(x)
        return self.act(x)


class SqueezeExcite(nn.Module):
    """Channels gated by what the whole map holds (Hu et al. 2018): pool, squeeze, excite, multiply.

    Args:
        channels: Channels of the map.
        squeeze_channels: Width of the bottleneck. MBConv takes a quarter of the *block's input*
            channels, not of the expanded ones.
        activation: Activation between the two 1×1 convolutions.
    """

    def __init__(self, channels: int, squeeze_channels: int, *, activation: Activation = "swish") -> None:
        super().__init__()
        if channels < 1 or squeeze_channels < 1:
            raise SpecError(
                f"channels and squeeze_channels must be at least 1, got {channels} and {squeeze_channels}"
            )
        self.reduce = nn.Conv2d(channels, squeeze_channels, 1)
        self.act = make_activation(activation, inplace=True)
        self.expand = nn.Conv2d(squeeze_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Gate x: (N, channels, H, W). Returns the same shape."""
        gate = x.mean((2, 3), keepdim=True)
        gate = self.act(self.reduce(gate))
        return x * self.expand(gate).sigmoid()
