"""The network's layers in the form that trains fastest on a CPU, put in place for the length of a run.

A layer keeps its parameters, its buffers and their names: only its class, and with it `forward`, is another
one until the end of the block. In eval mode, on other devices and with other activations it does what it did.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from phiscale.nn.layers import Conv2dSame, ConvNormAct, SqueezeExcite, Swish, same_pads
from phiscale.training import kernels

__all__ = ["FastConvNormAct", "FastSqueezeExcite", "fast_layers"]


class FastConvNormAct(ConvNormAct):
    """`ConvNormAct` by `kernels.depthwise` and `kernels.norm_swish`, where it is depthwise, or has Swish."""

    def forward(self, x: Tensor) -> Tensor:
        """As in `ConvNormAct`."""
        if not (self.training and x.device.type == "cpu"):
            return super().forward(x)
        x = _depthwise(x, self.conv) if _is_depthwise(self.conv) else self.conv(x)
        # Not one that is of several processes' batches, or another kind.
        if type(self.norm) is nn.BatchNorm2d and _is_swish(self.act):
            return kernels.norm_swish(x, self.norm)
        return self.act(self.norm(x))


class FastSqueezeExcite(SqueezeExcite):
    """`SqueezeExcite` by `kernels.squeeze_excite`, where its activation is Swish."""

    def forward(self, x: Tensor) -> Tensor:
        """As in `SqueezeExcite`."""
        if not (self.training and x.device.type == "cpu" and _is_swish(self.act)):
            return super().forward(x)
        reduce, expand = self.reduce, self.expand
        assert reduce.bias is not None
        assert expand.bias is not None
        with torch.autocast("cpu", enabled=False):
            return kernels.squeeze_excite(
                x, (reduce.weight.flatten(1), reduce.bias), (expand.weight.flatten(1), expand.bias)
            )


_FAST: dict[type[nn.Module], type[nn.Module]] = {
    ConvNormAct: FastConvNormAct,
    SqueezeExcite: FastSqueezeExcite,
}


@contextmanager
def fast_layers(net: nn.Module, *, enabled: bool = True) -> Iterator[None]:
    """Have the layers of a network compute in their fast form until the end of the block.

    Args:
        net: Changed in place. What is derived from these layers is left as it is.
        enabled: Whether to do anything.
    """
    changed = [module for module in net.modules() if enabled and type(module) in _FAST]
    plain = [type(module) for module in changed]
    for module in changed:
        module.__class__ = _FAST[type(module)]
    try:
        yield
    finally:
        for module, kind in zip(changed, plain, strict=True):
            module.__class__ = kind


def _is_depthwise(conv: nn.Conv2d) -> bool:
    return (
        conv.groups == conv.in_channels == conv.out_channels > 1
        and conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
    )


def _is_swish(act: nn.Module) -> bool:
    return isinstance(act, Swish) and not isinstance(act.beta, Tensor) and act.beta == 1.0


def _depthwise(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """The convolution, in the type of autocast where that is on."""
    (kernel_height, kernel_width), (down, across) = conv.kernel_size, conv.stride
    if isinstance(conv, Conv2dSame):
        size = (x.shape[2], x.shape[3])
        pads = same_pads(size, (kernel_height, kernel_width), (down, across))
    else:
        top, left = (int(side) for side in conv.padding)
        pads = (left, left, top, top)
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
    with torch.autocast("cpu", enabled=False):
        bias = None if conv.bias is None else conv.bias.to(dtype)
        return kernels.depthwise(x.to(dtype), conv.weight.to(dtype), bias, (down, across), pads)
