from __future__ import annotations

from dataclasses import replace

import torch

from phiscale.nn.network import Network
from phiscale.spec import HeadSpec, NetworkSpec, StageSpec, StemSpec

TINY = NetworkSpec(
    name="tiny",
    stem=StemSpec(out_channels=8),
    stages=(
        StageSpec(block="mbconv", out_channels=8, se_ratio=0.25),
        StageSpec(block="mbconv", out_channels=16, stride=2, expand_ratio=2, se_ratio=0.25, num_layers=2),
    ),
    head=HeadSpec(out_channels=32),
    image_size=(32, 32),
    num_classes=3,
)

OTHER = replace(TINY, name="other", num_classes=2, head=HeadSpec(out_channels=24))
"""Same names, other shapes and other classes: nothing of it fits beside the first one's configuration."""


def make_net(spec: NetworkSpec, *, seed: int) -> Network:
    torch.manual_seed(seed)
    net = Network(spec)
    # Fresh statistics would hide a buffer that is not stored.
    for name, buffer in net.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return net
