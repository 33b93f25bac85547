"""JPEG files straight to the network's size: what `decode` and `fit_size` do, with the waste left out.

Two things are saved. A large photograph is decoded at ½, ⅜, ¼ or ⅛ of its size, which libjpeg does by leaving
out frequencies; and of the resized picture only the part that the crop keeps is computed. The second changes
nothing, the first some grey levels: what is decoded stays at least three times as large as its resized form.
Files that are unusual in any way are left to `decode`.

`read_jpeg` gives what evaluation sees. Training opens a file by `open_jpeg`, draws a crop for its size and
has `read_crop` decode no more than that takes.
"""

from __future__ import annotations

import functools
import importlib
import io
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from phiscale.data.decode import DEFAULT_MAX_PIXELS, TRANSPOSE, ImageInput, orientation
from phiscale.data.quiet import QUIET_PILLOW
from phiscale.data.sizes import RESAMPLING, crop_geometry, fit_size
from phiscale.preprocess import Interpolation, Preprocess

__all__ = ["Jpeg", "open_jpeg", "read_crop", "read_jpeg"]

Box = tuple[float, float, float, float]
_Number = TypeVar("_Number", int, float)

_START = b"\xff\xd8\xff"
# Decoded sides over resized sides, at least. On photographs resized to 16 to 224 pixels, the mean difference
# from a whole decode was at most 0.7 grey levels with 3, and 1.2 with 2.
_MARGIN = 3
# From half the size on; ¾ takes longer than the whole.
_MIN_FACTOR = 2
_EIGHTHS = 8  # libjpeg's factors are multiples of an eighth
# What stands in a file that may have to be turned: EXIF, or the orientation in XMP. Pillow reads both, which
# takes a tenth of the time of decoding.
_METADATA = (b"Exif", b"rientation")
_COLOURS = ("YCbCr", "RGB", "Gray")
_BY_TORCH = ("bilinear", "bicubic")  # what torch's antialiased resize of bytes knows


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
    jpeg = open_jpeg(file, max_pixels=max_pixels)
    if jpeg is None:
        return None
    pixels = _decode(jpeg, preprocess.channels, _least_size(jpeg.size, preprocess))
    if pixels is None:
        return None
    picture = Image.fromarray(pixels if preprocess.channels == 3 else pixels[:, :, 0])
    whole = _part(jpeg, pixels)
    if jpeg.turn in TRANSPOSE:
        picture = picture.transpose(TRANSPOSE[jpeg.turn])
    result = np.asarray(_fit(picture, whole, jpeg.size, preprocess))
    return result if result.ndim == 3 else result[:, :, None]


@dataclass(frozen=True)
class Jpeg:
    """A JPEG file that can be decoded the fast way.

    Attributes:
        data: Its bytes.
        stored: (width, height) as stored, in pixels.
        turn: EXIF orientation, 1 (upright) to 8.
    """

    data: bytes
    stored: tuple[int, int]
    turn: int

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the picture as people see it."""
        return _upright(self.stored, self.turn)


def open_jpeg(file: ImageInput, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Jpeg | None:
    """Read a JPEG file and its header, and no pixels.

    Args:
        file: As for `phiscale.data.decode.decode`.
        max_pixels: Most pixels that the image may have.

    Returns:
        None where `decode` has to look at the file: see `read_jpeg`.
    """
    data = _jpeg_bytes(file, max_pixels) if _simplejpeg() is not None else None
    header = None if data is None else _header(data)
    if data is None or header is None:
        return None
    (width, height), turn = header
    return Jpeg(data, (width, height), turn) if 0 < width * height <= max_pixels else None


def read_crop(
    jpeg: Jpeg,
    crop: tuple[int, int, int, int],
    size: tuple[int, int],
    *,
    interpolation: Interpolation,
    channels: int,
) -> npt.NDArray[np.uint8] | None:
    """Decode a JPEG, cut out a part and resize it, without what the part does not need.

    Args:
        jpeg: From `open_jpeg`.
        crop: (left, top, width, height) in pixels of the upright picture.
        size: (height, width) of the result.
        interpolation: How to resize.
        channels: 3 for RGB, 1 for grey.

    Returns:
        uint8 (height, width, channels); None where `decode` has to look at the file.
    """
    left, top, crop_width, crop_height = crop
    needed = jpeg.size
    if interpolation != "nearest":  # which takes single pixels and no averages
        # The whole picture has to be as much larger than the part as it is in the file.
        needed = (
            math.ceil(_MARGIN * size[1] * jpeg.size[0] / crop_width),
            math.ceil(_MARGIN * size[0] * jpeg.size[1] / crop_height),
        )
    decoded = _decode(jpeg, channels, needed)
    if decoded is None:
        return None
    start_x, start_y, end_x, end_y = _part(jpeg, decoded)
    x, y = (end_x - start_x) / jpeg.size[0], (end_y - start_y) / jpeg.size[1]
    pixels = _turned(decoded, jpeg.turn)
    left_edge, top_edge = start_x + left * x, start_y + top * y
    box = (left_edge, top_edge, left_edge + crop_width * x, top_edge + crop_height * y)
    return _resize_part(pixels, box, size, interpolation)


def _decode(jpeg: Jpeg, channels: int, needed: tuple[int, int]) -> npt.NDArray[np.uint8] | None:
    """The picture as stored, (height, width, channels), of at least the upright size `needed` or whole."""
    simplejpeg = _simplejpeg()
    assert simplejpeg is not None, "open_jpeg gives nothing without it"
    width, height = _upright(needed, jpeg.turn)
    try:
        # Strict: a warning of libjpeg, such as of a file that ends too early, is for `decode` to judge.
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(
            jpeg.data,
            "RGB" if channels == 3 else "GRAY",
            min_width=width,
            min_height=height,
            min_factor=_MIN_FACTOR,
            strict=True,
        )
    except (ValueError, RuntimeError):
        return None
    return pixels


def _turned(pixels: npt.NDArray[np.uint8], turn: int) -> npt.NDArray[np.uint8]:
    """Pixels (H, W, C) as stored, turned upright without a copy."""
    if turn in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if turn in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if turn in (2, 3, 6, 7) else pixels


def _resize_part(
    pixels: npt.NDArray[np.uint8], box: Box, size: tuple[int, int], interpolation: Interpolation
) -> npt.NDArray[np.uint8]:
    """Cut out a box, with fractions of pixels, and resize it to (height, width)."""
    left, top = math.floor(box[0]), math.floor(box[1])
    # Sums of fractions may pass the picture's edge by a rounding error, which Pillow does not take.
    right, bottom = min(box[2], pixels.shape[1]), min(box[3], pixels.shape[0])
    # Nothing outside of the box: a crop that is cut out first does not see beyond its edges either.
    part = np.ascontiguousarray(pixels[top : math.ceil(bottom), left : math.ceil(right)])
    whole_pixels = (left, top, right, bottom) == (*box[:2], part.shape[1] + left, part.shape[0] + top)
    if whole_pixels and interpolation in _BY_TORCH:
        return _resize_by_torch(part, size, interpolation)
    image = Image.fromarray(part if part.shape[2] == 3 else part[:, :, 0])
    inside = (box[0] - left, box[1] - top, right - left, bottom - top)
    resized = np.asarray(image.resize((size[1], size[0]), RESAMPLING[interpolation], box=inside))
    return resized if resized.ndim == 3 else resized[:, :, None]


def _resize_by_torch(
    pixels: npt.NDArray[np.uint8], size: tuple[int, int], interpolation: Interpolation
) -> npt.NDArray[np.uint8]:
    """Pillow's antialiased resize in torch's vector kernel, which takes a third of the time.

    It rounds to bytes between its two passes as Pillow does, but does not always begin with the same one.
    """
    import torch  # a predictor of exports reads JPEGs without it

    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(planes, size=size, mode=interpolation, antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


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
        about = os.stat(file)  # noqa: PTH116 - pathlib takes longer than the system
        if not stat.S_ISREG(about.st_mode) or about.st_size > 8 * max_pixels:
            return None
        with open(file, "rb", buffering=0) as opened:  # noqa: PTH123
            start = opened.read(len(_START))
            return start + opened.readall() if start == _START else None
    except (OSError, ValueError):  # not there, may not be read, or no name that a file can have
        return None


def _header(data: bytes) -> tuple[tuple[int, int], int] | None:
    """(width, height) as stored, and the EXIF orientation; None for CMYK and what cannot be opened."""
    simplejpeg = _simplejpeg()
    if simplejpeg is not None and not any(word in data for word in _METADATA):
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            return None
        return ((width, height), 1) if colours in _COLOURS else None
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


def _least_size(size: tuple[int, int], preprocess: Preprocess) -> tuple[int, int]:
    """(width, height) that a picture has to be decoded to at least; `size`, its own, for all of it."""
    if _needs_all(preprocess):
        return size
    resized = (preprocess.size[1], preprocess.size[0])
    if preprocess.resize == "crop":
        resized, _ = crop_geometry(size, preprocess)
    return _MARGIN * resized[0], _MARGIN * resized[1]


def _needs_all(preprocess: Preprocess) -> bool:
    # Nearest takes single pixels and no averages. The padding depends on the size to a pixel.
    return preprocess.interpolation == "nearest" or preprocess.resize == "pad"


def _scale(decoded: tuple[int, int], stored: tuple[int, int]) -> float:
    """What was decoded of a stored size, from ⅛ to 1; libjpeg rounds sides up."""
    for eighths in range(1, _EIGHTHS):
        if decoded == tuple(math.ceil(side * eighths / _EIGHTHS) for side in stored):
            return eighths / _EIGHTHS
    return 1.0


def _part(jpeg: Jpeg, decoded: npt.NDArray[np.uint8]) -> Box:
    """(left, top, right, bottom) of what was decoded, turned upright, that the picture itself fills.

    The last column and row may be filled in part; a turned picture begins with them.
    """
    size = (decoded.shape[1], decoded.shape[0])
    scale = _scale(size, jpeg.stored)
    width, height = jpeg.size[0] * scale, jpeg.size[1] * scale
    whole_width, whole_height = _upright(size, jpeg.turn)
    left = whole_width - width if jpeg.turn in (2, 3, 6, 7) else 0.0
    top = whole_height - height if jpeg.turn in (3, 4, 7, 8) else 0.0
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
