"""Real images that every installation has: crops of photographs that come with other packages."""

from __future__ import annotations

import random
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from phiscale.data.sizes import fit_size
from phiscale.deploy.inputs import images_in
from phiscale.errors import MissingDependencyError
from phiscale.preprocess import Preprocess

__all__ = ["PHOTOGRAPHS", "crop", "photographs", "prepared", "write_jpegs"]

PHOTOGRAPHS = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "galaxies": ("skimage", "data/hubble_deep_field.jpg"),
    "tissue": ("skimage", "data/ihc.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "temple": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
}
JPEG_SIZE = (500, 375)
JPEG_QUALITY = 90
# Share of a photograph's area that a crop has.
SMALLEST, LARGEST = 0.15, 0.9


def photographs() -> dict[str, Image.Image]:
    """The photographs by the names of what is on them, in colour.

    Raises:
        MissingDependencyError: scikit-image or scikit-learn is not installed.
    """
    found = {}
    for name, (package, path) in PHOTOGRAPHS.items():
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise MissingDependencyError(
                f"{package} is not installed; run: pip install scikit-image scikit-learn"
            )
        with Image.open(Path(spec.origin).parent / path) as image:
            found[name] = image.convert("RGB")
    return found


def crop(image: Image.Image, rng: random.Random, size: tuple[int, int] = JPEG_SIZE) -> Image.Image:
    """A random part of an image, half of the time mirrored.

    Args:
        image: The photograph.
        rng: Chooses place, area and mirroring.
        size: (width, height) of the result in pixels; the part has its aspect ratio.
    """
    aspect = size[0] / size[1]
    area = rng.uniform(SMALLEST, LARGEST) * image.width * image.height
    width = min((area * aspect) ** 0.5, image.width, image.height * aspect)
    height = width / aspect
    left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    part = image.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part


def write_jpegs(folder: Path, count: int, *, seed: int = 0) -> list[str]:
    """Write crops of 500×375 pixels, quality 90, the photographs in turn.

    Args:
        folder: Made if it is not there.
        count: How many.
        seed: Another seed gives other crops.

    Returns:
        What is on each, in the order of the files' names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    photos = photographs()
    rng = random.Random(seed)
    labels = [list(photos)[index % len(photos)] for index in range(count)]
    for index, label in enumerate(labels):
        crop(photos[label], rng).save(folder / f"{index:05d}.jpg", quality=JPEG_QUALITY)
    return labels


def prepared(preprocess: Preprocess, count: int, *, seed: int, emoji: int = 0) -> NDArray[np.uint8]:
    """Crops of the photographs, and emoji of the demo, as a network gets them before normalisation.

    Args:
        preprocess: Of the network.
        count: Crops.
        seed: Of the crops.
        emoji: How many of the demo's emoji follow.

    Returns:
        (count + emoji, H, W, 3).
    """
    photos = list(photographs().values())
    rng = random.Random(seed)
    images = [crop(photos[index % len(photos)], rng) for index in range(count)]
    images += [_on_white(path) for path in _emoji(emoji)]
    return np.stack([np.asarray(fit_size(image, preprocess)) for image in images])


def _emoji(count: int) -> list[str]:
    package = find_spec("phiscale")
    assert package is not None
    assert package.origin is not None
    every = list(images_in(Path(package.origin).parent / "demo_data"))
    return every[:: max(1, len(every) // max(1, count))][:count]


def _on_white(path: str) -> Image.Image:
    with Image.open(path) as image:
        picture = image.convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(ground, picture).convert("RGB")
