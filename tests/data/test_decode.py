import io
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from malformed import image_bytes, make_malformed, picture
from phiscale.data.decode import ImageError, count_pixels, decode, load_image, printable
from phiscale.data.quiet import QUIET_PILLOW
from phiscale.errors import DataError


def gap(image: Image.Image, other: Image.Image) -> int:
    """Largest difference of two images, in grey levels."""
    return int(np.abs(np.asarray(image, dtype=np.int16) - np.asarray(other, dtype=np.int16)).max())


def reopened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


@pytest.fixture(scope="module")
def malformed(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_malformed(tmp_path_factory.mktemp("malformed"))


def test_there_are_a_hundred_malformed_files(malformed: list[Path]) -> None:
    assert len(malformed) >= 100


@pytest.mark.parametrize("channels", [1, 3])
def test_malformed_files_decode_or_raise_one_line(malformed: list[Path], channels: int) -> None:
    for path in malformed:
        expect = path.name.partition("_")[0]
        result: Image.Image | ImageError
        try:
            result = decode(path, channels=channels)
        except ImageError as error:
            result = error
        if isinstance(result, ImageError):
            assert expect in ("bad", "any"), f"{path.name!r} should be readable: {result}"
            assert str(result).isprintable()
            assert printable(path.name) in str(result)
        else:
            assert expect in ("odd", "any"), f"{path.name!r} should be an error"
            assert result.mode == ("L" if channels == 1 else "RGB")
            assert min(result.size) >= 1


def test_malformed_files_are_the_same_every_time(malformed: list[Path], tmp_path: Path) -> None:
    again = make_malformed(tmp_path)
    assert [path.name for path in again] == [path.name for path in malformed]
    plain = [(a, b) for a, b in zip(again, malformed, strict=True) if a.is_file()]
    assert all(a.read_bytes() == b.read_bytes() for a, b in plain)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("bad_empty.jpg", "zero_byte"),
        ("bad_truncated_50.jpg", "truncated"),
        ("bad_truncated_90.png", "truncated"),
        ("bad_text.jpg", "unreadable"),
        ("bad_bomb.jpg", "oversized"),
        ("bad_bomb_real.png", "oversized"),
        ("bad_bomb_just_over.png", "oversized"),
        ("bad_folder.jpg", "unreadable"),
    ],
)
def test_problems(malformed: list[Path], name: str, problem: str) -> None:
    path = next(path for path in malformed if path.name == name)
    with pytest.raises(ImageError) as error:
        decode(path)
    assert error.value.problem == problem


def test_path_bytes_image_and_array_give_the_same_picture(tmp_path: Path) -> None:
    image = picture()
    image.save(tmp_path / "a.png")
    inputs: list[Any] = [tmp_path / "a.png", str(tmp_path / "a.png"), image_bytes(image, "PNG"), image]
    for file in [*inputs, np.asarray(image)]:
        assert decode(file).tobytes() == image.tobytes()


@pytest.mark.parametrize("value", range(1, 9))
def test_exif_rotation_equals_pillows(value: int) -> None:
    image = picture()
    exif = Image.Exif()
    exif[0x0112] = value
    content = image_bytes(image, "PNG", exif=exif)
    expected = ImageOps.exif_transpose(reopened(content))
    result = decode(content)
    assert result.tobytes() == expected.tobytes()
    assert result.size == expected.size
    assert decode(result).tobytes() == result.tobytes()  # it is not turned twice


def test_transparency_is_laid_over_the_background() -> None:
    image = Image.new("RGBA", (2, 1), (200, 100, 0, 0))
    image.putpixel((1, 0), (200, 100, 0, 128))
    result = decode(image, background=(0, 0, 255))
    assert result.getpixel((0, 0)) == (0, 0, 255)
    assert gap(result.crop((1, 0, 2, 1)), Image.new("RGB", (1, 1), (100, 50, 127))) <= 1
    la = Image.new("LA", (1, 1), (10, 0))
    assert decode(la, background=(255, 255, 255)).getpixel((0, 0)) == (255, 255, 255)
    assert decode(la, background=(0, 0, 0), channels=1).getpixel((0, 0)) == 0
    assert decode(la.convert("La"), background=(9, 9, 9)).getpixel((0, 0)) == (9, 9, 9)


def test_palette_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    for transparency in (0, b"\x00\xff"):
        result = decode(image_bytes(image, "PNG", transparency=transparency), background=(1, 2, 3))
        assert result.getpixel((0, 0)) == (1, 2, 3)
        assert result.getpixel((1, 0)) == (0, 255, 0)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    result = decode(image_bytes(Image.fromarray(values), kind), channels=1)
    assert np.asarray(result).tolist() == [[0, 1, 128, 255]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], dtype=np.float32), [0, 128, 255]),
        (np.array([[0.0, 100.0, 255.0]], dtype=np.float32), [0, 100, 255]),
        (np.array([[-1.0, 0.0, 1.0]], dtype=np.float32), [0, 128, 255]),
        (np.array([[np.nan, 0.5, 1.0]], dtype=np.float32), [0, 128, 255]),
        (np.array([[0, 100, 255]], dtype=np.int32), [0, 100, 255]),
        (np.array([[0, 257 * 7, 65535]], dtype=np.int32), [0, 7, 255]),
        (np.array([[0, 50_000, 100_000]], dtype=np.int32), [0, 128, 255]),
    ],
)
def test_32_bit_files(values: Any, expected: list[int]) -> None:
    content = image_bytes(Image.fromarray(values), "TIFF")
    assert np.asarray(decode(content, channels=1)).tolist() == [expected]


def test_cmyk_and_first_frame() -> None:
    image = picture()
    cmyk = image.convert("CMYK")
    assert gap(decode(image_bytes(cmyk, "TIFF")), cmyk.convert("RGB")) == 0
    others = [picture(seed=1), picture(seed=2)]
    content = image_bytes(image, "PNG", save_all=True, append_images=others)
    assert decode(content).tobytes() == image.tobytes()


def test_arrays() -> None:
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for array in (grey, grey[:, :, None], grey.astype(np.int64), grey / np.float64(255)):
        assert np.array_equal(np.asarray(decode(array, channels=1)), grey)
    assert np.asarray(decode(np.array([[True, False]]), channels=1)).tolist() == [[255, 0]]
    assert decode(np.full((1, 1, 4), (9, 9, 9, 0), dtype=np.uint8)).getpixel((0, 0)) == (255, 255, 255)
    for bad in (np.zeros((3, 4, 2)), np.zeros((1, 3, 8, 8)), np.zeros((0, 5)), np.zeros(7)):
        with pytest.raises(ImageError, match="an array must have the shape"):
            decode(bad)
    with pytest.raises(
        ImageError, match=r"an array of float64 must hold 0 to 1; its values go from 0.0 to 2.0"
    ):
        decode(np.array([[0.0, 2.0]]))
    with pytest.raises(ImageError, match="an array of int64 must hold 0 to 255"):
        decode(np.array([[300]]))


def test_wrong_arguments() -> None:
    with pytest.raises(DataError, match="channels must be 1"):
        decode(picture(), channels=4)
    with pytest.raises(DataError, match="an image must be a path, bytes"):
        decode(3)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="there are no bytes"):
        decode(b"")


def test_the_callers_image_stays_as_it_is() -> None:
    image = reopened(image_bytes(picture().quantize(16), "PNG", transparency=3))
    before = dict(image.info)
    decode(image)
    assert image.mode == "P"
    assert image.info == before


def test_count_pixels_reads_the_header_only(tmp_path: Path) -> None:
    path = tmp_path / "half.png"
    content = image_bytes(picture(40, 30), "PNG")
    path.write_bytes(content[: len(content) // 2])
    assert count_pixels(path) == 1200
    with pytest.raises(ImageError, match="ends too early"):
        load_image(path)
    with pytest.raises(ImageError, match="at most 1,000"):
        count_pixels(path, max_pixels=1000)


def test_warning_filters_are_restored_after_many_threads() -> None:
    content = image_bytes(picture().quantize(16), "PNG", transparency=bytes(range(16)))
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [decode(content) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before
    with QUIET_PILLOW, QUIET_PILLOW:
        assert warnings.filters != before
    assert warnings.filters == before


def test_other_peoples_warnings_are_not_silenced() -> None:
    with QUIET_PILLOW, pytest.raises(UserWarning, match="mine"):
        warnings.warn("mine", UserWarning, stacklevel=1)
