"""A small network with a block of every kind, for tests that need values rather than sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from phiscale.nn.network import Network
from phiscale.spec import HeadSpec, NetworkSpec, StageSpec, StemSpec

__all__ = ["TINY", "norms", "tiny"]

TINY = NetworkSpec(
    name="tiny",
    stem=StemSpec(out_channels=8),
    stages=(
        StageSpec(block="mbconv", out_channels=8, se_ratio=0.25),
        StageSpec(block="mbconv", out_channels=16, stride=2, expand_ratio=3, num_layers=3, se_ratio=0.25),
        StageSpec(block="bottleneck", out_channels=16, stride=2, num_layers=2),
        StageSpec(block="basic", out_channels=16, num_layers=2),
        StageSpec(block="depthwise_separable", out_channels=24, num_layers=2),
    ),
    head=HeadSpec(out_channels=32),
    image_size=(32, 32),
    num_classes=5,
    dropout=0.2,
    drop_path=0.3,
)


def tiny(seed: int = 0, **changes: Any) -> Network:
    torch.manual_seed(seed)
    return Network(replace(TINY, **changes))


def norms(net: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
