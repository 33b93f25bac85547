"""Small folders of images for the tests of the data layer."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

from malformed import picture


def write_images(
    root: Path, numbers: Mapping[str, int], *, size: tuple[int, int] = (24, 20), salt: str = ""
) -> Path:
    """Write PNGs 0.png, 1.png, … into one folder per class, different pictures for another salt."""
    for name, number in numbers.items():
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(number):
            seed = zlib.crc32(f"{salt}{name}/{index}".encode())
            picture(*size, seed=seed).save(folder / f"{index}.png")
    return root
