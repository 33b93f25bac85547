"""Images as the network's pixels: the fast way where there is one, with its difference measured."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phiscale.data.decode import ImageInput, decode
from phiscale.data.jpeg import read_jpeg
from phiscale.data.sizes import fit_size
from phiscale.preprocess import Preprocess

__all__ = ["FastDecoding", "ImageReader", "read_exactly"]

# Where there are fewer images, measuring would take longer than it is worth.
_MEASURED_FROM = 50
_MEASURED_IMAGES = 4


@dataclass(frozen=True, kw_only=True)
class FastDecoding:
    """How far fast decoding is from exact decoding.

    Attributes:
        images: How many JPEGs were decoded in both ways.
        grey_levels: Mean absolute difference of a value from 0 to 255.
    """

    images: int
    grey_levels: float


class ImageReader:
    """Reads images in any number of threads.

    Args:
        preprocess: How images are prepared.
        exact: Whether every image goes the way that training and evaluation go. Otherwise JPEGs take a
            shorter one, and some of them are read in both ways after the first 50 images.
    """

    def __init__(self, preprocess: Preprocess, *, exact: bool = False) -> None:
        self._preprocess = preprocess
        self._exact = exact
        self._lock = threading.Lock()
        self._seen = 0
        self._to_measure = _MEASURED_IMAGES
        self._differences: list[float] = []

    @property
    def fast_decoding(self) -> FastDecoding | None:
        """What was measured so far; None where nothing was."""
        with self._lock:
            if not self._differences:
                return None
            return FastDecoding(
                images=len(self._differences), grey_levels=sum(self._differences) / len(self._differences)
            )

    def __call__(self, image: ImageInput) -> NDArray[np.uint8]:
        """Read an image.

        Args:
            image: As for `phiscale.data.decode.decode`.

        Returns:
            uint8 (height, width, channels), before normalisation.

        Raises:
            DataError: The image cannot be read.
        """
        pixels = None if self._exact else read_jpeg(image, self._preprocess)
        if pixels is None:
            with self._lock:
                self._seen += 1
            return read_exactly(image, self._preprocess)
        if self._is_to_be_measured():
            exact = read_exactly(image, self._preprocess)
            difference = float(np.abs(exact.astype(np.int16) - pixels).mean())
            with self._lock:
                self._differences.append(difference)
        return pixels

    def _is_to_be_measured(self) -> bool:
        with self._lock:
            self._seen += 1
            measure = self._seen > _MEASURED_FROM and self._to_measure > 0
            self._to_measure -= measure
            return measure


def read_exactly(image: ImageInput, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Read an image as training and evaluation do. Returns uint8 (height, width, channels).

    Raises:
        DataError: The image cannot be read.
    """
    picture = decode(image, background=preprocess.background, channels=preprocess.channels)
    pixels = np.asarray(fit_size(picture, preprocess))
    return pixels if pixels.ndim == 3 else pixels[:, :, None]
