"""Images brought to the size of a `Preprocess`. No torch here: a predictor of exports needs none."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from phiscale.preprocess import Preprocess

__all__ = ["RESAMPLING", "crop_geometry", "fit_size", "shifted"]

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# A 1×5000 image resized to cover 256×256 would be 256×1.28 million pixels. Above this many pixels, only
# the part that the crop keeps is computed; it can differ by rounding from the whole image's resize.
_MAX_RESIZED_PIXELS = 2**25


def fit_size(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    """Bring a decoded image to the size of a `Preprocess`, in the way that it says.

    Args:
        image: Mode RGB or L.
        preprocess: Size, resize mode and interpolation.

    Returns:
        An image of exactly `preprocess.size`.
    """
    height, width = preprocess.size
    resample = RESAMPLING[preprocess.interpolation]
    if preprocess.resize == "crop":
        return _resize_and_crop(image, preprocess)
    if preprocess.resize == "squash":
        return _resize(image, (width, height), resample)
    scale = min(width / image.width, height / image.height)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = Image.new("RGB", (1, 1), _colour(preprocess)).convert(image.mode).resize((width, height))
    canvas.paste(_resize(image, inner, resample), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return canvas


def _resize_and_crop(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    height, width = preprocess.size
    resized, (left, top) = crop_geometry(image.size, preprocess)
    resample = RESAMPLING[preprocess.interpolation]
    if resized[0] * resized[1] > _MAX_RESIZED_PIXELS:
        x, y = image.width / resized[0], image.height / resized[1]
        box = (left * x, top * y, (left + width) * x, (top + height) * y)
        return image.resize((width, height), resample, box=box)
    image = _resize(image, resized, resample)
    return image if resized == (width, height) else image.crop((left, top, left + width, top + height))


def crop_geometry(size: tuple[int, int], preprocess: Preprocess) -> tuple[tuple[int, int], tuple[int, int]]:
    """What ``"crop"`` does to an image of a size (width, height).

    Returns:
        The size (width, height) that it is resized to, and (left, top) of the part that is kept.
    """
    width, height = size
    cover_height, cover_width = preprocess.resize_size
    # The side that is relatively shorter gets its exact size; the other is rounded down, like torchvision.
    if cover_height * width >= cover_width * height:
        resized = (cover_height * width // height, cover_height)
    else:
        resized = (cover_width, cover_width * height // width)
    kept_height, kept_width = preprocess.size
    # round() takes halves to the even number, and so does torchvision.
    return resized, (round((resized[0] - kept_width) / 2), round((resized[1] - kept_height) / 2))


def _resize(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    return image if image.size == size else image.resize(size, resample)


def _colour(preprocess: Preprocess) -> tuple[int, int, int]:
    red, green, blue = preprocess.background
    return round(red), round(green), round(blue)


def shifted(pixels: npt.NDArray[np.uint8], by: int, *, axis: int) -> npt.NDArray[np.uint8]:
    """Pixels moved along an axis; its first or last row or column fills the gap."""
    side = pixels.shape[axis]
    return pixels.take(np.arange(-by, side - by), axis=axis, mode="clip")
