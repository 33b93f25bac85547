"""Made-up photographs: what the commands of README and documentation are run on."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image, ImageDraw

CLASSES = {"cat": (180, 120, 60), "dog": (60, 140, 80), "horse": (70, 90, 170)}


def make_photos(root: Path, *, number: int = 12, size: int = 64) -> Path:
    """Three classes of small colour JPEGs, each on a ground of its own colour."""
    for name, ground in CLASSES.items():
        (root / name).mkdir(parents=True)
        for index in range(number):
            make_photo(random.Random(f"{name}{index}"), ground, size).save(root / name / f"{index}.jpg")
    return root


def make_photo(rng: random.Random, ground: tuple[int, int, int], size: int) -> Image.Image:
    colour = tuple(value + rng.randint(-30, 30) for value in ground)
    image = Image.new("RGB", (size, size), colour)
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y, radius = rng.randrange(size), rng.randrange(size), rng.randint(3, 14)
        fill = (rng.randrange(256), rng.randrange(256), rng.randrange(256))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    return image
