"""Real images for an export: to compare answers on, to measure ranges on, and to measure a loss on."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from phiscale.data.decode import ImageInput, printable
from phiscale.data.sizes import shifted
from phiscale.data.sources import ImageRecord, ImageSource, open_source
from phiscale.deploy.inputs import images_in
from phiscale.deploy.reading import read_exactly
from phiscale.errors import DataError
from phiscale.preprocess import Preprocess
from phiscale.weights.config import ModelDir

__all__ = ["Images", "calibration_and_validation", "images_to_check"]

CHECKED_IMAGES = 64
CALIBRATION_IMAGES = 300
VALIDATION_IMAGES = 10_000
MAX_BYTES = 256 * 2**20
LISTED_FILES = 10_000
SHIFTS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (1, 1), (-1, 1), (1, -1))
DEMO_DATA = Path(__file__).parent.parent / "demo_data"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Images:
    """Prepared images.

    Attributes:
        pixels: (N, H, W, C) of uint8, prepared up to normalisation.
        labels: (N,), as indices into the model's classes; None where they are not known.
        source: Where they came from.
        views: How often each image is there, a little shifted; N is a multiple of it.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    source: str
    views: int = 1

    def __len__(self) -> int:
        return len(self.pixels)

    def some(self, count: int) -> Images:
        """At most `count` of them as they were found, spread evenly."""
        chosen = list(_spread(range(len(self) // self.views), count))
        labels = None if self.labels is None else self.labels[chosen]
        return Images(pixels=self.pixels[chosen], labels=labels, source=self.source)

    def shifted(self, count: int) -> Images:
        """Every image as often as `count` allows, the further times shifted by a thirty-second of its side.

        With few images, one answer weighs more than the loss that is looked for. A shift changes no label,
        but it moves an image across the border between two classes, or not, much as another image would.
        """
        views = max(1, min(len(SHIFTS), count // len(self)))
        pixels = [_shift(self.pixels, down, right) for down, right in SHIFTS[:views]]
        labels = None if self.labels is None else np.tile(self.labels, views)
        return Images(pixels=np.concatenate(pixels), labels=labels, source=self.source, views=views)


@dataclass(frozen=True)
class _Picture:
    read: Callable[[], ImageInput]
    label: int | None = None


def images_to_check(model: ModelDir, images: str | Path | None) -> Images:
    """Some images to compare answers on, whatever they show.

    Args:
        model: The model.
        images: A folder, manifest or torchvision data set; by default what the model was trained on, where
            that still is, else the emoji that ship with this package.

    Raises:
        DataError: There is no image at `images`.
    """
    for location in [images] if images is not None else [_trained_on(model).get("location"), DEMO_DATA]:
        with contextlib.suppress(DataError):
            if isinstance(location, str | Path):
                return _prepare(model, _any_pictures(location), CHECKED_IMAGES, str(location))
    raise DataError(f"no images to check the export with in {images}; give a folder of images")


def calibration_and_validation(model: ModelDir, images: str | Path | None) -> tuple[Images, Images]:
    """Images to measure the ranges of activations on, and others to measure the loss on.

    Where the images come in splits, as at the location that the model was trained on, the train split
    calibrates, evenly by class, and the val split, or else the test split, validates. Otherwise every other
    image does the one, the rest the other. Images whose classes the model does not know count as unlabelled.
    Few images validate in several views, see `Images.shifted`.

    Args:
        model: The model.
        images: A folder, manifest or torchvision data set; a folder without class folders has no labels. By
            default what the model was trained on.

    Raises:
        DataError: There are no images, or less than two.
    """
    trained_on = _trained_on(model)
    location = images if images is not None else trained_on.get("location")
    if not isinstance(location, str | Path):
        raise DataError("the model does not say what images it was trained on; give images")
    try:
        source = _open(location, trained_on)
    except DataError as error:
        if not _is_folder(location):
            raise DataError(f"no images to measure the loss on: {error}") from None
        calibrating, validating = _halves([_file(path) for path in images_in(location)])
        parts = (str(location), str(location))
    else:
        calibrating, validating, parts = _by_split(source, model)
    if not calibrating or not validating:
        raise DataError(f"{printable(location)} has not enough images to calibrate and to validate with")
    validation = _prepare(model, validating, VALIDATION_IMAGES, parts[1])
    return (
        _prepare(model, calibrating, CALIBRATION_IMAGES, parts[0]),
        validation.shifted(_affordable(model, VALIDATION_IMAGES)),
    )


def _trained_on(model: ModelDir) -> Mapping[str, Any]:
    data = model.provenance.get("data")
    return data if isinstance(data, dict) else {}


def _open(location: str | Path, trained_on: Mapping[str, Any]) -> ImageSource:
    """The source, with the splits of the training where it is the source of the training."""
    if not _is_same(location, trained_on.get("location")):
        return open_source(location, val_fraction=0.0)
    split_file = trained_on.get("split_file")
    return open_source(
        location,
        val_fraction=trained_on.get("val_fraction") or 0.0,
        seed=trained_on.get("seed") or 0,
        split_file=Path(split_file) if split_file else None,
    )


def _is_same(location: str | Path, trained_on: object) -> bool:
    if str(location) == str(trained_on):
        return True
    with contextlib.suppress(OSError, ValueError):
        return isinstance(trained_on, str) and Path(location).samefile(trained_on)
    return False


def _is_folder(location: str | Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return Path(location).is_dir()
    return False


def _by_split(
    source: ImageSource, model: ModelDir
) -> tuple[Sequence[_Picture], Sequence[_Picture], tuple[str, str]]:
    """Pictures to calibrate and to validate with, and where both come from."""
    places = {name: index for index, name in enumerate(model.classes)}
    known = all(name in places for name in source.classes)

    def pictures(records: Iterable[ImageRecord]) -> list[_Picture]:
        return [
            _Picture(partial(source.read, record), places[source.classes[record.label]] if known else None)
            for record in records
        ]

    train = source.split("train")
    for held_out in ("val", "test"):
        records = source.split(held_out)
        if records and train:
            parts = (f"{source.location}, split train", f"{source.location}, split {held_out}")
            return pictures(_in_turn(train)), pictures(records), parts
    calibrating, validating = _halves(source.records)
    return pictures(_in_turn(calibrating)), pictures(validating), (source.location, source.location)


def _in_turn(records: Sequence[ImageRecord]) -> list[ImageRecord]:
    """One of every class, then another one of every class, and so on, as many as calibration takes."""
    by_class: dict[int, list[ImageRecord]] = defaultdict(list)
    for record in records:
        by_class[record.label].append(record)
    # Spread, because images of neighbouring names are often alike.
    rows = zip_longest(*(_spread(group, CALIBRATION_IMAGES) for group in by_class.values()))
    chosen: list[ImageRecord] = []
    for row in rows:
        present = [record for record in row if record is not None]
        chosen += _spread(present, CALIBRATION_IMAGES - len(chosen))
    return chosen


def _halves(items: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    return items[::2], items[1::2]


def _spread(items: Sequence[T], count: int) -> Sequence[T]:
    """At most `count` items, spread evenly."""
    if len(items) <= count:
        return items
    return [items[int(place)] for place in np.linspace(0, len(items) - 1, count).round()]


def _any_pictures(location: str | Path) -> Sequence[_Picture]:
    if _is_folder(location):
        return [_file(path) for path in islice(images_in(location), LISTED_FILES)]
    source = open_source(location, val_fraction=0.0)
    return [_Picture(partial(source.read, record)) for record in source.records]


def _file(path: str) -> _Picture:
    return _Picture(lambda: path)


def _prepare(model: ModelDir, pictures: Sequence[_Picture], count: int, source: str) -> Images:
    """Read and prepare some of the pictures; broken ones are left out."""
    chosen = _spread(pictures, _affordable(model, count))
    prepared = list(_prepared(chosen, model.preprocess))
    if not prepared:
        raise DataError(f"no image of {printable(source)} can be read; give other images")
    labels = [label for _, label in prepared if label is not None]
    return Images(
        pixels=np.stack([pixels for pixels, _ in prepared]),
        labels=np.asarray(labels, np.int64) if len(labels) == len(prepared) else None,
        source=source,
    )


def _affordable(model: ModelDir, count: int) -> int:
    """At most `count`, as many prepared images as fit into memory."""
    height, width = model.preprocess.size
    return max(1, min(count, MAX_BYTES // (height * width * model.preprocess.channels)))


def _shift(pixels: NDArray[np.uint8], down: int, right: int) -> NDArray[np.uint8]:
    """Images (N, H, W, C) moved by a thirty-second of their sides, their borders drawn out."""
    steps = (step * max(1, side // 32) for step, side in zip((down, right), pixels.shape[1:3], strict=True))
    for axis, by in enumerate(steps, start=1):
        if by:
            pixels = shifted(pixels, by, axis=axis)
    return pixels


def _prepared(
    pictures: Iterable[_Picture], preprocess: Preprocess
) -> Iterator[tuple[NDArray[np.uint8], int | None]]:
    for picture in pictures:
        try:
            pixels = read_exactly(picture.read(), preprocess)
        except DataError:
            continue
        yield pixels, picture.label
