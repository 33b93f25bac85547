"""One image looked at for the scan: can it be read, what is unusual about it, its fingerprint."""

from __future__ import annotations

import os
from dataclasses import dataclass

from PIL import Image

from phiscale.data.decode import ImageError, Problem, decode, has_frames, orientation, printable
from phiscale.data.duplicates import Fingerprint, fingerprint
from phiscale.data.sources import ImageRecord, ImageSource

__all__ = ["Probe", "probe"]

# The formats that a name's ending promises, as Pillow calls them.
_FORMATS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), ("JPEG", "MPO")),
    **dict.fromkeys((".tif", ".tiff"), ("TIFF",)),
    **dict.fromkeys((".bmp", ".dib"), ("BMP", "DIB")),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), ("PPM",)),
    ".png": ("PNG",),
    ".gif": ("GIF",),
    ".webp": ("WEBP",),
    ".avif": ("AVIF",),
    ".jp2": ("JPEG2000",),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What one look at an image found.

    Attributes:
        problem: Why it cannot be used, or None.
        reason: The problem in words.
        traits: Kinds of notes that apply: ``"cmyk"``, ``"palette"``, ``"sixteen_bit"``, ``"alpha"``,
            ``"animated"``, ``"exif_rotated"``, ``"grey"``.
        wrong_extension: What name and content disagree on, or "".
        size: (height, width) in pixels, upright; None where it cannot be read.
        fingerprint: For finding duplicates; None where it cannot be read.
    """

    problem: Problem | None = None
    reason: str = ""
    traits: tuple[str, ...] = ()
    wrong_extension: str = ""
    size: tuple[int, int] | None = None
    fingerprint: Fingerprint | None = None


def probe(record: ImageRecord, *, source: ImageSource, max_pixels: int) -> Probe:
    """Read one image. Never raises because of what is in the file."""
    try:
        image = source.read(record, max_pixels=max_pixels)
        decoded = decode(image, max_pixels=max_pixels)
        return Probe(
            traits=_traits(image),
            wrong_extension=_wrong_extension(record.id, image.format),
            size=(decoded.height, decoded.width),
            fingerprint=fingerprint(decoded),
        )
    except ImageError as error:
        return Probe(problem=error.problem, reason=error.reason)
    except Exception as error:  # no file may stop the scan, whatever Pillow or memory do
        return Probe(problem="unreadable", reason=f"cannot be decoded ({printable(error)})")


def _traits(image: Image.Image) -> tuple[str, ...]:
    mode = image.mode
    deep = mode.startswith("I;16") or mode in ("I", "F")
    traits = {
        "cmyk": mode == "CMYK",
        "palette": mode in ("P", "PA"),
        "sixteen_bit": deep,
        "alpha": image.has_transparency_data,
        "animated": has_frames(image),
        "exif_rotated": orientation(image) != 1,
        "grey": deep or mode in ("1", "L", "LA", "La"),
    }
    return tuple(name for name, present in traits.items() if present)


def _wrong_extension(image_id: str, found: str | None) -> str:
    suffix = os.path.splitext(image_id)[1].lower()  # noqa: PTH122 - an id is not always a path
    promised = _FORMATS.get(suffix)
    if promised is None or found is None or found in promised:
        return ""
    return f"named {suffix}, but the content is {found}"
