"""JPEG files straight to the network's size: what `decode` and `fit_size` do, with the waste left out.

Two things are saved. A large photograph is decoded at ½, ⅜, ¼ or ⅛ of its size, which libjpeg does by leaving
out frequencies; and of the resized picture only the part that the crop keeps is computed. The second changes
nothing, the first some grey levels: what is decoded stays at least three times as large as its resized form.
Files that are unusual in any way are left to `decode`.
"""

from __future__ import annotations

import functools
import importlib
import io
import math
import stat
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from phiscale.data.decode import DEFAULT_MAX_PIXELS, TRANSPOSE, ImageInput, orientation
from phiscale.data.quiet import QUIET_PILLOW
from phiscale.data.sizes import RESAMPLING, crop_geometry, fit_size
from phiscale.preprocess import Preprocess

__all__ = ["read_jpeg"]

Box = tuple[float, float, float, float]
_Number = TypeVar("_Number", int, float)

_START = b"\xff\xd8\xff"
# Decoded sides over resized sides, at least. On photographs resized to 16 to 224 pixels, the mean difference
# from a whole decode was at most 0.7 grey levels with 3, and 1.2 with 2.
_MARGIN = 3
# From half the size on; ¾ takes longer than the whole.
_MIN_FACTOR = 2
_EIGHTHS = 8  # libjpeg's factors are multiples of an eighth


def read_jpeg(
    file: ImageInput, preprocess: Preprocess, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> npt.NDArray[np.uint8] | None:
    """Read a JPEG at the size of a `Preprocess`.

    Args:
        file: As for `phiscale.data.decode.decode`.
        preprocess: Size, resize mode, interpolation and channels.
        max_pixels: Most pixels that the image may have.

    Returns:
        uint8 (height, width, channels); or None where `decode` has to look at the file: it is no JPEG or a
        damaged one, has other colours than RGB and grey, is too large, or simplejpeg is not installed.
    """
    simplejpeg = _simplejpeg()
    data = _jpeg_bytes(file, max_pixels) if simplejpeg is not None else None
    header = None if data is None else _header(data)
    if simplejpeg is None or data is None or header is None:
        return None
    (width, height), turn = header
    if not 0 < width * height <= max_pixels:
        return None
    colours = "RGB" if preprocess.channels == 3 else "GRAY"
    least_width, least_height = _least_size((width, height), turn, preprocess)
    try:
        # Strict: a warning of libjpeg, such as of a file that ends too early, is for `decode` to judge.
        pixels = simplejpeg.decode_jpeg(
            data, colours, min_width=least_width, min_height=least_height, min_factor=_MIN_FACTOR, strict=True
        )
    except (ValueError, RuntimeError):
        return None
    picture = Image.fromarray(pixels if preprocess.channels == 3 else pixels[:, :, 0])
    whole = _part((width, height), turn, _scale(picture.size, (width, height)), picture.size)
    if turn in TRANSPOSE:
        picture = picture.transpose(TRANSPOSE[turn])
    result = np.asarray(_fit(picture, whole, _upright((width, height), turn), preprocess))
    return result if result.ndim == 3 else result[:, :, None]


@functools.cache
def _simplejpeg() -> ModuleType | None:
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None


def _jpeg_bytes(file: ImageInput, max_pixels: int) -> bytes | None:
    """The content of a file that begins like a JPEG; None for everything else, pipes and giants included."""
    if isinstance(file, bytes):
        return file if file.startswith(_START) else None
    if not isinstance(file, str | Path):
        return None
    try:
        about = Path(file).stat()
        if not stat.S_ISREG(about.st_mode) or about.st_size > 8 * max_pixels:
            return None
        with Path(file).open("rb") as opened:
            start = opened.read(len(_START))
            return start + opened.read() if start == _START else None
    except (OSError, ValueError):  # not there, may not be read, or no name that a file can have
        return None


def _header(data: bytes) -> tuple[tuple[int, int], int] | None:
    """(width, height) as stored, and the EXIF orientation; None for CMYK and what Pillow does not open."""
    try:
        with QUIET_PILLOW, Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            if image.mode not in ("RGB", "L"):
                return None
            return image.size, orientation(image)
    except Exception:  # a broken file can raise nearly anything in Pillow
        return None


def _upright(size: tuple[_Number, _Number], turn: int) -> tuple[_Number, _Number]:
    # From 5 on, EXIF's orientations lie on their side.
    return (size[1], size[0]) if turn >= 5 else size


def _least_size(size: tuple[int, int], turn: int, preprocess: Preprocess) -> tuple[int, int]:
    """(width, height) of the stored image that have to be decoded at least; `size` itself for all of it."""
    if _needs_all(preprocess):
        return size
    resized = (preprocess.size[1], preprocess.size[0])
    if preprocess.resize == "crop":
        resized, _ = crop_geometry(_upright(size, turn), preprocess)
    width, height = _upright(resized, turn)
    return _MARGIN * width, _MARGIN * height


def _needs_all(preprocess: Preprocess) -> bool:
    # Nearest takes single pixels and no averages. The padding depends on the size to a pixel.
    return preprocess.interpolation == "nearest" or preprocess.resize == "pad"


def _scale(decoded: tuple[int, int], stored: tuple[int, int]) -> float:
    """What was decoded of a stored size, from ⅛ to 1; libjpeg rounds sides up."""
    for eighths in range(1, _EIGHTHS):
        if decoded == tuple(math.ceil(side * eighths / _EIGHTHS) for side in stored):
            return eighths / _EIGHTHS
    return 1.0


def _part(stored: tuple[int, int], turn: int, scale: float, decoded: tuple[int, int]) -> Box:
    """(left, top, right, bottom) of a decoded and turned picture that the image itself fills.

    The last column and row may be filled in part; a turned picture begins with them.
    """
    width, height = _upright((stored[0] * scale, stored[1] * scale), turn)
    whole_width, whole_height = _upright(decoded, turn)
    left = whole_width - width if turn in (2, 3, 6, 7) else 0.0
    top = whole_height - height if turn in (3, 4, 7, 8) else 0.0
    return left, top, left + width, top + height


def _fit(picture: Image.Image, part: Box, size: tuple[int, int], preprocess: Preprocess) -> Image.Image:
    """`fit_size` of an image of `size` (width, height), which was decoded to a part of a picture."""
    if _needs_all(preprocess):
        return fit_size(picture, preprocess)
    resized, kept = (preprocess.size[1], preprocess.size[0]), (0, 0)
    if preprocess.resize == "crop":
        resized, kept = crop_geometry(size, preprocess)
    left, top, right, bottom = part
    x, y = (right - left) / resized[0], (bottom - top) / resized[1]
    left, top = left + kept[0] * x, top + kept[1] * y
    height, width = preprocess.size
    # Sums of fractions may pass the picture's edge by a rounding error, which Pillow does not take.
    box = (left, top, min(left + width * x, picture.width), min(top + height * y, picture.height))
    return picture.resize((width, height), RESAMPLING[preprocess.interpolation], box=box)
