"""What the readers of shards have in common."""

from __future__ import annotations

from PIL import Image

from phiscale.data.decode import DEFAULT_MAX_PIXELS, ImageError, load_image, printable
from phiscale.data.listing import Reader

__all__ = ["PackedImage", "PackedReader"]


class PackedReader:
    """Reads images that are parts of larger files; `file` is left to those who know the files."""

    def file(self, image_id: str) -> bytes:
        """The bytes of an image.

        Raises:
            ImageError: There is no such image, or its file cannot be read.
        """
        raise NotImplementedError

    def load(self, image_id: str, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
        """The image as stored, all pixels read.

        Raises:
            ImageError: It cannot be read.
        """
        try:
            return load_image(self.file(image_id), max_pixels=max_pixels)
        except ImageError as error:
            name = printable(image_id)
            raise ImageError(f"{name}: {error.reason}", problem=error.problem, reason=error.reason) from None

    def path(self, image_id: str) -> None:
        """None: these images do not have files of their own."""


class PackedImage(str):
    """The name of an image in a shard, which knows where its bytes are."""

    def __new__(cls, name: str, reader: Reader, image_id: str) -> PackedImage:
        """name: What people see. reader, image_id: Where the bytes are."""
        image = super().__new__(cls, name)
        image._reader, image._id = reader, image_id
        return image

    _reader: Reader
    _id: str

    def read(self) -> bytes:
        """The bytes. Raises `ImageError`."""
        data = self._reader.file(self._id)
        assert isinstance(data, bytes), "an image in a shard has no file of its own"
        return data
