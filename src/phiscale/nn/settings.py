"""Padding and batch normalisation of a network that is built already."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from phiscale.nn.layers import ConvNormAct, MaxPool2dSame, make_conv
from phiscale.nn.network import Network
from phiscale.spec import Padding

__all__ = ["change_settings"]


def change_settings(
    net: Network,
    *,
    padding: Padding | None = None,
    norm_eps: float | None = None,
    norm_momentum: float | None = None,
) -> None:
    """Change in place what weights were trained with and a file of weights does not hold.

    Parameters stay the same objects, so an optimizer that has them keeps working. The spec follows.

    Args:
        net: The network.
        padding: ``"same"`` or ``"symmetric"``; None leaves it.
        norm_eps: Epsilon of every batch norm; None leaves it.
        norm_momentum: Momentum in PyTorch's sense; None leaves it.

    Raises:
        SpecError: A value is not valid. The network is then untouched.
    """
    values = {"padding": padding, "norm_eps": norm_eps, "norm_momentum": norm_momentum}
    given = {name: value for name, value in values.items() if value is not None}
    spec = replace(net.spec, **given)  # type: ignore[arg-type]
    if spec == net.spec:
        return
    for module in list(net.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = spec.norm_eps, spec.norm_momentum
    if spec.padding != net.spec.padding:
        _change_padding(net, spec.padding)
    net.spec = spec


def _change_padding(net: Network, padding: Padding) -> None:
    for module in list(net.modules()):
        # Other convolutions, those of squeeze-excite, have one pixel and are never padded.
        if isinstance(module, ConvNormAct):
            module.conv = _with_padding(module.conv, padding)
    if net.spec.stem.max_pool:
        pool = MaxPool2dSame(3, 2) if padding == "same" else nn.MaxPool2d(3, 2, padding=1)
        net.pool = pool.train(net.pool.training)


def _with_padding(old: nn.Conv2d, padding: Padding) -> nn.Conv2d:
    # On the meta device, so that nothing is initialised, and no random number drawn, in vain.
    with torch.device("meta"):
        new = make_conv(
            old.in_channels,
            old.out_channels,
            old.kernel_size[0],
            stride=old.stride[0],
            groups=old.groups,
            bias=old.bias is not None,
            padding=padding,
        )
    new.weight, new.bias = old.weight, old.bias
    return new.train(old.training)
