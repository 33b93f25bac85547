"""Where images come from: a folder, a manifest, shards, or a torchvision data set, with their splits.

Examples:
    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> for name in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"):
    ...     (root / name).parent.mkdir(exist_ok=True)
    ...     Image.new("L", (8, 8)).save(root / name)
    >>> source = open_source(root, val_fraction=0.5)
    >>> source.classes, len(source.split("train")), len(source.split("val"))
    (('cat', 'dog'), 2, 2)
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from phiscale.data.decode import DEFAULT_MAX_PIXELS, printable
from phiscale.data.folders import list_folder
from phiscale.data.listing import Entry, Listing, Reader, Split
from phiscale.data.manifests import MANIFEST_SUFFIXES, list_manifest, read_split_file
from phiscale.data.published import list_published
from phiscale.data.shards import is_packed, list_shards
from phiscale.errors import DataError

__all__ = ["ImageRecord", "ImageSource", "Split", "open_source"]


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One labelled image.

    Attributes:
        id: Path relative to the source, or ``"train/123"`` in a torchvision data set. In shards that
            `phiscale data pack` wrote, the id that the image had before.
        label: Index into the source's classes.
        split: ``"train"``, ``"val"`` or ``"test"``.
    """

    id: str
    label: int
    split: Split


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """Labelled images and how to read them. A value: `without` gives a new one.

    Attributes:
        location: Where they come from, as it was given.
        classes: Names of the classes, sorted; a label is an index into them.
        records: All images of all splits, always in the same order.
        reader: Reads an image by its id.
        empty_classes: Class folders without an image; they are not among the classes.
        ignored: Files passed over: hidden ones, and those that are no images by their name.
    """

    location: str
    classes: tuple[str, ...]
    records: tuple[ImageRecord, ...] = field(repr=False)
    reader: Reader = field(repr=False, compare=False)
    empty_classes: tuple[str, ...] = ()
    ignored: int = 0

    def __len__(self) -> int:
        return len(self.records)

    def split(self, name: Split) -> tuple[ImageRecord, ...]:
        """The records of one split; empty where there is none."""
        return tuple(record for record in self.records if record.split == name)

    def without(self, images: Iterable[ImageRecord | str]) -> ImageSource:
        """The source less some images, given as records or ids. The classes stay."""
        gone = {image if isinstance(image, str) else image.id for image in images}
        return dataclasses.replace(self, records=tuple(r for r in self.records if r.id not in gone))

    def with_fewer(self, split: Split, number: int, *, seed: int = 0) -> ImageSource:
        """The source with at most `number` images of a split, each class losing the same share.

        Args:
            split: Whose images; the others stay.
            number: How many to keep; every class keeps one at least.
            seed: Decides which. A smaller number keeps some of those that a larger one keeps.

        Raises:
            DataError: `number` is less than the number of classes.
        """
        if number < len(self.classes):
            raise DataError(f"{number} images cannot show {len(self.classes)} classes; take more")
        records = self.split(split)
        if number >= len(records):
            return self
        by_class: dict[int, list[ImageRecord]] = defaultdict(list)
        for record in sorted(records, key=lambda record: _rank(record.id, seed)):
            by_class[record.label].append(record)
        kept: set[str] = set()
        for own in by_class.values():
            kept.update(record.id for record in own[: max(1, number * len(own) // len(records))])
        return self.without(record for record in records if record.id not in kept)

    def read(self, record: ImageRecord, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
        """The image as stored: any mode, not rotated, all pixels read.

        Raises:
            ImageError: It cannot be read; the message names the file.
        """
        return self.reader.load(record.id, max_pixels=max_pixels)

    def file(self, record: ImageRecord) -> Path | bytes | None:
        """The image as it is encoded: its file, or its bytes where it is a part of one; None for neither.

        Raises:
            ImageError: The id cannot be a file name, or the bytes cannot be read.
        """
        return self.reader.file(record.id)

    def path(self, record: ImageRecord) -> Path | None:
        """The file of an image, or None where images do not have files of their own.

        Raises:
            ImageError: The id cannot be a file name.
        """
        return self.reader.path(record.id)


def open_source(
    location: str | Path,
    *,
    val_fraction: float = 0.2,
    seed: int = 0,
    split_file: Path | None = None,
    hold_out: float = 0,
) -> ImageSource:
    """List the images at a location and settle their splits; no image is read.

    Args:
        location: A folder with one folder per class; a folder with such folders under train/, val/ (or
            valid/, validation/) and test/; a CSV or Parquet manifest (`path`, `label`, optionally
            `split`); shards, see `phiscale.data.shards`; or ``torchvision:NAME:ROOT``.
        val_fraction: Share of each class's train images that becomes the val split where there is
            none, in [0, 1). With 0 nothing is carved out, and a single class is allowed: the images
            are taken as they are, as evaluation wants them.
        seed: Decides which images become val. An image's place depends on its id and the seed only.
        split_file: CSV with the columns `path` and `split` that decides instead, for every image.
        hold_out: Train images to hold out as the val split even where there is one, which then is the test
            split: about so many, or a share below 1, of every class alike. 0 holds out none. The paper
            holds out 25,000 of ImageNet's and measures on ImageNet's val.

    Raises:
        DataError: Nothing usable is at the location, or the classes and splits do not fit together;
            the message says what is expected.
    """
    if isinstance(val_fraction, bool) or not 0 <= val_fraction < 1:
        raise DataError(f"val_fraction must lie in [0, 1), got {val_fraction!r}; 0.2 is usual")
    listing = _list(location)
    entries = listing.entries
    if split_file is not None:
        entries = _apply_split_file(entries, Path(split_file))
    classes = tuple(sorted({entry.label for entry in entries}))
    splits: list[Split] = [entry.split or "train" for entry in entries]
    if hold_out:
        val_fraction = _hold_out_share(hold_out, splits)
        splits = ["test" if split == "val" else split for split in splits]
    for_training = val_fraction > 0 or "val" in splits
    _check_classes(entries, splits, str(location), for_training=for_training)
    if val_fraction > 0 and "val" not in splits:
        splits = _carve(entries, splits, val_fraction, seed)
    index = {name: label for label, name in enumerate(classes)}
    return ImageSource(
        location=str(location),
        classes=classes,
        records=tuple(
            ImageRecord(entry.id, index[entry.label], split)
            for entry, split in zip(entries, splits, strict=True)
        ),
        reader=listing.reader,
        empty_classes=listing.empty_classes,
        ignored=listing.ignored,
    )


def _hold_out_share(hold_out: float, splits: Sequence[Split]) -> float:
    """Share of the train images to hold out, once it is seen that it can be done."""
    train = splits.count("train")
    if isinstance(hold_out, bool) or not 0 < hold_out < max(train, 1):
        raise DataError(
            f"hold_out must be a share below 1, or a number below that of the {train} train images; "
            f"got {hold_out!r}"
        )
    if "val" in splits and "test" in splits:
        raise DataError("the data has val and test images already; leave out hold_out")
    return hold_out if hold_out < 1 else hold_out / train


def _list(location: str | Path) -> Listing:
    text = str(location)
    if text.startswith("torchvision:"):
        return list_published(text)
    if is_packed(location):
        return list_shards(location)
    path = Path(location)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a zero character
        is_folder = is_file = False
    if is_folder:
        return list_folder(path)
    if is_file and path.suffix.lower() in MANIFEST_SUFFIXES:
        return list_manifest(path)
    if is_file:
        raise DataError(f"{printable(path)} is no manifest; give a folder, or a .csv, .parquet or .tar file")
    raise DataError(f"{printable(path)} does not exist; give a folder of class folders or a manifest")


def _apply_split_file(entries: Sequence[Entry], path: Path) -> tuple[Entry, ...]:
    splits = read_split_file(path)
    missing = [entry.id for entry in entries if entry.id not in splits]
    if missing:
        raise DataError(
            f"{printable(path)} does not list {len(missing)} of the images, such as {printable(missing[0])}; "
            "add them, with paths relative to the source"
        )
    unknown = splits.keys() - {entry.id for entry in entries}
    if unknown:
        raise DataError(
            f"{printable(path)} lists {len(unknown)} images that are not there, such as "
            f"{printable(min(unknown))}; paths must be relative to the source"
        )
    return tuple(entry._replace(split=splits[entry.id]) for entry in entries)


def _check_classes(
    entries: Sequence[Entry], splits: Sequence[Split], location: str, *, for_training: bool
) -> None:
    by_split: dict[Split, set[str]] = defaultdict(set)
    for entry, split in zip(entries, splits, strict=True):
        by_split[split].add(entry.label)
    if "train" not in by_split:
        return
    for split in ("val", "test"):
        extra = by_split[split] - by_split["train"]
        if extra:
            raise DataError(
                f"{_some(extra)} in {split} but not in train; a network cannot learn what it is not shown"
            )
    if for_training and len(by_split["train"]) < 2:
        raise DataError(
            f"{printable(location)} has one class, {_some(by_split['train'])}; a classifier needs two or more"
        )


def _carve(entries: Sequence[Entry], splits: list[Split], fraction: float, seed: int) -> list[Split]:
    """Move a share of every class from train to val, at least one image and never all."""
    sizes = Counter(entry.label for entry, split in zip(entries, splits, strict=True) if split == "train")
    single = {label for label, size in sizes.items() if size == 1}
    if single:
        raise DataError(
            f"{_some(single)} has a single image, which cannot be split into train and val; "
            "add images, remove the class, or choose a val fraction of 0"
        )
    wanted = {label: min(max(round(size * fraction), 1), size - 1) for label, size in sizes.items()}
    result = list(splits)
    # By a hash of each id, not by a shuffle: when images are added, most of the others stay in place.
    for position in sorted(range(len(entries)), key=lambda position: _rank(entries[position].id, seed)):
        label = entries[position].label
        if result[position] == "train" and wanted[label] > 0:
            result[position] = "val"
            wanted[label] -= 1
    return result


def _rank(image_id: str, seed: int) -> bytes:
    text = f"{seed}/{image_id}".encode("utf-8", "surrogateescape")
    return hashlib.blake2b(text, digest_size=16).digest()


def _some(names: Iterable[str]) -> str:
    """Up to three class names for a message."""
    ordered = sorted(names)
    more = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ("class " if len(ordered) == 1 else "classes ") + ", ".join(map(printable, ordered[:3])) + more
