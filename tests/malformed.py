"""About a hundred broken and odd image files, the same ones every time.

The beginning of a name says what must happen:

- ``bad_``: no image can be read from it; it must be reported, and nothing may crash.
- ``odd_``: unusual, but a picture that must be read.
- ``any_``: damaged where decoders may disagree; either is right, as long as nothing crashes.
"""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["image_bytes", "make_malformed", "picture"]


def picture(width: int = 48, height: int = 40, seed: int = 0) -> Image.Image:
    """A coloured picture of smooth blobs: compressible, with contrast, different for every seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def image_bytes(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of a file of one format."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def make_malformed(folder: Path) -> list[Path]:
    """Write the files into a folder, which is made if need be. Returns their paths, sorted."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        **_truncated(),
        **_empty_and_foreign(),
        **_bombs(),
        **_corrupt(),
        **_odd_modes(),
        **_odd_metadata(),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return sorted([*(folder / name for name in files), *_odd_entries(folder)])


def _truncated() -> dict[str, bytes]:
    image = picture(96, 80, seed=1)
    whole = {
        "jpg": image_bytes(image, "JPEG"),
        "progressive.jpg": image_bytes(image, "JPEG", progressive=True),
        "png": image_bytes(image, "PNG"),
        "webp": image_bytes(image, "WEBP"),
        "bmp": image_bytes(image, "BMP"),
        "tif": image_bytes(image, "TIFF"),
    }
    files = {
        f"bad_truncated_{percent}.{suffix}": content[: len(content) * percent // 100]
        for suffix, content in whole.items()
        for percent in (1, 10, 50, 90)
    }
    gif = image_bytes(image.quantize(), "GIF")
    files |= {f"bad_truncated_{percent}.gif": gif[: len(gif) * percent // 100] for percent in (1, 50)}
    # Without its last two bytes a JPEG still has every pixel.
    files["any_no_end_marker.jpg"] = whole["jpg"][:-2]
    files["any_rubbish_behind.jpg"] = whole["jpg"] + b"\0rubbish" * 20
    return files


def _empty_and_foreign() -> dict[str, bytes]:
    rng = random.Random(0)
    files = {f"bad_empty.{suffix}": b"" for suffix in ("jpg", "png", "gif", "webp", "tif")}
    files |= {f"bad_random.{suffix}": rng.randbytes(2000) for suffix in ("jpg", "png", "gif", "webp", "tif")}
    files |= {
        "bad_text.jpg": b"this is not an image\n" * 20,
        "bad_html.jpg": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "bad_json.png": b'{"error": "rate limit exceeded"}',
        "bad_zip.png": b"PK\x03\x04" + rng.randbytes(500),
        "bad_svg.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "bad_postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "bad_pdf.jpg": b"%PDF-1.4\n1 0 obj<<>>endobj\n%%EOF",
        "bad_zeros.png": bytes(4096),
        "bad_one_byte.jpg": b"\xff",
        "bad_signature_only.png": b"\x89PNG\r\n\x1a\n",
        "bad_start_only.jpg": b"\xff\xd8\xff",
        "bad_start_only.gif": b"GIF89a",
        "bad_start_only.webp": b"RIFF\x10\0\0\0WEBP",
        "bad_start_only.tif": b"II*\0\x08\0\0\0",
        "odd_png_named.jpg": image_bytes(picture(seed=2), "PNG"),
        "odd_jpeg_named.png": image_bytes(picture(seed=3), "JPEG"),
        "odd_upper_case.JPG": image_bytes(picture(seed=4), "JPEG"),
    }
    return files


def _png(width: int, height: int, depth: int, colour: int, data: bytes, *extra: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = _chunk(b"IHDR", header) + b"".join(extra) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _bombs() -> dict[str, bytes]:
    jpeg = bytearray(image_bytes(picture(), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65535, 65535)
    gif = bytearray(image_bytes(picture().quantize(), "GIF"))
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    bmp = bytearray(image_bytes(picture(), "BMP"))
    bmp[18:26] = struct.pack("<ii", 60000, 60000)
    tiff_tags = [(256, 4, 1, 50000), (257, 4, 1, 50000), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tiff_tags += [(273, 4, 1, 8), (278, 4, 1, 50000), (279, 4, 1, 100)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tiff_tags)
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tiff_tags)) + entries + bytes(4)
    # A true bomb, not only a header: 400 million white pixels in 50 KB.
    row = b"\0" + b"\xff" * 2500
    packer = zlib.compressobj(9)
    real = b"".join(packer.compress(row * 100) for _ in range(200)) + packer.flush()
    return {
        "bad_bomb_header.png": _png(50000, 50000, 8, 2, zlib.compress(bytes(100))),
        "bad_bomb_real.png": _png(20000, 20000, 1, 0, real),
        "bad_bomb_just_over.png": _png(9500, 9500, 1, 0, zlib.compress(bytes(1189 * 9500))),
        "bad_bomb.jpg": bytes(jpeg),
        "bad_bomb.gif": bytes(gif),
        "bad_bomb.bmp": bytes(bmp),
        "bad_bomb.tif": tiff,
        "bad_bomb.ppm": b"P6 60000 60000 255\n" + bytes(100),
        "bad_no_width.png": _png(0, 10, 8, 2, zlib.compress(b"")),
        "bad_negative.ppm": b"P6 -5 7 255\n" + bytes(100),
    }


def _corrupt() -> dict[str, bytes]:
    rng = random.Random(1)
    png = image_bytes(picture(seed=5), "PNG")
    jpeg = image_bytes(picture(96, 80, seed=6), "JPEG")
    files = {
        "bad_checksum.png": png[:16] + b"\0\0\1" + png[19:],
        "bad_stream.png": _png(30, 30, 8, 2, b"no zlib stream at all"),
        "bad_short_stream.png": _png(30, 30, 8, 2, zlib.compress(bytes(50))),
        "bad_depth.png": _png(8, 8, 77, 9, zlib.compress(bytes(200))),
        "bad_no_data.png": png[:33] + _chunk(b"IEND", b""),
        "any_text_bomb.png": _png(
            4, 4, 8, 0, zlib.compress(bytes(20)), _chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**26)))
        ),
        "any_many_chunks.png": _png(
            4, 4, 8, 0, zlib.compress(bytes(20)), *[_chunk(b"tEXt", b"key\0value")] * 3000
        ),
        "bad_tags_in_a_ring.tif": b"II*\0\x08\0\0\0\1\0" + bytes(12) + b"\x08\0\0\0",
        "bad_offset_far_away.tif": b"II*\0\xf0\xff\xff\xff" + bytes(50),
    }
    for number in range(6):
        damaged = bytearray(jpeg)
        for _ in range(10):
            damaged[rng.randrange(200, len(damaged))] = rng.randrange(256)
        files[f"any_damaged_{number}.jpg"] = bytes(damaged)
    return files


def _odd_modes() -> dict[str, bytes]:
    image = picture(seed=7)
    grey = np.asarray(image.convert("L"))
    alpha = Image.new("L", image.size, 90)
    rgba, la = image.copy(), image.convert("L")
    rgba.putalpha(alpha)
    la.putalpha(alpha)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    integers = Image.fromarray(grey.astype(np.int32) * 1000)
    floats = Image.fromarray(grey.astype(np.float32) / 255)
    holes = (grey / 255).astype(np.float32)
    holes[:4] = np.nan
    holes[4:8] = np.inf
    rgb16 = zlib.compress(b"".join(b"\0" + bytes(range(48)) for _ in range(8)))
    frames = [picture(seed=20 + number) for number in range(3)]
    save: list[tuple[str, Image.Image, str, dict[str, Any]]] = [
        ("i16.png", deep, "PNG", {}),
        ("i16.tif", deep, "TIFF", {}),
        ("i16.pgm", deep, "PPM", {}),
        ("i32.tif", integers, "TIFF", {}),
        ("float.tif", floats, "TIFF", {}),
        ("float_holes.tif", Image.fromarray(holes), "TIFF", {}),
        ("bits.png", image.convert("1"), "PNG", {}),
        ("bits.tif", image.convert("1"), "TIFF", {}),
        ("grey.jpg", image.convert("L"), "JPEG", {}),
        ("grey_alpha.png", la, "PNG", {}),
        ("alpha.png", rgba, "PNG", {}),
        ("alpha.webp", rgba, "WEBP", {}),
        ("alpha.tif", rgba, "TIFF", {}),
        ("palette.png", image.quantize(16), "PNG", {}),
        ("palette_transparent.png", image.quantize(16), "PNG", {"transparency": 3}),
        ("palette_alphas.png", image.quantize(16), "PNG", {"transparency": bytes(range(0, 160, 10))}),
        ("colour_key.png", image, "PNG", {"transparency": (1, 2, 3)}),
        ("grey_key.png", image.convert("L"), "PNG", {"transparency": 5}),
        ("cmyk.jpg", image.convert("CMYK"), "JPEG", {}),
        ("cmyk.tif", image.convert("CMYK"), "TIFF", {}),
        ("ycbcr.tif", image.convert("YCbCr"), "TIFF", {}),
        ("animated.gif", frames[0], "GIF", {"save_all": True, "append_images": frames[1:]}),
        ("animated.webp", frames[0], "WEBP", {"save_all": True, "append_images": frames[1:]}),
        ("animated.png", frames[0], "PNG", {"save_all": True, "append_images": frames[1:]}),
        ("pages.tif", frames[0], "TIFF", {"save_all": True, "append_images": frames[1:]}),
        ("previews.jpg", frames[0], "MPO", {"save_all": True, "append_images": frames[1:]}),
        ("one_pixel.png", image.crop((0, 0, 1, 1)), "PNG", {}),
        ("wide.png", image.resize((3000, 1)), "PNG", {}),
        ("tall.jpg", image.resize((1, 3000)), "JPEG", {}),
        ("progressive.jpg", image, "JPEG", {"progressive": True}),
        ("lossless.webp", image, "WEBP", {"lossless": True}),
    ]
    files = {f"odd_{name}": image_bytes(item, kind, **options) for name, item, kind, options in save}
    files["odd_rgb16.png"] = _png(8, 8, 16, 2, rgb16)
    return files


def _odd_metadata() -> dict[str, bytes]:
    image = picture(seed=8)
    jpeg = image_bytes(image, "JPEG")

    def with_exif(content: bytes) -> bytes:
        segment = b"Exif\0\0" + content
        return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]

    def orientation(kind: int, value: bytes) -> bytes:
        entry = struct.pack("<HHI", 0x0112, kind, 1) + value.ljust(4, b"\0")
        return with_exif(b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry + bytes(4))

    files = {f"odd_rotated_{value}.jpg": orientation(3, struct.pack("<H", value)) for value in range(2, 9)}
    files |= {
        "odd_exif_rubbish.jpg": with_exif(b"\xde\xad\xbe\xef" * 40),
        "odd_exif_huge.jpg": with_exif(b"II*\0\x08\0\0\0" + bytes(65000)),
        "odd_exif_many_tags.jpg": with_exif(b"II*\0\x08\0\0\0\xff\xff" + bytes(range(256)) * 200),
        "odd_exif_offset.jpg": with_exif(b"MM\0*\xff\xff\xff\xf0" + bytes(20)),
        "odd_orientation_99.jpg": orientation(3, struct.pack("<H", 99)),
        "odd_orientation_text.jpg": orientation(2, b"abc"),
        "odd_orientation_float.jpg": orientation(11, struct.pack("<f", 6.5)),
        "any_colour_profile.jpg": image_bytes(image, "JPEG", icc_profile=b"no profile" * 50),
    }
    return files


def _odd_entries(folder: Path) -> list[Path]:
    """Things that are not plain files, and names that are hard to print; those the system allows."""
    good = image_bytes(picture(seed=9), "PNG")
    target = folder / "odd_target_of_link.png"
    target.write_bytes(good)
    (folder / "bad_folder.jpg").mkdir(exist_ok=True)
    paths = [target, folder / "bad_folder.jpg"]
    attempts: list[tuple[str, Callable[[Path], object]]] = [
        ("bad_dangling_link.jpg", lambda path: path.symlink_to("nowhere.jpg")),
        ("bad_link_to_itself.jpg", lambda path: path.symlink_to(path.name)),
        ("odd_link.png", lambda path: path.symlink_to(target.name)),
        ("bad_pipe.png", lambda path: os.mkfifo(path)),
        ("odd_ünïcödé_图像_🙂.png", lambda path: path.write_bytes(good)),
        ("odd_[red]markup[/red].png", lambda path: path.write_bytes(good)),
        ("odd_new\nline.png", lambda path: path.write_bytes(good)),
        ("odd_ spaces  and 'quotes\".png", lambda path: path.write_bytes(good)),
        (os.fsdecode(b"odd_no_unicode_\xff\xfe.png"), lambda path: path.write_bytes(good)),
    ]
    for name, make in attempts:
        path = folder / name
        try:
            if not path.is_symlink() and not path.exists():
                make(path)
        except (OSError, AttributeError):  # not every system has pipes, links and such names
            continue
        paths.append(path)
    return paths
