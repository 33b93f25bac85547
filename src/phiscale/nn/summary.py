"""The full layer table of a built network."""

from __future__ import annotations

import torch

from phiscale.errors import require
from phiscale.nn.network import Network
from phiscale.spec import NetworkSpec

__all__ = ["layer_table"]


def layer_table(spec: NetworkSpec, *, batch_size: int, image_size: tuple[int, int]) -> str:
    """Every layer with its output shape, parameters and multiply-adds, as torchinfo prints them.

    Args:
        spec: The network.
        batch_size: Images per batch.
        image_size: (height, width) in pixels.

    Raises:
        MissingDependencyError: torchinfo is not installed.
        ShapeError: The image is too small for the network.
    """
    torchinfo = require("torchinfo", extra="summary")
    # On the meta device shapes are computed and nothing is.
    with torch.device("meta"):
        net = Network(spec).eval()
    size = (batch_size, spec.in_channels, *image_size)
    with torch.no_grad():
        net(torch.empty(size, device="meta"))  # raises our own error where the input does not fit
    table = torchinfo.summary(
        net,
        input_size=size,
        device="meta",
        col_names=("output_size", "kernel_size", "num_params", "mult_adds"),
        row_settings=("var_names",),
        depth=5,  # stages, stage, block, layer, part
        verbose=0,
    )
    return str(table)
