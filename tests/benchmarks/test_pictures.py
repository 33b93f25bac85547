from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from benchmarks.pictures import JPEG_SIZE, PHOTOGRAPHS, crop, photographs, prepared, write_jpegs
from PIL import Image

from phiscale.preprocess import Preprocess


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    labels = write_jpegs(tmp_path / "a", 12, seed=3)
    assert write_jpegs(tmp_path / "b", 12, seed=3) == labels
    assert labels[:10] == list(PHOTOGRAPHS)
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", JPEG_SIZE)


def test_another_seed_gives_other_images(tmp_path: Path) -> None:
    write_jpegs(tmp_path / "a", 1, seed=0)
    write_jpegs(tmp_path / "b", 1, seed=1)
    assert (tmp_path / "a" / "00000.jpg").read_bytes() != (tmp_path / "b" / "00000.jpg").read_bytes()


@pytest.mark.parametrize("size", [(500, 375), (64, 64), (30, 90)])
def test_a_crop_lies_within_the_photograph(size: tuple[int, int]) -> None:
    rng = random.Random(0)
    for photo in photographs().values():
        for _ in range(3):
            assert crop(photo, rng, size).size == size


def test_prepared_images_are_what_a_network_takes() -> None:
    images = prepared(Preprocess.for_size(32), 3, seed=0, emoji=2)
    assert images.shape == (5, 32, 32, 3)
    assert images.dtype == np.uint8
    assert all(image.std() > 1 for image in images)
