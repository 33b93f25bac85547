from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phiscale.data.sources import open_source
from phiscale.deploy import samples
from phiscale.deploy.samples import Images, calibration_and_validation, images_to_check
from phiscale.errors import DataError
from phiscale.weights.config import ModelDir, read_config
from small_model import CLASSES, make_model, make_photos


@pytest.fixture
def model(tmp_path: Path) -> ModelDir:
    return read_config(make_model(tmp_path / "model"))


def make_classes(root: Path, counts: Mapping[str, int]) -> Path:
    """One folder per class; every image has a grey of its own."""
    value = 0
    for name, count in counts.items():
        for index in range(count):
            path = root / name / f"{index:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (value % 256,) * 3).save(path)
            value += 1
    return root


def greys(images: Images) -> set[int]:
    return {int(image.flat[0]) for image in images.pixels}


def trained_on(model: ModelDir, location: Path, **rule: object) -> ModelDir:
    return replace(model, provenance={"data": {"location": str(location), **rule}})


def test_the_splits_are_those_of_the_training(model: ModelDir, tmp_path: Path) -> None:
    photos = make_classes(tmp_path / "photos", {"cat": 20, "dog": 40, "owl": 60})
    source = open_source(photos, val_fraction=0.25, seed=3)
    calibration, validation = calibration_and_validation(
        trained_on(model, photos, val_fraction=0.25, seed=3, split_file=None), None
    )
    assert (len(calibration), calibration.views) == (90, 1)
    assert calibration.source == f"{photos}, split train"
    assert validation.source == f"{photos}, split val"
    assert greys(calibration).isdisjoint(greys(validation))
    assert len(greys(validation)) == len(source.split("val")) == 30
    assert validation.labels is not None
    assert Counter(validation.labels[:30].tolist()) == {0: 5, 1: 10, 2: 15}


def test_calibration_is_balanced(model: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "CALIBRATION_IMAGES", 32)
    photos = make_classes(tmp_path / "photos", {"cat": 20, "dog": 6, "owl": 60})
    calibration, _ = calibration_and_validation(trained_on(model, photos, val_fraction=0.2, seed=0), photos)
    assert calibration.labels is not None
    assert len(calibration) == 32
    counts = Counter(calibration.labels.tolist())
    assert counts[CLASSES.index("dog")] == 5  # all of them
    assert abs(counts[CLASSES.index("cat")] - counts[CLASSES.index("owl")]) <= 1


def test_a_split_in_the_folders_counts(model: ModelDir, tmp_path: Path) -> None:
    make_classes(tmp_path / "photos" / "train", {"cat": 4, "dog": 4})
    make_classes(tmp_path / "photos" / "test", {"cat": 3, "dog": 3})
    calibration, validation = calibration_and_validation(model, tmp_path / "photos")
    assert len(calibration) == 8
    assert validation.source.endswith("split test")
    assert len(validation) == 6 * validation.views


def test_other_folders_are_halved(model: ModelDir, tmp_path: Path) -> None:
    photos = make_classes(tmp_path / "photos", {"cat": 10, "dog": 10})
    calibration, validation = calibration_and_validation(model, photos)
    assert (len(calibration), len(validation) // validation.views) == (10, 10)
    assert greys(calibration).isdisjoint(greys(validation))
    assert validation.labels is not None


@pytest.mark.parametrize("loose", [False, True])
def test_without_the_models_classes_there_are_no_labels(model: ModelDir, tmp_path: Path, loose: bool) -> None:
    photos = make_photos(tmp_path / "photos") if loose else make_classes(tmp_path / "x", {"cat": 4, "cow": 4})
    calibration, validation = calibration_and_validation(model, photos)
    assert calibration.labels is None
    assert validation.labels is None
    assert len(validation)


def test_few_images_are_shifted(model: ModelDir, tmp_path: Path) -> None:
    photos = make_classes(tmp_path / "photos", {"cat": 2, "dog": 2})
    _, validation = calibration_and_validation(model, photos)
    assert validation.views == 9
    pixels = np.arange(2 * 64 * 64, dtype=np.int64).astype(np.uint8).reshape(2, 64, 64, 1)
    shifted = Images(pixels=pixels, labels=np.asarray([0, 1]), source="").shifted(7)
    assert (shifted.views, len(shifted)) == (3, 6)
    assert shifted.labels is not None
    assert shifted.labels.tolist() == [0, 1, 0, 1, 0, 1]
    np.testing.assert_array_equal(shifted.pixels[:2], pixels)
    np.testing.assert_array_equal(shifted.pixels[2:4, :-2], pixels[:, 2:])  # up by 64 / 32
    np.testing.assert_array_equal(shifted.pixels[4:6, 2:], pixels[:, :-2])
    np.testing.assert_array_equal(shifted.some(1).pixels, pixels[:1])


def test_memory_is_bounded(model: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MAX_BYTES", 5 * 32 * 32 * 3)
    photos = make_classes(tmp_path / "photos", {"cat": 10, "dog": 10})
    calibration, validation = calibration_and_validation(model, photos)
    assert (len(calibration), len(validation)) == (5, 5)


def test_broken_images_are_left_out(model: ModelDir, tmp_path: Path) -> None:
    photos = make_classes(tmp_path / "photos", {"cat": 4, "dog": 4})
    for name in ("cat/000.png", "dog/001.png"):
        (photos / name).write_bytes(b"no picture")
    calibration, validation = calibration_and_validation(model, photos)
    assert len(calibration) + len(validation) // validation.views == 6
    assert len(images_to_check(model, photos)) == 6


def test_the_emoji_are_there_to_check_with(model: ModelDir, tmp_path: Path) -> None:
    gone = trained_on(model, tmp_path / "gone", val_fraction=0.2)
    assert len(images_to_check(gone, None)) == 64
    for images in (None, tmp_path / "gone"):
        with pytest.raises(DataError, match=r"no images to measure the loss on: .*does not exist"):
            calibration_and_validation(gone, images)
    with pytest.raises(DataError, match="does not say what images it was trained on; give images"):
        calibration_and_validation(model, None)


@pytest.mark.parametrize("broken", [False, True])
def test_too_few_images_are_one_line(model: ModelDir, tmp_path: Path, broken: bool) -> None:
    photos = make_classes(tmp_path / "photos", {"cat": 2 if broken else 1})
    if broken:
        for path in photos.rglob("*.png"):
            path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="can be read" if broken else "not enough images"):
        calibration_and_validation(model, photos)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="not enough images"):
        calibration_and_validation(model, tmp_path / "empty")
    with pytest.raises(DataError, match="give a folder of images"):
        images_to_check(model, tmp_path / "empty")
