"""Statistics of batch norm, measured anew."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["recalibrate_norms"]


@torch.no_grad()
def recalibrate_norms(net: nn.Module, batches: Iterable[Tensor]) -> int:
    """Replace the running statistics of every batch norm by the plain average over some batches.

    For weights that meet other activations or other images than those they were trained with: their
    stored means and variances are then those of something else. Nothing else in the network changes.

    Args:
        net: The network, changed in place; its mode stays as it was.
        batches: Prepared images (N, in_channels, H, W) with N > 1, representative of what will come.

    Returns:
        How many images were seen. With none, nothing changes.
    """
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    modes = {module: module.training for module in net.modules()}
    momenta = [norm.momentum for norm in norms]
    images = 0
    try:
        net.eval()  # dropout and drop path stay out of it
        for batch in batches:
            if images == 0:
                for norm in norms:
                    norm.reset_running_stats()
                    norm.momentum = None  # the average of all batches
                    norm.train()
            net(batch)
            images += len(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    return images
