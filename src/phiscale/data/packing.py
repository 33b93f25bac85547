"""`phiscale data pack`: the images of any source into few large files.

Beside the shards stands ``index.json``: classes, counts, and the checksum of each shard. It comes last. Until
then ``index.part.json`` lists the shards that are whole, and the same command goes on after them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

import numpy as np
from PIL import Image

from phiscale.data.decode import ImageError, decode, printable
from phiscale.data.folders import IMAGE_SUFFIXES
from phiscale.data.parquet_images import METADATA
from phiscale.data.shards import FORMAT, INDEX, UNFINISHED
from phiscale.data.sources import ImageRecord, ImageSource, Split
from phiscale.data.storage import PART_SUFFIX, replacing
from phiscale.data.tars import store_index
from phiscale.errors import DataError, require

__all__ = ["DEFAULT_SHARD_BYTES", "PackFormat", "PackReport", "pack"]

PackFormat = Literal["webdataset", "parquet"]
DEFAULT_SHARD_BYTES = 256_000_000

_SUFFIXES: dict[PackFormat, str] = {"webdataset": ".tar", "parquet": ".parquet"}
_QUALITY = 95
_ROWS_PER_GROUP = 16  # what is read for one image of a Parquet file
_MEMBER_BYTES = 3 * 1024  # headers and padding of an image and its two labels in a tar
_PLAIN_TAR = {"mtime": 0, "uid": 0, "gid": 0, "uname": "", "gname": "", "mode": 0o644}


@dataclass(frozen=True, kw_only=True)
class PackReport:
    """What was packed.

    Attributes:
        folder: Where the shards are.
        images: How many images they hold.
        shards: How many there are.
        size_bytes: Of all shards.
        went_on: Shards that were there from a run that was broken off.
    """

    folder: Path
    images: int
    shards: int
    size_bytes: int
    went_on: int


def pack(
    source: ImageSource,
    folder: Path,
    *,
    format: PackFormat = "webdataset",  # noqa: A002
    shard_size: int = DEFAULT_SHARD_BYTES,
    image_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PackReport:
    """Write the images of a source into shards.

    Without `image_size` the files' own bytes are packed, so training from the shards is training from the
    files, bit for bit. What was interrupted goes on after the last whole shard.

    Args:
        source: The images. Open it with a `val_fraction` of 0 to leave splits open that are open.
        folder: Where to; made where it is not there. It must hold nothing else.
        format: ``"webdataset"`` or ``"parquet"``.
        shard_size: About how many bytes a shard has.
        image_size: Longest allowed shorter side in pixels. A larger image is shrunk to it and stored as a
            JPEG of quality 95. None keeps every file as it is.
        progress: Called as ``progress(done, total)``.

    Raises:
        DataError: The folder holds something else, or cannot be written.
        MissingDependencyError: Parquet is asked for, and pyarrow is not installed.
    """
    if image_size is not None and image_size < 1:
        raise DataError(f"the image size must be at least 1 pixel, got {image_size}")
    if shard_size < 1:
        raise DataError(f"the shard size must be at least 1 byte, got {shard_size}")
    if format == "parquet":
        require("pyarrow.parquet", extra="data")
    run = _Run(source, folder, format, int(shard_size), image_size)
    try:
        return run.finish(progress or (lambda done, total: None))
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"cannot write to {printable(folder)}: {reason}; make room and go on") from None


class _Run:
    """One packing, from where an earlier one stopped."""

    def __init__(
        self, source: ImageSource, folder: Path, kind: PackFormat, shard_size: int, image_size: int | None
    ) -> None:
        self.source, self.folder, self.kind = source, folder, kind
        self.shard_size, self.image_size = shard_size, image_size
        self.parts = _parts(source)

    def finish(self, progress: Callable[[int, int], None]) -> PackReport:
        done = self._found()
        went_on, total = len(done), len(self.source)
        if not (self.folder / INDEX).is_file():
            for split, records in self.parts:
                start = sum(shard["images"] for shard in done if shard["split"] == split)
                number = sum(shard["split"] == split for shard in done)
                while start < len(records):
                    path = self.folder / f"{split or 'images'}-{number:04d}{_SUFFIXES[self.kind]}"
                    before = sum(shard["images"] for shard in done)
                    with replacing(path) as file:
                        written = self._write(file, records[start:], lambda n: progress(before + n, total))  # noqa: B023
                    if self.kind == "webdataset":
                        store_index(path)
                    done.append(
                        {
                            "file": path.name,
                            "split": split,
                            "images": written,
                            "bytes": path.stat().st_size,
                            "sha256": _sha256(path),
                        }
                    )
                    self._write_index(UNFINISHED, done)
                    start, number = start + written, number + 1
            self._write_index(INDEX, done)
            (self.folder / UNFINISHED).unlink(missing_ok=True)
        return PackReport(
            folder=self.folder,
            images=total,
            shards=len(done),
            size_bytes=sum(shard["bytes"] for shard in done),
            went_on=went_on,
        )

    def _found(self) -> list[dict[str, Any]]:
        """Whole shards of an earlier run, and the folder made ready."""
        self.folder.mkdir(parents=True, exist_ok=True)
        indices = [self.folder / name for name in (INDEX, UNFINISHED)]
        stored = next((path for path in indices if path.is_file()), None)
        visible = [path for path in self.folder.iterdir() if path.suffix != PART_SUFFIX]
        if stored is None:
            if visible:
                raise DataError(f"{printable(self.folder)} holds {printable(visible[0].name)}; empty it")
            self._write_index(UNFINISHED, [])
            return []
        try:
            content = json.loads(stored.read_text(encoding="utf-8"))
            shards = list(content["shards"])
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{printable(stored)} is damaged; give an empty folder") from None
        if content.get("made_from") != self._made_from():
            raise DataError(
                f"{printable(self.folder)} holds other images, or the same packed otherwise; empty it"
            )
        for left in self.folder.glob(f"*{PART_SUFFIX}"):
            left.unlink(missing_ok=True)
        return self._whole(shards)

    def _whole(self, shards: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for shard in shards:
            path = self.folder / shard["file"]
            if not path.is_file() or _sha256(path) != shard["sha256"]:
                raise DataError(
                    f"{printable(path)} is missing or damaged; empty {printable(self.folder)} and pack anew"
                )
        return shards

    def _write_index(self, name: str, shards: Sequence[dict[str, Any]]) -> None:
        counts = Counter((record.split, record.label) for record in self.source.records)
        splits = list(dict.fromkeys(record.split for record in self.source.records))
        content = {
            "format": FORMAT,
            "version": 1,
            "kind": self.kind,
            "classes": list(self.source.classes),
            "images": len(self.source),
            "counts": {
                split: {label: counts[split, index] for index, label in enumerate(self.source.classes)}
                for split in splits
            },
            "image_size": self.image_size,
            "made_from": self._made_from(),
            "shards": list(shards),
        }
        with replacing(self.folder / name) as file:
            file.write(json.dumps(content, indent=2).encode())

    def _made_from(self) -> str:
        """A checksum of all that decides the shards: images, labels, splits, settings."""
        key = hashlib.sha256(
            repr((self.kind, self.shard_size, self.image_size, self.source.classes)).encode()
        )
        for record in self.source.records:
            stamp = self.source.reader.stamp(record.id)
            about = repr((record.id, record.label, record.split, stamp))
            key.update(about.encode("utf-8", "surrogateescape"))
        return key.hexdigest()

    def _write(self, file: IO[bytes], records: Sequence[ImageRecord], progress: Callable[[int], None]) -> int:
        """Fill one shard. Returns how many images it took."""
        open_shard = _tar_shard if self.kind == "webdataset" else _parquet_shard
        size = written = 0
        with open_shard(file, self.source) as add:
            for record in records:
                data, suffix = _encoded(self.source, record, self.image_size)
                add(record, data, suffix)
                size, written = size + len(data) + _MEMBER_BYTES, written + 1
                progress(written)
                if size >= self.shard_size:
                    break
        return written


_Add = Callable[[ImageRecord, bytes, str], None]


@contextlib.contextmanager
def _tar_shard(file: IO[bytes], source: ImageSource) -> Iterator[_Add]:
    """A function that adds an image to a tar: ``000001.jpg``, ``000001.cls`` and ``000001.json``."""
    count = 0
    with tarfile.open(fileobj=file, mode="w:", format=tarfile.USTAR_FORMAT) as tar:

        def add(record: ImageRecord, data: bytes, suffix: str) -> None:
            nonlocal count
            about = {"label": source.classes[record.label], "path": record.id}
            for ending, content in (
                (suffix, data),
                (".cls", str(record.label).encode()),
                (".json", json.dumps(about).encode()),
            ):
                member = tarfile.TarInfo(f"{count:06d}{ending}")
                member.size = len(content)
                for name, value in _PLAIN_TAR.items():
                    setattr(member, name, value)
                tar.addfile(member, io.BytesIO(content))
            count += 1

        yield add


@contextlib.contextmanager
def _parquet_shard(file: IO[bytes], source: ImageSource) -> Iterator[_Add]:
    """A function that adds a row to a Parquet file that Hugging Face's `datasets` reads as images."""
    import pyarrow
    from pyarrow import parquet

    features = {"image": {"_type": "Image"}, "label": {"names": list(source.classes), "_type": "ClassLabel"}}
    schema = pyarrow.schema(
        [
            ("image", pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])),
            ("label", pyarrow.int64()),
        ],
        metadata={METADATA: json.dumps({"info": {"features": features}}).encode()},
    )
    # Compressed again, images take longer to read and no less room.
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    rows: list[dict[str, Any]] = []
    with parquet.ParquetWriter(file, schema, **options) as writer:

        def flush() -> None:
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
            rows.clear()

        def add(record: ImageRecord, data: bytes, suffix: str) -> None:
            path = record.id.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            rows.append({"image": {"bytes": data, "path": path}, "label": record.label})
            if len(rows) == _ROWS_PER_GROUP:
                flush()

        yield add
        if rows:
            flush()


def _parts(source: ImageSource) -> list[tuple[Split | None, list[ImageRecord]]]:
    """The records of each split, in the order of the source; no split where all are train."""
    splits = list(dict.fromkeys(record.split for record in source.records))
    if splits == ["train"]:
        return [(None, list(source.records))]
    return [(split, list(source.split(split))) for split in splits]


def _encoded(source: ImageSource, record: ImageRecord, image_size: int | None) -> tuple[bytes, str]:
    """The bytes to store and their suffix."""
    try:
        file = source.file(record)
        if file is None:
            return _png(source.read(record))
        data = file.read_bytes() if isinstance(file, Path) else file
    except (ImageError, OSError):
        # A scan of the shards then says of it what it says of the file.
        return b"", _suffix(record)
    if image_size is None:
        return data, _suffix(record)
    try:
        picture = decode(data)
    except ImageError:
        return data, _suffix(record)
    if min(picture.size) <= image_size:
        return data, _suffix(record)
    scale = image_size / min(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    buffer = io.BytesIO()
    picture.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue(), ".jpg"


def _suffix(record: ImageRecord) -> str:
    suffix = PurePosixPath(record.id).suffix.lower()
    return suffix if suffix in IMAGE_SUFFIXES else ".jpg"


def _png(image: Image.Image) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(buffer, "PNG")
    return buffer.getvalue(), ".png"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
