from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from phiscale.nn.network import Network
from phiscale.spec import HeadSpec, NetworkSpec, StageSpec, StemSpec
from phiscale.weights.model_dir import save

CLASSES = ("cat", "dog", "owl")
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


def make_model(folder: Path, *, channels: int = 3, seed: int = 0, spec: NetworkSpec = TINY) -> Path:
    torch.manual_seed(seed)
    return save(Network(replace(spec, in_channels=channels)), folder, classes=CLASSES)


def make_photos(root: Path) -> Path:
    """Five pictures in a tree, two things that are no pictures, and one that is broken."""
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "deep/c.png", "deep/er/d.JPG", "z.bmp"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (48, 40, 3), dtype=np.uint8)).save(path)
    (root / "notes.txt").write_text("no picture")
    (root / ".hidden.png").write_bytes(b"")
    (root / "broken.jpg").write_bytes((root / "b.jpg").read_bytes()[:100])
    return root
