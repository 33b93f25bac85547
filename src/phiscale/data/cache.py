"""Decoded pixels kept for the next epoch: uint8, at full size, in memory or in a file.

Images have different sizes, so their pixels lie one behind the other in one long array, with a table of
offsets. A cache is exact: what it returns is what decoding returns.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from phiscale.data.decode import ImageError, count_pixels, decode
from phiscale.data.sources import ImageRecord, ImageSource
from phiscale.data.storage import default_cache_dir, replacing
from phiscale.errors import DataError
from phiscale.preprocess import Preprocess

__all__ = ["CacheMode", "PixelCache", "cache_place", "default_cache_dir", "find_cache", "open_cache"]

CacheMode = Literal["auto", "memory", "disk", "off"]

_MEMORY_LIMIT = 2 * 2**30
_DISK_LIMIT = 20 * 2**30

_MAGIC = b"phiscale-pixels1"
_HEADER = struct.Struct("<16sQ")  # magic, number of images; then (height, width) of each as int32


class PixelCache:
    """Decoded images by position.

    A memory cache is one array, which forked workers share with their parent without a copy. A disk
    cache is one read-only memory map, which all processes share through the page cache; it is opened
    again after being sent to another process.
    """

    def __init__(
        self, pixels: npt.NDArray[np.uint8], shapes: npt.NDArray[np.int32], channels: int, path: Path | None
    ) -> None:
        self._pixels: npt.NDArray[np.uint8] | None = pixels
        self._shapes = shapes
        self._channels = channels
        self._offsets = _offsets(shapes, channels)
        self.path = path

    def __len__(self) -> int:
        return len(self._shapes)

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels."""
        return int(self._offsets[-1])

    def read(self, position: int) -> npt.NDArray[np.uint8] | None:
        """Pixels (height, width) or (height, width, 3), or None for an image that was unreadable."""
        if self._pixels is None:
            assert self.path is not None
            self._pixels = _map(self.path, len(self))
        height, width = self._shapes[position].tolist()
        if height == 0:
            return None
        pixels = self._pixels[self._offsets[position] : self._offsets[position + 1]]
        shape = (height, width) if self._channels == 1 else (height, width, self._channels)
        return pixels.reshape(shape)

    def is_here(self) -> bool:
        """Whether a disk cache's file is there and whole, which on another machine it may not be."""
        size = _HEADER.size + 8 * len(self) + self.nbytes
        with contextlib.suppress(OSError):
            return self.path is not None and self.path.stat().st_size == size
        return False

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if self.path is not None:
            state["_pixels"] = None  # a memory map would be sent as a copy of everything
        return state


def open_cache(
    source: ImageSource,
    records: Sequence[ImageRecord],
    preprocess: Preprocess,
    *,
    mode: CacheMode = "auto",
    folder: Path | None = None,
    limit: int | None = None,
    workers: int = 2,
) -> PixelCache | None:
    """The decoded images, from an earlier run's file or decoded now.

    Args:
        source: Reads the images.
        records: The images, in the order of their positions.
        preprocess: Its channels and background go into decoding; nothing else does.
        mode: ``"memory"``, ``"disk"``, ``"off"``, or ``"auto"``: memory if they fit, else disk if they
            fit there, else off.
        folder: Where files go; None is `default_cache_dir`.
        limit: Most bytes of decoded pixels; None is 2 GiB or a quarter of the machine's memory, and
            on disk 20 GiB or half of what is free. Sizes are read from the headers before anything is
            decoded.
        workers: Threads that decode.

    Returns:
        The cache, or None for none.

    Raises:
        DataError: The images do not fit within the limit and `mode` is not ``"auto"``, or the file
            cannot be written.
    """
    if mode == "off" or not records:
        return None
    builder = _Builder(source, tuple(records), preprocess, workers)
    folder = folder or default_cache_dir()
    if mode == "disk" and (found := builder.open_file(folder)) is not None:
        return found
    counts = builder.count()
    needed = int(counts.sum())
    place = cache_place(needed, mode=mode, folder=folder, limit=limit)
    if place is None:
        return None
    if place == "memory":
        return builder.in_memory(counts)
    try:
        return builder.open_file(folder) or builder.on_disk(counts, folder)
    except OSError as error:
        if mode == "auto":
            return None
        raise DataError(
            f"cannot write the cache in {folder}: {error.strerror}; choose another folder"
        ) from None


def cache_place(
    needed: int, *, mode: CacheMode, folder: Path | None = None, limit: int | None = None
) -> Literal["memory", "disk"] | None:
    """Where so many bytes of decoded pixels are kept; None for nowhere.

    Args:
        needed: Bytes of all decoded images.
        mode: As for `open_cache`.
        folder: As for `open_cache`.
        limit: As for `open_cache`.

    Raises:
        DataError: They do not fit, and `mode` is not ``"auto"``.
    """
    if mode == "off":
        return None
    limits: dict[Literal["memory", "disk"], int] = {
        "memory": _memory_limit() if limit is None else limit,
        "disk": _disk_limit(folder or default_cache_dir()) if limit is None else limit,
    }
    if mode == "auto":
        return next((place for place, most in limits.items() if needed <= most), None)
    if needed > limits[mode]:
        raise DataError(
            f"the decoded images need {_gib(needed)}, more than the {mode} cache's limit of "
            f"{_gib(limits[mode])}; choose another cache, or raise the limit"
        )
    return mode


def find_cache(
    source: ImageSource, records: Sequence[ImageRecord], preprocess: Preprocess, *, folder: Path | None = None
) -> PixelCache | None:
    """The file that an earlier run left of exactly these images, or None; nothing is decoded."""
    return _Builder(source, tuple(records), preprocess, 1).open_file(folder or default_cache_dir())


@dataclass(frozen=True)
class _Builder:
    source: ImageSource
    records: tuple[ImageRecord, ...]
    preprocess: Preprocess
    workers: int

    @property
    def channels(self) -> int:
        return self.preprocess.channels

    def count(self) -> npt.NDArray[np.int64]:
        """Bytes of each decoded image, from its header; 0 where it cannot be read."""

        def count_one(record: ImageRecord) -> int:
            try:
                file = self.source.file(record)
                if file is not None:
                    return count_pixels(file)
                image = self.source.read(record)
                return image.width * image.height
            except ImageError:
                return 0

        counts = np.fromiter(self._map(count_one), dtype=np.int64, count=len(self.records))
        return counts * self.channels

    def in_memory(self, counts: npt.NDArray[np.int64]) -> PixelCache:
        """Decode everything into one array."""
        pixels = np.empty(int(counts.sum()), dtype=np.uint8)
        shapes = np.zeros((len(counts), 2), dtype=np.int32)
        end = 0
        for position, array in enumerate(self._decoded(counts)):
            if array is not None:
                pixels[end : end + array.size] = array.reshape(-1)
                end += array.size
                shapes[position] = array.shape[:2]
        return PixelCache(pixels[:end], shapes, self.channels, None)

    def on_disk(self, counts: npt.NDArray[np.int64], folder: Path) -> PixelCache:
        """Decode everything into a file, which gets its name only when it is complete."""
        folder.mkdir(parents=True, exist_ok=True)
        path = self._file(folder)
        shapes = np.zeros((len(counts), 2), dtype="<i4")
        with replacing(path) as file:
            start = file.write(_HEADER.pack(_MAGIC, len(counts)))
            file.write(shapes.tobytes())
            for position, array in enumerate(self._decoded(counts)):
                if array is not None:
                    file.write(array.tobytes())
                    shapes[position] = array.shape[:2]
            file.seek(start)
            file.write(shapes.tobytes())
        result = self.open_file(folder)
        if result is None:
            raise DataError(f"the cache {path} vanished or changed while it was written; run again")
        return result

    def open_file(self, folder: Path) -> PixelCache | None:
        """The complete file of an earlier run, or None."""
        path, number = self._file(folder), len(self.records)
        with contextlib.suppress(OSError), path.open("rb") as file:
            head, table = file.read(_HEADER.size), file.read(8 * number)
            if head != _HEADER.pack(_MAGIC, number) or len(table) != 8 * number:
                return None
            shapes = np.frombuffer(table, dtype="<i4").reshape(number, 2)
            size = int(_offsets(shapes, self.channels)[-1])
            if size and path.stat().st_size == _HEADER.size + 8 * number + size:
                return PixelCache(_map(path, number), shapes, self.channels, path)
        return None

    def _file(self, folder: Path) -> Path:
        """Named by everything that decides the pixels: a changed image means another file."""
        key = hashlib.blake2b(digest_size=16)
        background = tuple(round(value) for value in self.preprocess.background)
        root = str(Path(self.source.location).absolute())
        key.update(repr((_MAGIC, root, self.channels, background)).encode("utf-8", "surrogateescape"))
        for record in self.records:
            stamp = self.source.reader.stamp(record.id)
            key.update(f"{record.id}\0{stamp}\0".encode("utf-8", "surrogateescape"))
        return folder / f"{key.hexdigest()}.pixels"

    def _decoded(self, counts: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.uint8] | None]:
        def decode_one(item: tuple[ImageRecord, int]) -> npt.NDArray[np.uint8] | None:
            record, expected = item
            try:
                image = decode(
                    self.source.read(record),
                    background=self.preprocess.background,
                    channels=self.channels,
                )
            except ImageError:
                return None
            array = np.asarray(image)
            return array if array.size == expected else None  # it changed since its header was read

        return self._map(decode_one, list(zip(self.records, counts.tolist(), strict=True)))

    def _map(self, work: Callable[[Any], Any], items: Sequence[Any] | None = None) -> Iterator[Any]:
        items = self.records if items is None else items
        pool = ThreadPoolExecutor(max_workers=self.workers)
        step = 16 * self.workers  # in portions, so that decoded images do not pile up
        try:
            for start in range(0, len(items), step):
                yield from pool.map(work, items[start : start + step])
        finally:
            pool.shutdown(cancel_futures=True)


def _map(path: Path, number: int) -> npt.NDArray[np.uint8]:
    return np.memmap(path, dtype=np.uint8, mode="r", offset=_HEADER.size + 8 * number)


def _offsets(shapes: npt.NDArray[np.int32], channels: int) -> npt.NDArray[np.int64]:
    sizes = shapes.astype(np.int64).prod(axis=1) * channels
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)])


def _memory_limit() -> int:
    try:
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not every system tells
        return _MEMORY_LIMIT
    return min(_MEMORY_LIMIT, physical // 4)


def _disk_limit(folder: Path) -> int:
    existing = next((parent for parent in (folder, *folder.parents) if parent.exists()), Path.cwd())
    return min(_DISK_LIMIT, shutil.disk_usage(existing).free // 2)


def _gib(number: int) -> str:
    return f"{number / 2**30:.2f} GiB"
