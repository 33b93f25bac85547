from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import skimage.data
from PIL import Image

from phiscale.data.decode import ImageError
from phiscale.deploy.reading import ImageReader, read_exactly
from phiscale.preprocess import Preprocess

pytest.importorskip("simplejpeg")

PREPROCESS = Preprocess.for_size(64)


@pytest.fixture(scope="module")
def jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(skimage.data.astronaut()).save(file, "JPEG")  # type: ignore[no-untyped-call]
    return file.getvalue()


def test_the_difference_is_measured_on_four_images_after_fifty(jpeg: bytes) -> None:
    reader = ImageReader(PREPROCESS)
    expected = np.abs(reader(jpeg).astype(int) - read_exactly(jpeg, PREPROCESS)).mean()
    for _ in range(49):
        reader(jpeg)
    before = reader.fast_decoding
    reader(jpeg)
    first = reader.fast_decoding
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(reader, [jpeg] * 40))
    last = reader.fast_decoding
    assert before is None
    assert first is not None
    assert last is not None
    assert (first.images, last.images) == (1, 4)
    assert first.grey_levels == pytest.approx(expected)
    assert last.grey_levels == pytest.approx(expected)
    assert 0 < expected < 1


def test_exact_reading_takes_one_way_for_all(jpeg: bytes) -> None:
    reader = ImageReader(PREPROCESS, exact=True)
    for _ in range(60):
        np.testing.assert_array_equal(reader(jpeg), read_exactly(jpeg, PREPROCESS))
    assert reader.fast_decoding is None


def test_what_is_no_jpeg_is_read_exactly(jpeg: bytes) -> None:
    reader = ImageReader(PREPROCESS)
    picture = skimage.data.astronaut()  # type: ignore[no-untyped-call]
    for _ in range(60):
        np.testing.assert_array_equal(reader(picture), read_exactly(picture, PREPROCESS))
    assert reader.fast_decoding is None
    assert reader(picture[:, :, 0]).shape == (64, 64, 3)
    assert ImageReader(Preprocess.for_size(64, channels=1))(jpeg).shape == (64, 64, 1)


def test_a_broken_file_has_the_error_of_the_exact_way(jpeg: bytes) -> None:
    for broken in (jpeg[: len(jpeg) // 2], jpeg[:100], b"\xff\xd8\xff" + b"x" * 1000):
        with pytest.raises(ImageError) as exact:
            read_exactly(broken, PREPROCESS)
        with pytest.raises(ImageError) as fast:
            ImageReader(PREPROCESS)(broken)
        assert (str(fast.value), fast.value.problem) == (str(exact.value), exact.value.problem)
