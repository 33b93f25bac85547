"""Mixup (Zhang et al. 2018): train on weighted pairs of images and of their labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2

__all__ = ["mixup"]


def mixup(images: Tensor, labels: Tensor, *, alpha: float, num_classes: int) -> tuple[Tensor, Tensor]:
    """Mix each image with its neighbour in the batch, with one weight λ ~ Beta(alpha, alpha) per batch.

    Draws from torch's global generator.

    Args:
        images: (N, C, H, W), normalised floats.
        labels: (N,), int64.
        alpha: Parameter of the Beta distribution; 0.2 is mild, 1.0 uniform.
        num_classes: Width of the targets.

    Returns:
        Mixed images (N, C, H, W), in the memory format of `images`, and soft targets (N, num_classes).
    """
    mixed, targets = v2.MixUp(alpha=alpha, num_classes=num_classes)(images, labels)
    if images.is_contiguous(memory_format=torch.channels_last):
        # The roll inside returns a plainly contiguous tensor for some layouts.
        mixed = mixed.contiguous(memory_format=torch.channels_last)
    return mixed, targets
