"""Images that are the same, or nearly: by a hash of the pixels, and by a perceptual hash.

The difference hash (dHash) has 64 bits: each says whether a cell of a 9×8 thumbnail is brighter than
its right neighbour. Two pictures whose hashes differ in at most `MAX_DISTANCE` bits are compared once
more on 16×16 thumbnails, because simple pictures (a digit, a logo on white) share hashes.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["MAX_DISTANCE", "Fingerprint", "fingerprint", "group_exact", "group_near", "near_pairs"]

MAX_DISTANCE = 3

_THUMBNAIL = 16

# Mean difference of two 16×16 thumbnails, in grey levels of 255, below which they show the same.
# Compressing again or resizing costs under 2; two photographs of one scene differ by 5 and more.
_MAX_THUMBNAIL_DIFFERENCE = 3.0

# Thumbnails of less contrast (standard deviation in grey levels) say nothing about the picture.
_MIN_CONTRAST = 4.0

# Six bands of bits: if at most three bits differ, at least three bands are equal. Three bands together
# are 32 bits, so that pictures that merely share a plain background do not meet.
_BANDS = ((0, 11), (11, 11), (22, 11), (33, 11), (44, 10), (54, 10))
_TABLES = tuple(combinations(range(len(_BANDS)), 3))

# Within one bucket, each hash is compared with this many that follow it in order. Real buckets are far
# smaller; thousands of frames of one film are still chained together, without a square of comparisons.
_MAX_NEIGHBOURS = 256


class Fingerprint(NamedTuple):
    """What is kept of an image: a hash of its pixels, its dHash, and a 16×16 grey thumbnail."""

    pixels: bytes
    dhash: int
    thumbnail: bytes


def fingerprint(image: Image.Image) -> Fingerprint:
    """Fingerprint of a decoded image (mode RGB or L)."""
    digest = hashlib.blake2b(f"{image.mode} {image.size}".encode(), digest_size=16)
    digest.update(image.tobytes())
    grey = image.convert("L")
    cells = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = np.packbits(cells[:, 1:] > cells[:, :-1])
    thumbnail = grey.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX).tobytes()
    return Fingerprint(digest.digest(), int.from_bytes(bits.tobytes(), "big"), thumbnail)


def group_exact(prints: Sequence[Fingerprint]) -> list[list[int]]:
    """Indices of images with equal pixels, in groups of two and more."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, item in enumerate(prints):
        groups[item.pixels].append(index)
    return [group for group in groups.values() if len(group) > 1]


def group_near(prints: Sequence[Fingerprint]) -> list[list[int]]:
    """Indices of images that look alike but differ in their pixels, in groups of two and more.

    Of images with equal pixels the first stands for all. Images without contrast are left out.
    """
    first: dict[bytes, int] = {}
    for index, item in enumerate(prints):
        first.setdefault(item.pixels, index)
    candidates = np.fromiter(first.values(), dtype=np.int64, count=len(first))
    thumbnails = np.frombuffer(b"".join(prints[i].thumbnail for i in candidates), dtype=np.uint8)
    thumbnails = thumbnails.reshape(len(candidates), _THUMBNAIL**2)
    vivid = thumbnails.std(axis=1) >= _MIN_CONTRAST
    candidates, thumbnails = candidates[vivid], thumbnails[vivid]
    hashes = np.array([prints[i].dhash for i in candidates], dtype=np.uint64)

    edges: list[tuple[int, int]] = []
    for left, right in near_pairs(hashes):
        difference = np.abs(thumbnails[left].astype(np.int16) - thumbnails[right]).mean(axis=1)
        alike = difference <= _MAX_THUMBNAIL_DIFFERENCE
        edges += zip(candidates[left[alike]].tolist(), candidates[right[alike]].tolist(), strict=True)
    return _components(edges)


def near_pairs(
    hashes: npt.NDArray[np.uint64],
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Pairs of hashes that differ in at most `MAX_DISTANCE` of 64 bits, each pair once.

    Args:
        hashes: (N,) unsigned 64-bit.

    Yields:
        Two index arrays of equal length; together they hold the pairs, in no particular order.
    """
    bands = [(hashes >> np.uint64(shift)) & np.uint64(2**width - 1) for shift, width in _BANDS]
    for number, table in enumerate(_TABLES):
        key = np.zeros_like(hashes)
        for band in table:
            key = (key << np.uint64(_BANDS[band][1])) | bands[band]
        # Equal keys side by side, and among those, similar hashes.
        order = np.lexsort((hashes, key))
        sorted_key = key[order]
        left = np.arange(len(hashes), dtype=np.int64)
        for offset in range(1, _MAX_NEIGHBOURS + 1):
            left = left[left + offset < len(hashes)]
            left = left[sorted_key[left] == sorted_key[left + offset]]
            if not len(left):
                break
            a, b = order[left], order[left + offset]
            new = _first_table(bands, a, b) == number
            a, b = a[new], b[new]
            close = _count_bits(hashes[a] ^ hashes[b]) <= MAX_DISTANCE
            if close.any():
                yield a[close], b[close]


def _first_table(
    bands: Sequence[npt.NDArray[np.uint64]], a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The first table in which each pair meets, so that later tables can pass it over."""
    equal = np.stack([band[a] == band[b] for band in bands])
    meets = np.stack([equal[list(table)].all(axis=0) for table in _TABLES])
    first: npt.NDArray[np.int64] = meets.argmax(axis=0)
    return first


def _count_bits(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    octets = values.astype(np.uint64).reshape(-1, 1).view(np.uint8)
    bits: npt.NDArray[np.int64] = np.unpackbits(octets, axis=1).sum(axis=1, dtype=np.int64)
    return bits


def _components(edges: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Connected components of a graph, each sorted, in the order of their first member."""
    parent: dict[int, int] = {}

    def find(item: int) -> int:
        parent.setdefault(item, item)
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for left, right in edges:
        parent[find(right)] = find(left)
    groups: dict[int, list[int]] = defaultdict(list)
    for item in sorted(parent):
        groups[find(item)].append(item)
    return sorted(groups.values())
