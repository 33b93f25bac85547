"""Small folders of pictures, no two alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def make_images(root: Path, *, count: int = 10, size: tuple[int, int] = (40, 48), mode: str = "RGB") -> Path:
    """Three classes of smooth pictures, no two alike; `size` is (height, width)."""
    for label, name in enumerate(("ash", "elm", "oak")):
        (root / name).mkdir(parents=True)
        for index in range(count):
            rng = np.random.default_rng((label, index))
            coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
            image = coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC).convert(mode)
            image.save(root / name / f"{index}.png")
    return root
