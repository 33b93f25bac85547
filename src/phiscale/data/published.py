"""torchvision's data sets, as they lie on disk. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from phiscale.data.decode import DEFAULT_MAX_PIXELS, ImageError, load_image, printable
from phiscale.data.listing import Entry, Listing, Split
from phiscale.errors import DataError

__all__ = ["PUBLISHED", "list_published"]

# How each class is told which part to open: train=True/False, or split="train"/"test".
PUBLISHED: dict[str, Literal["train", "split"]] = {
    "MNIST": "train",
    "FashionMNIST": "train",
    "KMNIST": "train",
    "CIFAR10": "train",
    "CIFAR100": "train",
    "USPS": "train",
    "SVHN": "split",
    "STL10": "split",
}

_SPLITS: tuple[Split, ...] = ("train", "test")


@dataclass(frozen=True)
class PublishedReader:
    """Reads ``"train/123"`` from the torchvision data set of the split."""

    parts: Mapping[Any, Any]

    def load(self, image_id: str, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
        """The image at a position of a split.

        Raises:
            ImageError: There is no such image.
        """
        split, _, index = image_id.partition("/")
        try:
            image = self.parts[split][int(index)][0]
        except (KeyError, ValueError, IndexError):
            raise ImageError(f"{printable(image_id)}: no such image") from None
        return load_image(image, max_pixels=max_pixels)

    def path(self, image_id: str) -> None:
        """None: these images do not have files of their own."""

    def file(self, image_id: str) -> None:
        """None: they are arrays."""

    def stamp(self, image_id: str) -> str:
        """Empty: published data do not change."""
        return ""


def list_published(location: str) -> Listing:
    """The images of ``torchvision:NAME:ROOT``.

    Raises:
        DataError: The location or the name is not known, or the files are not under ROOT.
    """
    _, _, rest = location.partition(":")
    name, _, root = rest.partition(":")
    if not name or not root:
        raise DataError(
            f"{printable(location)!r} must read torchvision:NAME:ROOT, as in torchvision:CIFAR10:data"
        )
    if name not in PUBLISHED:
        known = ", ".join(PUBLISHED)
        raise DataError(f"torchvision data set {printable(name)!r} is not known; known: {known}")
    parts: dict[Split, Any] = {split: _open(name, Path(root), split) for split in _SPLITS}
    entries: list[Entry] = []
    for split, part in parts.items():
        labels = [int(label) for label in (part.targets if hasattr(part, "targets") else part.labels)]
        # Digits have no names of their own in USPS and SVHN.
        names = getattr(part, "classes", None) or [str(digit) for digit in range(10)]
        entries += [Entry(f"{split}/{index}", names[label], split) for index, label in enumerate(labels)]
    return Listing(entries=tuple(entries), reader=PublishedReader(parts))


def _open(name: str, root: Path, split: Split) -> Any:
    from torchvision import datasets

    choice = {"train": split == "train"} if PUBLISHED[name] == "train" else {"split": split}
    try:
        return getattr(datasets, name)(root=root.absolute(), download=False, **choice)
    except (RuntimeError, OSError, ValueError):
        raise DataError(
            f"{name} is not under {printable(root)}, or not whole; to download it: python -c "
            f"\"from torchvision.datasets import {name}; {name}('{printable(root)}', download=True)\""
        ) from None
