"""A tiny model and labelled pictures, made anew for each test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from phiscale.nn.network import Network
from phiscale.spec import HeadSpec, NetworkSpec, StageSpec, StemSpec
from phiscale.weights.model_dir import save

__all__ = ["CLASSES", "make_images", "make_model"]

# Not in the order of the alphabet, in which data sets have theirs.
CLASSES = ("owl", "cat", "dog", "ant")
TINY = NetworkSpec(
    name="tiny",
    stem=StemSpec(out_channels=8),
    stages=(
        StageSpec(block="mbconv", out_channels=8, se_ratio=0.25),
        StageSpec(block="mbconv", out_channels=16, stride=2, expand_ratio=2, num_layers=2),
    ),
    head=HeadSpec(out_channels=32),
    image_size=(32, 32),
    num_classes=len(CLASSES),
)


def make_model(folder: Path, *, provenance: Mapping[str, Any] | None = None) -> Path:
    torch.manual_seed(0)
    net = Network(TINY)
    torch.nn.init.normal_(net.classifier.weight, std=5.0)  # type: ignore[arg-type]
    return save(net, folder, classes=CLASSES, provenance=provenance)


def make_images(root: Path, counts: Mapping[str, int], *, seed: int = 0) -> Path:
    """Pictures ``root/CLASS/NUMBER.png``; a key such as ``test/cat`` makes a split."""
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.clip(rng.normal(rng.uniform(0, 255, 3), 60, (36, 44, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{index:03}.png")
    return root
