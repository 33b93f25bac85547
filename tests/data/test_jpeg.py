"""The fast way to read a JPEG beside the exact one, on photographs."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray
from PIL import Image, ImageOps

from phiscale.data import jpeg
from phiscale.data.decode import ImageError, decode
from phiscale.data.jpeg import open_jpeg, read_crop, read_jpeg
from phiscale.data.sizes import RESAMPLING, fit_size
from phiscale.preprocess import Preprocess

pytest.importorskip("simplejpeg")

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
AT_224 = Preprocess.for_size(224)


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    return [Image.fromarray(getattr(skimage.data, name)()) for name in PHOTOGRAPHS]


def as_jpeg(image: Image.Image, size: tuple[int, int], *, turn: int = 1, **options: Any) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = turn
    options = {"quality": 90, **options}
    ImageOps.fit(image, size).save(file, "JPEG", exif=exif, **options)
    return file.getvalue()


def exact(data: bytes, preprocess: Preprocess) -> NDArray[np.uint8]:
    picture = decode(data, background=preprocess.background, channels=preprocess.channels)
    pixels = np.asarray(fit_size(picture, preprocess))
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def difference(data: bytes, preprocess: Preprocess) -> float:
    """Mean absolute difference in grey levels of the fast way from the exact one."""
    fast, wanted = read_jpeg(data, preprocess), exact(data, preprocess)
    assert fast is not None
    assert fast.shape == wanted.shape
    assert fast.dtype == np.uint8
    return float(np.abs(fast.astype(int) - wanted).mean())


@pytest.mark.parametrize("size", [(60, 41), (500, 375), (375, 500), (900, 300), (1023, 701), (2000, 1503)])
def test_within_one_grey_level_of_the_exact_way(
    photographs: list[Image.Image], size: tuple[int, int]
) -> None:
    for resize in ("crop", "squash", "pad"):
        for interpolation in ("bicubic", "bilinear", "nearest"):
            preprocess = replace(AT_224, resize=resize, interpolation=interpolation)
            for photograph in photographs[:2]:
                assert difference(as_jpeg(photograph, size), preprocess) < 1, (resize, interpolation)


@pytest.mark.parametrize("side", [16, 32, 64, 128])
def test_small_networks(photographs: list[Image.Image], side: int) -> None:
    """The stronger an image is shrunk, the more contrast is left between its pixels, and the more differs."""
    for photograph in photographs:
        for factor in (4.3, 8, 12, 16, 24):
            data = as_jpeg(photograph, (round(side * factor), round(side * factor)))
            assert difference(data, Preprocess.for_size(side)) < 1, factor


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_every_exif_rotation(photographs: list[Image.Image], turn: int, resize: Any) -> None:
    # Sides that no factor of libjpeg divides: what is rounded up lies on another side after each turn.
    preprocess = replace(Preprocess.for_size((128, 96)), resize=resize)
    for size in ((1001, 703), (431, 999)):
        data = as_jpeg(photographs[0], size, turn=turn)
        assert difference(data, preprocess) < 1
    # A wrong turn would not pass.
    assert np.abs(exact(data, preprocess).astype(int) - exact(data, preprocess)[::-1]).mean() > 5


@pytest.mark.parametrize(
    "options",
    [{"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"quality": 30}, {"quality": 100}],
)
def test_kinds_of_jpeg(photographs: list[Image.Image], options: dict[str, Any]) -> None:
    for photograph in photographs:
        assert difference(as_jpeg(photograph, (1400, 933), **options), AT_224) < 1


def test_what_is_not_scaled_is_the_same(photographs: list[Image.Image]) -> None:
    """Only where the JPEG is decoded whole; the fused crop may round otherwise, here and there."""
    for photograph in photographs:
        assert difference(as_jpeg(photograph, (500, 375)), AT_224) < 0.01


def test_large_photographs_are_decoded_in_part(
    photographs: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, real = [], Image.fromarray

    def watched(pixels: NDArray[np.uint8], *args: Any) -> Image.Image:
        sizes.append(pixels.shape[:2])
        return real(pixels, *args)

    data = as_jpeg(photographs[0], (4000, 3000))
    monkeypatch.setattr(Image, "fromarray", watched)
    assert read_jpeg(data, AT_224) is not None
    [(height, width)] = sizes
    assert 3 * 256 <= height < 3000 // 2
    assert width < 4000 // 2


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_files_and_grey_networks(photographs: list[Image.Image], channels: int) -> None:
    preprocess = Preprocess.for_size(96, channels=channels)
    for photograph in (photographs[0], photographs[0].convert("L")):
        assert difference(as_jpeg(photograph, (700, 467)), preprocess) < 1


def test_extreme_shapes(photographs: list[Image.Image]) -> None:
    for size in ((1, 1), (1, 700), (3000, 2), (33, 33)):
        assert difference(as_jpeg(photographs[0], size), Preprocess.for_size(64)) < 1


def test_paths_are_read(photographs: list[Image.Image], tmp_path: Path) -> None:
    data = as_jpeg(photographs[0], (400, 300))
    (tmp_path / "any name").write_bytes(data)
    for path in (tmp_path / "any name", str(tmp_path / "any name")):
        np.testing.assert_array_equal(read_jpeg(path, AT_224), read_jpeg(data, AT_224))


def test_everything_else_is_left_to_decode(photographs: list[Image.Image], tmp_path: Path) -> None:
    photograph, png = photographs[0], io.BytesIO()
    photograph.save(png, "PNG")
    data = as_jpeg(photograph, (640, 480))
    cmyk = as_jpeg(photograph.convert("CMYK"), (64, 48))
    deep = io.BytesIO()
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(deep, "PNG")
    left: list[Any] = [png.getvalue(), cmyk, deep.getvalue(), b"", b"\xff\xd8\xff", data[:5000], data[:300]]
    left += [photograph, np.asarray(photograph), tmp_path, tmp_path / "none.jpg", "a\0b", "x" * 5000]
    for file in left:
        assert read_jpeg(file, AT_224) is None
    assert read_jpeg(data, AT_224, max_pixels=640 * 480 - 1) is None
    for broken in (data[:5000], data[:300]):
        with pytest.raises(ImageError, match=r"ends too early|cannot be decoded|not an image"):
            decode(broken)


def crop_difference(data: bytes, crop: tuple[int, int, int, int], preprocess: Preprocess) -> float:
    """Mean absolute difference in grey levels of a fused crop from one that is cut out and resized."""
    jpeg = open_jpeg(data)
    assert jpeg is not None
    options: Any = {"interpolation": preprocess.interpolation, "channels": preprocess.channels}
    fast = read_crop(jpeg, crop, preprocess.size, **options)
    left, top, width, height = crop
    picture = decode(data, channels=preprocess.channels)
    assert picture.size == jpeg.size
    cut = picture.crop((left, top, left + width, top + height))
    wanted = np.asarray(cut.resize(preprocess.size[::-1], RESAMPLING[preprocess.interpolation]))
    assert fast is not None
    assert fast.shape == (*preprocess.size, preprocess.channels)
    return float(np.abs(fast.astype(int) - wanted.reshape(fast.shape)).mean())


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_crop_of_every_exif_rotation(photographs: list[Image.Image], turn: int) -> None:
    preprocess = Preprocess.for_size((96, 64))
    data = as_jpeg(photographs[0], (1001, 703), turn=turn)
    turned = turn >= 5
    for crop in ((0, 0, 703, 1001) if turned else (0, 0, 1001, 703), (101, 33, 555, 613), (301, 33, 91, 97)):
        assert crop_difference(data, crop, preprocess) < 1, crop
    # Of another place it would not pass.
    jpeg = open_jpeg(data)
    assert jpeg is not None
    parts = [
        read_crop(jpeg, (left, 33, 500, 600), (96, 64), interpolation="bicubic", channels=3)
        for left in (101, 121)
    ]
    assert parts[0] is not None
    assert parts[1] is not None
    assert np.abs(parts[0].astype(int) - parts[1]).mean() > 3


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_crop_with_every_interpolation(
    photographs: list[Image.Image], interpolation: Any, channels: int
) -> None:
    preprocess = replace(Preprocess.for_size(64, channels=channels), interpolation=interpolation)
    for photograph in (photographs[1], photographs[1].convert("L")):
        data = as_jpeg(photograph, (1400, 933))
        for crop in ((7, 11, 1200, 900), (640, 300, 240, 331), (1399, 932, 1, 1)):
            assert crop_difference(data, crop, preprocess) < 1, crop


def test_metadata_that_turn_a_picture(photographs: list[Image.Image]) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    plain, with_xmp = io.BytesIO(), io.BytesIO()
    photographs[0].resize((60, 40)).save(plain, "JPEG")
    photographs[0].resize((60, 40)).save(with_xmp, "JPEG", xmp=xmp)
    for file, turn, size in ((plain, 1, (60, 40)), (with_xmp, 6, (40, 60))):
        opened = open_jpeg(file.getvalue())
        assert opened is not None
        assert (opened.turn, opened.size) == (turn, size)
        assert decode(file.getvalue()).size == size


def test_a_crop_of_what_is_decoded_whole_differs_by_rounding(photographs: list[Image.Image]) -> None:
    for photograph in photographs:
        data = as_jpeg(photograph, (500, 375))
        for crop in ((0, 0, 500, 375), (37, 41, 300, 290), (5, 6, 130, 150)):
            assert crop_difference(data, crop, AT_224) < 0.25


def test_large_crops_are_decoded_in_part(
    photographs: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, real = [], jpeg._part

    def watched(file: jpeg.Jpeg, pixels: NDArray[np.uint8]) -> Any:
        sizes.append(pixels.shape[:2])
        return real(file, pixels)

    monkeypatch.setattr(jpeg, "_part", watched)
    data = as_jpeg(photographs[0], (2048, 1536))
    for crop in ((0, 0, 2048, 1536), (100, 100, 1400, 1400), (0, 0, 700, 700)):
        assert crop_difference(data, crop, AT_224) < 1
    assert sizes == [(768, 1024), (768, 1024), (1536, 2048)]


def test_without_simplejpeg(photographs: list[Image.Image], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    jpeg._simplejpeg.cache_clear()
    try:
        assert read_jpeg(as_jpeg(photographs[0], (64, 48)), AT_224) is None
    finally:
        jpeg._simplejpeg.cache_clear()
