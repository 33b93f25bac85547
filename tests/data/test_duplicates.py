import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageEnhance

from malformed import image_bytes, picture
from phiscale.data.duplicates import MAX_DISTANCE, fingerprint, group_exact, group_near, near_pairs


def brute_force(hashes: npt.NDArray[np.uint64]) -> set[tuple[int, int]]:
    values = [int(value) for value in hashes]
    return {
        (i, j)
        for i in range(len(values))
        for j in range(i + 1, len(values))
        if (values[i] ^ values[j]).bit_count() <= MAX_DISTANCE
    }


@pytest.mark.parametrize("seed", range(5))
def test_banding_finds_what_brute_force_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, 300, dtype=np.uint64)
    # Flip 0 to 6 random bits of copies, so that there are pairs on both sides of the limit.
    copies = hashes[rng.integers(0, 300, 300)].copy()
    for position in range(300):
        for bit in rng.choice(64, rng.integers(0, 7), replace=False):
            copies[position] ^= np.uint64(1 << int(bit))
    every = np.concatenate([hashes, copies])
    found = [
        tuple(sorted(pair)) for a, b in near_pairs(every) for pair in zip(a.tolist(), b.tolist(), strict=True)
    ]
    assert len(found) == len(set(found)), "a pair came twice"
    assert set(found) == brute_force(every)
    assert len(found) > 100


def test_thousands_of_equal_hashes_do_not_explode() -> None:
    number = sum(len(a) for a, _ in near_pairs(np.zeros(5000, dtype=np.uint64)))
    assert 5000 <= number <= 5000 * 256


def test_no_hashes() -> None:
    assert list(near_pairs(np.zeros(0, dtype=np.uint64))) == []
    assert group_near([]) == group_exact([]) == []


def test_a_picture_saved_again_is_a_near_duplicate() -> None:
    image = picture(120, 90, seed=1)
    again = Image.open(io.BytesIO(image_bytes(image, "JPEG", quality=85)))
    smaller = image.resize((90, 68), Image.Resampling.BICUBIC)
    others = [picture(120, 90, seed=seed) for seed in range(2, 30)]
    prints = [fingerprint(item) for item in [image, again, smaller, *others]]
    assert group_near(prints) == [[0, 1, 2]]
    assert group_exact(prints) == []


def test_equal_pixels_are_exact_duplicates_and_not_near_ones() -> None:
    image = picture(seed=1)
    prints = [fingerprint(item) for item in (image, picture(seed=2), image.copy())]
    assert group_exact(prints) == [[0, 2]]
    assert group_near(prints) == []


def test_the_shape_is_part_of_the_picture() -> None:
    blank = [fingerprint(Image.new("L", size)) for size in ((10, 20), (20, 10))]
    assert group_exact(blank) == []


def test_flat_pictures_are_not_alike() -> None:
    prints = [fingerprint(Image.new("RGB", (32, 32), (value, value, value))) for value in range(0, 250, 10)]
    assert len({item.dhash for item in prints}) == 1
    assert group_near(prints) == []


def test_simple_pictures_that_share_a_hash_are_told_apart() -> None:
    dark = picture(seed=1).convert("L")
    bright = ImageEnhance.Brightness(dark).enhance(0.5)
    prints = [fingerprint(dark), fingerprint(bright)]
    assert (prints[0].dhash ^ prints[1].dhash).bit_count() <= MAX_DISTANCE
    assert group_near(prints) == []
