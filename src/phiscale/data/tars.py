"""Tar shards as WebDataset has them: ``0001.jpg`` and ``0001.cls`` or ``0001.json``, sample after sample.

A tar is not compressed, so an image can be read from its offset. Offsets and labels are found once per shard:
`phiscale data pack` stores them beside it, those of other people's shards are kept in the cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from phiscale.data.decode import ImageError, printable
from phiscale.data.folders import IMAGE_SUFFIXES
from phiscale.data.listing import Entry, Listing, Split
from phiscale.data.packed import PackedReader
from phiscale.data.storage import default_cache_dir, replacing
from phiscale.errors import DataError

__all__ = ["Member", "list_tars", "store_index"]

_VERSION = 1
_LABEL_KEYS = ("label", "class", "cls", "class_name")
_LABEL_BYTES = 2**20  # a file of labels that is larger is none


class Member(NamedTuple):
    """An image in a tar: its name there, its label, the path it came from if known, where its bytes are."""

    name: str
    label: str
    path: str | None
    offset: int
    size: int


@dataclass(frozen=True)
class TarReader(PackedReader):
    """Reads images from tars by offset. Every read opens its file: nothing is shared with other processes.

    Attributes:
        shards: The files.
        stamps: Size and time of change of each, in one text.
        rows: Image id → row of `places`.
        places: (N, 3) of int64: shard, offset, size in bytes.
    """

    shards: tuple[Path, ...]
    stamps: tuple[str, ...]
    rows: Mapping[str, int] = field(repr=False)
    places: npt.NDArray[np.int64] = field(repr=False)

    def file(self, image_id: str) -> bytes:
        """The bytes of an image.

        Raises:
            ImageError: There is no such image, or its shard cannot be read.
        """
        shard, offset, size = self._place(image_id)
        try:
            with self.shards[shard].open("rb", buffering=0) as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            reason = error.strerror or "cannot be read"
            raise ImageError(f"{printable(self.shards[shard])}: {reason}", reason=reason) from None
        if len(data) < size:
            reason = "the shard ends too early"
            raise ImageError(f"{printable(image_id)}: {reason}", problem="truncated", reason=reason)
        return data

    def stamp(self, image_id: str) -> str:
        """Size and time of change of the shard, and the place in it."""
        shard, offset, _ = self._place(image_id)
        return f"{self.stamps[shard]} {offset}"

    def _place(self, image_id: str) -> tuple[int, int, int]:
        row = self.rows.get(image_id)
        if row is None:
            raise ImageError(f"{printable(image_id)}: no such image", reason="no such image")
        shard, offset, size = self.places[row].tolist()
        return shard, offset, size


def list_tars(
    shards: Sequence[Path], root: Path, splits: Sequence[Split | None], *, by_path: bool
) -> Listing:
    """The images of some tars, in their order.

    Args:
        shards: The files.
        root: Ids of images begin with their shard's path from here.
        splits: Of each shard; None where it is open.
        by_path: Whether the path that an image had before it was packed is its id.

    Raises:
        DataError: A file is no tar or is cut off, an image has no label, or two have the same id.
    """
    entries: list[Entry] = []
    places: list[tuple[int, int, int]] = []
    rows: dict[str, int] = {}
    ignored = 0
    for number, (shard, split) in enumerate(zip(shards, splits, strict=True)):
        members, passed_over = _members(shard)
        ignored += passed_over
        prefix = _prefix(shard, root)
        for member in members:
            image_id = member.path if by_path and member.path else f"{prefix}/{member.name}"
            if image_id in rows:
                raise DataError(f"{printable(shard)} holds {printable(image_id)} a second time; pack it anew")
            rows[image_id] = len(places)
            places.append((number, member.offset, member.size))
            entries.append(Entry(image_id, member.label, split))
    if not entries:
        raise DataError(f"no images in {printable(shards[0])}{' and its like' if len(shards) > 1 else ''}")
    reader = TarReader(
        tuple(shard.absolute() for shard in shards),
        tuple(_stamp(shard) for shard in shards),
        rows,
        np.array(places, dtype=np.int64),
    )
    return Listing(entries=tuple(entries), reader=reader, ignored=ignored)


def store_index(shard: Path) -> None:
    """Look through a tar and store its index beside it."""
    members, ignored = _scan(shard)
    _write_index(_beside(shard), str(shard.stat().st_size), members, ignored)


def _members(shard: Path) -> tuple[list[Member], int]:
    """Images of a tar from a stored index, or found now and stored; and the number of files passed over."""
    try:
        status = shard.stat()
    except OSError as error:
        raise DataError(f"{printable(shard)}: {error.strerror}") from None
    # A copy has another time of change, so the index beside a shard is known by the size alone.
    if (found := _read_index(_beside(shard), str(status.st_size))) is not None:
        return found
    stamp = _stamp(shard)
    name = hashlib.blake2b(
        str(shard.resolve()).encode("utf-8", "surrogateescape"), digest_size=16
    ).hexdigest()
    cached = default_cache_dir() / "shards" / f"{name}.json"
    if (found := _read_index(cached, stamp)) is not None:
        return found
    members, ignored = _scan(shard)
    with contextlib.suppress(OSError):  # without it, the next run looks again
        cached.parent.mkdir(parents=True, exist_ok=True)
        _write_index(cached, stamp, members, ignored)
    return members, ignored


def _scan(shard: Path) -> tuple[list[Member], int]:
    """Look through a tar."""
    members: list[Member] = []
    ignored = 0
    try:
        with tarfile.open(shard, "r:") as tar:
            files = (member for member in tar if member.isfile())
            for key, group in groupby(files, key=lambda member: _key(member.name)):
                found, passed_over = _sample(tar, key, list(group), shard)
                members += found
                ignored += passed_over
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(
            f"{printable(shard)} is no tar, is compressed or is cut off ({printable(error)}); get it again"
        ) from None
    return members, ignored


def _sample(
    tar: tarfile.TarFile, key: str, files: Sequence[tarfile.TarInfo], shard: Path
) -> tuple[list[Member], int]:
    """The image of one sample, if it has one, and the number of files that are neither image nor label."""
    images = [file for file in files if _suffix(file.name) in IMAGE_SUFFIXES]
    about = {_suffix(file.name): file for file in files if _suffix(file.name) in (".cls", ".json")}
    others = len(files) - len(images) - len(about)
    if not images:
        return [], len(files)
    if len(images) > 1:
        raise DataError(
            f"{printable(shard)}: the sample {printable(key)} has {len(images)} images; one is wanted"
        )
    texts = {suffix: _text(tar, file) for suffix, file in about.items()}
    content = _json(texts.get(".json", ""))
    # The name of the class says more than its number, which .cls usually is.
    label = content.get("label") if isinstance(content.get("label"), str) else None
    label = (
        label
        or texts.get(".cls", "").strip()
        or next((content[name] for name in _LABEL_KEYS if content.get(name) is not None), None)
    )
    if label is None or str(label) == "":
        raise DataError(
            f"{printable(shard)}: {printable(key)} has no label; a .cls file with the class, or a .json file "
            'with "label" must stand beside the image'
        )
    path = content.get("path")
    image = images[0]
    return [
        Member(
            image.name,
            str(label),
            path if isinstance(path, str) else None,
            image.offset_data,
            image.size,
        )
    ], others


def _key(name: str) -> str:
    """WebDataset's key: the path up to the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _suffix(name: str) -> str:
    return f".{name.rpartition('.')[2].lower()}"


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = tar.extractfile(member) if member.size <= _LABEL_BYTES else None
    return "" if file is None else file.read().decode("utf-8", "replace")


def _json(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _prefix(shard: Path, root: Path) -> str:
    inside = shard.relative_to(root) if shard.is_relative_to(root) else shard
    return inside.with_suffix("").as_posix()


def _stamp(shard: Path) -> str:
    status = shard.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _beside(shard: Path) -> Path:
    return shard.with_name(f"{shard.name}.index.json")


def _read_index(path: Path, stamp: str) -> tuple[list[Member], int] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != _VERSION or content["stamp"] != stamp:
            return None
        return [Member(*row) for row in content["members"]], int(content["ignored"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_index(path: Path, stamp: str, members: Iterable[Member], ignored: int) -> None:
    content = {"version": _VERSION, "stamp": stamp, "ignored": ignored, "members": list(members)}
    with replacing(path) as file:
        file.write(json.dumps(content).encode())
