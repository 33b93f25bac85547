"""Any image, in a file or in memory, as 8-bit RGB or grey.

Training, evaluation and prediction all come through `decode`, so that one file is one picture
everywhere. Whatever Pillow raises on a broken file leaves here as an `ImageError` of one line.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from phiscale.data.quiet import QUIET_PILLOW
from phiscale.errors import DataError

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "IMAGE_FORMATS",
    "TRANSPOSE",
    "ImageError",
    "ImageInput",
    "Problem",
    "count_pixels",
    "decode",
    "has_frames",
    "load_image",
    "orientation",
    "printable",
]

ImageInput = str | Path | bytes | Image.Image | npt.NDArray[Any]
Problem = Literal["unreadable", "truncated", "oversized", "zero_byte"]

# Where Pillow starts to warn of decompression bombs: a quarter of a GiB as RGB.
DEFAULT_MAX_PIXELS = 89_478_485

# Formats of photographs and drawings. Left out on purpose: EPS starts Ghostscript, the others are rare.
IMAGE_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")

_ORIENTATION = 0x0112
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(DataError):
    """An image that cannot be used.

    Attributes:
        problem: ``"unreadable"``, ``"truncated"``, ``"oversized"`` or ``"zero_byte"``.
        reason: The message without the name of the file.
    """

    def __init__(self, message: str, *, problem: Problem = "unreadable", reason: str | None = None) -> None:
        super().__init__(message)
        self.problem: Problem = problem
        self.reason = message if reason is None else reason


def decode(
    file: ImageInput,
    *,
    background: tuple[float, float, float] = (255, 255, 255),
    channels: int = 3,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Image.Image:
    """An image as people see it, in 8 bits.

    EXIF rotation is applied, transparency is laid over `background`, 16-bit and floating-point values
    are scaled to 0–255, CMYK and palettes become RGB, and of an animation the first frame is taken.
    Decoding what was decoded before changes nothing.

    Args:
        file: A path, the bytes of a file, a Pillow image, or an array (height, width),
            (height, width, 1), (height, width, 3) or (height, width, 4): uint8, uint16 of the full range,
            bool, or floating point from 0 to 1.
        background: Colour (R, G, B), from 0 to 255.
        channels: 3 for RGB, 1 for grey.
        max_pixels: Most pixels that an image may have; more is taken for a decompression bomb.

    Returns:
        An image of mode RGB or L.

    Raises:
        ImageError: The image cannot be read; one line that names the file.

    Examples:
        >>> decode(np.full((2, 3), 65535, dtype=np.uint16)).getpixel((0, 0))
        (255, 255, 255)
    """
    if channels not in (1, 3):
        raise DataError(f"channels must be 1 (grey) or 3 (RGB), got {channels!r}")
    target = "RGB" if channels == 3 else "L"
    # Pixels from a cache: nothing to read, and no metadata that could turn them.
    if type(file) is Image.Image and file.mode == target and not file.info:
        return file
    image = load_image(file, max_pixels=max_pixels)
    try:
        with QUIET_PILLOW:
            image = _upright(image)
            image = _to_8_bits(image)
            if image.has_transparency_data:
                image = _flatten(image, background)
            return image if image.mode == target else image.convert(target)
    except Exception as error:  # a broken file can raise nearly anything in Pillow
        raise _image_error(_name(file), error) from None


def load_image(file: ImageInput, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """The image as it is stored, all pixels read: any mode, not rotated.

    Raises:
        ImageError: The image cannot be read.
    """
    if isinstance(file, np.ndarray):
        file = _from_array(file)
    name = _name(file)
    try:
        with QUIET_PILLOW:
            if isinstance(file, Image.Image):
                image = file
            else:
                image = Image.open(io.BytesIO(_read(file, name, max_pixels)), formats=IMAGE_FORMATS)
            _check_pixels(image, name, max_pixels)
            image.load()
            return image
    except ImageError:
        raise
    except Exception as error:  # a broken file can raise nearly anything in Pillow
        raise _image_error(name, error) from None


def count_pixels(file: Path | bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> int:
    """Pixels of an image file, or of the bytes of one, from its header.

    Raises:
        ImageError: The header cannot be read, or announces more than `max_pixels`.
    """
    name = _name(file)
    try:
        if isinstance(file, Path):
            _check_file(file, name, max_pixels)
        with (
            QUIET_PILLOW,
            file.open("rb") if isinstance(file, Path) else io.BytesIO(file) as opened,
            Image.open(opened, formats=IMAGE_FORMATS) as image,
        ):
            _check_pixels(image, name, max_pixels)
            return image.width * image.height
    except ImageError:
        raise
    except Exception as error:  # a broken file can raise nearly anything in Pillow
        raise _image_error(name, error) from None


def orientation(image: Image.Image) -> int:
    """EXIF orientation of a loaded image: 1 (upright) to 8. Metadata that makes no sense count as 1."""
    try:
        with QUIET_PILLOW:
            value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # corrupt EXIF raises nearly anything, and the pixels are still good
        return 1
    return value if isinstance(value, int) and value in TRANSPOSE else 1


def has_frames(image: Image.Image) -> bool:
    """Whether a loaded image is an animation or has several pages. Moves within the file."""
    if image.format == "MPO":  # a photograph with previews or depth maps behind it
        return False
    try:
        with QUIET_PILLOW:
            return bool(getattr(image, "is_animated", False))
    except Exception:  # later frames may be broken; the first one is what counts
        return False


def printable(name: object) -> str:
    r"""A file name that every terminal can show: control characters and broken Unicode as escapes.

    Examples:
        >>> printable("a\nb")
        'a\\nb'
    """
    text = str(name)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _name(file: ImageInput) -> str:
    if isinstance(file, str | Path):
        return printable(file)
    origin = getattr(file, "filename", "")
    return printable(origin) if isinstance(origin, str | Path) and str(origin) else "image in memory"


def _check_file(path: Path, name: str, max_pixels: int) -> None:
    try:
        is_file, exists = path.is_file(), path.exists()
        size = path.stat().st_size if is_file else 0
    except (OSError, ValueError) as error:  # a name that is too long, or holds a zero character
        raise _image_error(name, error) from None
    if not is_file:
        # Opening a pipe or a device would wait for ever, so only plain files are opened.
        reason = "not a plain file" if exists else "there is no such file or folder"
        raise ImageError(f"{name}: {reason}", reason=reason)
    if size == 0:
        raise ImageError(f"{name}: the file is empty", problem="zero_byte", reason="the file is empty")
    # Eight bytes per pixel is 16-bit RGBA without compression; the rest is room for metadata.
    if size > 8 * max_pixels + 2**26:
        reason = f"the file has {size / 2**20:.0f} MiB, more than an image of {max_pixels:,} pixels needs"
        raise ImageError(f"{name}: {reason}", problem="oversized", reason=reason)


def _read(file: str | Path | bytes, name: str, max_pixels: int) -> bytes:
    if isinstance(file, str | Path):
        path = Path(file)
        _check_file(path, name, max_pixels)
        return path.read_bytes()
    if not isinstance(file, bytes | bytearray | memoryview):
        raise DataError(
            f"an image must be a path, bytes, a Pillow image or an array, got {type(file).__name__}"
        )
    if len(file) == 0:
        raise ImageError(f"{name}: there are no bytes", problem="zero_byte", reason="there are no bytes")
    return bytes(file)


def _check_pixels(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{name}: the image has no pixels", reason="the image has no pixels")
    if width * height > max_pixels:
        reason = f"{width}×{height} pixels; at most {max_pixels:,} are read"
        raise ImageError(f"{name}: {reason}", problem="oversized", reason=reason)


def _image_error(name: str, error: Exception) -> ImageError:
    """One line for whatever Pillow threw."""
    problem: Problem = "unreadable"
    detail = printable(str(error).partition("\n")[0])
    if isinstance(error, Image.DecompressionBombError):
        problem, reason = "oversized", "far more pixels than Pillow reads (a decompression bomb?)"
    elif isinstance(error, UnidentifiedImageError):
        reason = "the content is not an image of a known format"
    elif isinstance(error, EOFError) or "truncated" in detail.lower():
        problem, reason = "truncated", "the file ends too early"
    elif isinstance(error, MemoryError):
        reason = "decoding needs more memory than there is"
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    else:
        reason = f"cannot be decoded ({detail or type(error).__name__})"
    return ImageError(f"{name}: {reason}", problem=problem, reason=reason)


def _upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it writes the EXIF again, which fails where the EXIF is corrupt.
    method = TRANSPOSE.get(orientation(image))
    if method is None:
        return image
    result = image.transpose(method)
    # Without its EXIF the result cannot be rotated a second time.
    result.info = {key: value for key, value in image.info.items() if key == "transparency"}
    return result


def _to_8_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray(_scale(np.asarray(image), 0, 65535))
    if image.mode not in ("I", "F"):
        return image
    # 32-bit files do not say what white is: take the smallest usual range that holds every value.
    values = np.array(image, dtype=np.float32)
    np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    tops = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    if low >= 0:
        low, high = 0.0, next((top for top in tops if high <= top), high)
    return Image.fromarray(_scale(values, low, high))


def _scale(values: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.uint8]:
    """Values of [low, high] spread over 0 to 255 and rounded."""
    # In place and in single precision, which is fine enough for 256 steps: these arrays can be large.
    scaled = values.astype(np.float32)
    scaled -= low
    scaled *= 255.0 / ((high - low) or 1.0)
    np.rint(scaled, out=scaled)
    np.clip(scaled, 0, 255, out=scaled)
    return scaled.astype(np.uint8)


def _flatten(image: Image.Image, background: tuple[float, float, float]) -> Image.Image:
    """Lay an image of any transparent mode over one colour. Returns mode RGB."""
    if image.mode == "La":  # premultiplied grey has no direct way to RGBA
        image = image.convert("LA")
    red, green, blue = (round(value) for value in background)
    canvas = Image.new("RGBA", image.size, (red, green, blue, 255))
    return Image.alpha_composite(canvas, image.convert("RGBA")).convert("RGB")


def _from_array(array: npt.NDArray[Any]) -> Image.Image:
    """An array as an 8-bit image.

    Raises:
        ImageError: Shape or type is not one of those that `decode` lists.
    """
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ImageError(
            "an array must have the shape (height, width), (height, width, 1), (height, width, 3) or "
            f"(height, width, 4); got {array.shape}"
        )
    if array.dtype == np.uint16:
        array = _scale(array, 0, 65535)
    elif array.dtype == np.bool_ or (np.issubdtype(array.dtype, np.floating) and _within(array, 0, 1)):
        array = _scale(array, 0, 1)
    elif np.issubdtype(array.dtype, np.integer) and _within(array, 0, 255):
        array = array.astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageError(
            f"an array of {array.dtype} must hold {'0 to 1' if array.dtype.kind == 'f' else '0 to 255'}; "
            f"its values go from {array.min()} to {array.max()}"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _within(array: npt.NDArray[Any], low: float, high: float) -> bool:
    return bool(array.min() >= low and array.max() <= high)
