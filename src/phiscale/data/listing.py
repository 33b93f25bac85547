"""What the readers of folders, manifests and torchvision data sets hand to `phiscale.data.sources`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from PIL import Image

from phiscale.data.decode import DEFAULT_MAX_PIXELS, ImageError, load_image

__all__ = ["SPLIT_NAMES", "Entry", "FileReader", "Listing", "Reader", "Split"]

Split = Literal["train", "val", "test"]

# What people call the three parts, in folder names and manifests.
SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


class Entry(NamedTuple):
    """One image before the splits are settled; `split` is None where nobody has decided."""

    id: str
    label: str
    split: Split | None


class Reader(Protocol):
    """Reads the images of one source by id."""

    def load(self, image_id: str, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
        """The image as stored, all pixels read. Raises `ImageError`."""
        ...

    def path(self, image_id: str) -> Path | None:
        """The file that holds the image alone, or None."""
        ...

    def file(self, image_id: str) -> Path | bytes | None:
        """The file of the image, or its bytes; None where it has neither. Raises `ImageError`."""
        ...

    def stamp(self, image_id: str) -> str:
        """A text that changes when the stored image does; empty where nothing tells."""
        ...


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Everything found at a location.

    Attributes:
        entries: The images, in an order that is the same on every machine.
        reader: Reads them.
        empty_classes: Class folders without an image.
        ignored: Files passed over: hidden ones, and those that are no images by their name.
    """

    entries: tuple[Entry, ...]
    reader: Reader
    empty_classes: tuple[str, ...] = ()
    ignored: int = 0


@dataclass(frozen=True)
class FileReader:
    """Images that are files; an id is a path relative to `root`, or an absolute one."""

    root: Path

    def load(self, image_id: str, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
        """The image as stored, all pixels read.

        Raises:
            ImageError: It cannot be read.
        """
        return load_image(self.path(image_id), max_pixels=max_pixels)

    def path(self, image_id: str) -> Path:
        """Where the file is.

        Raises:
            ImageError: The id cannot be a file name.
        """
        if "\0" in image_id:
            raise ImageError("a file name cannot hold the character zero")
        return self.root / image_id

    def file(self, image_id: str) -> Path:
        """The same as `path`."""
        return self.path(image_id)

    def stamp(self, image_id: str) -> str:
        """Size and time of change of the file; empty where it cannot be asked."""
        try:
            status = self.path(image_id).stat()
        except (OSError, ValueError, ImageError):
            return ""
        return f"{status.st_size} {status.st_mtime_ns}"

    def __reduce__(self) -> tuple[type[FileReader], tuple[Path]]:
        # Who gets a copy may work in another folder.
        return FileReader, (self.root.absolute(),)
